"""Turns the names in a recipe into a lock: revisions, sizes, digests, licences, model facts.

Asks sources; reads headers by range, never whole weights; changes nothing but the store's small
files (configurations, tokenizers).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from bundler.beside import Read, all_beside, all_locked_beside, check_draft, lock_beside
from bundler.errors import BundlerError, LockError, PassingFault, Problem, SourceError
from bundler.events import Note, StepFinished, StepStarted
from bundler.feedback.measurements import learned
from bundler.lock import Lock, LockedFile, LockedModel, Measurement, Resolution
from bundler.plugins import Plugins
from bundler.recipe import ModelRequest, Recipe, SourceReference
from bundler.recipe_drafts import pairs
from bundler.store import write_durably
from bundler.tasks.asked import PREFIX, only_file
from bundler.tasks.slips import require_questions
from bundler.value import digest, format_size, pretty_json
from bundler.world import World

_T = TypeVar("_T")
_AGAIN = "look at the connection and the address, then run the same command again"


def lock_path(recipe_path: Path) -> Path:
    """Return where a recipe's lock lies: `clinic.toml` → `clinic.lock`, beside it."""
    return recipe_path.with_suffix(".lock")


def request_digest(recipe: Recipe) -> str:
    """Return the digest of all that a lock depends on: names of things, not how they are built."""
    return digest(
        {
            "models": {
                name: {"source": model.source.model_dump(), "engine": model.engine}
                for name, model in recipe.models.items()
            },
            **_if_any("beside", {k: r.model_dump() for k, r in all_beside(recipe).items()}),
            **_if_any("drafts", pairs(recipe)),
            "corpora": {name: c.source.model_dump() for name, c in recipe.corpora.items()},
            "texts": {name: reference.model_dump() for name, reference in _texts(recipe).items()},
            "runtimes": list(recipe.runtime.use),
            "platforms": sorted(recipe.bundle.platforms),
        }
    )


def _if_any(name: str, found: Mapping[str, object]) -> dict[str, object]:
    """Name what goes with models; digests of recipes without such stay what they were."""
    return {name: found} if found else {}


def _texts(recipe: Recipe) -> dict[str, SourceReference]:
    """Return the texts that models are calibrated and scored with; ours where none are named."""
    if not recipe.models:
        return {}
    named = {"calibration": recipe.verify.calibration, "heldout": recipe.verify.heldout}
    texts = {
        name: reference or SourceReference(source="shipped", locator=name)
        for name, reference in named.items()
    }
    return texts | {PREFIX + name: task.source for name, task in recipe.verify.tasks.items()}


def resolve(recipe: Recipe, plugins: Plugins, world: World, *, created: int) -> Lock:
    """Return the lock for a recipe. All problems of all sources are raised together.

    Args:
        recipe: what is wanted.
        plugins: who knows how to ask.
        world: network, store, environment.
        created: seconds since 1970 to write into the lock.

    Raises:
        BundlerError: the kind of the first problem, with all problems in it.
    """
    problems: list[tuple[type[BundlerError], Problem]] = []

    def attempt(
        what: str, ask: Callable[[], _T], reference: SourceReference | None = None
    ) -> _T | None:
        world.report(StepStarted(f"lock {what}"))
        try:
            found = ask()
        except BundlerError as error:
            hint = _AGAIN if isinstance(error, PassingFault) else ""
            problems.extend(
                (type(error), _of_key(p, what, reference, hint)) for p in error.problems
            )
            return None
        detail = found.resolution if isinstance(found, LockedModel) else found
        size = format_size(detail.size_bytes) if isinstance(detail, Resolution) else ""
        size = "" if size == "0 B" else size  # it is here already
        world.report(StepFinished(f"lock {what}", "done", size))
        return found

    models = {
        name: attempt(
            f"models.{name}",
            partial(lock_request, model, plugins, world),
            model.source,
        )
        for name, model in recipe.models.items()
    }
    for name, draft in pairs(recipe).items():
        model, other = models[name], models[draft]
        if model is not None and other is not None:
            engine = plugins.named(plugins.engines, recipe.models[name].engine, "engine")
            held = partial(
                check_draft, recipe, name, (model, other), engine, _reader(plugins, world)
            )
            attempt(f"models.{name}.draft", held)
    corpora = {
        name: attempt(
            f"corpora.{name}", partial(ask_source, corpus.source, plugins, world), corpus.source
        )
        for name, corpus in recipe.corpora.items()
    }
    texts = {
        name: attempt(
            f"verify.{name}", partial(_ask_text, name, reference, recipe, plugins, world), reference
        )
        for name, reference in _texts(recipe).items()
    }
    runtimes = {
        f"{name}/{platform}": attempt(
            f"runtime {name} for {platform}",
            partial(plugins.named(plugins.runtimes, name, "runtime").needs, platform, world),
        )
        for name in recipe.runtime.use
        for platform in recipe.bundle.platforms
    }
    if problems:
        raise problems[0][0]([problem for _, problem in problems])
    return Lock(
        request_digest=request_digest(recipe),
        created=created,
        models={name: found for name, found in models.items() if found},
        corpora={name: found for name, found in corpora.items() if found},
        texts={name: found for name, found in texts.items() if found},
        runtimes={name: found for name, found in runtimes.items() if found},
    )


