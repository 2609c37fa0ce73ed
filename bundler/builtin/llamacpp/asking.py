"""The questions of a proof, each answered by a child process, and asked once.

A proof is minutes of measuring. Each answer is kept in the step's own folder until the proof is
whole, so who interrupts it loses the question that was being answered and no other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bundler.builtin.llamacpp.child import run_child
from bundler.hookspecs import Task
from bundler.store import write_durably
from bundler.value import Json, canonical_json, digest


def ask_once(
    task: Task,
    job: str,
    arguments: Mapping[str, Any],
    *,
    progress: Callable[..., None] | None = None,
    leaves: Sequence[Path] = (),
) -> Any:
    """Return what a child job answers, or answered before this step was cut off.

    Args:
        task: the step; where it keeps nothing, the child is asked every time.
        job: see `child.run_child`.
        arguments: what decides the answer; the step's own files may lie elsewhere each time.
        progress: is told how far the child is.
        leaves: files that the job writes beside its answer, see `file_of_answer`.

    Raises:
        BundlerError: as `run_child`; then nothing is kept.
    """
    environment = task.world.environment
    return answered_once(
        task,
        {"job": job, "arguments": arguments},
        lambda: run_child(job, dict(arguments), environment=environment, progress=progress),
        leaves=leaves,
    )


def answered_once(
    task: Task, question: Mapping[str, Any], answer: Callable[[], Any], *, leaves: Sequence[Path] = ()
) -> Any:  # fmt: skip
    """Return `answer()` (JSON types), or what it was when the question was asked before."""
    if task.kept is None:
        return answer()
    path = task.kept / f"{digest(_without_places(question, task))}.json"
    known = _answer(path)
    if known is not None and all(leaf.is_file() for leaf in leaves):
        return known["answer"]
    found = answer()
    for leaf in leaves:
        with leaf.open("rb") as stream:
            os.fsync(stream.fileno())
    write_durably(path, canonical_json({"answer": found}))
    return found


def file_of_answer(task: Task, name: str) -> Path:
    """Return where a job leaves a file that belongs to its answer: it is kept with it."""
    return (task.kept or task.output) / name


def _without_places(question: Json | Mapping[str, Any], task: Task) -> Json:
    """Return a question in which the step's files have their names, not their places."""
    places = {str(path): f"input {name}" for name, path in task.inputs.items()}

    def named(value: Any) -> Json:
        if isinstance(value, Mapping):
            return {str(key): named(one) for key, one in value.items()}
        if isinstance(value, list | tuple):
            return [named(one) for one in value]
        return places.get(value, value) if isinstance(value, str) else value

    return named(question)


def _answer(path: Path) -> dict[str, Any] | None:
    """Return what was kept; None when there is nothing, or nothing whole."""
    try:
        known = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return known if isinstance(known, dict) and "answer" in known else None
