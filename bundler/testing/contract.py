"""What every plugin must hold, as checks for its own test suite.

::

    from bundler.testing.contract import check_corpus_kind, check_plugin

    def test_it_keeps_the_contract(tmp_path):
        check_plugin(my_package)
        check_corpus_kind(MyKind(), {"a.txt": b"…"}, {}, tmp_path)

Each check does what the core does with a plugin, twice and in another order, watches what is
written and connected to meanwhile (`watching`), and raises AssertionError with a sentence about
the first thing that is broken. What it returns can be looked at further. The core does not rely
on these checks: it keeps its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, get_args

from bundler.hardware import Platform, Target
from bundler.hookspecs import CorpusKind, Engine, Runtime, Source
from bundler.lock import LockedModel, Resolution
from bundler.plan import FileInput, Offer, StepInput
from bundler.plugins import Plugins, load_plugins
from bundler.proof import Coverage, Proof
from bundler.recipe import ModelRequest, SourceReference
from bundler.station.configuration import read_runtime
from bundler.station.problems import StationError
from bundler.store import Store
from bundler.testing.contract_offers import TARGETS, Read, check_offers, read_facts
from bundler.testing.contract_sources import (
    check_missing,
    check_offline,
    check_open,
    check_resolution,
)
from bundler.testing.contract_steps import (
    Content,
    Left,
    check_maker,
    check_refusal,
    hold,
    run_once,
    run_twice,
)
from bundler.testing.watching import watched
from bundler.value import check_name
from bundler.weights.shard_names import in_order, read_shard_name
from bundler.world import World

CORPUS_PARAMETERS = {
    "name": "contract", "title": "A corpus of the contract", "language": "eng", "creator": "",
    "description": "", "licence": "CC0-1.0", "date": "2026-11-22",
}  # fmt: skip
"""What the planner gives every corpus step."""
_ZIM_MAGIC = b"ZIM\x04"
_GARBAGE = b"\0\xff\xfe neither text nor what its name says \0"
_KINDS = {
    "bundler_sources": "sources", "bundler_engines": "engines", "bundler_corpora": "corpora",
    "bundler_runtimes": "runtimes", "bundler_targets": "targets",
}  # fmt: skip
_OTHER_HOOKS = ("bundler_review_plan", "bundler_review_proof")


def check_plugin(plugin: Any) -> Plugins:
    """Check that a plugin (a module, or an object with hooks) registers well; return all plugins.

    Every name is valid and new beside the built-in ones, every fingerprint is stable, every hook
    is spelled right and marked, and asking twice gives the same names.
    """
    hooks = [name for name in dir(plugin) if name.startswith("bundler_")]
    hold(hooks, f"{_title(plugin)} has no function whose name begins with bundler_")
    for name in hooks:
        known = name in _KINDS or name in _OTHER_HOOKS
        hold(known, f"{_title(plugin)}: there is no hook called {name}")
        marked = hasattr(getattr(plugin, name), "bundler_impl")
        hold(marked, f"{_title(plugin)}: {name} is not marked with @hookimpl: nobody calls it")
    plugins = load_plugins(extra=[plugin], installed=False)
    for hook in (name for name in hooks if name in _KINDS):
        items = list(getattr(plugin, hook)())
        names = [item.name for item in items]
        again = [item.name for item in getattr(plugin, hook)()]
        hold(names == again, f"{_title(plugin)}: {hook} gives other names the second time")
        for item in items:
            _check_item(hook, item)
    return plugins


def _title(plugin: Any) -> str:
    return str(getattr(plugin, "__name__", type(plugin).__name__))


def _check_item(hook: str, item: Any) -> None:
    if hook == "bundler_targets":
        check_target(item)
    elif hook == "bundler_sources":
        _check_source_name(item)
    else:
        check_maker(item, {"bundler_corpora": "corpus"}.get(hook, hook[8:-1]))


def check_target(target: Target) -> None:
    """Check that a target says what it can give and where the figures come from."""
    who = f"target {target.name}"
    check_name(target.name)
    hold(target.source.strip(), f"{who}: does not say where its figures come from")
    hold(target.ram_bytes > 0, f"{who}: has no memory")
    has_vram = target.usable_vram_bytes > 0
    hold(has_vram == (target.accelerator != "none"), f"{who}: accelerator and VRAM disagree")
    hold(target.platforms, f"{who}: runs on no platform")


def check_source(
    source: Source, reference: SourceReference, world: World,
    *, missing: SourceReference | None = None,
) -> Resolution:  # fmt: skip
    """Check a source on something that it can resolve; return the resolution.

    Args:
        source: the source.
        reference: something small that is there: every byte of it is read several times.
        world: a world it is reached from; its store is the only place it may write to.
        missing: something that is not there; made from `reference` when not given.
    """
    _check_source_name(source)
    with watched(world.store.root) as watch:
        resolution = source.resolve(reference, world)
        again = source.resolve(reference, world)
    hold(not watch.changed, f"{source.name}: resolve() writes to {watch.changed[:5]}")
    hold(isinstance(resolution, Resolution), f"{source.name}: resolve() gives no Resolution")
    hold(resolution == again, f"{source.name}: resolve() differs from call to call")
    hold(resolution.files, f"{source.name}: {reference} holds no files: take another for the test")
    hold(resolution.source == source.name, f"{source.name}: says it is {resolution.source!r}")
    check_resolution(resolution, f"{source.name}: {reference}")
    for file in resolution.files:
        check_open(source, file, world)
    check_offline(source, reference, resolution, world)
    absent = {"locator": f"{reference.locator}-which-is-not-there", "sha256": None}
    check_missing(source, missing or reference.model_copy(update=absent), world)
    return resolution


def _check_source_name(source: Source) -> None:
    try:
        SourceReference.model_validate(f"{source.name}:something")
    except ValueError as error:
        raise AssertionError(f"a recipe cannot name the source {source.name!r}: {error}") from error


def check_engine(
    engine: Engine, resolution: Resolution, read: Read,
    *, request: ModelRequest | None = None, targets: tuple[Target, ...] = TARGETS,
    texts: Mapping[str, Resolution] | None = None,
) -> tuple[Offer, ...]:  # fmt: skip
    """Check what an engine reads of a model and offers for it; return all offers.

    Nothing is built: see `check_offer` for that.

    Args:
        engine: the engine.
        resolution: a model's files.
        read: `read(file, start, length)` gives bytes of them.
        request: what is wanted of the model; the defaults of a recipe when not given.
        targets: machines to make offers for; at least one must get an offer.
        texts: texts for calibration and scoring, by name.
    """
    check_maker(engine, "engine")
    facts = read_facts(engine, resolution, read)
    model = LockedModel(resolution=resolution, facts=facts)
    reference = SourceReference(source=resolution.source, locator=resolution.reference or "-")
    wanted = request or ModelRequest(source=reference, engine=engine.name)
    with watched() as watch:
        found = [check_offers(engine, wanted, model, target, texts or {}) for target in targets]
    hold(not watch.changed, f"{engine.name}: offers() writes to {watch.changed[:5]}")
    hold(not watch.connected, f"{engine.name}: offers() connects to {watch.connected[:3]}")
    offers = tuple(offer for some in found for offer in some)
    hold(offers, f"{engine.name}: offers nothing for any of {[target.name for target in targets]}")
    return offers


def check_offer(
    engine: Engine, offer: Offer, files: Mapping[str, Content], folder: Path,
    *, environment: Mapping[str, str] | None = None,
) -> Proof | None:  # fmt: skip
    """Do the steps of an offer, each twice; return the proof of what came out.

    Args:
        engine: the engine that made the offer.
        offer: one offer, best for a small model.
        files: SHA-256 → content, of every locked file that the steps read.
        folder: an empty folder.
        environment: what the steps see as environment.
    """
    left: dict[str, Left] = {}
    for step in offer.steps:
        inputs: dict[str, Content] = {}
        for name, given in step.inputs.items():
            if isinstance(given, FileInput):
                inputs[name] = files[given.sha256]
            elif given.shards:
                made = left[given.step]
                inputs |= {one: made.output / one for one in _made(engine, given, made)}
            else:
                inputs[name] = left[given.step].output / _made(engine, given, left[given.step])[0]
        left[step.name] = run_twice(
            engine, step.action, inputs, step.parameters, folder / step.name.replace("/", "-"),
            same=step.name != "prove", environment=environment,
        )  # fmt: skip
    return _check_built(engine, offer, left)


def _check_built(engine: Engine, offer: Offer, left: Mapping[str, Left]) -> Proof | None:
    if isinstance(offer.output, FileInput):
        whole = (offer.output, *offer.other_shards)
        digests, size = [one.sha256 for one in whole], sum(one.size_bytes for one in whole)
    else:
        made = left[offer.output.step]
        names = _made(engine, offer.output, made)
        digests = [made.files[name] for name in names]
        sizes = [(made.output / name).stat().st_size for name in names]
        size = sum(sizes)
        most = offer.cut.most_bytes if offer.cut else max(sizes)
        hold(max(sizes) <= most, f"{engine.name}: a shard has {max(sizes):,} bytes, not {most:,}")
    near = abs(size - offer.disk_bytes) <= max(offer.disk_bytes // 20, 4096)
    hold(
        near, f"{engine.name}: {offer.quant} has {size:,} bytes, {offer.disk_bytes:,} were offered"
    )
    if "prove" not in left:
        return None
    proof = Proof.model_validate(left["prove"].facts)
    proved = [proof.model_sha256, *proof.other_shards_sha256]
    hold(proved == digests, f"{engine.name}: the proof is about another file")
    return proof


def _made(engine: Engine, given: StepInput, made: Left) -> list[str]:
    """Return the names of what a step left of what another reads, in order."""
    if not given.shards:
        there = given.file in made.files
        hold(there, f"{engine.name}: {given.step} does not leave {given.file!r}")
        return [given.file]
    stem = PurePosixPath(given.file).stem
    names = [n for n in made.files if (said := read_shard_name(n)) and said.stem == stem]
    hold(names, f"{engine.name}: {given.step} leaves no shard of {given.file!r}")
    return in_order(names)


def check_corpus_kind(
    kind: CorpusKind, files: Mapping[str, Content], parameters: Mapping[str, Any], folder: Path,
    *, zim: bool = True,
) -> Coverage:  # fmt: skip
    """Make a corpus twice and check it and what was said about it; return its coverage.

    Args:
        kind: the corpus kind.
        files: relative path → content, of a small corpus.
        parameters: what differs from `CORPUS_PARAMETERS`.
        folder: an empty folder; `first/output/corpus.zim` is the corpus afterwards.
        zim: False for a fake that leaves something else.
    """
    check_maker(kind, "corpus")
    asked = {**CORPUS_PARAMETERS, **parameters}
    left = run_twice(kind, "build", files, asked, folder)
    hold("corpus.zim" in left.files, f"{kind.name}: leaves no corpus.zim: {sorted(left.files)}")
    coverage = Coverage.model_validate(left.facts)
    hold(coverage.articles_found >= coverage.articles_indexed >= 0, f"{kind.name}: counts disagree")
    all_named = coverage.skipped_total >= len(coverage.skipped)
    hold(all_named, f"{kind.name}: skipped_total is smaller than what is listed as skipped")
    if zim:
        _check_zim(kind, left.output / "corpus.zim", coverage, folder)
        garbage = dict.fromkeys(files, _GARBAGE)
        made = check_refusal(kind, "build", garbage, asked, folder / "damaged")
        told = made is None or Coverage.model_validate(made.facts).skipped_total > 0
        hold(told, f"{kind.name}: makes a corpus of garbage and skips nothing")
    return coverage


def _check_zim(kind: CorpusKind, path: Path, coverage: Coverage, folder: Path) -> None:
    """Give the ZIM to the built-in kind `zim`, which reads it to the last byte."""
    with path.open("rb") as stream:
        hold(stream.read(len(_ZIM_MAGIC)) == _ZIM_MAGIC, f"{kind.name}: corpus.zim is no ZIM file")
    reader = load_plugins(installed=False).corpora["zim"]
    read = run_once(reader, "build", {"corpus.zim": path}, CORPUS_PARAMETERS, folder / "read-back")
    found = Coverage.model_validate(read.facts)
    hold(found.full_text == coverage.full_text, f"{kind.name}: is wrong about the full-text index")
    enough = found.articles_found >= coverage.articles_indexed
    hold(enough, f"{kind.name}: {coverage.articles_indexed} articles, {found.articles_found} found")


def check_needs(runtime: Runtime, platform: Platform, world: World) -> Resolution:
    """Check what a runtime says must be locked for a platform; return it."""
    check_maker(runtime, "runtime")
    hold(runtime.formats, f"{runtime.name}: serves no format")
    unknown = runtime.platforms - set(get_args(Platform))
    hold(not unknown, f"{runtime.name}: there are no platforms called {sorted(unknown)}")
    hold(platform in runtime.platforms, f"{runtime.name}: does not run on {platform}")
    with watched(world.store.root) as watch:
        resolution = runtime.needs(platform, world)
        hold(runtime.needs(platform, world) == resolution, f"{runtime.name}: needs() differ")
    hold(not watch.changed, f"{runtime.name}: needs() writes to {watch.changed[:5]}")
    check_resolution(resolution, f"{runtime.name}/{platform}")
    return resolution


def check_runtime(
    runtime: Runtime, platform: Platform, folder: Path,
    *, files: Mapping[str, Content] | None = None, world: World | None = None,
) -> Left:  # fmt: skip
    """Put a runtime together twice and check the tree it leaves.

    Args:
        runtime: the runtime.
        platform: one of its platforms.
        folder: an empty folder.
        files: relative path → content, of what it needs.
        world: a world for `needs`; a bare one when not given.
    """
    needs = check_needs(runtime, platform, world or World(Store(folder / "needs")))
    parameters = {"platform": platform, "revision": needs.revision}
    left = run_twice(runtime, "stage", files or {}, parameters, folder)
    _check_description(runtime, platform, left, folder)
    for name in left.facts.get("executables", ()):
        hold(name in left.files, f"{runtime.name}: {name!r} is to be executable, but is not there")
    components = left.facts.get("components", ())
    hold(components, f"{runtime.name}: names no components for the bill of materials")
    for component in components:
        known = all(component.get(key) for key in ("name", "version", "licence"))
        hold(known, f"{runtime.name}: name, version or licence is missing in {component}")
    return left


def _check_description(runtime: Runtime, platform: Platform, left: Left, folder: Path) -> None:
    """Let the station read how the runtime starts, as it does in a bundle."""
    name = f"{runtime.name}.json"
    hold(name in left.files, f"{runtime.name}: leaves no {name}: the station cannot start it")
    place = folder / "bundle" / "runtime" / platform
    place.mkdir(parents=True)
    shutil.copyfile(left.output / name, place / name)
    try:
        found = read_runtime(folder / "bundle", platform, runtime.name)
    except StationError as error:
        raise AssertionError(f"{runtime.name}: {error}") from error
    words = " ".join(found.command) if found else ""
    for needed in ("{model}", "{port}"):
        hold(needed in words, f"{runtime.name}: the command in {name} has no {needed}")
