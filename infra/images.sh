#!/usr/bin/env bash
# Gets every image the compose files name (`make images`): found locally, else pulled, else, where its registry cannot be
# reached, a stand-in built from Debian packages. A registry that answers and refuses, or breaks off, is a failure, and said.
# Writes what differs from compose.yaml's defaults to .stack/images.env, which `make up` hands to compose.
#   infra/images.sh            all of it, then our own image
#   infra/images.sh --refresh  also rebuild stand-ins that exist already
#   infra/images.sh --standins stand-ins only, without looking for the real images (to test them)
#   infra/images.sh --own      our own image only (quick when nothing changed)
# Settings, of .env or the environment: BI_PULL_SECONDS (300) for one pull, BI_OFFLINE=true to skip pulling.
set -euo pipefail

cd "$(dirname "$0")/.."
# shellcheck source=infra/lib.sh
. infra/lib.sh
readonly STATE=.stack
readonly OVERRIDES=$STATE/images.env
readonly BASE=bi-standin/debian:trixie
PULL_SECONDS=$(setting BI_PULL_SECONDS 300)
readonly PULL_SECONDS
# What docker says of a connection that ended. It means that a registry cannot be reached where it is said of its first
# question (/v2/); else the registry has answered before, and may do so again.
readonly BROKEN='i/o timeout|Client\.Timeout|deadline exceeded|connection reset|EOF'
# What docker says of a registry that it cannot connect to. One that answers, whatever it says, is not among these.
readonly NO_CONNECTION="no such host|server misbehaving|name resolution|dial tcp|handshake timeout|connection refused|network is\
 unreachable|no route to host|proxyconnect|/v2/\": .*($BROKEN)"
unreachable=" "
failures=()
refresh=false
force=false
secrets=

say() { printf 'images: %s\n' "$*"; }
die() { printf 'images: %s\n' "$*" >&2; exit 1; }
have() { docker image inspect "$1" >/dev/null 2>&1; }

wanted() { # VARIABLE image, one a line: as the compose files name them, or as the user's settings do
  # Grafana last: its absence is the one thing the user should read at the end.
  # The local model's (3 GB) only where it is switched on.
  local variable default skipped=BI_QUERY_IMAGE
  case ",$(setting COMPOSE_PROFILES "")," in *,llm,*) ;; *) skipped="$skipped\|BI_LLM_IMAGE" ;; esac
  sed -n 's/.*\${\(BI_[A-Z_]*_IMAGE\):-\([^}]*\)}.*/\1 \2/p' compose*.yaml | grep -v "^\($skipped\) " | sort -u |
    awk '/^BI_GRAFANA_IMAGE/ { last = $0; next } { print } END { if (last) print last }' |
    while read -r variable default; do echo "$variable $(setting "$variable" "$default")"; done
}

registry_of() { # quay.io of quay.io/a/b:1; docker.io where none is named
  case ${1%%/*} in *.* | *:*/* | localhost) [ "$1" != "${1%%/*}" ] && echo "${1%%/*}" || echo docker.io ;; *) echo docker.io ;; esac
}

pull() { # pull <image>: 1 when its registry cannot be reached (or shall not be asked), 2 when it answers and refuses
  local registry words status=0 broken=false
  registry=$(registry_of "$1")
  [ "$(setting BI_OFFLINE false)" != true ] || return 1
  case $unreachable in *" $registry "*) return 1 ;; esac
  say "pulling $1"
  words=$(timeout "$PULL_SECONDS" docker pull -q "$1" 2>&1 >/dev/null) || status=$?
  if [ "$status" != 0 ] && [ "$status" != 124 ] && ! grep -qE "$NO_CONNECTION" <<<"$words" && grep -qE "$BROKEN" <<<"$words"; then
    broken=true status=0
    say "it broke off, once more: $words"
    words=$(timeout "$PULL_SECONDS" docker pull -q "$1" 2>&1 >/dev/null) || status=$?
  fi
  [ "$status" != 0 ] || return 0
  if [ "$status" != 124 ] && ! $broken && grep -qE "$NO_CONNECTION" <<<"$words"; then
    unreachable+="$registry "
    say "$registry cannot be reached, and is not asked again in this run: $words"
    return 1
  fi
  failures+=("$1: $(why "$registry" "$status" "$words")")
  say "FAILED: ${failures[-1]}"
  [ -z "$words" ] || say "docker's words: $words"
  return 2
}

