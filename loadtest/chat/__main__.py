"""`python -m loadtest.chat`."""

from loadtest.chat.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
