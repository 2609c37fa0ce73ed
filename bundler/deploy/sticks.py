"""Several sticks at once: each has its own thread, and none waits for, or falls with, another."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path

from bundler.deploy.cargo import Cargo
from bundler.deploy.outcome import Outcome, Wishes, severity, together
from bundler.deploy.place import Place
from bundler.deploy.stick import deploy_to
from bundler.errors import BundlerError, RecipeError, StepFailed
from bundler.events import Event, Report, silent

_LET_GO_SECONDS = 5.0
"""How long a stopped command waits for sticks that hang: writing 8 MiB takes less on any that works."""


def deploy(
    cargo: Cargo, targets: Sequence[Path], wishes: Wishes, report: Report = silent
) -> list[Outcome]:
    """Copy a bundle to all targets at the same time and return what became of each.

    Raises:
        RecipeError: a target is named twice, or lies in the bundle itself.
        KeyboardInterrupt: it was stopped; every stick can be gone on with.
    """
    _check_targets(cargo, targets)
    stop, lock = threading.Event(), threading.Lock()
    outcomes: dict[int, Outcome] = {}

    def tell(event: Event) -> None:
        with lock:
            report(event)

    def work(number: int, target: Path) -> None:
        try:
            outcomes[number] = deploy_to(cargo, target, wishes, stop, tell)
        except Exception as error:  # noqa: BLE001 - a thread has no caller: whatever it was must be seen
            failed = StepFailed(
                f"{type(error).__name__}: {error}", where=str(target),
                hint="this is a fault of bundler: please report it with the output of `--debug`",
            )  # fmt: skip
            failed.__cause__ = error
            outcomes[number] = Outcome(target, errors=[failed])

    threads = [
        threading.Thread(target=work, args=(number, target), daemon=True, name=f"stick-{number}")
        for number, target in enumerate(targets)
    ]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except BaseException:
        stop.set()
        for thread in threads:
            thread.join(_LET_GO_SECONDS / len(threads))
        raise
    return [outcomes[number] for number in range(len(targets))]


def _check_targets(cargo: Cargo, targets: Sequence[Path]) -> None:
    seen: set[str] = set()
    problems = []
    root = os.path.realpath(cargo.root)
    for target in targets:
        real = os.path.realpath(Place(target, cargo.manifest.name).root)
        if real in seen:
            problems.append(RecipeError("is named twice", where=str(target), hint="name it once"))
        elif Path(real).is_relative_to(root):
            problems.append(RecipeError(
                "the bundle would be copied to where it is itself", where=str(target),
                hint="give the folder where a stick is mounted",
            ))  # fmt: skip
        seen.add(real)
    if problems:
        raise together(problems)


def failure(outcomes: Sequence[Outcome]) -> BundlerError | None:
    """Return what went wrong on all sticks as one error, of the worst kind; None if nothing did."""
    errors = [error for outcome in outcomes for error in outcome.errors]
    if not errors:
        return None
    found = together(errors)
    found.__cause__ = errors[0].__cause__
    return found


def worst(outcomes: Sequence[Outcome]) -> int:
    """Return the exit code of the stick that fared worst."""
    codes = [error.exit_code for outcome in outcomes for error in outcome.errors]
    return min(codes, key=severity, default=0)
