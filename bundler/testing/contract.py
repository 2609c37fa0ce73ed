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

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from bundler.builtin.knowledge import ZimCorpus
from bundler.errors import BundlerError
from bundler.hardware import Platform, Target
from bundler.hookspecs import CorpusKind, Engine, Runtime, Source
from bundler.lock import LockedFile, LockedModel, Resolution
from bundler.plan import FileInput, Offer
from bundler.plugins import BUILTIN, Plugins, load_plugins
from bundler.proof import Coverage, Proof
from bundler.recipe import ModelRequest, SourceReference
from bundler.store import hash_file
from bundler.testing.contract_offers import TARGETS, Read, check_offers, read_facts
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
from bundler.world import World

CORPUS_PARAMETERS = {
    "name": "contract", "title": "A corpus of the contract", "language": "eng", "creator": "",
    "description": "", "licence": "CC0-1.0", "date": "2026-11-22",
}  # fmt: skip
"""What the planner gives every corpus step."""
_SOURCE_NAME = re.compile(r"[a-z][a-z0-9+.-]*")


# -- sources -----------------------------------------------------------------------------------------


def check_source(
    source: Source, reference: SourceReference, world: World,
    *, missing: SourceReference | None = None,
) -> Resolution:  # fmt: skip
    """Check a source on something that it can resolve; return the resolution.

    Args:
        source: the source.
        reference: something small that is there.
        world: a world it is reached from; its store is the only place it may write to.
        missing: something that is not there; made from `reference` when not given.
    """
    hold(_SOURCE_NAME.fullmatch(source.name), f"{source.name!r} cannot be written before a colon")
    with watched(world.store.root) as watch:
        resolution = source.resolve(reference, world)
        again = source.resolve(reference, world)
    hold(not watch.changed, f"{source.name}: resolve() writes to {watch.changed[:5]}")
    hold(isinstance(resolution, Resolution), f"{source.name}: resolve() gives no Resolution")
    hold(resolution == again, f"{source.name}: resolve() differs from call to call")
    _check_resolution(resolution, f"{source.name}: {reference}")
    hold(resolution.source == source.name, f"{source.name}: says it is {resolution.source!r}")
    for file in resolution.files:
        _check_open(source, file, world)
    _check_offline(source, reference, resolution, world)
    absent = missing or reference.model_copy(
        update={"locator": reference.locator + "-which-is-not-there", "sha256": None}
    )
    _check_missing(source, absent, world)
    return resolution


def _check_resolution(resolution: Resolution, who: str) -> None:
    paths = [file.path for file in resolution.files]
    hold(len(paths) == len({path.casefold() for path in paths}), f"{who}: a name twice in {paths}")
    hold(resolution.revision, f"{who}: names no revision")
    for file in resolution.files:
        hold(file.addresses, f"{who}: {file.path} can be had nowhere")


def _check_open(source: Source, file: LockedFile, world: World) -> None:
    who = f"{source.name}: {file.path}"
    whole, first = _read(source, file, world, start=0)
    hold(hashlib.sha256(whole).hexdigest() == file.sha256, f"{who}: has not the SHA-256 it was given")
    middle, end = file.size_bytes // 3, file.size_bytes * 2 // 3
    if not 0 < middle < end:
        return
    rest, begun = _read(source, file, world, start=middle, validator=first)
    hold(rest == whole[begun_at(begun, middle) :], f"{who}: other bytes from {middle} on")
    part, begun = _read(source, file, world, start=middle, end=end, validator=first)
    if begun is not None and begun_at(begun, middle) == middle:
        hold(part == whole[middle:end], f"{who}: other bytes than asked from {middle} to {end}")
"""placeholder"""
