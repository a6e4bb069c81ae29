.DEFAULT_GOAL := help
.PHONY: help quickstart test test-all test-gpu lint docs bench
PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:  ## what there is to make
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## */  make \1\t/'

.venv/installed: pyproject.toml constraints.txt
	@if command -v uv >/dev/null; then \
	    uv venv --quiet --seed --allow-existing --python $(PYTHON) .venv && \
	    uv pip install --quiet --compile-bytecode --python .venv/bin/python -c constraints.txt -e '.[dev]'; \
	else \
	    $(PYTHON) -m venv .venv && .venv/bin/python -m pip install --quiet -c constraints.txt -e '.[dev]'; \
	fi
	@touch $@

quickstart: .venv/installed  ## train on the built-in data set: no download, about two minutes on two cores
	cifar-train experiment=quickstart

test: .venv/installed  ## the tests, offline, within six minutes on two cores
	pytest -n 2 --dist worksteal -m "not slow"

test-all: .venv/installed  ## these and what takes processes, engines or minutes
	pytest -n 2 --dist worksteal

test-gpu: .venv/installed  ## what only a machine with a GPU can tell
	CIFAR_RESNET_TEST_GPU=1 pytest -n 4 --dist worksteal tests/behaviour/test_on_cuda.py

lint: .venv/installed  ## ruff: style and formatting; import-linter: imports go one way; mypy: types
	ruff check . && ruff format --check . && lint-imports --no-cache && mypy

docs: .venv/installed  ## README and docs/ as a site, in outputs/site
	python -m pip install --quiet -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

BENCHMARKS = throughput precisions augmentation optimizers startup overhead memory ensemble predict scaling
bench: .venv/installed  ## what training costs, as ratios; figures go to outputs/bench/
	@mkdir -p outputs/bench; device=$$(python -c "import torch; print('gpu' if torch.cuda.is_available() else 'cpu')"); \
	for name in $(BENCHMARKS); do \
	    echo; echo "== python benchmarks/$$name.py"; \
	    python benchmarks/$$name.py --json outputs/bench/$$name-$$device.json || exit 1; \
	done
