"""Does the steps of a plan: finds finished ones by key, fetches what the others read, runs them.

A step is finished when its result is recorded; it is recorded when every file it left is in the
store under its own digest. A build that was killed anywhere goes on from there.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from bundler.errors import BundlerError, PluginError, StepFailed, UnsafeInput
from bundler.events import Progress, StepFinished, StepStarted
from bundler.hookspecs import Maker, Task
from bundler.lock import Lock
from bundler.plan import FileInput, Plan, Step, StepInput, step_keys
from bundler.plugins import Plugins
from bundler.sourcing import locked_files
from bundler.store import StoredResult, full_disk_is_an_error
from bundler.tasks.programs.probing import require_sandbox
from bundler.transfer import fetch
from bundler.turns import turn
from bundler.unfinished import kept_of_step
from bundler.value import canonical_json, check_relative_path
from bundler.weights.shard_names import in_order, read_shard_name
from bundler.world import World


@dataclass(frozen=True)
class Results:
    """What all steps of a plan left: step name → result; and the keys they were found by."""

    by_step: Mapping[str, StoredResult]
    keys: Mapping[str, str]


def _nobody_listens(step: Step, result: StoredResult) -> None:
    """Do nothing with a result."""


def execute(
    plan: Plan, lock: Lock, plugins: Plugins, world: World,
    listener: Callable[[Step, StoredResult], None] = _nobody_listens,
) -> Results:  # fmt: skip
    """Do every step of `plan` that is not done yet and return all results.

    `listener` is given each step's result as soon as it is there, found or made.

    Raises:
        BundlerError: of the step that failed; finished steps stay finished.
    """
    keys = step_keys(plan.steps, _tools(plan, plugins))
    done: dict[str, StoredResult] = {}
    for step in plan.steps:
        found = world.store.result(keys[step.name])
        if found is not None:
            done[step.name] = found
    pending = [step for step in plan.steps if step.name not in done]
    require_sandbox(pending)
    fetch_inputs(pending, plan, lock, plugins, world)
    for step in plan.steps:
        if step.name in done:
            world.report(StepFinished(step.name, "cached"))
        else:
            done[step.name] = _do(step, keys[step.name], done, plugins, world)
        listener(step, done[step.name])
    return Results(done, keys)


def _tools(plan: Plan, plugins: Plugins) -> dict[str, str]:
    return {name: plugins.maker(name).tool() for name in sorted({s.plugin for s in plan.steps})}


def fetch_inputs(
    steps: Iterable[Step], plan: Plan, lock: Lock, plugins: Plugins, world: World
) -> None:
    """Fetch the locked files that `steps` read and the bundle ships as they are."""
    wanted = {
        given.sha256
        for step in steps
        for given in step.inputs.values()
        if isinstance(given, FileInput)
    }
    wanted |= {one.file.sha256 for c in plan.choices for one in c.offer.companions}
    wanted |= {
        file.sha256
        for choice in plan.choices
        for file in (choice.offer.output, *choice.offer.other_shards)
        if isinstance(file, FileInput) and isinstance(choice.offer.output, FileInput)
    }
    files = [
        (source, file) for source, file in locked_files(lock, plugins) if file.sha256 in wanted
    ]
    if files:
        fetch(files, world, step="fetch")


def _do(
    step: Step, key: str, done: Mapping[str, StoredResult], plugins: Plugins, world: World
) -> StoredResult:
    """Do one step, unless another build finished it while we waited for its lock."""
    with turn(world, f"step-{key[:32]}", step.name):
        found = world.store.result(key)
        if found is not None:
            world.report(StepFinished(step.name, "cached"))
            return found
        world.report(StepStarted(step.name))
        started = time.monotonic()
        with world.store.scratch() as output, kept_of_step(world.store, key) as kept:
            task = Task(
                action=step.action,
                inputs=_inputs(step, done, world),
                parameters=step.parameters,
                output=output,
                progress=_progress(step.name, world),
                world=world,
                kept=kept,
            )
            with full_disk_is_an_error(world.store.root, step.name):
                facts = _run(plugins.maker(step.plugin), step, task)
                result = StoredResult(_taken(step, output, world), facts)
            world.store.keep_result(key, result)
        world.report(StepFinished(step.name, "done", f"{time.monotonic() - started:.1f} s"))
        return result


def _inputs(step: Step, done: Mapping[str, StoredResult], world: World) -> dict[str, Path]:
    """Return each input as a verified file of the store."""
    paths: dict[str, Path] = {}
    for name, given in step.inputs.items():
        check_relative_path(name)
        if isinstance(given, FileInput):
            sha256 = given.sha256
        else:
            left = files_left(given, done[given.step], step.name)
            if given.shards:
                paths |= {shard: world.store.verified(left[shard][0]) for shard in left}
                continue
            sha256 = left[given.file][0]
        paths[name] = world.store.verified(sha256)
    return paths


def files_left(
    given: StepInput, result: StoredResult, needed_by: str
) -> dict[str, tuple[str, int]]:
    """Return what an earlier step left of what another reads, in order: name → SHA-256 and size.

    Raises:
        PluginError: it left nothing of that name, or not all shards.
    """
    if not given.shards:
        if given.file in result.files:
            return {given.file: result.files[given.file]}
        raise PluginError(
            f"{given.step} did not leave {given.file!r}, which {needed_by} needs",
            hint=f"it left: {', '.join(sorted(result.files)) or 'nothing'}",
        )
    stem = PurePosixPath(given.file).stem
    names = [n for n in result.files if (said := read_shard_name(n)) and said.stem == stem]
    if not names:
        raise PluginError(f"{given.step} left no shard of {given.file!r}, which {needed_by} needs")
    try:
        return {name: result.files[name] for name in in_order(names)}
    except UnsafeInput as error:
        raise PluginError(f"{given.step} did not leave all shards: {error}") from error


def _run(maker: Maker, step: Step, task: Task) -> dict[str, Any]:
    try:
        facts = dict(maker.run(task))
        canonical_json(facts)
    except (BundlerError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise StepFailed("ran out of memory", where=step.name) from error
    except OSError:
        raise
    except Exception as error:
        raise StepFailed(
            f"{step.plugin} broke: {type(error).__name__}: {error}",
            where=step.name,
            hint="this is a fault of that plugin, not of the recipe; `--debug` shows the traceback",
        ) from error
    return facts


def _taken(step: Step, output: Path, world: World) -> dict[str, tuple[str, int]]:
    """Take what a step left into the store after looking at every name."""
    for path in output.rglob("*"):
        name = path.relative_to(output).as_posix()
        try:
            check_relative_path(name)
        except ValueError as error:
            raise UnsafeInput(f"{step.plugin} left an unsafe name: {error}") from error
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise UnsafeInput(f"{step.plugin} left {name!r}, which is not a regular file")
    return world.store.adopt_folder(output)


def _progress(name: str, world: World) -> Any:
    """Return a progress function for one step that never goes backwards, within what it counts."""
    best = 0.0
    counted: tuple[float | None, str] | None = None

    def progress(done: float, total: float | None, unit: Any = "bytes") -> None:
        nonlocal best, counted
        best = max(best, done) if (total, unit) == counted else done
        counted = (total, unit)
        world.report(Progress(name, best, total, unit))

    return progress
