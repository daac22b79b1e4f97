# Every target works on a fresh clone by itself; `make help` lists them.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# many processes are started here: each would compile all modules anew
unexport PYTHONDONTWRITEBYTECODE
PYTHON ?= python3
BIN := .venv/bin

##@ Use

.PHONY: help
help: ## List the targets
	@awk 'BEGIN { FS = ":.*## " } /^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: setup ## Do the main job end to end on embedded parts; JSON=path writes the figures
	@$(BIN)/lorauter demo $(if $(JSON),--json $(JSON))

.PHONY: up
up: setup ## Run the whole suite on this machine until Ctrl-C
	@exec $(BIN)/lorauter up

##@ Develop

.PHONY: setup
setup: ## Install everything into .venv (skipped when it is current)
	@$(PYTHON) scripts/setup.py

.PHONY: format
format: setup ## Format the code and repair what the linter can repair
	@$(BIN)/ruff format --quiet . && $(BIN)/ruff check --quiet --fix .

.PHONY: proto
proto: setup ## Generate the stubs under shared/lorauter from protos/
	@$(BIN)/python scripts/proto.py

.PHONY: settings
settings: setup ## Write docs/settings.md and the chart's list of settings from the settings classes
	@$(BIN)/python scripts/settings_table.py

.PHONY: lock
lock: setup ## Resolve anew and write requirements.lock
	@$(BIN)/python scripts/lock.py

.PHONY: clean
clean: ## Remove the environment and everything else that is made
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis scripts/buf/node_modules

##@ Measure

.PHONY: bench-routing
bench-routing: setup ## Compare routers on real queries and scores in FLAN=dir; JSON=path writes the figures
	@$(BIN)/python -m benchmarks.routing $(if $(FLAN),--flan $(FLAN)) $(if $(JSON),--json $(JSON))

.PHONY: bench-studies
bench-studies: setup ## Measure what was tried in routing on FLAN=dir; JSON=path, PLOT=picture of risk and coverage
	@$(BIN)/python -m benchmarks.studies $(if $(FLAN),--flan $(FLAN)) $(if $(JSON),--json $(JSON)) $(if $(PLOT),--plot $(PLOT))

.PHONY: bench-refit
bench-refit: setup ## Time refits, in full and after one more task; JSON=path writes the figures
	@$(BIN)/python -m benchmarks.refitting $(if $(JSON),--json $(JSON))

.PHONY: bench-latency
bench-latency: setup ## Time routes beside the encoder alone; FLAN=dir takes real queries, JSON=path writes the figures
	@$(BIN)/python -m benchmarks.latency $(if $(FLAN),--flan $(FLAN)) $(if $(JSON),--json $(JSON))

.PHONY: bench-tenants
bench-tenants: setup ## Measure what more tenants cost a router; JSON=path writes the figures
	@$(BIN)/python -m benchmarks.tenants $(if $(JSON),--json $(JSON))

.PHONY: bench-matching
bench-matching: setup ## Measure matching; FLAN=dir replays real scores too, JSON=path writes the figures
	@$(BIN)/python -m benchmarks.matching $(if $(FLAN),--flan $(FLAN)) $(if $(JSON),--json $(JSON))

.PHONY: bench-lab
bench-lab: setup ## The paper's experiment on pools made anew; JSON=path writes the figures, PLOT=path draws them
	@$(BIN)/python -m benchmarks.lab $(if $(JSON),--json $(JSON)) $(if $(PLOT),--plot $(PLOT))

.PHONY: bench-engine
bench-engine: setup ## Time generation with a weighted set for each row, beside PEFT; JSON=path writes the figures
	@$(BIN)/python -m benchmarks.engine $(if $(JSON),--json $(JSON))

.PHONY: bench-gateway
bench-gateway: setup ## Time what the gateway adds to a backend's answers; JSON=path writes the figures
	@$(BIN)/python -m benchmarks.gateway $(if $(JSON),--json $(JSON))

.PHONY: bench-rebuild
bench-rebuild: setup ## Time how an emptied index comes back from PostgreSQL; FLAN=dir takes real texts, JSON=path
	@$(BIN)/python -m benchmarks.rebuilding $(if $(FLAN),--flan $(FLAN)) $(if $(JSON),--json $(JSON))

