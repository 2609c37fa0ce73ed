"""What a check or a repair found, in plain words, and what to do next. Values in, text out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from bundler.far_end.sampling import Sample
from bundler.station.start_command import START_COMMAND
from bundler.value import format_size
from bundler.verify import Finding, Verification

if TYPE_CHECKING:
    from bundler.media.repair import Repair

MOST_LINES = 40
"""Damaged files that are named; the rest is counted."""
_KINDS = {
    "missing": "is missing",
    "changed": "is damaged",
    "renamed": "has another name",
    "mode": "lost the right to run",
    "extra": "does not belong to this bundle",
    "unsafe": "is not a plain file",
}


@dataclass(frozen=True)
class Told:
    """A result for a person."""

    good: bool
    headline: str
    lines: tuple[str, ...] = ()
    next_step: str = ""
    figures: dict[str, int | float | str] = field(default_factory=dict)

    def as_json(self) -> dict[str, object]:
        """Return it for the station's page."""
        return asdict(self)


def checked(found: Verification, sample: Sample | None, vouched: str, *, can_repair: bool) -> Told:
    """Tell what a check found: all of it, or what a sample can say."""
    own = [one for one in found.findings if one.kind != "extra"]
    others = [one for one in found.findings if one.kind == "extra"]
    name = f"{found.manifest.name} {found.manifest.version}"
    lines = [*_named(own), *_named(others)]
    if own:
        one = "1 file is not as it should be"
        many = f"{len(own):,} files are not as they should be"
        headline = f"{name}: {one if len(own) == 1 else many}."
    elif sample is not None:
        headline = f"{name}: no damage in what was looked at."
    else:
        headline = f"{name}: whole. All {found.files:,} files are as they should be."
    lines += _said_of(sample) if sample is not None else []
    return Told(
        good=not found.findings, headline=headline, lines=(*lines, *filter(None, [vouched])),
        next_step=_after_check(own, others, sample, can_repair=can_repair),
        figures=_figures(found, sample),
    )  # fmt: skip


def _figures(found: Verification, sample: Sample | None) -> dict[str, int | float | str]:
    read = found.size_bytes if sample is None else sample.size_bytes
    return {
        "files": found.files, "size_bytes": found.size_bytes, "read_bytes": read,
        "manifest_sha256": found.manifest_sha256,
    }  # fmt: skip


def _named(findings: list[Finding]) -> list[str]:
    lines = [
        f"{one.path} {_KINDS[one.kind]}" + (f": {one.detail}" if one.detail else "")
        for one in findings[:MOST_LINES]
    ]
    more = len(findings) - len(lines)
    return [*lines, f"… and {more:,} more"] if more > 0 else lines


def _said_of(sample: Sample) -> list[str]:
    if sample.drawn >= sample.pool:
        return [f"Read: all of it, {format_size(sample.total_bytes)}: it is that small."]
    share = 100 * sample.size_bytes / max(1, sample.total_bytes)
    read = (
        f"Read: {format_size(sample.size_bytes)} of {format_size(sample.total_bytes)} "
        f"({share:.0f} %): every small file, both ends of every large one"
    )
    return [
        f"{read}, and {sample.drawn} of {sample.pool:,} parts between, drawn by lot.",
        f"Of one damaged part between, such a draw finds {_percent(sample.chance(1))}; "
        f"of ten, {_percent(sample.chance(10))}; of a hundred, {_percent(sample.chance(100))}.",
    ]


def _percent(chance: float) -> str:
    return f"{100 * chance:.0f} %" if chance < 0.995 else "nearly always one"


def _after_check(
    own: list[Finding], others: list[Finding], sample: Sample | None, *, can_repair: bool
) -> str:
    if own and not can_repair:
        return "Nothing can be written here: copy the bundle to a disk, and repair the copy."
    if own:
        return f"{START_COMMAND} repair   brings back what can be brought back"
    if others:
        return "Remove what does not belong to it, or move it elsewhere."
    return f"{START_COMMAND} check   reads everything" if sample is not None else ""


def repaired(done: Repair, *, dry_run: bool) -> Told:
    """Tell what a repair did."""
    name = f"{done.before.manifest.name} {done.before.manifest.version}"
    fixed, left = len(done.repaired), len(done.unrepaired)
    verb = "can be made right" if dry_run else "made right"
    if not fixed and not left:
        headline = f"{name}: nothing is damaged."
    elif not left:
        headline = f"{name}: {_files(fixed)} {verb}, byte for byte."
    else:
        headline = f"{name}: {_files(fixed)} {verb}, {left} could not be."
    lines = [f"{path} {verb}" for path in done.repaired[:MOST_LINES]]
    lines += [problem.message for problem in done.unrepaired[:MOST_LINES]]
    lines += [
        f"{path} is not of this bundle, and was left alone" for path in done.extra[:MOST_LINES]
    ]
    return Told(
        good=not left, headline=headline, lines=(*lines, *done.budgets),
        next_step=_after_repair(done, dry_run=dry_run), figures={"repaired": fixed, "left": left},
    )  # fmt: skip


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count:,} files"


def _after_repair(done: Repair, *, dry_run: bool) -> str:
    if done.unrepaired:
        return "What is named last has to be copied anew, from another copy of the bundle."
    if dry_run:
        return f"{START_COMMAND} repair   does it" if done.repaired else ""
    if in_use(done.repaired):
        return "If the station is open, close it and start it again: files that it uses were made right."
    return ""


def in_use(paths: Iterable[str]) -> bool:
    """Tell whether a station that runs may have any of these open."""
    return any(path.startswith(("app/", "runtime/", "models/", "corpora/", "station.json"))
               for path in paths)  # fmt: skip
