"""How much the model minds an error in each tensor: measured by making one and looking.

One tensor of the open model is rounded to a coarse type and back, a few windows of the calibration
text are read, and the divergence from the untouched model is noted; then the tensor is put back. The
text is never one that models are scored on.

Where that would take longer than it may, tensors of one kind and neighbouring depth are rounded
together; where even that is too long, nothing is measured, every tensor counts alike, and the table
says so.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bundler.builtin.llamacpp import native
from bundler.builtin.llamacpp.allocation.matrices import Floats
from bundler.builtin.llamacpp.allocation.poking import Live, open_live
from bundler.builtin.llamacpp.allocation.rounding import round_trip
from bundler.builtin.llamacpp.allocation.tables import ErrorTable, Poke, Sensitivity
from bundler.builtin.llamacpp.divergence import Scores
from bundler.builtin.llamacpp.imatrix import read_imatrix
from bundler.builtin.llamacpp.texts import windows
from bundler.errors import StepFailed
from bundler.store import full_disk_is_an_error

POKES = ("Q3_K", "Q2_K")
"""What a tensor is rounded to: coarse enough to be seen, quick to make (36 and 130 ms per million
weights and core). Rows that cannot hold it get the coarsest type that they can."""
_UNSCORED = 8
"""Divisor: the first eighth of each window is read but not scored, for want of context."""
_LAYER = re.compile(r"blk\.(\d+)\.")
_NOTICEABLE = 1e-7
"""Divergence after everything was put back that could still be rounding: it was never above 0."""


class _Reader:
    """The windows, and what the untouched model made of them; kept on disk, since a vocabulary is wide."""

    def __init__(self, live: Live, parts: Sequence[Sequence[int]], scratch: Path) -> None:
        self._live, self._parts = live, parts
        self._first = len(parts[0]) // _UNSCORED
        self.rows = len(parts[0]) - self._first
        shape = (len(parts), self.rows, live.context.model.vocabulary)
        with tempfile.TemporaryFile(dir=scratch) as stream:
            self._kept = np.memmap(stream, np.float32, "w+", shape=shape)
        for number in range(len(parts)):
            self._kept[number] = self._read(number)

    def _read(self, number: int) -> Floats:
        context = self._live.context
        context.clear()
        context.decode(self._parts[number], logits_from=self._first)
        return context.logits(self.rows)

    def divergence(self) -> tuple[float, float]:
        """Return the mean divergence of the model as it is now, and its standard error."""
        scores = Scores()
        following = np.zeros(self.rows, np.int64)  # which token came is not asked here
        for number in range(len(self._parts)):
            scores.add(self._kept[number], self._read(number), following)
        found = scores.summary()
        return float(found["kld_mean"]), float(found["kld_standard_error"])


def sensitivity_job(arguments: Mapping[str, Any], report: Any) -> dict[str, Any]:
    """Child job: measure the sensitivity of every tensor of `errors` and write `output`.

    Arguments: model, imatrix (or none), errors, texts (name → path), output, scratch, window_tokens,
    tokens, minutes (the most it may take), pokes (or none: the usual types).
    """
    table = ErrorTable.from_json(Path(arguments["errors"]).read_text("utf-8"), "errors.json")
    importance = read_imatrix(Path(arguments["imatrix"])) if arguments.get("imatrix") else {}
    texts = {name: Path(path) for name, path in arguments["texts"].items()}
    window, scratch = int(arguments["window_tokens"]), Path(arguments["scratch"])
    gpu = any(device.is_gpu for device in native.best_devices())
    with (
        full_disk_is_an_error(scratch, "the untouched model's logits"),
        open_live(Path(arguments["model"]), window_tokens=window, gpu=gpu) as live,
    ):
        most = max(1, int(arguments["tokens"]) // window)
        parts = windows(live.context.model, texts, window_tokens=window, most=most)
        live.find(parts[0])
        found = _Measuring(live, table, importance, report).run(
            parts,
            scratch,
            60.0 * float(arguments["minutes"]),
            tuple(arguments.get("pokes") or POKES),
        )
    Path(arguments["output"]).write_text(found.to_json(), encoding="utf-8")
    return found.model_dump(mode="json", exclude={"groups", "pokes"}) | {
        "groups": len(found.groups)
    }


class _Measuring:
    """One run over all groups."""

    def __init__(
        self, live: Live, table: ErrorTable, importance: Mapping[str, Floats], report: Any
    ) -> None:
        self._live, self._table, self._importance = live, table, importance
        self._report = report
        self._names = [name for name in table.tensors if live.seen(name)]

    def run(
        self, parts: Sequence[Sequence[int]], scratch: Path, most_seconds: float,
        pokes: Sequence[str],
    ) -> Sensitivity:  # fmt: skip
        started = time.monotonic()
        reader = _Reader(self._live, parts, scratch)
        once = time.monotonic() - started
        method, groups, types, reason = _plan(self._names, once, most_seconds, pokes)
        seen = self._poke_all(groups, types, reader)
        left = reader.divergence()[0] if groups else 0.0
        if left > _NOTICEABLE:
            raise StepFailed(
                f"the model is not what it was after its weights were put back (divergence {left:.2e})",
                where="model.gguf",
            )
        return Sensitivity(
            method=method, reason=reason, tokens=reader.rows * len(parts),
            evaluations=sum(map(len, seen.values())), seconds=round(time.monotonic() - started, 1),
            groups=groups, pokes=seen, restored_divergence=left,
        )  # fmt: skip

    def _poke_all(
        self, groups: Mapping[str, tuple[str, ...]], types: Sequence[str], reader: _Reader
    ) -> dict[str, tuple[Poke, ...]]:
        done = 0
        seen: dict[str, tuple[Poke, ...]] = {}
        for group, names in groups.items():
            found = []
            for type_name in types:
                found.append(self._poke(names, type_name, reader))
                done += 1
                self._report(done / len(types), len(groups), "tensors")
            seen[group] = tuple(found)
        return seen

    def _poke(self, names: Sequence[str], type_name: str, reader: _Reader) -> Poke:
        """Round some tensors, look, and put them back."""
        try:
            for name in names:
                self._round(name, _fitting(self._table, name, type_name))
            mean, standard_error = reader.divergence()
        finally:
            for name in names:
                self._live.restore(name)
        taken = [
            self._table.tensors[name].errors[_fitting(self._table, name, type_name)]
            for name in names
        ]
        return Poke(
            type=type_name, error=sum(taken) / len(taken), divergence=mean,
            standard_error=standard_error,
        )  # fmt: skip

    def _round(self, name: str, type_name: str) -> None:
        means = self._importance.get(name)

        def change(rows: Floats, expert: int) -> Floats:
            length = rows.shape[-1]
            own = None if means is None else means[expert * length : (expert + 1) * length]
            return round_trip(rows, type_name, own)

        self._live.change(name, change)


def _fitting(table: ErrorTable, name: str, asked: str) -> str:
    """Return the poke for a tensor: what is asked, or what its rows hold."""
    errors = table.tensors[name].errors
    if asked in errors:
        return asked
    return min((t for t in errors if errors[t] > 0), key=lambda t: -errors[t], default=asked)


def _plan(
    names: Sequence[str], once_seconds: float, most_seconds: float, pokes: Sequence[str]
) -> tuple[Any, dict[str, tuple[str, ...]], Sequence[str], str]:
    """Choose how much can be measured in the time there is."""
    affordable = int(most_seconds / max(once_seconds, 1e-6))
    if affordable >= len(names) * len(pokes):
        return "each", {name: (name,) for name in names}, pokes, ""
    need = len(names) * len(pokes) * once_seconds / 60
    why = (
        f"one evaluation takes {once_seconds:.1f} s: {len(names)} tensors would take {need:.0f} "
        f"minutes, {most_seconds / 60:g} are allowed"
    )
    if affordable >= len(names):
        return "each", {name: (name,) for name in names}, pokes[:1], why
    for depths in (16, 8, 4, 2):
        groups = _grouped(names, depths)
        if len(groups) <= affordable:
            return "groups", groups, pokes[:1], why
    return "none", {}, (), why


def _grouped(names: Sequence[str], depths: int) -> dict[str, tuple[str, ...]]:
    """Put tensors of one kind and neighbouring layers together."""
    layers = 1 + max((int(m[1]) for name in names if (m := _LAYER.match(name))), default=0)
    groups: dict[str, list[str]] = {}
    for name in names:
        match = _LAYER.match(name)
        if match is None:
            groups.setdefault(name, []).append(name)
            continue
        depth = int(match[1]) * min(depths, layers) // layers
        groups.setdefault(f"{name[match.end() :]} of part {depth}", []).append(name)
    return {group: tuple(found) for group, found in groups.items()}
