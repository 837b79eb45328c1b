# The two commands of the README are `make demo` and `make test`; both set up what they need in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo test wheel minimal networks docs-test check bench soak fuzz zoo clean

help:
	@echo "make demo      install splitpoint (no PyTorch) and see it work"
	@echo "make test      install what the tests need (PyTorch among it) and run them"
	@echo "make wheel     build what a device is given, into dist"
	@echo "make minimal   prove that the core alone is enough, on every Python here (QUICK=--quick make minimal)"
	@echo "make networks  prove the cuts of the large networks too (minutes)"
	@echo "make docs-test follow the pages of the documentation that take long (minutes)"
	@echo "make check     lint, types, and the ceilings of scripts/line_budget.py"
	@echo "make bench     measure; prints machine, versions and numbers"
	@echo "make soak      ten minutes of clients that come, go, stall and die (SECONDS=60 make soak)"
	@echo "make fuzz      a million damaged frames, and a server and a device in all states (FRAMES=100000 STEPS=4000 make fuzz)"
	@echo "make zoo       rebuild the networks that come with splitpoint"
	@echo "make docs      build the documentation into out/site; a broken link is an error (make check does it, too)"
	@echo "make clean     remove what make has made"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# A stamp a set of extras: what is installed already is not asked for again until pyproject.toml changes.
$(VENV)/core.stamp: pyproject.toml | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/check.stamp: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[check]'
	@touch $@

$(VENV)/docs.stamp: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[docs]'
	@touch $@

$(VENV)/test.stamp: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[test,torch,plot,xlsx,video,heif,tls,predict]'
	@touch $@

$(VENV)/bench.stamp: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[bench]'
	@touch $@

$(VENV)/fuzz.stamp: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[test,tls]'
	@touch $@

$(VENV)/zoo.stamp: pyproject.toml | $(BIN)/python
	$(PIP) -e '.[torch,zoo]'
	@touch $@

demo: $(VENV)/core.stamp
	$(BIN)/splitpoint demo

# PyTorch's own threads would fight over the cores that pytest's workers already use; three of them, because many tests wait.
test: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 3 --dist worksteal

wheel: | $(BIN)/python
	$(BIN)/python scripts/wheel.py

minimal: | $(BIN)/python
	$(BIN)/python scripts/minimal.py $(QUICK)

networks: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m heavy

docs-test: $(VENV)/test.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal -m docs

check: $(VENV)/check.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/line_budget.py
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/check-jsonschema --quiet --builtin-schema vendor.compose-spec deploy/compose.yaml

# All anew each time (-E): pages have parts that are made from the code. Nothing is fetched, here or when it is read.
.PHONY: docs
check: docs
docs: $(VENV)/docs.stamp
	@rm -rf out/site
	$(BIN)/python -m sphinx -q -E -W --keep-going -n -c docs -d out/doctrees . out/site
	@echo "wrote out/site/index.html"

bench: $(VENV)/test.stamp $(VENV)/bench.stamp
	$(BIN)/python -m bench

SECONDS ?= 600
soak: $(VENV)/core.stamp
	$(BIN)/python -m bench.soak --seconds $(SECONDS)

FRAMES ?= 1000000
STEPS ?= 20000
fuzz: $(VENV)/fuzz.stamp
	$(BIN)/python -m bench.fuzz --frames $(FRAMES)
	STEPS=$(STEPS) $(BIN)/python -m pytest -q -s tests/attacks/test_states.py tests/attacks/test_lying_server.py

zoo: $(VENV)/zoo.stamp
	$(BIN)/python scripts/build_zoo.py

clean:
	rm -rf $(VENV) dist .pytest_cache .mypy_cache .ruff_cache .hypothesis out
