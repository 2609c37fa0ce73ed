# The two commands of the README are `make demo` and `make test`; each sets up what it needs.
PYTHON ?= python3
BUNDLER = .venv/bin/bundler
PYTEST = .venv/bin/python -m pytest

.PHONY: bench-media bench-update bench-plan demo faults test check setup setup-test lint types requirements clean

demo: setup
	@$(BUNDLER) lock recipes/quickstart.toml --progress quiet
	@$(BUNDLER) build recipes/quickstart.toml

test: setup-test check
	@$(PYTEST) -n 2 --dist loadfile

check: setup-test
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy

setup:
	@$(PYTHON) tools/setup.py

setup-test:
	@$(PYTHON) tools/setup.py --test

requirements:
	@tools/lock_requirements.sh

clean:
	rm -rf .venv .cache dist build

# The plan's memory against llama.cpp's own account, and how long planning takes.
bench-plan: setup-test
	@.venv/bin/python bench/plan_memory.py

# Verifying, sealing and repairing against hashlib, sha256sum, openssl and par2, on 1 GB of noise.
bench-media: setup-test
	@.venv/bin/python bench/media.py

# Every case of the fault catalogue, long sweeps included (half an hour): what was tried, what held.
faults: setup-test
	@.venv/bin/python tools/faults.py

# What an update costs in bytes: a model quantized anew, a library a month later. Takes minutes.
bench-update: setup-test
	@.venv/bin/python bench/update.py
