# Everything here works in a fresh checkout: scripts/setup brings what is missing.
BIN := .venv/bin
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all chaos explore check proto bench bench-meta bench-ckpt bench-fanout bench-rivals clean

help: ## say what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with what the tests and the demo need
	@scripts/setup dev demo

demo: ## read a model through three peers; MODEL=path for your own
	@scripts/setup demo
	@$(BIN)/mesh demo $(MODEL)

test: ## the quick tests
	@scripts/setup dev
	@$(BIN)/pytest -m "not slow" -n 2 --dist worksteal

test-all: ## all tests
	@scripts/setup dev
	@$(BIN)/pytest

chaos: ## break real meshes for at most 6 minutes, and see that no reader minds; as root
	@scripts/setup dev
	@$(BIN)/python -m chaos set

explore: ## end everything at each step of a write, and write through faults; half an hour
	@scripts/setup dev
	@MESH_EXPLORE=1 $(BIN)/pytest tests/peer/test_crash_points.py
	@$(BIN)/python -m chaos writers --short

check: ## style, types, and that mesh/wire/gen is what proto/ says
	@scripts/setup dev
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@before=$$(cat mesh/wire/gen/*.py* | cksum) && scripts/proto && \
	test "$$before" = "$$(cat mesh/wire/gen/*.py* | cksum)" || \
	{ echo "check: mesh/wire/gen was not what proto/ says; 'make proto', and commit it" >&2; exit 1; }

proto: ## make mesh/wire/gen from proto/
	@scripts/setup dev
	@scripts/proto

bench: ## measure mesh against the floor it stands on
	@scripts/setup dev
	@for name in read faults xfer under_store memory death meta ckpt; do $(BIN)/python -m bench.$$name || exit; done

bench-meta: ## measure stat, listings, small files and millions of names
	@scripts/setup dev
	@$(BIN)/python -m bench.meta

bench-ckpt: ## measure files that are written, closed, and read by another host
	@scripts/setup dev
	@$(BIN)/python -m bench.ckpt

bench-fanout: ## measure one file that 8, 16, 32 hosts read at once; a quarter of an hour, as root
	@scripts/setup dev
	@$(BIN)/python -m bench.fanout

bench-rivals: ## measure mesh against JuiceFS and rclone
	@scripts/setup dev bench
	@$(BIN)/python -m bench.rivals

clean: ## remove all that make has made
	@rm -rf .venv out .hypothesis .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -prune -exec rm -r {} +
