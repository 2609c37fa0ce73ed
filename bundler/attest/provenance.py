"""An in-toto statement of how a bundle came to be, as SLSA's provenance says it.

Its subjects are all files that were put together, but itself and the parity sets (which are made of
it). The manifest lists it, so the manifest's signature covers it and it needs none of its own.
It has no clock and no name of a machine: the same lock gives the same bytes.
Formats: https://in-toto.io/Statement/v1, https://slsa.dev/provenance/v1
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from bundler.lock import Lock, LockedFile, Resolution
from bundler.manifest import BundleFile, Manifest

PROVENANCE_NAME = "provenance.intoto.json"
BUILD_TYPE = "urn:bundler:build:1"
BUILDER_ID = "urn:bundler:local"
"""Built on a machine of its maker's: SLSA's build level 1. Who that is, the signature says."""


def provenance(manifest: Manifest, files: tuple[BundleFile, ...], lock: Lock) -> dict[str, Any]:
    """Return the statement on `files`."""
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": f.path, "digest": {"sha256": f.sha256}} for f in files],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "name": manifest.name, "version": manifest.version,
                    "recipe": {"sha256": manifest.recipe_sha256},
                    "lock": {"sha256": manifest.lock_sha256},
                },
                "resolvedDependencies": [one for r in _bodies(lock) for one in _dependencies(*r)],
            },
            "runDetails": {
                "builder": {
                    "id": BUILDER_ID,
                    "version": {"bundler": manifest.builder.removeprefix("bundler ")},
                },
            },
        },
    }  # fmt: skip


def _bodies(lock: Lock) -> Iterator[tuple[str, Resolution]]:
    for name, model in sorted(lock.models.items()):
        yield f"models.{name}", model.resolution
        for key, one in sorted(model.beside.items()):
            yield f"models.{name}.{key}", one
    for kind, bodies in (
        ("corpora", lock.corpora),
        ("texts", lock.texts),
        ("runtimes", lock.runtimes),
    ):
        for name, one in sorted(bodies.items()):
            yield f"{kind}.{name}", one


def _dependencies(label: str, body: Resolution) -> Iterator[dict[str, Any]]:
    for file in body.files:
        uri = uri_of(body, file)
        named = {"name": f"{label}/{file.path}", "digest": {"sha256": file.sha256}}
        yield named | ({"uri": uri} if uri else {})


def uri_of(body: Resolution, file: LockedFile) -> str:
    """Return where a file is from, without names, passwords, tokens or paths of this machine.

    A package URL where there is one; "" for local files, which their digest names.
    """
    if body.source == "hf":
        name = body.reference.removeprefix("hf:").partition("@")[0]
        return f"pkg:huggingface/{quote(name)}@{quote(body.revision)}"
    for address in file.addresses:
        if address.startswith("pypi:"):
            name, _, rest = address.removeprefix("pypi:").partition("==")
            return f"pkg:pypi/{quote(name)}@{quote(rest.partition('/')[0])}"
        parts = urlsplit(address)
        if parts.scheme in ("http", "https"):
            host = parts.netloc.rpartition("@")[2]
            return urlunsplit((parts.scheme, host, parts.path, "", ""))
    return ""
