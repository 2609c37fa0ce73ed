"""Does a plugin's step as the core does it, twice, and holds what it left against the contract."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bundler.errors import BundlerError
from bundler.hookspecs import Maker, Task
from bundler.store import Store, hash_file
from bundler.testing.watching import left_in, moved_to, watched
from bundler.value import canonical_json, check_name, check_relative_path
from bundler.world import World

Content = bytes | Path
"""What a file of a test holds: bytes, or those of a file."""


@dataclass(frozen=True)
class Left:
    """What one run of a step left."""

    output: Path
    files: Mapping[str, str]
    """Relative path → SHA-256."""
    facts: Mapping[str, Any]


def hold(condition: object, sentence: str) -> None:
    """Raise AssertionError with `sentence` unless `condition` is true (also under `python -O`)."""
    if not condition:
        raise AssertionError(sentence)


def check_maker(maker: Maker, kind: str) -> None:
    """Check the name and the fingerprint of something that does steps."""
    who = f"{kind} {getattr(maker, 'name', maker)!r}"
    hold(isinstance(maker.name, str), f"{who}: its name is no text")
    try:
        check_name(maker.name)
    except ValueError as error:
        raise AssertionError(f"{who}: {error}") from error
    tool = maker.tool()
    hold(isinstance(tool, str) and tool.strip(), f"{who}: tool() gives {tool!r}, not a fingerprint")
    hold(maker.tool() == tool, f"{who}: tool() changes from call to call: nothing would be reused")


def place_inputs(files: Mapping[str, Content], folder: Path) -> dict[str, Path]:
    """Put files where a step finds them: read-only, named by digest, without any suffix."""
    folder.mkdir(parents=True)
    placed = {}
    for name, content in files.items():
        check_relative_path(name)
        data = content if isinstance(content, bytes) else content.read_bytes()
        path = folder / hashlib.sha256(data).hexdigest()
        if not path.exists():
            path.write_bytes(data)
            path.chmod(0o444)
        placed[name] = path
    return placed


def run_twice(
    maker: Maker, action: str, files: Mapping[str, Content], parameters: Mapping[str, Any],
    folder: Path, *, same: bool = True, environment: Mapping[str, str] | None = None,
) -> Left:  # fmt: skip
    """Do a step twice in different places, the second time with its inputs in another order.

    Args:
        maker: an engine, corpus kind or runtime.
        action: what the step is called.
        files: the step's inputs.
        parameters: the step's parameters.
        folder: an empty folder, or one that does not exist yet.
        same: whether both runs must leave the same bytes and facts (measurements differ).
        environment: `world.environment` of the step.

    Raises:
        AssertionError: a sentence that says what was broken.
    """
    first = run_once(maker, action, files, parameters, folder / "first", environment)
    turned = dict(reversed(list(files.items())))
    second = run_once(maker, action, turned, parameters, folder / "second", environment)
    if same:
        who = f"{maker.name}: {action}"
        hold(
            first.files == second.files,
            f"{who} does not leave the same bytes twice: {_difference(first.files, second.files)}",
        )
        hold(
            canonical_json(first.facts) == canonical_json(second.facts),
            f"{who} does not give the same facts twice",
        )
    return first


def _difference(one: Mapping[str, str], other: Mapping[str, str]) -> str:
    return ", ".join(sorted(n for n in one.keys() | other if one.get(n) != other.get(n)))


def run_once(
    maker: Maker, action: str, files: Mapping[str, Content], parameters: Mapping[str, Any],
    folder: Path, environment: Mapping[str, str] | None = None,
) -> Left:  # fmt: skip
    """Do a step once, watched; see `run_twice`."""
    inputs = place_inputs(files, folder / "inputs")
    before = {path: hash_file(path) for path in inputs.values()}
    parameters_before = canonical_json(dict(parameters))
    output = folder / "output"
    output.mkdir()
    store = Store(folder / "store")
    told: list[tuple[Any, ...]] = []
    world = World(store=store, environment=dict(environment or {}), folder=folder / "here")
    task = Task(action, inputs, parameters, output, lambda *given: told.append(given), world)
    who = f"{maker.name}: {action}"
    with moved_to(folder), watched(output, store.root, folder / "tmp") as watch:
        facts = _facts(maker, task, who)
    hold(not watch.changed, f"{who} changes what is not its own: {_some(watch.changed)}")
    hold(not left_in(folder), f"{who} leaves things lying about: {_some(left_in(folder))}")
    after = {path: hash_file(path) if path.is_file() else "" for path in before}
    hold(before == after, f"{who} changes its inputs")
    hold(canonical_json(dict(parameters)) == parameters_before, f"{who} changes its parameters")
    _check_progress(told, who)
    return Left(output, check_left(output, who), facts)


def _facts(maker: Maker, task: Task, who: str) -> dict[str, Any]:
    try:
        facts = maker.run(task)
    except BundlerError:
        raise
    except Exception as error:
        raise AssertionError(
            f"{who} raised {type(error).__name__}, which is no BundlerError: {error}"
        ) from error
    hold(isinstance(facts, Mapping), f"{who} gives {type(facts).__name__}, not facts by name")
    try:
        plain: dict[str, Any] = json.loads(canonical_json(dict(facts)))
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{who} gives facts that are no JSON: {error}") from error
    return plain


def check_left(output: Path, who: str) -> dict[str, str]:
    """Check that only regular files with names for every filesystem were left; return digests."""
    found: dict[str, str] = {}
    folded: dict[str, str] = {}
    for path in sorted(output.rglob("*")):
        name = path.relative_to(output).as_posix()
        try:
            check_relative_path(name)
        except ValueError as error:
            raise AssertionError(f"{who} leaves an unsafe name: {error}") from error
        hold(not path.is_symlink(), f"{who} leaves a symbolic link: {name}")
        hold(path.is_file() or path.is_dir(), f"{who} leaves what is no regular file: {name}")
        twin = folded.setdefault(name.casefold(), name)
        hold(twin == name, f"{who} leaves {twin!r} and {name!r}: one file on many filesystems")
        if path.is_file():
            found[name] = hash_file(path)
    return found


def _check_progress(told: list[tuple[Any, ...]], who: str) -> None:
    for given in told:
        hold(2 <= len(given) <= 3, f"{who}: progress{given} is not progress(done, total, unit)")
        done, total = given[:2]
        good = done >= 0 and (total is None or done <= total)
        hold(good, f"{who}: progress{given} says more than there is")


def _some(things: list[str]) -> str:
    return ", ".join(things[:5]) + (f" and {len(things) - 5} more" if len(things) > 5 else "")


def check_refusal(
    maker: Maker, action: str, files: Mapping[str, Content], parameters: Mapping[str, Any],
    folder: Path,
) -> Left | None:  # fmt: skip
    """Do a step whose inputs are damaged: return None for a BundlerError, else what it left."""
    try:
        return run_once(maker, action, files, parameters, folder)
    except BundlerError as error:
        said = [problem for problem in error.problems if problem.message.strip()]
        hold(said, f"{maker.name}: {action} refuses damaged inputs without a word")
        return None
    finally:
        if os.path.lexists(folder):
            shutil.rmtree(folder)
