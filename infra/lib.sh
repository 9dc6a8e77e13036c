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

plain() { # a value of .env without quotes, comment and spaces (stack_tools.py reads it the same way)
  sed -E -e "s/^[[:space:]]*\"([^\"]*)\".*/\1/;t" -e "s/^[[:space:]]*'([^']*)'.*/\1/;t" \
    -e 's/[[:space:]]#.*//;s/^[[:space:]]+//;s/[[:space:]]+$//'
}

setting() { # setting <NAME> <default>: as compose would see it
  local value=${!1:-}
  [ -n "$value" ] || [ ! -f "$env_file" ] ||
    value=$(sed -nE "s/^[[:space:]]*(export[[:space:]]+)?$1[[:space:]]*=//p" "$env_file" | tail -n 1 | plain)
  echo "${value:-$2}"
}