def _of_key(
    problem: Problem, what: str, reference: SourceReference | None, hint: str = ""
) -> Problem:
    """Return what a source says with the recipe's key that names it; its own places stay."""
    problem = replace(problem, hint=problem.hint or hint)
    if reference is None:
        return replace(problem, where=problem.where or what)
    own = what.startswith("verify.") and not what.startswith(f"verify.{PREFIX}")
    key = what if own else f"{what}.source"
    where = "" if problem.where == str(reference) else problem.where
    return replace(problem, where=where, key=problem.key or key)


def ask_source(reference: SourceReference, plugins: Plugins, world: World) -> Resolution:
    """Return what a reference means today."""
    source = plugins.named(plugins.sources, reference.source, "source")
    resolution = source.resolve(reference, world)
    if not resolution.files:
        raise SourceError(f"{reference} holds no files", hint="look at its `include` patterns")
    return resolution


def _ask_text(
    name: str, reference: SourceReference, recipe: Recipe, plugins: Plugins, world: World
) -> Resolution:
    """Return what the reference of a text means; a file of questions is read, so that it is known
    to be one before hours of work.
    """
    from bundler.transfer import read_range

    found = ask_source(reference, plugins, world)
    if name.startswith(PREFIX):
        source = plugins.sources[reference.source]
        require_questions(
            recipe, name.removeprefix(PREFIX), only_file(found, f"verify.{name}"),
            lambda file: read_range(source, file, 0, file.size_bytes, world),
        )  # fmt: skip
    return found


def lock_model(
    reference: SourceReference, engine_name: str, plugins: Plugins, world: World
) -> LockedModel:
    """Return a model's files and the facts its headers tell."""
    from bundler.transfer import read_range

    engine = plugins.named(plugins.engines, engine_name, "engine")
    resolution = ask_source(reference, plugins, world)
    source = plugins.sources[reference.source]

    def read(file: LockedFile, start: int, length: int) -> bytes:
        return read_range(source, file, start, length, world)

    return LockedModel(resolution=resolution, facts=engine.facts(resolution, read))


def lock_request(request: ModelRequest, plugins: Plugins, world: World) -> LockedModel:
    """Return a model's files and facts with what the recipe puts beside it."""
    model = lock_model(request.source, request.engine, plugins, world)
    engine = plugins.named(plugins.engines, request.engine, "engine")
    ask = partial(ask_source, plugins=plugins, world=world)
    return lock_beside(request, model, engine, ask, _reader(plugins, world))


def _reader(plugins: Plugins, world: World) -> Read:
    """Return what reads some bytes of a locked file from its source."""
    from bundler.transfer import read_range

    def read(reference: SourceReference, file: LockedFile, start: int, length: int) -> bytes:
        return read_range(plugins.sources[reference.source], file, start, length, world)

    return read


# -- the lock as a file ------------------------------------------------------------------------------


def read_lock(path: Path) -> Lock | None:
    """Return the lock in a file, None when there is no file.

    Raises:
        LockError: the file is not a lock.
    """
    try:
        return Lock.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise LockError(
            "is not a lock of this version of bundler",
            where=str(path),
            hint="restore it from version control, or make it anew with `bundler lock`",
        ) from error


def lock_text(lock: Lock) -> str:
    """Return a lock as it is written: JSON with sorted keys, so that a diff shows what changed."""
    return pretty_json(lock)


