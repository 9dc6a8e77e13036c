#!/usr/bin/env bash
# `make clean`: deletes the stack with its data, after saying what goes. Your .env, data folder and the folders in local stay.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=infra/lib.sh
. infra/lib.sh

project=$(compose config --format json | sed -n 's/^  "name": "\(.*\)",\{0,1\}$/\1/p')
mapfile -t volumes < <(docker volume ls -q --filter "label=com.docker.compose.project=$project")
mapfile -t containers < <(compose ps -aq)
mapfile -t images < <({ docker image ls -q --filter 'reference=bi-standin/*'; docker image ls -q --filter 'reference=bi-solution/*'; } | sort -u)

echo "This deletes of the stack '$project':"
echo "  ${#containers[@]} containers and the stack's networks"
echo "  ${#volumes[@]} volumes, which hold ALL its data (snapshots, secrets, metrics, alerts' silences, Grafana's users):"
[ ${#volumes[@]} -eq 0 ] || printf '    %s\n' "${volumes[@]}"
echo "  ${#images[@]} images built here (bi-solution/*, bi-standin/*); images that other stacks use stay"
echo "  .stack/images.env, and in .stack the logs and what deploys noted of this stack"
if [ "${YES:-}" != 1 ]; then
  [ -t 0 ] || { echo "clean: nothing deleted; YES=1 make clean does it without asking" >&2; exit 1; }
  read -r -p "Type the stack's name to delete it: " answer
  [ "$answer" = "$project" ] || { echo "clean: nothing deleted"; exit 1; }
fi
compose down --volumes --remove-orphans
[ ${#images[@]} -eq 0 ] || docker image rm "${images[@]}" 2>/dev/null || true
rm -f .stack/images.env .stack/*.log .stack/mounted-"$project".* .stack/deploy-"$project".*
