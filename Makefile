# `make` lists the targets. Each makes its own .venv first, when it is missing or older than the project's files.

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)
BIN := .venv/bin

.PHONY: help demo test check parity clean

help:
	@echo 'make demo    trains a ResNet-20 on handwritten digits with two processes, and draws its curves'
	@echo 'make test    runs the tests and the parity suite'
	@echo 'make check   lint, format, types, and who may import whom'
	@echo 'make parity  prints the parity report: model by rung'
	@echo 'make clean   removes .venv and caches; runs/ is yours and stays'

demo: .venv/installed
	$(BIN)/resnet-core train digits --processes 2 --out runs/digits
	$(BIN)/resnet-core evaluate runs/digits
	$(BIN)/resnet-core plot runs/digits

test: .venv/installed
	$(BIN)/python -m pytest

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

parity: .venv/installed
	$(BIN)/python -m parity

clean:
	rm -rf .venv .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/installed: pyproject.toml constraints.txt
	@test -n '$(PYTHON)' || { echo 'Python 3.11 or newer is needed and was not found; name it: make PYTHON=/path/to/python3'; exit 1; }
	@echo 'Setting up .venv with $(PYTHON): torch and its libraries are a download of 2.7 GB, 5.6 GB on disk.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@