why() { # why <registry> <exit code> <docker's words>: a refused pull in plain words
  if [ "$2" = 124 ]; then
    echo "not pulled within $PULL_SECONDS s (BI_PULL_SECONDS)"
  elif grep -qiE 'permission denied.*docker' <<<"$3"; then
    echo "this user may not ask the engine: make doctor says what to do"
  elif grep -qiE 'manifest unknown|name unknown|manifest for .* not found|: not found' <<<"$3"; then
    echo "$1 has no such image or tag"
  elif grep -qiE 'toomanyrequests|too many requests|(^|[^0-9a-f])429([^0-9a-f]|$)' <<<"$3"; then
    echo "$1 allows no more pulls for now: wait, or docker login $1"
  elif grep -qiE 'unauthorized|denied|authentication|no basic auth|forbidden' <<<"$3"; then
    echo "$1 has no such image, or wants a login for it: docker login $1"
  elif grep -q 'x509' <<<"$3"; then
    echo "the engine does not trust the certificate of $1"
  elif grep -qE "$BROKEN|$NO_CONNECTION" <<<"$3"; then
    echo "$1 answers, and the pull broke off twice: try again"
  else
    echo "the pull failed"
  fi
}

# --- what builds need of this host, as files of one private folder that goes away at the end --------------------------

ca_bundle() { # the bundle this host trusts, its own additions (a TLS-inspecting proxy's, say) included
  local file
  for file in "${SSL_CERT_FILE:-}" "${PIP_CERT:-}" "${REQUESTS_CA_BUNDLE:-}" /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt; do
    if [ -n "$file" ] && [ -s "$file" ]; then echo "$file"; return 0; fi
  done
}

host_settings() {
  local bundle
  secrets=$(mktemp -d)
  trap 'rm -rf "$secrets"' EXIT
  bundle=$(ca_bundle)
  if [ -n "$bundle" ]; then cp "$bundle" "$secrets/ca"; else : >"$secrets/ca"; fi
  {
    echo 'APT::Sandbox::User "root";'
    [ ! -s "$secrets/ca" ] || echo 'Acquire::https::CAInfo "/run/secrets/ca.pem";'
    if command -v apt-config >/dev/null; then
      apt-config dump | grep -E '^Acquire::(http|https|ftp)::([^:]*::)?Proxy |^Acquire::Check-(Valid-Until|Date) ' || true
    fi
  } >"$secrets/apt"
  {
    echo '[global]'
    [ ! -s "$secrets/ca" ] || echo 'cert = /run/secrets/ca.pem'
    # Addresses only: folders of this host mean nothing inside a build.
    python3 -m pip config list 2>/dev/null |
      sed -n "s/^[^=]*\.\(index-url\|extra-index-url\|trusted-host\|proxy\)='\(.*\)'\$/\1 = \2/p" | grep -v 'file:' || true
  } >"$secrets/pip"
}

secret_flags() { printf -- '--secret\nid=%s,src=%s\n' ca "$secrets/ca" apt "$secrets/apt" pip "$secrets/pip"; }

