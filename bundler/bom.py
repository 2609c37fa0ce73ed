"""The bill of materials: CycloneDX 1.6 JSON with models and data, hand-built.

cyclonedx-python-lib has no class for model cards; its strict validator holds our document in the
tests. Specification: ECMA-424, https://cyclonedx.org/docs/1.6/json/.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from bundler.manifest import BundledCorpus, BundledModel, Manifest
from bundler.value import digest

# Identifiers SPDX knows (https://spdx.org/licenses/) that models and corpora commonly carry: only
# these may stand as `id` in CycloneDX; all else is given by `name`.
_SPDX = {
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MPL-2.0", "PSF-2.0", "Python-2.0",
    "CC0-1.0", "CC-BY-4.0", "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0",
    "GPL-2.0-or-later", "GPL-3.0-or-later", "LGPL-2.1-or-later", "LGPL-3.0-or-later", "Unlicense",
    "Zlib", "0BSD",
}  # fmt: skip


def bill_of_materials(manifest: Manifest) -> dict[str, Any]:
    """Return the bill of materials of a bundle as a CycloneDX 1.6 document."""
    identity = digest([manifest.name, manifest.version, manifest.lock_sha256])
    components = [
        *_models(manifest),
        *map(_corpus, manifest.corpora),
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
        "dependencies": [{"ref": "bundle", "dependsOn": [c["bom-ref"] for c in components]}],
    }


def _licences(word: str) -> list[dict[str, Any]]:
    if not word or word == "unknown":
        return []
    canonical = {identifier.lower(): identifier for identifier in _SPDX}.get(word.lower())
    return [{"license": {"id": canonical} if canonical else {"name": word}}]


def _models(manifest: Manifest) -> list[dict[str, Any]]:
    """Return a component for each file of each model; one that several machines share names all."""
    files: dict[tuple[str, str], list[BundledModel]] = {}
    for model in manifest.models:
        files.setdefault((model.name, model.file), []).append(model)
    count = Counter(name for name, _ in files)
    return [_model(*same, alone=count[name] == 1) for (name, _), same in files.items()]


def _model(model: BundledModel, *others: BundledModel, alone: bool) -> dict[str, Any]:
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
        | _hash(model.proof.model_sha256 if model.proof else "")
    )


def _hash(sha256: str) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}


def _corpus(corpus: BundledCorpus) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": f"corpus/{corpus.name}",
        "name": corpus.title,
        "version": corpus.origin.revision or "unknown",
        "description": f"{corpus.origin.reference}, {corpus.coverage.articles_indexed} articles",
        "licenses": _licences(corpus.origin.licence),
    }


def _software(component: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": f"software/{component['name']}@{component['version']}",
        "name": str(component["name"]),
        "version": str(component["version"]),
        "licenses": _licences(str(component.get("licence") or "")),
    }
