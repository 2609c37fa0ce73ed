#!/bin/sh
# Pins every dependency by name, version and the digests of all its files; no addresses.
# Needs uv (from PyPI) on the PATH. Run it when a dependency changes: make requirements
set -eu
cd "$(dirname "$0")/.."
compile() {
    uv pip compile "$@" --universal --generate-hashes --no-emit-index-url --no-annotate \
        --no-header --python-version 3.11 --quiet
}
compile pyproject.toml requirements/build.in -o requirements/runtime.lock
compile requirements/test.in -c requirements/runtime.lock -o requirements/test.lock
