"""The bill of materials: CycloneDX 1.6 JSON with models and data, hand-built.

cyclonedx-python-lib has no class for model cards; its strict validator holds our document in the
tests. Specification: ECMA-424, https://cyclonedx.org/docs/1.6/json/.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote, urlsplit

from bundler.attest.terms import canonical
from bundler.manifest import BundledCorpus, BundledModel, Manifest, Origin
from bundler.value import digest


def bill_of_materials(manifest: Manifest) -> dict[str, Any]:
    """Return the bill of materials of a bundle as a CycloneDX 1.6 document."""
    identity = digest([manifest.name, manifest.version, manifest.lock_sha256])
    digests = {file.path: file.sha256 for file in manifest.files}
    components = [
        *_models(manifest, digests),
        *_companions(manifest, digests),
        *(_corpus(corpus, digests[corpus.file]) for corpus in manifest.corpora),
        *map(_software, manifest.components),
    ]
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.UUID(identity[:32])}",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(manifest.created, UTC).isoformat(),
            "tools": {
                "components": [
                    {
                        "type": "application",
                        "name": "bundler",
                        "version": manifest.builder.removeprefix("bundler "),
                    }
                ]
            },
            "component": {
                "type": "application",
                "bom-ref": "bundle",
                "name": manifest.name,
                "version": manifest.version,
            },
        },
        "components": components,
        "dependencies": [
            {"ref": "bundle", "dependsOn": [c["bom-ref"] for c in components]},
            *_runs_with(manifest, components),
        ],
    }


def _licences(word: str) -> list[dict[str, Any]]:
    if not word or word == "unknown":
        return []
    expression = canonical(word)
    if not expression:
        return [{"license": {"name": word}}]
    if " " in expression:
        return [{"expression": expression}]
    return [{"license": {"id": expression}}]


def _models(manifest: Manifest, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a component for each file of each model; one that several machines share names all."""
    files: dict[tuple[str, str], list[BundledModel]] = {}
    for model in manifest.models:
        files.setdefault((model.name, model.file), []).append(model)
    count = Counter(name for name, _ in files)
    return [
        _model(*same, alone=count[name] == 1, digests=digests) for (name, _), same in files.items()
    ]


def _model(
    model: BundledModel, *others: BundledModel, alone: bool, digests: Mapping[str, str]
) -> dict[str, Any]:
    tiers = [one.tier for one in (model, *others) if one.tier]
    properties = [{"name": "bundler:tier", "value": tier} for tier in tiers]
    card: dict[str, Any] = {
        "modelParameters": {"task": model.role, "architectureFamily": model.engine}
    }
    if model.proof is not None and model.proof.quality is not None:
        quality = model.proof.quality
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {"type": "perplexity", "value": f"{quality.perplexity:.4f}"},
                {"type": "mean KLD to the unquantized model", "value": f"{quality.kld_mean:.6f}"},
            ]
        }
    return (
        {
            "type": "machine-learning-model",
            "bom-ref": f"model/{model.name}" + ("" if alone else f"@{model.tier}"),
            "name": model.name,
            "version": model.origin.revision or "unknown",
            "description": f"{model.origin.reference} as {model.quant}",
            "licenses": _licences(model.origin.licence),
            "modelCard": card,
        }
        | ({"properties": properties} if properties else {})
        | _supplier(model.origin)
        | _contents(model, digests)
    )


def _contents(model: BundledModel, digests: Mapping[str, str]) -> dict[str, Any]:
    """Return a model's digest, or its shards with a digest each."""
    if not model.shards:
        return _hash(digests[model.file])
    return {
        "components": [
            {"type": "file", "bom-ref": f"file/{path}", "name": path} | _hash(digests[path])
            for path in model.shards
        ]
    }


def _companions(manifest: Manifest, digests: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return a component for each file that models run with, once."""
    found = {
        one.file: {
            "type": "machine-learning-model",
            "bom-ref": f"file/{one.file}",
            "name": one.file.rpartition("/")[2],
            "version": one.origin.revision or "unknown",
            "description": f"{one.origin.reference}, {one.kind} of {model.name}",
            "licenses": _licences(one.origin.licence),
            "properties": [{"name": "bundler:kind", "value": one.kind}],
        }
        | _supplier(one.origin)
        | _hash(digests[one.file])
        for model in manifest.models
        for one in model.companions
    }
    return [found[path] for path in sorted(found)]


def _runs_with(
    manifest: Manifest, components: Iterable[Mapping[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Yield what each model depends on, where it is anything."""
    there = {component["bom-ref"] for component in components}
    found: dict[str, list[str]] = {}
    for model in manifest.models:
        named = f"model/{model.name}@{model.tier}"
        reference = named if named in there else f"model/{model.name}"
        if reference in there and model.companions:
            needed = found.setdefault(reference, [])
            needed += [ref for one in model.companions if (ref := f"file/{one.file}") not in needed]
    for reference, needed in sorted(found.items()):
        yield {"ref": reference, "dependsOn": needed}


def _supplier(origin: Origin) -> dict[str, Any]:
    """Say whom it is from, where the reference says that: an owner on a hub, or a host."""
    source, _, locator = origin.reference.partition(":")
    name = ""
    if source == "hf":
        name = locator.partition("/")[0]
    elif source in ("http", "https"):
        name = urlsplit(origin.reference).hostname or ""
    return {"supplier": {"name": name}} if name else {}


def _hash(sha256: str) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}


def _corpus(corpus: BundledCorpus, sha256: str) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": f"corpus/{corpus.name}",
        "name": corpus.title,
        "version": corpus.origin.revision or "unknown",
        "description": f"{corpus.origin.reference}, {corpus.coverage.articles_indexed} articles",
        "licenses": _licences(corpus.origin.licence),
    } | _supplier(corpus.origin) | _hash(sha256)  # fmt: skip


def _software(component: Mapping[str, Any]) -> dict[str, Any]:
    name, version = str(component["name"]), str(component["version"])
    wheel = any(str(path).startswith("site/") for path in component.get("files", ()))
    return {
        "type": "library",
        "bom-ref": f"software/{name}@{version}",
        "name": name,
        "version": version,
        "licenses": _licences(str(component.get("licence") or "")),
    } | ({"purl": f"pkg:pypi/{name}@{quote(version)}"} if wheel else {})
