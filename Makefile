# Everything a person runs here, by name: make help
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help images image-tools setup up down status logs demo play test test-fast lint format bench verify manifests chart-test clients all-clients contracts docs lock sbom clean flink

PYTHON_BIN := .venv/bin/python
TORCH ?=
BENCHMARKS ?= router aggregator aggregator_history ingestion judge reinforcement training scoring active_learning learning
RUN_DIR ?= .run/stack
export PYTHONUNBUFFERED := 1

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: ## bring what is missing: Debian packages, Kafka, helm, kustomize, both Python environments (TORCH=cpu|default|cuda)
	@TORCH='$(TORCH)' deploy/local/setup.sh

up: setup ## start the local stack and wait until it is ready (RUN_DIR, RATCHET_PORT_BASE)
	@$(PYTHON_BIN) -m deploy.local --run-dir '$(RUN_DIR)' up $(ARGS)

down: ## stop the local stack; its data stay for the next up
	@$(PYTHON_BIN) -m deploy.local --run-dir '$(RUN_DIR)' down $(ARGS)

status: ## what runs, on which port, and whether it is ready
	@$(PYTHON_BIN) -m deploy.local --run-dir '$(RUN_DIR)' status

logs: ## the end of every log (ARGS="router -n 100" for one)
	@$(PYTHON_BIN) -m deploy.local --run-dir '$(RUN_DIR)' logs $(ARGS)

demo: setup ## the whole circle: feedback makes a better model, worse ones are rolled back (eight minutes)
	@$(PYTHON_BIN) -m demo $(ARGS)

play: setup ## a stack with what the demo made, and where to click (the first time that is the demo; then half a minute)
	@$(PYTHON_BIN) -m demo --play $(ARGS)

test: clients image-tools ## every test but the hours-long tier; unit and contract tests beside those that share servers
	@$(PYTHON_BIN) -m pytest -n auto --dist loadscope $(ARGS)

test-fast: setup ## unit and contract tests on all cores, under a minute
	@$(PYTHON_BIN) -m pytest -n auto tests/unit tests/contract $(ARGS)

lint: setup ## ruff, formatting, types, import rules
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports

format: setup ## let ruff format and mend what it can
	.venv/bin/ruff format .
	.venv/bin/ruff check --fix .

bench: ## benchmarks beside their peers (BENCHMARKS="router" for one)
	@TORCH='$(TORCH)' deploy/local/setup.sh bench
	@for name in $(BENCHMARKS); do $(PYTHON_BIN) -m "benchmarks.$$name" $(ARGS) || exit 1; done

clients: ## what setup brings, and the Python clients that tests/clients runs
	@TORCH='$(TORCH)' deploy/local/setup.sh clients

all-clients: ## those, the JavaScript ones, and Grafana's UI components
	@TORCH='$(TORCH)' deploy/local/setup.sh all-clients

images: image-tools ## every image without torch, by buildah, where no Docker engine is (IMAGES="router cli" for some; root)
	@deploy/docker/build.sh $(IMAGES)

# Nobody else can build them by buildah's chroot; tests/integration/test_images.py says so where it is left out.
image-tools:
	@if ((EUID == 0)); then deploy/local/setup.sh images; fi

flink: ## what setup brings, and Flink, for the twin of the aggregation
	@TORCH='$(TORCH)' deploy/local/setup.sh flink

docs: ## the documents and an API reference as a site, .run/docs-site/index.html; a warning is an error
	@deploy/local/setup.sh docs
	@$(PYTHON_BIN) -m docs.site.reference .run/docs-source
	@.venv-docs/bin/sphinx-build -q -W --keep-going -E -c docs/site .run/docs-source .run/docs-site
	@echo .run/docs-site/index.html

verify: all-clients flink docs image-tools ## soak, fault table, all seeds, fuzzing, learning (hours; goes on where it was stopped) and a dated report
	@$(PYTHON_BIN) -m tests.verify $(ARGS)

manifests: setup ## plain Kubernetes manifests from the Helm chart
	@deploy/k8s/render.sh

chart-test: setup ## the Helm chart with every set of values, and the kustomize overlays, each object checked by its schema
	@$(PYTHON_BIN) -m pytest -n auto tests/contract/test_chart.py tests/contract/test_chart_sets.py \
	  tests/contract/test_chart_access.py tests/contract/test_chart_next_base.py \
	  tests/contract/test_chart_types.py tests/contract/test_kustomize.py $(ARGS)

contracts: setup ## JSON Schemas and AsyncAPI from the event models, and the chart's topics and users
	@$(PYTHON_BIN) -m shared.contracts.generate
	@$(PYTHON_BIN) -m deploy.k8s.strimzi

lock: setup ## pin what pyproject.toml and requirements/ml.in ask for (UPGRADE=1 for the newest)
	@requirements/lock.sh

SHIPPED := services ml ml-cuda
sbom: ## a software bill of materials (CycloneDX) of each shipped lock, below .run/sbom
	@.tools/uv/bin/uv venv -q --allow-existing --python .venv/bin/python .tools/sbom
	@.tools/uv/bin/uv pip sync -q --require-hashes --python .tools/sbom/bin/python requirements/sbom.txt
	@mkdir -p .run/sbom
	@for lock in $(SHIPPED); do \
	  .tools/sbom/bin/cyclonedx-py requirements "requirements/$$lock.txt" --output-reproducible --of JSON \
	    -o ".run/sbom/$$lock.cdx.json" && echo ".run/sbom/$$lock.cdx.json" || exit 1; \
	done

clean: ## stop local stacks; delete their data and what tests left (asks on a terminal; environments stay)
	@if [[ -t 0 && -n "$$(ls -d '$(RUN_DIR)' .run .run-* 2>/dev/null)" ]]; then \
	  read -r -p "Delete Kafka's log, datasets, versions and logs of every local stack here? [y/N] " answer; \
	  [[ $$answer == [yY]* ]] || { echo 'nothing deleted'; exit 1; }; \
	fi
	@for directory in '$(RUN_DIR)' .run/* .run-*; do \
	  if [[ -d $$directory/data ]]; then $(PYTHON_BIN) -m deploy.local --run-dir "$$directory" down --delete-data; fi; \
	done
	rm -rf .run .run-* .pytest_cache .ruff_cache .hypothesis .import_linter_cache
