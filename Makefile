# Everything that people, hooks and CI run. Plain `make` lists it.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The rivals of `make bench` want other releases of what the app imports.
RIVALS := .venv-bench
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make requirements"
# The white space of a mail is part of it.
NOT_MAILS := --extend-exclude templates/mail/

# One more than there are cores, since tests also wait, for processes and for leases to end. Who has none left takes some
# of another's.
TESTS_AT_ONCE := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run admin demo test accessibility chaos model bench lint check defences audit alerts format translations secrets requirements vendor pictures clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/installed ## start web, worker and mailbox on this machine (PORT=5000)
	@$(BIN)/python -m tools.development

admin: $(VENV)/installed ## make an admin of what `make run` runs, and print name and password
	@$(BIN)/python -m tools.admin

demo: $(VENV)/installed-dev ## sign 50 people up while everything breaks, beside "commit, then schedule"
	@$(BIN)/python -m chaos.demo

test: $(VENV)/installed-dev ## run the tests (ARGS="-k signup" for some of them)
	@$(BIN)/pytest -n $(TESTS_AT_ONCE) $(ARGS)

accessibility: $(VENV)/installed-dev ## let axe look at every page in both themes, languages, windows, and in forced colors
	@$(BIN)/pytest -n $(TESTS_AT_ONCE) tests/browser/accessibility.py $(ARGS)

chaos: $(VENV)/installed-dev ## inject faults for a minute and count the emails (ARGS="--seed 1 --seconds 60")
	@$(BIN)/python -m chaos $(ARGS)

model: $(VENV)/installed-dev ## let spin look at every state of two emails, and break each property (ARGS="--steps" shows how)
	@$(BIN)/python -m tests.model $(ARGS)

bench: $(VENV)/installed-dev $(RIVALS)/installed ## measure this app beside its rivals (ARGS="delivery signup" for some of it)
	@$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/installed-dev ## check style, types, imports and templates
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports || { \
		echo "A module of webapp/ has its place in [tool.importlinter] of pyproject.toml; yours belong into own/." >&2; exit 1; }
	@$(BIN)/bandit --quiet --recursive webapp own migrations wsgi.py huey_worker.py tools/mailbox_server.py gunicorn.conf.py
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/djlint webapp/templates --lint
	@$(BIN)/djlint webapp/templates --check $(NOT_MAILS)

check: lint test ## all that CI runs

defences: $(VENV)/installed-dev ## take out each defence of docs/security.md, and see a test fail
	@$(BIN)/python -m tests.defences

audit: $(VENV)/installed-dev ## ask PyPI whether a library of ours is known to be vulnerable
	@# Strict: a library that could not be looked up is a failure, not a pass.
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt

alerts: ## let promtool (of Debian's prometheus) read the alert rules
	@promtool check rules docs/operations/alerts.yml

format: $(VENV)/installed-dev ## format code and templates
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format .
	@# djlint fails when it changed something.
	@$(BIN)/djlint webapp/templates --reformat --quiet $(NOT_MAILS) >/dev/null || true

translations: $(VENV)/installed-dev ## bring webapp/translations up to date with what code and templates say
	@$(BIN)/python -m tools.translations

secrets: ## make the secrets that docker-compose.yml needs, those that are missing
	@docker/secrets.sh

requirements: $(VENV)/pyvenv.cfg ## pin what requirements/*.in name (ARGS=--upgrade for newer releases)
	@$(PIP) uv
	@$(COMPILE) $(ARGS) requirements/app.in --output-file requirements.txt
	@$(COMPILE) $(ARGS) requirements/trial.in --output-file requirements/trial.txt
	@$(COMPILE) $(ARGS) requirements/dev.in --output-file requirements/dev.txt
	@$(COMPILE) $(ARGS) requirements/bench.in --output-file requirements/bench.txt

vendor: $(VENV)/pyvenv.cfg ## fetch the stylesheets and scripts of others again, and check their hashes (NPM_REGISTRY=…)
	@$(BIN)/python -m tools.vendor

pictures: $(VENV)/installed-dev ## take the pictures of README and docs again, of the app as it runs
	@$(BIN)/python -m tools.pictures

clean: ## remove the virtual environment and caches; the data in instance/ stays
	@rm -rf $(VENV) $(RIVALS) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is missing: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Python 3.11 or newer is needed: make run PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null \
		|| { echo "python3-venv is missing: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)

# Stamps: what is installed stays until its requirements change, or the environment is made anew.
$(VENV)/installed: requirements.txt requirements/trial.txt $(VENV)/pyvenv.cfg
	@echo "installing requirements.txt and requirements/trial.txt (a minute or two)"
	@$(PIP) --require-hashes --requirement requirements.txt --requirement requirements/trial.txt \
		|| { echo "pip could not install them: is a package index reachable? Then type the same again." >&2; exit 1; }
	@touch $@

$(VENV)/installed-dev: requirements/dev.txt $(VENV)/installed
	@echo "installing requirements/dev.txt (some minutes)"
	@$(PIP) --require-hashes --requirement requirements/dev.txt \
		|| { echo "pip could not install them: is a package index reachable? Then type the same again." >&2; exit 1; }
	@touch $@

$(RIVALS)/installed: requirements/bench.txt $(VENV)/pyvenv.cfg
	@echo "installing requirements/bench.txt"
	@$(PYTHON) -m venv --clear $(RIVALS)
	@$(RIVALS)/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
		--require-hashes --requirement requirements/bench.txt
	@touch $@