.PHONY: bench-scale
bench-scale: setup ## Measure what grows with tasks, adapters and requests; JSON=path writes the figures, PLOT=path draws
	@$(BIN)/python -m benchmarks.scale $(if $(JSON),--json $(JSON)) $(if $(PLOT),--plot $(PLOT))

.PHONY: gateway-suite
gateway-suite: setup ## Put the tests' requests to servers of your own: TGI_URL=url, VLLM_URL=url, ADAPTER=folder:rank
	@test -n "$(TGI_URL)$(VLLM_URL)" || { echo "make gateway-suite: give TGI_URL=url, VLLM_URL=url or both"; exit 2; }
	@TGI_URL="$(TGI_URL)" VLLM_URL="$(VLLM_URL)" ADAPTER="$(ADAPTER)" $(BIN)/pytest tests/integration/gateway_servers/test_request_suite.py $(ARGS)

.PHONY: faults
faults: setup ## Kill, crash and swap parts of a real suite, count what is lost; LONG=1 goes on, SEED=n, JSON=path
	@$(BIN)/python -m benchmarks.faults $(if $(LONG),--long) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json $(JSON))

.PHONY: dashboards
dashboards: setup ## Have a real Prometheus evaluate every panel and alert on a loaded suite; OUT=docs/images
	@$(BIN)/python -m benchmarks.dashboards $(if $(OUT),--out $(OUT))

.PHONY: traces
traces: setup ## Draw the traces of a registration and a generation into OUT=docs/images
	@$(BIN)/python -m benchmarks.traces $(if $(OUT),--out $(OUT))

.PHONY: sequences
sequences: setup ## Random commands, events, crashes and halts, COUNT=n of them, SEED=n; SLICE=k SHRINK=1 replays, JSON=path
	@$(BIN)/python -m benchmarks.sequences $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) $(if $(SLICE),--slice $(SLICE)) $(if $(SHRINK),--shrink) $(if $(JSON),--json $(JSON))

.PHONY: fuzz
fuzz: setup ## Call every RPC and route of a real suite with what hurts, COUNT=n calls a service, SEED=n, JSON=path
	@$(BIN)/python -m tests.security.fuzz_services $(if $(COUNT),--count $(COUNT)) $(if $(SEED),--seed $(SEED)) $(if $(JSON),--json $(JSON))

.PHONY: flan
flan: setup ## Download the public FLAN data that bench-routing reads into DIR=path, without what adapters scored
	@$(BIN)/python scripts/flan_download.py $(DIR)

##@ Check

.PHONY: check
check: setup ## Check format, lint, types, imports and protos
	@$(BIN)/python scripts/check.py

# whole suites of processes, apart from the rest so that they do not stay up beside it
SUITES := tests/e2e tests/faults
PYTEST_BY_TWO := $(BIN)/pytest -n 2 --dist loadfile

.PHONY: test
test: setup ## Run all tests; T=path narrows them, ARGS="-k name" goes to pytest, LONG=1 tries more of what takes long
	@$(if $(T)$(ARGS),$(BIN)/pytest $(T) $(ARGS),\
	  status=0; $(PYTEST_BY_TWO) $(SUITES) || status=$$?; \
	  $(PYTEST_BY_TWO) $(SUITES:%=--ignore=%) || status=$$?; exit $$status)

.PHONY: e2e-topology
e2e-topology: setup ## The end-to-end tests on the processes of docker-compose.yml; IMAGES=dir of try-images
	@E2E_TOPOLOGY=compose TOPOLOGY_IMAGES="$(IMAGES)" $(BIN)/pytest tests/e2e $(ARGS)

.PHONY: conformance
conformance: setup ## Check engine and gateway against TGI's own document, TGI_OPENAPI=path
	@test -f "$(TGI_OPENAPI)" || { echo "make conformance: TGI_OPENAPI=path names no file; it is TGI's docs/openapi.json"; exit 2; }
	@TGI_OPENAPI="$(abspath $(TGI_OPENAPI))" $(BIN)/pytest tests/conformance $(ARGS)

.PHONY: try-images
try-images: setup ## Do what the Dockerfiles do, without Docker: OUT=dir, IMAGES="gateway cli" narrows it
	@$(BIN)/python scripts/try_image.py --out $(or $(OUT),/tmp/lorauter-images) $(or $(IMAGES),registry worker router gateway engine cli)

.PHONY: helm-test
helm-test: setup ## Lint and render the Helm chart, and check what comes out
	@$(BIN)/pytest tests/deploy/test_helm_*.py $(ARGS)
