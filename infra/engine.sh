#!/usr/bin/env bash
# Makes sure that a Docker engine with compose and buildx answers on this machine (`make engine`).
#
# Does nothing where a good one answers already, and never changes one that works. As root on Debian or Ubuntu it
# installs the distribution's own packages and starts the engine; anywhere else it says what is missing.
#   infra/engine.sh           check, install and start what is missing
#   infra/engine.sh --check   check only: 0 when the stack can run here, 1 with the reason when not
set -euo pipefail

readonly MIN_ENGINE=25.0     # health checks with start_interval: older engines refuse the compose file
readonly MIN_COMPOSE=2.24    # optional env files, and `up --wait` that accepts one-shots that ended well
readonly LOG=${BI_DOCKERD_LOG:-/var/log/bi-dockerd.log}
readonly START_SECONDS=${BI_DOCKERD_START_SECONDS:-60}

say() { printf 'engine: %s\n' "$*"; }
die() { printf 'engine: %s\n' "$*" >&2; exit 1; }

at_least() { # at_least 26.1.5 25.0
  [ -n "$1" ] && [ "$(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

engine_version() { timeout 20 docker version --format '{{.Server.Version}}' 2>/dev/null || true; }
compose_version() { timeout 20 docker compose version --short 2>/dev/null | sed 's/^v//' || true; }
has_buildx() { timeout 20 docker buildx version >/dev/null 2>&1; }

missing() { # what keeps the stack from running here, one word per line
  local engine
  command -v docker >/dev/null || { printf '%s\n' client engine compose buildx; return; }
  engine=$(engine_version)
  if [ -z "$engine" ]; then echo engine
  elif ! at_least "$engine" "$MIN_ENGINE"; then echo "old-engine"
  fi
  at_least "$(compose_version)" "$MIN_COMPOSE" || echo compose
  has_buildx || echo buildx
}

explain() { # explain <word>
  case $1 in
    client) echo "no docker client on PATH" ;;
    engine) echo "no engine answers at ${DOCKER_HOST:-the default socket}" ;;
    old-engine) echo "the engine is $(engine_version); $MIN_ENGINE or newer is needed (start_interval in health checks)" ;;
    compose) echo "docker compose is '$(compose_version)'; $MIN_COMPOSE or newer is needed" ;;
    buildx) echo "docker buildx is missing" ;;
  esac
}

# The address of the mirror this machine already uses: none is written here, so mirrors and air-gapped sites work.
# shellcheck disable=SC2016  # $(REPO_URI) and its like are apt's own format fields
debian_mirror() {
  apt-get indextargets --format '$(REPO_URI) $(ORIGIN)/$(LABEL)' 'Identifier: Packages' 2>/dev/null |
    awk '$2 == "Debian/Debian" { print $1; exit }'
}

# shellcheck disable=SC2016
add_trixie() { # Debian 12's engine (20.10) is too old; Debian 13's packages install on it without pulling in anything else
  local mirror
  apt-get indextargets --format '$(CODENAME)' 'Identifier: Packages' | grep -qx trixie && return 0
  mirror=$(debian_mirror)
  [ -n "$mirror" ] || die "no Debian mirror among this machine's apt sources (apt-get indextargets)"
  say "adding Debian 13 as a source with a low priority (nothing else is upgraded from it)"
  cat >/etc/apt/sources.list.d/bi-trixie.sources <<SOURCE
Types: deb
URIs: ${mirror}
Suites: trixie
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg
SOURCE
  printf 'Package: *\nPin: release n=trixie\nPin-Priority: 100\n' >/etc/apt/preferences.d/bi-trixie
  apt-get update -qq
}

os_field() { sed -n "s/^$1=\"\?\([^\"]*\)\"\?\$/\1/p" /etc/os-release; }

