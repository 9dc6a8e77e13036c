#!/bin/sh
# Keys for the load test, one a person, each with a limit that does not decide the run. Those of an earlier run end here.
#   loadtest-keys.sh        makes them
#   loadtest-keys.sh end    ends them: what `make load` does when the run is over, however it ended
set -eu

bi-query keys revoke loadtest >/dev/null 2>&1 || true
if [ "${1:-}" = end ]; then
    rm -f /run/loadtest/keys
    exit 0
fi
bi-query keys add loadtest --role analyst --count 1000 --rate-limit 1000000/minute --expires-days 1 >/run/loadtest/.keys
chmod 0444 /run/loadtest/.keys
mv /run/loadtest/.keys /run/loadtest/keys
