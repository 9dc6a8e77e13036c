#!/usr/bin/env bash
# Builds the load generator's image, with this host's CA bundle and package index where it needs its own (as
# infra/images.sh does for the others). Neither stays in the image.
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source=infra/lib.sh
. infra/lib.sh
readonly IMAGE=bi-solution/loadtest:0.1.0
private=$(mktemp -d)
trap 'rm -rf "$private"' EXIT

: >"$private/ca"
for bundle in "${SSL_CERT_FILE:-}" "${PIP_CERT:-}" "${REQUESTS_CA_BUNDLE:-}" /etc/ssl/certs/ca-certificates.crt; do
  if [ -n "$bundle" ] && [ -s "$bundle" ]; then cp "$bundle" "$private/ca"; break; fi
done
{
  echo '[global]'
  [ ! -s "$private/ca" ] || echo 'cert = /run/secrets/ca.pem'
  python3 -m pip config list 2>/dev/null |
    sed -n "s/^[^=]*\.\(index-url\|extra-index-url\|trusted-host\|proxy\)='\(.*\)'\$/\1 = \2/p" | grep -v 'file:' || true
} >"$private/pip"

# What `make images` found has the last word, as in infra/images.sh; else the user's.
python=$(sed -n 's/^BI_PYTHON_IMAGE=//p' .stack/images.env 2>/dev/null || true)
python=${python:-$(setting BI_PYTHON_IMAGE "")}
DOCKER_BUILDKIT=1 docker build --quiet --secret "id=ca,src=$private/ca" --secret "id=pip,src=$private/pip" \
  ${python:+--build-arg "PYTHON_IMAGE=$python"} -t "$IMAGE" loadtest >/dev/null