install_packages() { # install_packages <missing words>: only what is missing, so a working engine stays as it is
  local packages=() from=() id version
  id=$(os_field ID)
  version=$(os_field VERSION_ID)
  case " $* " in *" engine "*) command -v dockerd >/dev/null || packages+=(docker.io) ;; esac
  case " $* " in *" client "*) [ "$id" = debian ] && packages+=(docker-cli) ;; esac
  case " $* " in *" buildx "*) packages+=(docker-buildx) ;; esac
  case " $* " in
    *" compose "*) if [ "$id" = ubuntu ]; then packages+=(docker-compose-v2); else packages+=(docker-compose); fi ;;
  esac
  [ ${#packages[@]} -gt 0 ] || return 0
  case $id in debian | ubuntu) ;; *) die "cannot install on '$id': install Docker $MIN_ENGINE+, compose $MIN_COMPOSE+ and buildx" ;; esac
  apt-get update -qq || die "apt-get update failed: the packages cannot be looked up"
  if [ "$id" = debian ] && [ "$version" = 12 ]; then add_trixie; from=(-t trixie); fi
  say "installing ${packages[*]}"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ${from[@]+"${from[@]}"} "${packages[@]}" \
    iptables >/dev/null || die "apt-get could not install ${packages[*]}"
  hash -r
}

tail_log() { [ -r "$LOG" ] && { echo "--- last lines of $LOG"; tail -n 15 "$LOG"; } >&2; return 0; }

wait_for_engine() { # wait_for_engine <pid or "">: polls; stops early when the process has gone
  local pid=$1 end=$((SECONDS + START_SECONDS))
  while [ $SECONDS -lt $end ]; do
    [ -n "$(engine_version)" ] && return 0
    if [ -n "$pid" ] && ! kill -0 "$pid" 2>/dev/null; then return 1; fi
    sleep 0.5
  done
  return 1
}

start_plain() { # start_plain [flags]: dockerd of its own session, so that it outlives this shell
  : >"$LOG"
  setsid nohup dockerd "$@" >>"$LOG" 2>&1 </dev/null &
  wait_for_engine $!
}

start_engine() {
  [ -z "${DOCKER_HOST:-}" ] || die "DOCKER_HOST is set to $DOCKER_HOST and nothing answers there: start that engine, or unset it"
  if [ -d /run/systemd/system ]; then
    systemctl enable --now docker >/dev/null 2>&1 || true
    wait_for_engine "" || { journalctl -u docker -n 15 --no-pager >&2 || true; die "the docker service does not answer"; }
    return 0
  fi
  say "starting dockerd (no systemd here); its log: $LOG"
  start_plain && return 0
  if grep -qiE 'iptables|nftables|nat table' "$LOG" && command -v iptables-legacy >/dev/null; then
    say "dockerd could not set up iptables; trying once more with iptables-legacy"
    local shim
    shim=$(mktemp -d)
    ln -s "$(command -v iptables-legacy)" "$shim/iptables"
    ln -s "$(command -v ip6tables-legacy)" "$shim/ip6tables"
    PATH="$shim:$PATH" start_plain && return 0
  fi
  if grep -qiE 'storage-driver|overlay.*not supported|graphdriver' "$LOG"; then
    say "the default storage driver does not work here; trying vfs (slow, and takes more disk)"
    start_plain --storage-driver=vfs && return 0
  fi
  tail_log
  die "dockerd did not answer within $START_SECONDS s"
}

main() {
  local gaps
  mapfile -t gaps < <(missing)
  if [ ${#gaps[@]} -eq 0 ]; then
    say "ok: engine $(engine_version), compose $(compose_version), buildx; client $(command -v docker)"
    return 0
  fi
  for gap in "${gaps[@]}"; do say "$(explain "$gap")"; done
  [ "${1:-}" != --check ] || exit 1
  case " ${gaps[*]} " in *" old-engine "*) die "a working engine is never replaced: upgrade it yourself" ;; esac
  [ "$(id -u)" = 0 ] || die "run as root to install and start what is missing (or install it yourself)"
  install_packages "${gaps[@]}"
  case " ${gaps[*]} " in *" engine "*) [ -n "$(engine_version)" ] || start_engine ;; esac
  mapfile -t gaps < <(missing)
  if [ ${#gaps[@]} -gt 0 ]; then
    for gap in "${gaps[@]}"; do say "$(explain "$gap")"; done
    die "still not enough to run the stack"
  fi
  say "ok: engine $(engine_version), compose $(compose_version), buildx; client $(command -v docker)"
}

main "$@"
