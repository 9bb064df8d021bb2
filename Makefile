# `make demo` shows it, `make test` proves it; both build the virtual environments that they need, from constraints.txt.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
TOX := .make/tox/bin/tox

.PHONY: demo test lint bench bench-quick chaos mutants budgets soak clean

demo: .venv/.installed
	.venv/bin/python -m demo

test: .make/tox/.installed
	$(TOX) run

lint: .make/tox/.installed
	$(TOX) run -e lint,types

bench: .venv/.bench
	.venv/bin/python -m bench

bench-quick: .venv/.bench
	.venv/bin/python -m bench --mode quick

# one campaign of faults: make chaos SEED=7 SECONDS=120; without a seed it chooses one, and prints it first
SECONDS := 60
chaos: .venv/.chaos
	.venv/bin/python -m tests.chaos $(if $(SEED),--seed $(SEED)) --seconds $(SECONDS)

mutants: .venv/.chaos
	.venv/bin/python -m pytest tests/chaos -m mutants

# how soon work goes on after each sort of failure, a quarter of an hour; writes the table of docs/reliability.md
budgets: .venv/.chaos
	.venv/bin/python -m tests.chaos.budgets

# steady load beside an old snapshot while things are killed and cut: make soak MINUTES=30; writes docs/reliability/
MINUTES := 30
soak: .venv/.chaos
	.venv/bin/python -m tests.chaos.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

clean:
	rm -rf .venv .tox .make .wqcore build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.installed: pyproject.toml constraints.txt
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo]'
	touch $@

.venv/.bench: .venv/.installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[demo,bench]'
	touch $@

.venv/.chaos: .venv/.installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test-all]'
	touch $@

.make/tox/.installed: constraints.txt
	test -x .make/tox/bin/python || $(PYTHON) -m venv .make/tox
	.make/tox/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt tox
	touch $@
