# shellcheck shell=bash
# Shared by the scripts beside it: compose with the settings that hold here. Source it from the repository's root.

# Another file than .env, for a second stack of one checkout.
env_file=${BI_ENV_FILE:-.env}

compose() { # compose <arguments>: .env first, then what `make images` found, which has the last word on images
  local files=()
  [ ! -f "$env_file" ] || files+=(--env-file "$env_file")
  [ ! -f .stack/images.env ] || files+=(--env-file .stack/images.env)
  docker compose ${files[@]+"${files[@]}"} "$@"
}

setting() { # setting <NAME> <default>: as compose would see it
  local value=${!1:-}
  [ -n "$value" ] || [ ! -f "$env_file" ] || value=$(sed -n "s/^$1=//p" "$env_file" | tail -n 1)
  echo "${value:-$2}"
}
