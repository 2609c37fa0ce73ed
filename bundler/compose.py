"""Says what a bundle holds: from a plan and its results to a layout of files and a manifest.

::

    start, start.cmd, start.command     the doors for people
    README.html, report.html            what this is; what was measured
    manifest.json, SHA256SUMS           every file; the one thing that says what a bundle is
    bom.cdx.json, licenses/             what it is made of, and on which terms
    station.json                        what the station reads
    models/<name>/…  corpora/<name>.zim
    proofs/                             fingerprints of the unquantized models
    app/                                the station's code, the same for all platforms
    runtime/<platform>/                 Python, packages and model server for one platform
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bundler
from bundler.attest.provenance import PROVENANCE_NAME, provenance
from bundler.attest.verdicts import licences_page
from bundler.bom import bill_of_materials
from bundler.errors import DoesNotFit, PluginError
from bundler.execute import Results, files_left
from bundler.far_end.carried import (
    PAR2_IN_SITE,
    PAR2_TWIN,
    RESCUE,
    carried_files,
    rescue_script,
)
from bundler.feedback.measurements import PROOF_ACTION
from bundler.layout import Layout
from bundler.lock import Lock, Resolution
from bundler.manifest import (
    BundledCompanion,
    BundledCorpus,
    BundledModel,
    BundledTier,
    Manifest,
    Origin,
)
from bundler.plan import Choice, Companion, FileInput, Plan
from bundler.planning.filesystems import largest_file_bytes, too_large
from bundler.planning.tiers import bundled_tiers, recipe_digest
from bundler.proof import Coverage, Proof
from bundler.recipe import Recipe
from bundler.recipe_drafts import pairs
from bundler.report import readme_html, report_html
from bundler.starters import start_files
from bundler.value import pretty_json
from bundler.weights.shard_names import shard_name

ModelOfTier = tuple[str, str]
"""A model's name and its tier's; the tier of a recipe for one machine is named ""."""

_LICENCE_FILE = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY|COPYRIGHT)([._-].*)?", re.I)


@dataclass(frozen=True)
class Composition:
    """A bundle that is not written yet."""

    layout: Layout
    manifest: Manifest


def compose(
    recipe: Recipe, lock: Lock, plan: Plan, results: Results,
    proofs: Mapping[ModelOfTier, Proof],
) -> Composition:  # fmt: skip
    """Return the bundle's layout and manifest. Writes nothing; reads the package's own files."""
    layout, placed = Layout(), ModelPaths()
    models = tuple(
        _add_model(layout, placed, c, recipe, lock, results, proofs) for c in plan.choices
    )
    models = with_drafts(models, recipe)
    tiers = bundled_tiers(plan)
    corpora = tuple(_add_corpus(layout, name, recipe, lock, results) for name in recipe.corpora)
    components = _add_runtimes(layout, lock, results)
    _add_licences(layout, recipe, lock, plan)
    _add_station(layout)
    for path, data in start_files(
        recipe.bundle.platforms, recipe.bundle.name, _title(recipe)
    ).items():
        layout.add_data(path, data, executable=not path.endswith((".cmd", ".py")))
    settings = station_settings(recipe, models, corpora, tiers)
    layout.add_data("station.json", pretty_json(settings).encode())
    manifest = Manifest(
        name=recipe.bundle.name,
        version=recipe.bundle.version,
        title=_title(recipe),
        created=lock.created,
        builder=f"bundler {bundler.__version__}",
        target=plan.target,
        tiers=tiers,
        platforms=recipe.bundle.platforms,
        recipe_sha256=recipe_digest(recipe),
        lock_sha256=lock.inputs_sha256,
        models=models,
        corpora=corpora,
        components=components,
        step_keys=dict(results.keys),
        files=layout.files(),
    )
    layout.add_data("licenses/INDEX.txt", licences_page(manifest).encode())
    layout.add_data("bom.cdx.json", pretty_json(bill_of_materials(manifest)).encode())
    layout.add_data("report.html", report_html(manifest, plan).encode())
    layout.add_data("README.html", readme_html(manifest).encode())
    made_from = provenance(manifest, layout.files(), lock)
    layout.add_data(PROVENANCE_NAME, pretty_json(made_from).encode())
    return Composition(layout, manifest.model_copy(update={"files": layout.files()}))


def _title(recipe: Recipe) -> str:
    return recipe.bundle.title or recipe.bundle.name


def _origin(resolution: Resolution, licence: str) -> Origin:
    return Origin(
        reference=resolution.reference,
        revision=resolution.revision,
        licence=licence or resolution.licence,
        licence_url=resolution.licence_url,
    )


class ModelPaths:
    """Where models lie in a bundle: equal bytes once, whoever asks; other bytes never there."""

    def __init__(self) -> None:
        self._by_digest: dict[str, str] = {}

    def paths(self, choice: Choice, digests: Sequence[str]) -> tuple[str, ...]:
        """Return the places of one model's files: of its only one, or of its shards in order."""
        path = self.path(choice, "+".join(digests))
        stem, _, _ = path.rpartition(".")
        if len(digests) == 1:
            return (path,)
        return tuple(shard_name(stem, n, len(digests)) for n in range(1, len(digests) + 1))

    def path(self, choice: Choice, sha256: str) -> str:
        """Return a place for a file; `sha256` are several, joined by `+`, for one that is cut."""
        if sha256 not in self._by_digest:
            quant = re.sub(r"[^A-Za-z0-9._-]+", "-", choice.offer.quant)
            stem = f"models/{choice.model}/{choice.model}-{quant}"
            stems = (stem, f"{stem}-{choice.tier or 'other'}", f"{stem}-{sha256[:64]}")
            # Many filesystems do not tell upper from lower case.
            taken = {path.casefold() for path in self._by_digest.values()}
            paths = (f"{one}.{choice.offer.format}" for one in stems)
            self._by_digest[sha256] = next(path for path in paths if path.casefold() not in taken)
        return self._by_digest[sha256]

    def beside(self, choice: Choice, companion: Companion) -> str:
        """Return the place of a file that a model runs with."""
        sha256 = companion.file.sha256
        if sha256 not in self._by_digest:
            folder = f"models/{choice.model}/{companion.kind}"
            self._by_digest[sha256] = f"{folder}-{sha256[:12]}.{choice.offer.format}"
        return self._by_digest[sha256]


