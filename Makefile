# make quickstart   a video model from nothing but this checkout, in a few minutes
# make test         the whole test suite (also what CI runs)
# make lint         ruff

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install quickstart test test-quantization lint clean

install: $(INSTALLED)

# torch first and pinned: an unpinned one may bring gigabytes of CUDA libraries along
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt torch
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

quickstart: install
	rm -rf quickstart_output
	$(BIN)/python examples/quickstart.py --output_dir quickstart_output

test: install lint
	$(BIN)/python -m pytest

# also runs in `make test` where the libraries are installed; they make every start of Python slower
test-quantization: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,quantization]"
	$(BIN)/python -m pytest tests/test_quantized.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) quickstart_output
