#!/usr/bin/env bash
# What `make load` cannot do in its container is told before anything is built or started; the exit code is 2 then.
#   loadtest/refuse.sh SCENARIO
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/lib.sh
. infra/lib.sh

scenario=$1
if [[ $(setting COMPOSE_FILE "") == *compose.prod.yaml* ]]; then
  # Publishing is done where the data are; the command runs on the machine that sends the load.
  more=$([ "$scenario" != publish ] || echo " \\
    --publish-command \"ssh SERVER 'cd FOLDER && make -s rollback || docker compose run --rm -T publish publish'\"")
  cat >&2 <<WORDS
load: production's edge is reached from outside alone, not by a container of this stack. From another machine:
  make -s keys ARGS="add load --role analyst --count 100 --rate-limit 1000000/minute --expires-days 1" > keys.txt     # here
  python -m loadtest $scenario --url https://$(setting BI_DOMAIN bi.example.com) --client-only --keys-file keys.txt$more
  make keys ARGS="revoke load"                                                                                     # here
WORDS
  exit 2
fi
if [ "$scenario" = publish ]; then
  cat >&2 <<WORDS
load: scenario publish runs a command that publishes, which a container cannot. On this machine (make lint makes .venv), with
two snapshots or more (make snapshots) to change between:
  make -s keys ARGS="add load --role analyst --count 100 --rate-limit 1000000/minute --expires-days 1" > keys.txt
  .venv/bin/python -m loadtest publish --url http://127.0.0.1:$(setting BI_QUERY_PORT 8000) \\
    --prometheus http://127.0.0.1:$(setting BI_PROMETHEUS_PORT 9090) --keys-file keys.txt \\
    --publish-command "sh -c 'make -s rollback || docker compose run --rm -T publish publish'"
  make keys ARGS="revoke load"
Or name a command of yours that brings new data and publishes it.
WORDS
  exit 2
fi
