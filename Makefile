# The two commands of the README are `make demo` and `make test`; each sets up what it needs.
PYTHON ?= python3
BUNDLER = .venv/bin/bundler
PYTEST = .venv/bin/python -m pytest

.PHONY: bench-outliers bench-media bench-update bench-plan bench-quant demo faults test check setup setup-test lint types requirements clean

demo: setup
	@$(BUNDLER) lock recipes/quickstart.toml --progress quiet
	@$(BUNDLER) build recipes/quickstart.toml

test: setup-test check
	@$(PYTEST) -n 2 --dist loadfile --no-loadscope-reorder

# Compiles llama.cpp's server with Vulkan (once, a quarter of an hour of two cores) and runs it on Mesa's
# software device. Debian: cmake ninja-build g++ glslc libvulkan-dev spirv-headers mesa-vulkan-drivers.
test-vulkan: setup-test
	@BUNDLER_SLOW_NATIVE=1 $(PYTEST) -m slow_native tests/test_vulkan_native.py

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

# Every case of the fault catalogue, long sweeps included (half an hour): what was tried, what held, and
# what cannot be tried here. `python tools/faults.py A5 C` runs some. The last line is JSON.
faults: setup-test
	@.venv/bin/python tools/faults.py

# Mixes of measured types against llama.cpp's own at equal bytes, on held-out text. Takes half an hour;
# `bench/quantization.py --model DIR` adds a model.
bench-quant: setup-test
	@.venv/bin/python bench/quantization.py

# Quality figures against llama-perplexity's on the same text: agreement and speed. Needs a tree of
# llama.cpp's source (BUNDLER_LLAMA_CPP_SOURCE) and a compiler. The last line is JSON.
bench-proof: setup-test
	@.venv/bin/python bench/proof.py

# Outliers made, measured and mended, and corrections by adapters against the same bytes as bits. Takes
# half an hour; `bench/outliers.py MODEL...` takes other models. The last line is JSON.
bench-outliers: setup-test
	@.venv/bin/python bench/outliers.py

# What an update costs in bytes: a model quantized anew, a library a month later. Takes minutes.
bench-update: setup-test
	@.venv/bin/python bench/update.py
