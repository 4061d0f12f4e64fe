# `make` lists the targets. Each makes its own .venv first, when it is missing or older than the project's files.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
CONSTRAINTS ?= constraints.txt
BIN := .venv/bin

.PHONY: help demo test quick test-slow faults gpu bench interop check parity doctor-sweep report docs docs-output site-test dist clean

help:
	@echo 'make demo      train a ResNet-20 on handwritten digits with two processes, and draw its curves'
	@echo 'make test      run the tests and the parity suite'
	@echo
	@echo 'make quick     run the tests to repeat between edits, under a minute on 2 cores'
	@echo 'make check     lint, format, types, import rules, the workflow file'
	@echo 'make test-slow run the exhaustive sweeps that make test leaves out'
	@echo 'make parity    print the parity report: each model on each rung, beside torchvision'
	@echo 'make doctor-sweep  plant mistakes alone and together, and write what the doctor calls them into docs/report'
	@echo 'make report    write docs/report, also beside timm, transformers, Keras and onnxruntime (half an hour)'
	@echo 'make docs      build the site, docs/_build/html/index.html, offline (0.3 GB in .venv-docs)'
	@echo 'make docs-output  draw the figures and write the shown outputs of the pages again'
	@echo 'make site-test open every page of the site in Chromium; under 3 minutes'
	@echo 'make interop   test against timm, transformers, Keras, Composer, Lightning, onnxruntime (0.5 GB in .venv-interop)'
	@echo 'make faults    kill trainings 500 times (N=500) and compare how they end; under an hour'
	@echo 'make gpu       prove and time everything on an NVIDIA GPU, in at most 8 minutes'
	@echo 'make dist      build the source archive and the wheel in dist/'
	@echo 'make bench     time ours beside onnxruntime, OpenVINO, timm and torch on this machine (1 GB in .venv-bench)'
	@echo 'make clean     remove .venv and caches; your runs/ stay'

demo: .venv/installed
	$(BIN)/resnet-core train digits --processes 2 --out runs/digits
	$(BIN)/resnet-core evaluate runs/digits
	$(BIN)/resnet-core plot runs/digits

test: .venv/installed
	$(BIN)/python -m pytest

quick: .venv/installed
	$(BIN)/python -m pytest --quick

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

faults: .venv/installed
	$(BIN)/python -m tests.faults $(or $(N),500)

gpu: .venv/installed
	$(BIN)/python -m parity.gpu

bench: .venv-bench/installed
	.venv-bench/bin/python -m parity.benchmarks.speed inference --batch 1 16 --out docs/results/speed-inference.json
	.venv-bench/bin/python -m parity.benchmarks.speed inference --models resnet18 resnet101 resnext50_32x4d \
		--without compiled timm --rounds 5 --out docs/results/speed-models.json
	.venv-bench/bin/python -m parity.benchmarks.speed training --out docs/results/speed-training.json
	.venv-bench/bin/python -m parity.benchmarks.speed training --models cifar_resnet20 --batch 128 --image-size 32 \
		--out docs/results/speed-training-small.json
	.venv-bench/bin/python -m parity.benchmarks.speed startup --out docs/results/speed-startup.json
	.venv-bench/bin/python -m parity.benchmarks.speed page
	.venv-bench/bin/python docs/figures.py

interop: .venv-interop/installed
	.venv-interop/bin/python -m pytest -m interop

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	$(BIN)/python -m pytest tests/test_layers.py

parity: .venv/installed
	$(BIN)/python -m parity

doctor-sweep: .venv/installed
	$(BIN)/python -m parity.sweep

report: .venv-interop/installed
	.venv-interop/bin/python -m parity --out docs/report

dist: .venv/installed
	$(BIN)/python -m build --no-isolation

docs: .venv-docs/installed
	rm -rf docs/_build/html
	.venv-docs/bin/python -m sphinx --builder html --fail-on-warning --keep-going --quiet --fresh-env \
		--doctree-dir docs/_build/doctrees docs docs/_build/html
	$(if $(wildcard docs/explorer/build.py),mkdir -p docs/_build/html/explorer && \
		.venv-docs/bin/python docs/explorer/build.py docs/_build/html/explorer/index.html)
	@echo 'docs/_build/html/index.html'

docs-output: .venv/installed
	$(BIN)/python docs/architecture.py
	$(BIN)/python docs/figures.py
	$(BIN)/python -m pytest tests/test_readme.py -n 0 --write-outputs

site-test: docs
	.venv-docs/bin/python -m pytest tests/site -n 2 --dist load

clean:
	rm -rf docs/_build .venv .venv-bench .venv-docs .venv-interop .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml $(CONSTRAINTS)
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed and was not found; name it: make PYTHON=/path/to/python3'; exit 1; }
	@echo 'Setting up .venv with $(PYTHON): torch and its libraries are a download of 2.7 GB, 5.6 GB on disk.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint $(CONSTRAINTS) --editable '.[dev]'
	@touch $@

# Environments on top of the first, so that `make test` never sees these libraries and torch is installed once.
.venv-bench .venv-docs .venv-interop: .venv/installed
	$(BIN)/python -m venv $@
	$(BIN)/python -c 'import sysconfig; print("import site; site.addsitedir(\"%s\")" % sysconfig.get_path("purelib"))' \
		> "$$($@/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/project.pth"

.venv-bench/installed: .venv/installed | .venv-bench
	.venv-bench/bin/python -m pip install --constraint $(CONSTRAINTS) 'resnet-core[bench]'
	@touch $@

# Composer comes without its dependencies, which would hold torch back; those that it imports are named.
.venv-interop/installed: .venv/installed | .venv-interop
	.venv-interop/bin/python -m pip install --constraint $(CONSTRAINTS) \
		'resnet-core[composer,export,hub,interop,openvino,tensorboard]' $(COMPOSER_IMPORTS) $(CHECKPOINT_WRITERS)
	.venv-interop/bin/python -m pip install --constraint $(CONSTRAINTS) --no-deps mosaicml mosaicml-cli
	@touch $@

# What builds the site and opens it in a browser; torch and the package come from the first environment.
.venv-docs/installed: .venv/installed | .venv-docs
	.venv-docs/bin/python -m pip install --constraint $(CONSTRAINTS) 'resnet-core[docs]'
	@touch $@

CHECKPOINT_WRITERS := accelerate lightning thop
COMPOSER_IMPORTS := backoff coolname gql importlib-metadata psutil py-cpuinfo questionary requests ruamel.yaml \
	validators websockets