def _add_model(
    layout: Layout, placed: ModelPaths, choice: Choice, recipe: Recipe, lock: Lock,
    results: Results, proofs: Mapping[ModelOfTier, Proof],
) -> BundledModel:  # fmt: skip
    offer, files = choice.offer, _model_files(choice, results)
    paths = placed.paths(choice, [sha256 for sha256, _ in files])
    for path, (sha256, size_bytes) in zip(paths, files, strict=True):
        layout.add_object(path, sha256, size_bytes)
    return BundledModel(
        name=choice.model,
        role=choice.role,
        file=paths[0],
        shards=paths if len(paths) > 1 else (),
        engine=offer.engine,
        quant=offer.quant,
        kv_cache=offer.kv_cache,
        context_tokens=offer.context_tokens,
        parallel=offer.parallel,
        predicted_memory=offer.memory,
        bits_per_weight=offer.bits_per_weight,
        tier=choice.tier,
        residency=choice.residency,
        gpu_layers=offer.gpu_layers,
        origin=_origin(lock.models[choice.model].resolution, recipe.models[choice.model].licence),
        proof=_add_fingerprint(layout, choice, results, proofs.get((choice.model, choice.tier))),
        companions=_add_companions(layout, placed, choice, recipe, lock),
    )


def with_drafts(models: Sequence[BundledModel], recipe: Recipe) -> tuple[BundledModel, ...]:
    """Return models with the names of their drafts, where those are in the bundle for their tier."""
    named, there = pairs(recipe), {(model.name, model.tier) for model in models}
    return tuple(
        model.model_copy(update={"draft": named[model.name]})
        if (named.get(model.name), model.tier) in there
        else model
        for model in models
    )


def _add_fingerprint(
    layout: Layout, choice: Choice, results: Results, proof: Proof | None
) -> Proof | None:
    """Add the reference's fingerprint that a proof left, and return the proof that names its place."""
    if proof is None or proof.fingerprint is None:
        return proof
    known = proof.fingerprint
    left = results.by_step[choice.step_prefix + PROOF_ACTION].files
    size = next((size for sha256, size in left.values() if sha256 == known.sha256), None)
    if size is None:
        raise PluginError(
            "the proof speaks of a fingerprint that was not left", where=choice.step_prefix
        )
    path = f"proofs/{choice.model}-{known.sha256[:12]}.likelihoods"
    layout.add_object(path, known.sha256, size)
    named = known.model_copy(update={"file": path, "size_bytes": size})
    return proof.model_copy(update={"fingerprint": named})


