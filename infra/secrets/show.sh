#!/usr/bin/env bash
# `make password`: shows the secrets a person needs. Each is read as the user that owns it, in a container of its own.
set -euo pipefail
cd "$(dirname "$0")/../.."
# shellcheck source=infra/lib.sh
. infra/lib.sh

show() { # show <label> <file> <uid:gid>
  local value status=0
  # 3: the container ran and the file is not there. Compose and the engine have other codes, and words.
  # shellcheck disable=SC2016  # the container's shell expands it
  value=$(compose run --rm --no-deps -T --user "$3" --entrypoint sh secrets-init -c \
    '[ -e "$0" ] || exit 3; exec cat "$0"' "/run/bi-secrets/$2" 2>"$words") || status=$?
  case $status in
    0) echo "$1: $value" ;;
    3) echo "$1: not made yet (make up makes it)" ;;
    *) cat "$words" >&2; echo "password: $1 could not be read" >&2; exit 1 ;;
  esac
}

words=$(mktemp)
trap 'rm -f "$words"' EXIT
show "Grafana, user admin" grafana-admin-password 472:0
show "First API key" api-key 10001:10001
