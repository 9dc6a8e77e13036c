#!/bin/sh
# Fetches a model into the folder that the local model server reads. This is the one time that the internet is needed.
set -eu

model=${1:-}
[ -n "$model" ] || { echo "llm-pull: set BI_LLM_MODEL in .env, or name the model: docker compose run --rm llm-pull NAME" >&2; exit 2; }
log=/tmp/serve.log
ollama serve >"$log" 2>&1 &
server=$!
until ollama list >/dev/null 2>&1; do
    kill -0 "$server" 2>/dev/null || { cat "$log" >&2; echo "llm-pull: the model server ended (its words above)" >&2; exit 1; }
    sleep 0.2
done
ollama pull "$model"
kill "$server"
