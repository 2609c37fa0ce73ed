"""Kills an update at chosen steps and runs it again: after each, one of the two versions is whole.

A step is a call that changes what lies on the medium: fsync, rename, unlink, mkdir, rmdir, truncate,
write. The child dies by SIGKILL just before it, as if the machine had gone. Ends with a line of JSON:
how many steps there are, how many were tried, how many held.

    python -m tests.update_crashes FIRST SECOND DELTA RING WORK --every 5
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
from pathlib import Path

from bundler.errors import DamagedError
from bundler.media.keys import read_ring
from bundler.update.applying import Trust, apply_delta
from bundler.update.staging import STAGING_NAME
from bundler.update.switching import switching_to
from bundler.verify import verify_bundle
from tests.update_cases import copied, tree

CALLS = ("fsync", "rename", "replace", "unlink", "mkdir", "rmdir", "truncate", "write")


def watched(last: int | None, sent: signal.Signals = signal.SIGKILL) -> list[str]:
    """Note every step of this process from now on; send it a signal before step number `last`."""
    steps: list[str] = []

    def wrapped(name):
        call = getattr(os, name)

        def step(*words, **named):
            steps.append(name)
            if len(steps) == last:
                os.kill(os.getpid(), sent)
            return call(*words, **named)

        return step

    for name in CALLS:
        setattr(os, name, wrapped(name))
    return steps


def killed(delta: Path, stick: Path, ring: Path, last: int) -> bool:
    """Apply in a child that dies at one step; return whether it got that far."""
    child = os.fork()
    if not child:
        watched(last)
        try:
            apply_delta(delta, stick, Trust(read_ring(ring)))
        except BaseException:  # noqa: BLE001 - the parent looks at the code
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, status
    return False


def old_is_whole(stick: Path) -> bool:
    """Tell whether the bundle verifies, but for the folder in which the update is under way."""
    try:
        found = verify_bundle(stick).findings
    except DamagedError:
        return False
    return all(finding.path == STAGING_NAME for finding in found)


def count_steps(words: argparse.Namespace, stick: Path) -> list[str]:
    """Return the steps of an update that is not cut off."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        steps = watched(None)
        apply_delta(words.delta, stick, Trust(read_ring(words.ring)))
        os.write(writer, json.dumps(steps[:]).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read()
    assert os.waitpid(child, 0)[1] == 0
    return json.loads(said)


def main() -> None:
    parser = argparse.ArgumentParser()
    for name in ("first", "second", "delta", "ring", "work"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--twice", action="store_true", help="kill the second run too")
    words = parser.parse_args()
    wanted, tried, held, switched = tree(words.second), 0, 0, 0
    steps = count_steps(words, copied(words.first, words.work / "whole"))
    assert tree(words.work / "whole") == wanted
    plans = [(last,) for last in range(1, len(steps) + 1, words.every)]
    if words.twice:
        plans += [(last, again) for last in range(3, len(steps), 7) for again in (2, 9, 20, 45)]
    for plan in plans:
        stick = copied(words.first, words.work / "stick")
        for last in plan:
            killed(words.delta, stick, words.ring, last)
        if not old_is_whole(stick):
            switched += 1
            assert switching_to(stick), f"{plan}: the old version is gone before the switch"
        apply_delta(words.delta, stick, Trust(read_ring(words.ring)))
        tried += 1
        held += tree(stick) == wanted and verify_bundle(stick).findings == ()
        shutil.rmtree(stick)
    print(json.dumps({"steps": len(steps), "tried": tried, "held": held, "switching": switched}))


if __name__ == "__main__":
    main()
