"""Holds a source against the contract: what it resolves, and what it gives when it is opened."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

from bundler.errors import BundlerError
from bundler.hookspecs import ByteStream, Source
from bundler.lock import LockedFile, Resolution
from bundler.recipe import SourceReference
from bundler.testing.contract_steps import hold
from bundler.testing.watching import watched
from bundler.world import World


@dataclass(frozen=True)
class Served:
    """What came of one `open`."""

    data: bytes
    start: int
    validator: str | None


def check_resolution(resolution: Resolution, who: str) -> None:
    """Check that a resolution can be locked: one revision, names that differ, addresses."""
    paths = [file.path for file in resolution.files]
    hold(len(paths) == len({path.casefold() for path in paths}), f"{who}: a name twice in {paths}")
    hold(resolution.revision, f"{who}: names no revision")
    for file in resolution.files:
        hold(file.addresses, f"{who}: {file.path} can be had nowhere")


def check_open(source: Source, file: LockedFile, world: World) -> None:
    """Read a file whole, from the middle, and a part of it; with the right validator and a wrong one."""
    who = f"{source.name}: {file.path}"
    whole = _read(source, file, world)
    right = hashlib.sha256(whole.data).hexdigest() == file.sha256
    hold(whole.start == 0 and right, f"{who}: its bytes have not the SHA-256 that was locked")
    middle, end = file.size_bytes // 3, file.size_bytes * 2 // 3
    if not 0 < middle < end:
        return
    rest = _read(source, file, world, start=middle, validator=whole.validator)
    hold(rest.start in (0, middle), f"{who}: begins at {rest.start}, not at {middle} or 0")
    hold(rest.data == whole.data[rest.start :], f"{who}: other bytes from {middle} on")
    part = _read(source, file, world, start=middle, end=end, validator=whole.validator)
    if part.start == middle:
        hold(len(part.data) <= end - middle, f"{who}: gives more than was asked for")
        hold(part.data == whole.data[middle:end], f"{who}: other bytes from {middle} to {end}")
    if whole.validator is not None:
        other = _other_version(whole.validator)
        stale = _read(source, file, world, start=middle, validator=other)
        hold(stale.start == 0, f"{who}: goes on from {middle} although its version has changed")


def _other_version(validator: str) -> str:
    """Return a validator of the same form with another last character (before a quotation mark)."""
    end = (
        len(validator) - 1 if len(validator) > 1 and not validator[-1].isalnum() else len(validator)
    )
    last = "0" if validator[end - 1 : end] != "0" else "1"
    return validator[: end - 1] + last + validator[end:]


def _read(
    source: Source, file: LockedFile, world: World,
    *, start: int = 0, end: int | None = None, validator: str | None = None,
) -> Served:  # fmt: skip
    who = f"{source.name}: {file.path}"
    with (
        watched(world.store.root) as watch,
        source.open(
            file.addresses[0], start=start, end=end, validator=validator, world=world
        ) as stream,
    ):
        hold(isinstance(stream, ByteStream), f"{who}: open() gives no ByteStream")
        total = stream.total_bytes
        hold(total in (None, file.size_bytes), f"{who}: said to have {total} bytes")
        data = b"".join(stream.chunks)
    hold(not watch.changed, f"{who}: open() writes to {watch.changed[:5]}")
    return Served(data, stream.start, stream.validator)


def check_offline(
    source: Source, reference: SourceReference, resolution: Resolution, world: World
) -> None:
    """Check that a source that may not connect does not, and says so or answers the same."""
    offline = replace(world, offline=True)
    with watched(world.store.root) as watch:
        try:
            answer = source.resolve(reference, offline)
        except BundlerError:
            answer = resolution
    hold(not watch.connected, f"{source.name}: connects although offline: {watch.connected[:3]}")
    hold(answer == resolution, f"{source.name}: means something else when offline")


def check_missing(source: Source, reference: SourceReference, world: World) -> None:
    """Check that what is not there is an error for people."""
    who = f"{source.name}: {reference}"
    try:
        source.resolve(reference, world)
    except BundlerError as error:
        hold(all(problem.message for problem in error.problems), f"{who}: fails without a word")
        return
    except Exception as error:
        raise AssertionError(
            f"{who} raises {type(error).__name__}, which is no BundlerError: {error}"
        ) from error
    raise AssertionError(f"{who} is not there, but is resolved")
