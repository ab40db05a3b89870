# make quickstart   a video model from nothing but this checkout, in a few minutes
# make test         the whole test suite (also what CI runs)
# make test-demo    the demo page in Chromium (CI: where that can be installed)
# make lint         ruff, and mypy over the public API
# make audit        known vulnerabilities of what constraints.txt pins; asks pypi.org, so it needs the network
# make mutants      small faults planted one at a time: do the nearest tests notice? hours; goes on where it stopped
# make fuzz         thousands of damaged models, adapters and checkpoints; half an hour on a free core

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

DEMO := $(VENV)-demo
AUDIT := $(VENV)-audit

.PHONY: install quickstart test test-quantization test-demo lint audit mutants fuzz clean

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
	$(BIN)/python -m pytest -n 2

# also runs in `make test` where the libraries are installed; they make every start of Python slower
test-quantization: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,quantization]"
	$(BIN)/python -m pytest tests/test_quantized.py

test-demo: $(DEMO)/.installed
	$(DEMO)/bin/python -m pytest tests/hub/test_demo.py

# over the other environment, because gradio asks for an older Pillow; Chromium from Debian if there is none
$(DEMO)/.installed: $(INSTALLED)
	command -v chromium || (apt-get update -qq && apt-get install -qq --no-install-recommends chromium)
	$(PYTHON) -m venv $(DEMO)
	$(BIN)/python -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
		> $$($(DEMO)/bin/python -c "import site; print(site.getsitepackages()[0])")/main.pth
	$(DEMO)/bin/pip install --quiet "gradio==6.31.0" "playwright==1.65.2" "pillow<13"
	touch $@

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# strict: a package that the service does not know fails, for then nothing was looked up
audit: $(AUDIT)/.installed
	$(AUDIT)/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

$(AUDIT)/.installed:
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/pip install --quiet "pip-audit>=2.10"
	touch $@

mutants: install
	$(BIN)/python benchmarks/mutants.py --max_mutants $(or $(MUTANTS),200) --jobs $(or $(JOBS),1)

fuzz: install
	$(BIN)/python benchmarks/fuzz_artefacts.py

clean:
	rm -rf $(VENV) $(DEMO) $(AUDIT) quickstart_output