def _model_files(choice: Choice, results: Results) -> list[tuple[str, int]]:
    """Return SHA-256 and size of a model's file, or of its shards in order."""
    offer = choice.offer
    if isinstance(offer.output, FileInput):
        return [(one.sha256, one.size_bytes) for one in (offer.output, *offer.other_shards)]
    result = results.by_step[choice.step_prefix + offer.output.step]
    return list(files_left(offer.output, result, "the bundle").values())


def _add_companions(
    layout: Layout, placed: ModelPaths, choice: Choice, recipe: Recipe, lock: Lock
) -> tuple[BundledCompanion, ...]:
    """Add what a model runs with, beside it."""
    locked, request = lock.models[choice.model], recipe.models[choice.model]
    found: list[BundledCompanion] = []
    for key, companion in zip(locked.beside, choice.offer.companions, strict=True):
        path = placed.beside(choice, companion)
        layout.add_object(path, companion.file.sha256, companion.file.size_bytes)
        number = len(found)
        adapter = companion.kind == "adapter"
        licence = request.adapters[number].licence if adapter else request.licence
        origin = _origin(locked.beside[key], licence)
        found.append(
            BundledCompanion(
                kind=companion.kind, file=path, scale=companion.scale, origin=origin
            )
        )  # fmt: skip
    return tuple(found)


def _add_corpus(
    layout: Layout, name: str, recipe: Recipe, lock: Lock, results: Results
) -> BundledCorpus:
    request = recipe.corpora[name]
    result = results.by_step[f"corpora/{name}"]
    path = f"corpora/{name}.zim"
    sha256, size_bytes = result.files["corpus.zim"]
    most_bytes = largest_file_bytes(recipe)
    if most_bytes is not None and size_bytes > most_bytes:  # known only now, if it was made here
        raise DoesNotFit(too_large(f"corpora.{name}", size_bytes, most_bytes))
    layout.add_object(path, sha256, size_bytes)
    coverage = Coverage.model_validate(result.facts)
    return BundledCorpus(
        name=name,
        file=path,
        title=request.title or coverage.title,
        language=coverage.language,
        origin=_origin(lock.corpora[name], request.licence),
        coverage=coverage,
    )


def _add_runtimes(layout: Layout, lock: Lock, results: Results) -> tuple[Mapping[str, Any], ...]:
    """Add each runtime's tree below its platform; return the software components they name."""
    components: dict[tuple[str, str], Mapping[str, Any]] = {}
    for label in sorted(lock.runtimes):
        platform = label.rpartition("/")[2]
        result = results.by_step[f"runtimes/{label}"]
        executables = set(result.facts.get("executables", ()))
        for path, (sha256, size_bytes) in result.files.items():
            layout.add_object(
                f"runtime/{platform}/{path}", sha256, size_bytes, executable=path in executables
            )
            if path == PAR2_IN_SITE:
                layout.add_object(
                    f"runtime/{platform}/{PAR2_TWIN}", sha256, size_bytes, executable=True
                )
        for component in result.facts.get("components", ()):
            components[component["name"], component["version"]] = component
    return tuple(components[key] for key in sorted(components))


def _add_licences(layout: Layout, recipe: Recipe, lock: Lock, plan: Plan) -> None:
    """Add the licence texts that came with models and corpora, and our own."""
    layout.add_data("licenses/bundler/GPL-3.0-or-later.txt", licence_text().encode())
    chosen = {choice.model for choice in plan.choices}
    bodies: list[tuple[str, Resolution]] = [
        *((f"models-{n}", m.resolution) for n, m in lock.models.items() if n in chosen),
        *(
            (f"models-{n}-{key.replace('[', '-').rstrip(']')}", one)
            for n, m in lock.models.items()
            if n in chosen
            for key, one in m.beside.items()
        ),
        *((f"corpora-{n}", r) for n, r in lock.corpora.items() if n in recipe.corpora),
    ]
    for label, resolution in bodies:
        for file in licence_files(resolution):
            layout.add_object(f"licenses/{label}/{file.path}", file.sha256, file.size_bytes)


def licence_files(resolution: Resolution) -> list[Any]:
    """Return the files of a body that hold the terms it comes under."""
    return [
        file for file in resolution.files if _LICENCE_FILE.fullmatch(file.path.rpartition("/")[2])
    ]


