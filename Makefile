# The commands that people, hooks and CI run. Plain `make` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The rivals of `make bench` need other versions of the app's dependencies.
RIVALS := .venv-bench
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check
COMPILE := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-emit-find-links --custom-compile-command "make requirements"
# White space matters in emails.
NOT_MAILS := --extend-exclude templates/mail/

# One more than there are cores, since tests also wait for processes and for leases to end. A worker that has no tests left
# takes some from another.
TESTS_AT_ONCE := $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help run admin demo test accessibility chaos soak model bench lint check defences audit alerts format translations secrets requirements vendor pictures clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: $(VENV)/installed ## start web, worker and mailbox on this machine (PORT=5000)
	@$(BIN)/python -m tools.development

admin: $(VENV)/installed ## create an admin for `make run`, and print name and password
	@$(BIN)/python -m tools.admin

demo: $(VENV)/installed-dev ## sign up 50 people while everything breaks, next to "commit, then schedule"
	@$(BIN)/python -m chaos.demo

test: $(VENV)/installed-dev ## run the tests (some of them: ARGS="-k signup")
	@$(BIN)/pytest -n $(TESTS_AT_ONCE) $(ARGS)

accessibility: $(VENV)/installed-dev ## check every page with axe, in both themes, languages and window sizes, and in forced colors
	@$(BIN)/pytest -n $(TESTS_AT_ONCE) tests/browser/accessibility.py $(ARGS)

chaos: $(VENV)/installed-dev ## inject faults for a minute and count the emails (ARGS="--seed 1 --seconds 60")
	@$(BIN)/python -m chaos $(ARGS)

soak: $(VENV)/installed-dev ## play a day's load in an hour, and print figures for every hour (ARGS="--minutes 5")
	@$(BIN)/python -m chaos.soak $(ARGS)

model: $(VENV)/installed-dev ## check every state of two emails with spin, and break each property (ARGS="--steps" shows how)
	@$(BIN)/python -m tests.model $(ARGS)

bench: $(VENV)/installed-dev $(RIVALS)/installed ## measure this app against its rivals (parts of it: ARGS="delivery signup")
	@$(BIN)/python -m benchmarks $(ARGS)

lint: $(VENV)/installed-dev ## check style, types, imports, templates and your own words
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports || { \
		echo "A module of webapp/ needs a place in [tool.importlinter] of pyproject.toml; your own modules go into own/." >&2; exit 1; }
	@$(BIN)/bandit --quiet --recursive webapp own migrations wsgi.py huey_worker.py tools/mailbox_server.py gunicorn.conf.py
	@$(BIN)/hadolint Dockerfile
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.dependabot .github/dependabot.yml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec docker-compose*.yml examples/*/docker-compose.yml
	@$(BIN)/djlint webapp/templates --lint
	@$(BIN)/djlint webapp/templates --check $(NOT_MAILS)
	@$(BIN)/python -m tools.own_words

check: lint test ## run lint and all tests

defences: $(VENV)/installed-dev ## remove each defence of docs/security.md, and see a test fail
	@$(BIN)/python -m tests.defences

audit: $(VENV)/installed-dev ## check our libraries for known vulnerabilities (asks PyPI)
	@# Strict: a library that can't be looked up is a failure, not a pass.
	@$(BIN)/pip-audit --strict --disable-pip --require-hashes --requirement requirements.txt

alerts: ## check and test the alert rules with promtool (Debian: prometheus)
	@promtool check rules docs/operations/alerts.yml
	@promtool test rules docs/operations/alerts_test.yml

format: $(VENV)/installed-dev ## format code and templates
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .
	@# djlint fails when it changes something.
	@$(BIN)/djlint webapp/templates --reformat --quiet $(NOT_MAILS) >/dev/null || true

translations: $(VENV)/installed-dev ## update webapp/translations from code and templates
	@$(BIN)/python -m tools.translations

secrets: ## create the secrets that docker-compose.yml needs, unless they exist
	@docker/secrets.sh

requirements: $(VENV)/pyvenv.cfg ## pin the libraries of requirements/*.in (ARGS=--upgrade for newer releases)
	@$(PIP) uv
	@$(COMPILE) $(ARGS) requirements/app.in --output-file requirements.txt
	@$(COMPILE) $(ARGS) requirements/trial.in --output-file requirements/trial.txt
	@$(COMPILE) $(ARGS) requirements/dev.in --output-file requirements/dev.txt
	@$(COMPILE) $(ARGS) requirements/bench.in --output-file requirements/bench.txt

vendor: $(VENV)/pyvenv.cfg ## fetch third-party stylesheets and scripts again, and check their hashes (NPM_REGISTRY=…)
	@$(BIN)/python -m tools.vendor

pictures: $(VENV)/installed-dev ## take the screenshots of README and docs again, from the running app
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

# Stamp files: packages are reinstalled only if their requirements change, or the environment is recreated.
$(VENV)/installed: requirements.txt requirements/trial.txt $(VENV)/pyvenv.cfg
	@echo "installing requirements.txt and requirements/trial.txt (a minute or two)"
	@$(PIP) --require-hashes --requirement requirements.txt --requirement requirements/trial.txt \
		|| { echo "pip couldn't install them. Is a package index reachable? Then run the same command again." >&2; exit 1; }
	@touch $@

$(VENV)/installed-dev: requirements/dev.txt $(VENV)/installed
	@echo "installing requirements/dev.txt (a few minutes)"
	@$(PIP) --require-hashes --requirement requirements/dev.txt \
		|| { echo "pip couldn't install them. Is a package index reachable? Then run the same command again." >&2; exit 1; }
	@touch $@

$(RIVALS)/installed: requirements/bench.txt $(VENV)/pyvenv.cfg
	@echo "installing requirements/bench.txt"
	@$(PYTHON) -m venv --clear $(RIVALS)
	@$(RIVALS)/bin/python -m pip install --quiet --quiet --disable-pip-version-check \
		--require-hashes --requirement requirements/bench.txt
	@touch $@
