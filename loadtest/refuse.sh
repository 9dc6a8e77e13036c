#!/usr/bin/env bash
# What `make load` cannot do in its container is told before anything is built or started; the exit code is 2 then.
#   loadtest/refuse.sh SCENARIO
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/lib.sh
. infra/lib.sh

scenario=$1
# Keys for no one but you, where git does not look; `make -s`, for what make itself says is no key.
keys=.stack/load-keys.txt
make_keys="(umask 077; make -s keys ARGS=\"add load --role analyst --count 100 --rate-limit 1000000/minute --expires-days 1\" > $keys)"
if [[ $(setting COMPOSE_FILE "") == *compose.prod.yaml* ]]; then
  mkdir -p .stack
  # Publishing is done where the data are; the command runs on the machine that sends the load.
  more='' last=''
  if [ "$scenario" = publish ]; then
    more=" \\
    --publish-command \"ssh SERVER 'cd FOLDER && { make -s rollback || make -s republish; }'\""
    last="
  make -s republish                          # here: the last change may have left older data"
  fi
  cat >&2 <<WORDS
load: production's edge is reached from outside alone, not by a container of this stack. From another machine:
  $make_keys   # here; then take it there
  python -m loadtest $scenario --url https://$(setting BI_DOMAIN bi.example.com) --client-only --keys-file load-keys.txt$more$last
  make keys ARGS="revoke load"               # here
  rm $keys                   # here, and load-keys.txt there
WORDS
  exit 2
fi
if [ "$scenario" = publish ]; then
  mkdir -p .stack
  cat >&2 <<WORDS
load: scenario publish runs a command that publishes, which a container cannot. On this machine (make lint makes .venv), with
two snapshots or more (make snapshots) to change between:
  $make_keys
  .venv/bin/python -m loadtest publish --url http://127.0.0.1:$(setting BI_QUERY_PORT 8000) \\
    --prometheus http://127.0.0.1:$(setting BI_PROMETHEUS_PORT 9090) --keys-file $keys \\
    --publish-command "sh -c 'make -s rollback || make -s republish'"
  make -s republish
  make keys ARGS="revoke load"
  rm $keys
The last change may have left older data, which would stay: republish ends that. Or name a command of yours that brings new data
and publishes it.
WORDS
  exit 2
fi