def licence_text() -> str:
    """Return the GNU GPL, version 3: installed with the package, or beside it in a checkout."""
    package = Path(bundler.__file__).parent
    for path in (package / "LICENSE", package.parent / "LICENSE"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    from importlib.metadata import distribution

    for file in distribution("bundler").files or ():
        if file.name == "LICENSE":
            return file.read_text(encoding="utf-8")
    raise FileNotFoundError("bundler was installed without its LICENSE file")


def station_files() -> Iterable[tuple[str, bytes]]:
    """Yield path → bytes of the station's code as it lies below `app/`."""
    package = Path(bundler.__file__).parent
    yield "bundler/__init__.py", (package / "__init__.py").read_bytes()
    for path in sorted((package / "station").rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield f"bundler/{path.relative_to(package).as_posix()}", path.read_bytes()


def _add_station(layout: Layout) -> None:
    for path, data in (*station_files(), *carried_files()):
        layout.add_data(f"app/{path}", data)
    layout.add_data(RESCUE, rescue_script())


def station_settings(
    recipe: Recipe, models: Iterable[BundledModel], corpora: Iterable[BundledCorpus],
    tiers: Iterable[BundledTier],
) -> dict[str, Any]:  # fmt: skip
    """Return what `station.json` says."""
    on_processor = {tier.name for tier in tiers if tier.target.accelerator == "none"}
    models = tuple(models)
    there = {(model.name, model.tier): model for model in models}
    drafts = {(model.draft, model.tier) for model in models if model.draft}
    return {
        "schema_version": 1,
        "name": recipe.bundle.name,
        "version": recipe.bundle.version,
        "title": _title(recipe),
        "runtimes": list(recipe.runtime.use),
        "tiers": [
            {
                "name": tier.name,
                "title": tier.title,
                "accelerator": tier.target.accelerator,
                "device_count": tier.target.device_count,
                "vram_bytes": tier.vram_bytes,
                "ram_bytes": tier.ram_bytes,
            }
            for tier in tiers
        ],
        "models": [
            {
                "name": model.name,
                "role": model.role,
                "file": model.file,
                **({"shards": list(model.shards)} if model.shards else {}),
                "context_tokens": model.context_tokens,
                "parallel": model.parallel,
                "kv_cache": model.kv_cache,
                "residency": model.residency,
                "gpu_layers": _gpu_layers(model, recipe, on_processor),
                "tier": model.tier,
                "quant": model.quant,
                "memory_bytes": model.predicted_memory.total_bytes,
                **_companion_settings(model),
                **(
                    _draft_settings(there[model.draft, model.tier], recipe, on_processor)
                    if model.draft
                    else {}
                ),
            }
            for model in models
            # A draft runs in the program of its model; nobody asks it anything.
            if (model.name, model.tier) not in drafts
        ],
        "corpora": [
            {
                "name": corpus.name,
                "file": corpus.file,
                "title": corpus.title,
                "language": corpus.language,
                "articles": corpus.coverage.articles_indexed,
                "full_text": corpus.coverage.full_text,
            }
            for corpus in corpora
        ],
    }


def _companion_settings(model: BundledModel) -> dict[str, Any]:
    """Return what `station.json` says of what a model runs with; nothing where it is alone."""
    adapters = [
        {"file": one.file, "scale": one.scale} for one in model.companions if one.kind == "adapter"
    ]
    found: dict[str, Any] = {"adapters": adapters} if adapters else {}
    for one in model.companions:
        if one.kind == "projector":
            found["projector"] = one.file
    return found


def _draft_settings(draft: BundledModel, recipe: Recipe, on_processor: Set[str]) -> dict[str, Any]:
    """Return what `station.json` says of the model that drafts for another one."""
    found: dict[str, Any] = {
        "file": draft.file,
        "kv_cache": draft.kv_cache,
        "gpu_layers": _gpu_layers(draft, recipe, on_processor),
    }
    return {"draft": {**found, **({"shards": list(draft.shards)} if draft.shards else {})}}


def _gpu_layers(model: BundledModel, recipe: Recipe, on_processor: Set[str]) -> int:
    """Return how many layers the station is to put on an accelerator; -1 for all.

    A set for the processor is picked where an accelerator is too small for it, so it stays off it.
    A bundle for one machine uses what accelerator it finds, unless the recipe says otherwise.
    """
    if model.tier not in on_processor:
        return model.gpu_layers
    free = not recipe.tiers and recipe.request_of(model.name).placement != "cpu"
    return -1 if free else 0