class MeasuredFacts:
    """What proofs of one build add to the lock beside its recipe, each as soon as it is there."""

    def __init__(self, path: Path, lock: Lock, world: World, *, read_only: bool) -> None:
        self._path, self._lock, self._world = path, lock, world
        self._why_not = "under --locked and --frozen the lock is not written" if read_only else ""
        self._said = ""

    def keep(self, found: Sequence[Measurement]) -> None:
        """Write measurements into the lock; say so, once, where that cannot be."""
        if self._why_not:
            self._say_not_kept()
            return
        try:
            with self._world.store.locked(f"lock-{digest(str(self._path.resolve()))[:32]}"):
                self._write(found)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._why_not = f"{self._path} cannot be written ({error.strerror})"
        if self._why_not:
            self._say_not_kept()

    def _write(self, found: Sequence[Measurement]) -> None:
        # Another build of the same recipe may have added to it since we read it.
        now = read_lock(self._path)
        if now is None or now.inputs_sha256 != self._lock.inputs_sha256:
            self._why_not = f"{self._path.name} was made anew while this build was running"
            return
        after = learned(now, found)
        if after is not now:
            write_durably(self._path, lock_text(after).encode())

    def _say_not_kept(self) -> None:
        if self._why_not != self._said:
            text = "what was measured is not kept for later plans: "
            self._world.report(Note(text + self._why_not, "warning"))
            self._said = self._why_not


def differences(lock: Lock, recipe: Recipe) -> list[Problem]:
    """Return what in a lock is not what the recipe asks for; nothing when it fits.

    The digest alone would do for a lock that we wrote. A lock is a file that others can write,
    so every entry is held against the recipe as well.
    """
    problems = []
    if lock.request_digest != request_digest(recipe):
        problems.append(Problem("the recipe names other things than its lock"))
    asked: dict[str, SourceReference] = {
        **{f"models.{name}": model.source for name, model in recipe.models.items()},
        **all_beside(recipe),
        **{f"corpora.{name}": corpus.source for name, corpus in recipe.corpora.items()},
        **{f"verify.{name}": reference for name, reference in _texts(recipe).items()},
    }
    locked: dict[str, Resolution] = {
        **{f"models.{name}": model.resolution for name, model in lock.models.items()},
        **all_locked_beside(lock),
        **{f"corpora.{name}": resolution for name, resolution in lock.corpora.items()},
        **{f"verify.{name}": resolution for name, resolution in lock.texts.items()},
    }
    for name in sorted(asked.keys() | locked.keys()):
        if name not in locked:
            problems.append(Problem("is in the recipe and not in its lock", name))
        elif name not in asked:
            problems.append(Problem("is in the lock and not in its recipe", name))
        elif (locked[name].source, locked[name].reference) != (
            asked[name].source,
            str(asked[name]),
        ):
            problems.append(Problem(f"the lock has {locked[name].reference!r} for it", name))
    runtimes = {f"{n}/{p}" for n in recipe.runtime.use for p in recipe.bundle.platforms}
    if runtimes != lock.runtimes.keys():
        problems.append(Problem("the lock has other runtimes or platforms than the recipe"))
    return problems


def changed_local_files(
    lock: Lock, recipe: Recipe, plugins: Plugins, world: World
) -> list[Problem]:
    """Return a problem for each local file that is no longer what the lock says."""
    problems = []
    asked: Mapping[str, tuple[SourceReference, Resolution]] = {
        **{f"models.{n}": (m.source, lock.models[n].resolution) for n, m in recipe.models.items()},
        **{key: (r, all_locked_beside(lock)[key]) for key, r in all_beside(recipe).items()},
        **{f"corpora.{n}": (c.source, lock.corpora[n]) for n, c in recipe.corpora.items()},
        **{f"verify.{n}": (r, lock.texts[n]) for n, r in _texts(recipe).items()},
    }
    for what, (reference, locked) in asked.items():
        if reference.source != "path":
            continue
        try:
            here = ask_source(reference, plugins, world)
        except BundlerError as error:
            raise error.with_problems(
                _of_key(p, what, reference) for p in error.problems
            ) from error
        now = {file.path: file.sha256 for file in here.files}
        then = {file.path: file.sha256 for file in locked.files}
        for path in sorted(now.keys() | then.keys()):
            if now.get(path) != then.get(path):
                word = "is new" if path not in then else "is gone" if path not in now else "changed"
                problems.append(Problem(f"{path} {word} since the lock was made", what))
    return problems


def report_lock_made(path: Path, lock: Lock, world: World, *, same: bool = False) -> None:
    """Say what was locked, or that nothing changed (`same`), and where it was written."""
    items = [m.resolution for m in lock.models.values()] + list(lock.corpora.values())
    total = sum(item.size_bytes for item in items)
    parts = [
        _counted(len(lock.models), "model", "models"),
        _counted(len(lock.corpora), "corpus", "corpora"),
        _counted(len(lock.texts), "text for proofs", "texts for proofs"),
        _counted(len(lock.runtimes), "runtime", "runtimes"),
    ]
    what = ", ".join(part for part in parts if part)
    again = "nothing changed: " if same else "locked "
    world.report(Note(f"{again}{what}; {format_size(total)} of models and corpora: {path}"))


def _counted(count: int, one: str, more: str) -> str:
    return f"{count} {one if count == 1 else more}" if count else ""
