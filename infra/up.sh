#!/usr/bin/env bash
# `make up`: the whole stack, up and healthy, or the reason why not. BI_UP_SECONDS (300): how long to wait for it.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/lib.sh
. infra/lib.sh

infra/engine.sh --check >/dev/null || { infra/engine.sh --check || true; echo "up: make engine sees to that" >&2; exit 1; }
python=${PYTHON:-python3}
has_python() { "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }
bring_up() { # bring_up <arguments of compose up>
  compose up -d --no-build --remove-orphans --wait --wait-timeout "$(setting BI_UP_SECONDS 300)" "$@" >.stack/up.log 2>&1 || return
  # Compose 2.26 ends with 0 when the time is over, whatever is not healthy yet.
  ! compose ps --format '{{.Service}} {{.Status}}' | grep -E '\((unhealthy|health: starting)\)' >>.stack/up.log
}
once_more() { # a service may be unhealthy because of its old files; where one was restarted on mended ones
  local restarted
  has_python || return 1
  restarted=$("$python" infra/mounted.py) || true
  [ -n "$restarted" ] || return 1
  echo "$restarted"
  bring_up "$@"
}
# What cannot work is said before anything is built or started; what may hurt later is said, too. About a second.
if ! has_python; then
  echo "up: no Python 3.11 or newer (PYTHON=... chooses one): what make doctor would say is not looked for, nor a restore that was" \
    "killed; and a service that runs on older mounted files stays on them (docker compose restart SERVICE)" >&2
else
  "$python" infra/doctor.py --quiet || { echo "up: nothing was started; mend what failed (docker compose up -d starts it all the same)" >&2; exit 1; }
fi
if [ -f .stack/images.env ]; then infra/images.sh --own; else infra/images.sh; fi
# What a killed restore has left: old data beside new ones, and what starts on them writes into what may have to go.
if has_python; then
  "$python" infra/restore.py --unfinished || { echo "up: nothing was started" >&2; exit 1; }
fi

started=$SECONDS
if ! bring_up "$@" && ! once_more "$@"; then
  tail -n 3 .stack/up.log >&2
  echo "up: not healthy; what each service says of itself:" >&2
  compose ps -a --format '{{.Service}}\t{{.Status}}' >&2
  while read -r service; do
    echo "--- $service, last lines" >&2
    compose logs --no-log-prefix --tail 5 "$service" 2>&1 | cut -c 1-600 >&2
  done < <(compose ps -a --format '{{.Service}}\t{{.Status}}' | grep -vE '\(healthy\)|Exited \(0\)' | cut -f1 | sort -u)
  exit 1
fi
# What ran already, and reads its files at its start alone, runs on those of before.
if has_python; then "$python" infra/mounted.py || exit 1; fi

echo "up: healthy after $((SECONDS - started)) s"
if [[ $(setting COMPOSE_FILE "") == *compose.prod.yaml* ]]; then
  echo "  service       https://$(setting BI_DOMAIN "")/docs"
  echo "  Grafana       https://$(setting BI_DOMAIN "")/grafana/  (admin; make password)"
  echo "  API key       make password"
  exit 0
fi
echo "  service       http://127.0.0.1:$(setting BI_QUERY_PORT 8000)/docs"
echo "  Prometheus    http://127.0.0.1:$(setting BI_PROMETHEUS_PORT 9090)"
echo "  Alertmanager  http://127.0.0.1:$(setting BI_ALERTMANAGER_PORT 9093)"
if [ -n "$(compose ps -q grafana 2>/dev/null)" ]; then
  echo "  Grafana       http://127.0.0.1:$(setting BI_GRAFANA_PORT 3000)  (admin; make password)"
else
  echo "  Grafana       NOT RUNNING: its image cannot be had here (make images says why); all else works"
fi
echo "  API key       make password"
echo "  try           curl -H \"X-API-Key: KEY\" http://127.0.0.1:$(setting BI_QUERY_PORT 8000)/api/v1/queries"
