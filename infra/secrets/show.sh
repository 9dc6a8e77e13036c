#!/usr/bin/env bash
# `make password`: shows the secrets a person needs. Each is read as the user that owns it, in a container of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/lib.sh
. infra/lib.sh

show() { # show <label> <file> <uid:gid>
  local value
  value=$(compose run --rm --no-deps -T --user "$3" --entrypoint cat secrets-init "/run/bi-secrets/$2" 2>/dev/null) ||
    { echo "$1: not made yet (make up makes it)"; return 0; }
  echo "$1: $value"
}

show "Grafana, user admin" grafana-admin-password 472:0
show "First API key" api-key 10001:10001
