# The container stack's targets; Makefile includes this file. `## text` is the line that `make help` shows.
.PHONY: snapshots rollback republish engine images up down deploy backup restore doctor ps logs clean password keys load chaos

# The user's .env (or BI_ENV_FILE), then what `make images` found, which has the last word on images.
ENV_FILE = $(or $(BI_ENV_FILE),.env)
STACK_ENV = $(if $(wildcard $(ENV_FILE)),--env-file $(ENV_FILE)) $(if $(wildcard .stack/images.env),--env-file .stack/images.env)
COMPOSE = docker compose $(STACK_ENV)
# The programs of infra/ need a Python of their own machine, and nothing installed.
PROGRAM = $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (PYTHON=... chooses one)" >&2; exit 1; }; $(PYTHON)
# A value as one word of the shell, nothing when it is empty.
as_word = $(if $(1),'$(subst ','\'',$(1))')

engine: ## Install and start a Docker engine with compose and buildx, where none answers (root, Debian or Ubuntu)
	@infra/engine.sh

images: ## Get every image: found here, else pulled, else a stand-in from Debian packages; build our own
	@infra/images.sh

up: ## Bring the whole stack up and wait until all of it is healthy (make images first where there is no registry)
	@PYTHON='$(PYTHON)' infra/up.sh

down: ## Stop the stack; its data stays
	@$(COMPOSE) down --remove-orphans

deploy: ## Bring the new release up replica by replica, under traffic; goes back by itself when it never turns healthy
	@$(PROGRAM) infra/deploy.py

doctor: ## Can the stack start here: versions, ports, memory, disk, clock, data, .env; a line of advice for what cannot (ARGS=--json)
	@$(PROGRAM) infra/doctor.py $(ARGS)

backup: ## Snapshots, keys, secrets, metrics, Grafana and audit log of the running stack in one file (FOLDER=backups)
	@$(PROGRAM) infra/backup.py $(call as_word,$(FOLDER))

restore: ## Check a backup, say what it replaces, ask (YES=1 does not), put it in place: make restore FILE=backups/....tar.gz ONLY=keys
	@export YES="$(YES)" ONLY="$(ONLY)" UNDO="$(UNDO)" KEEP="$(KEEP)"; $(PROGRAM) infra/restore.py $(call as_word,$(FILE))

ps: ## What runs, how it is, on which port
	@$(COMPOSE) ps -a --format 'table {{.Service}}\t{{.Status}}\t{{.Ports}}\t{{.Image}}'

logs: ## Follow the logs; of one service: make logs SERVICE=query
	@$(COMPOSE) logs --tail 100 --follow $(SERVICE)

keys: ## API keys: make keys ARGS="add ana --role analyst" (or list, revoke, rotate)
	@$(COMPOSE) --profile tools run --rm --quiet-pull keys $(or $(ARGS),list)

snapshots: ## List the snapshots that are kept: when published, how large, which is current
	@$(COMPOSE) run --rm --no-deps -T publish snapshots

rollback: ## Serve the snapshot before the current one, or a named one: make rollback ID=0123456789abcdef
	@$(COMPOSE) run --rm --no-deps -T publish rollback $(call as_word,$(ID))

republish: ## Publish the stack's data as they are, at once; also the way back from a rollback
	@$(COMPOSE) run --rm --no-deps -T publish publish

SCENARIO ?= slo
load: ## Load test the running stack, exit code is the verdict: make load SCENARIO=spike ARGS="--seconds 60" (reports: loadtest/reports)
	@loadtest/refuse.sh $(call as_word,$(SCENARIO))
	@loadtest/image.sh
	@mkdir -p loadtest/reports
	@keys() { $(COMPOSE) --profile loadtest run --rm --no-deps loadtest-keys "$$@"; }; id=; \
	trap '[ -z "$$id" ] || docker rm -f "$$id" >/dev/null; keys end' EXIT; \
	keys && id=$$($(COMPOSE) --profile loadtest run -d --no-deps --use-aliases loadtest $(SCENARIO) $(ARGS)) || exit 2; \
	docker logs -f $$id; code=$$(docker wait $$id); docker cp -q $$id:/reports/. loadtest/reports; exit $$code

chaos: $(VENV)/.test ## Break things under 30 users on a stack of its own, and show what they saw (docs/chaos.md)
	@$(BIN)/python -m pytest tests/chaos

password: ## Show Grafana's admin password and the first API key, as made at the first start
	@infra/secrets/show.sh

clean: ## Delete the stack with its data, its images and .stack; says first what goes, and asks (YES=1 does not)
	@infra/clean.sh
