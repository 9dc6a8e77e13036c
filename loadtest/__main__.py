"""`python -m loadtest`."""

import locust  # noqa: F401 - first: it patches sockets and threads for gevent, before anything else opens one

from loadtest.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