build() { # build <tag> <arguments of docker build>: quiet unless it fails
  local tag=$1 flags log
  shift
  mapfile -t flags < <(secret_flags)
  log=$STATE/build-${tag//[^a-z0-9.-]/-}.log
  DOCKER_BUILDKIT=1 docker build --progress=plain "${flags[@]}" -t "$tag" "$@" >"$log" 2>&1 ||
    { tail -n 30 "$log" >&2; die "building $tag failed; all of it: $log"; }
}

# --- stand-ins -----------------------------------------------------------------------------------------------------

# shellcheck disable=SC2016  # apt's own format fields
debian_mirror() {
  apt-get indextargets --format '$(REPO_URI) $(ORIGIN)/$(LABEL)' 'Identifier: Packages' 2>/dev/null |
    awk '$2 == "Debian/Debian" { print $1; exit }'
}

debian_base() { # a Debian 13 root, from the mirror this machine uses (debootstrap's own default where it uses none)
  local root mirror
  if have "$BASE" && ! $refresh; then return 0; fi
  [ "$(id -u)" = 0 ] || die "building stand-ins needs root (debootstrap); pull or load the official images instead"
  if ! command -v debootstrap >/dev/null; then
    say "installing debootstrap"
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq debootstrap >/dev/null || die "debootstrap cannot be installed"
  fi
  say "building the base of the stand-ins (debootstrap)"
  root=$(mktemp -d)
  mirror=$(debian_mirror)
  if ! debootstrap --variant=minbase trixie "$root" ${mirror:+"$mirror"} >"$STATE/debootstrap.log" 2>&1; then
    tail -n 15 "$STATE/debootstrap.log" >&2
    rm -rf "$root"
    die "debootstrap failed; all of it: $STATE/debootstrap.log"
  fi
  rm -rf "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* "$root"/usr/share/{doc,man,locale,info}/*
  tar -C "$root" -c . | docker import - "$BASE" >/dev/null
  rm -rf "$root"
}

standin() { # standin <target> -> the tag it was built under; 1 where Debian has no such package
  local tag="bi-standin/$1:trixie"
  grep -q "AS $1\$" infra/images/Dockerfile || return 1
  if ! have "$tag" || $refresh; then
    debian_base
    say "building a stand-in for $1 from Debian packages"
    build "$tag" --build-arg "BASE=$BASE" --target "$1" -f infra/images/Dockerfile infra/images
  fi
  found=$tag
}

# --- all of them ---------------------------------------------------------------------------------------------------

resolve() { # resolve <VARIABLE> <image>: writes the override when the image is not the one compose.yaml names
  local variable=$1 image=$2 target status=0
  if ! $force; then
    if have "$image"; then say "ok: $image"; return 0; fi
    pull "$image" || status=$?
    [ "$status" != 0 ] || { say "ok: $image (pulled)"; return 0; }
    # Not a stand-in for it: who named another image or tag would not get what was asked for, and not hear of it.
    [ "$status" = 1 ] || return 0
  fi
  target=$(echo "${variable#BI_}" | sed 's/_IMAGE$//' | tr 'A-Z_' 'a-z-')
  if standin "$target"; then
    echo "$variable=$found" >>"$OVERRIDES.new"
    say "ok: $found stands in for $image"
  elif [ "$target" = grafana ]; then
    printf 'BI_GRAFANA_REPLICAS=0\nBI_GRAFANA_PULL_POLICY=never\n' >>"$OVERRIDES.new"
    say "GRAFANA IS LEFT OUT: $image can be neither found nor pulled, and Debian has no package of it."
    say "Everything else works without it. To add it later: docker load or pull $image, then make images up."
  else
    die "$image can be neither found nor pulled, and there is no stand-in for it"
  fi
}

own_of_registry() { # own_of_registry <image> <pull policy>: our own image, where a registry of the user's has it
  if [ "$2" != always ] && have "$1"; then say "ok: $1"; return 0; fi
  pull "$1" || give_up "$1 cannot be pulled, and BI_QUERY_PULL_POLICY=$2 says that it is not built here" \
    "correct BI_QUERY_IMAGE in ${env_file}, or mend what is said above"
  say "ok: $1 (pulled)"
}

give_up() { # give_up <otherwise> <advice>: the pulls that were refused with advice, or else the first words, and the end
  [ ${#failures[@]} -gt 0 ] || die "$1"
  printf 'images: %s\n' "${failures[@]}" >&2
  die "$2"
}

own_image() { # our own image, on the Python base that was found
  local image policy python revision
  # shellcheck disable=SC2016  # compose's own syntax, matched as text
  image=$(sed -n 's/.*\${BI_QUERY_IMAGE:-\([^}]*\)}.*/\1/p' compose.yaml | head -n 1)
  policy=$(setting BI_QUERY_PULL_POLICY never)
  # Never a build under a name of the user's registry: it would pass for the release of that name.
  case $policy in never | build) ;; *) own_of_registry "$(setting BI_QUERY_IMAGE "$image")" "$policy"; return 0 ;; esac
  [ -f services/query/Dockerfile ] || { say "services/query/Dockerfile is not there yet: skipped"; return 0; }
  image=$(setting BI_QUERY_IMAGE "$image")
  python=$(setting BI_PYTHON_IMAGE "")
  [ ! -f "$OVERRIDES" ] || python=$(sed -n 's/^BI_PYTHON_IMAGE=//p' "$OVERRIDES" | grep . || echo "$python")
  revision=$(git rev-parse --short HEAD 2>/dev/null || echo unknown)
  say "building $image"
  build "$image" ${python:+--build-arg "PYTHON_IMAGE=$python"} --build-arg "REVISION=$revision" services/query
  # What it replaces would stay as a nameless 250 MB; docker keeps what a container still uses.
  docker image prune -f --filter label=org.opencontainers.image.title=bi-query >/dev/null
  say "ok: $image ($(docker image inspect --format '{{.Size}}' "$image" | awk '{ printf "%.0f MB", $1 / 1e6 }'))"
}

main() {
  local variable image
  case "${1:-}" in
    --refresh) refresh=true ;;
    --standins) force=true ;;
    '') ;;
    --own) ;;
    *) die "unknown argument $1 (see the head of this file)" ;;
  esac
  docker version >/dev/null 2>&1 || die "no Docker engine answers: make engine"
  mkdir -p "$STATE"
  host_settings
  if [ "${1:-}" = --own ]; then own_image; return 0; fi
  printf '# Written by make images: what is used here instead of the images compose.yaml names.\n' >"$OVERRIDES.new"
  while read -r variable image; do resolve "$variable" "$image"; done < <(wanted)
  [ ${#failures[@]} -eq 0 ] || give_up "" \
    "correct the image in ${env_file}, or mend what is said above; BI_OFFLINE=true asks no registry and takes stand-ins"
  mv "$OVERRIDES.new" "$OVERRIDES"
  own_image
}

main "$@"
