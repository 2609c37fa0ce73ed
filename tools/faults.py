"""Run every test of the fault catalogue and print what was tried and what held.

    python tools/faults.py [numbers or letters, as A5 or C]

The last line is JSON: {"tried": ..., "held": ..., "not_tried": ...}. What this machine cannot try is
printed with the reason and counted apart. Exits with 1 when anything did not hold, or when a number
of the catalogue has neither a test that ran nor a reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.fault_catalogue import CATALOGUE, NOT_HERE, PARTS  # noqa: E402 - not installed

WIDTH = 100
_RAN = (0, 1, 5)
"""pytest's codes for: all passed, some failed, there were none."""


@dataclass
class Row:
    """What became of one number of the catalogue."""

    tried: int = 0
    held: int = 0
    seconds: float = 0.0
    reasons: list[str] = field(default_factory=list)
    """Why some of it could not be tried here."""


@dataclass
class Account:
    """What became of all of them."""

    rows: dict[str, Row] = field(default_factory=lambda: defaultdict(Row))
    tried: int = 0
    held: int = 0
    broken: list[str] = field(default_factory=list)
    """What did not hold, and what did not run at all, in words."""


def run_tests(wanted: list[str], report: Path) -> int:
    """Run the marked tests, long sweeps included, with JUnit's report in `report`."""
    environment = {**os.environ, "BUNDLER_SLOW_SWEEP": "1", "BUNDLER_FAULTS": ",".join(wanted)}
    command = [
        sys.executable, "-m", "pytest", "-m", "fault", "-n", "2", "--dist", "worksteal",
        f"--junitxml={report}", "-o", "junit_family=xunit1",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=sys.stderr)
    return done.returncode


def counted(report: Path) -> Account:
    """Add up what a report says."""
    account = Account()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        _count(account, case)
    return account


def _count(account: Account, case: ElementTree.Element) -> None:
    said = [(p.get("name"), p.get("value", "")) for p in case.iter("property")]
    numbers = [value for name, value in said if name == "fault"]
    rows = [account.rows[number] for number in numbers]
    skipped = case.find("skipped")
    if skipped is not None:
        for row in rows:
            row.reasons.append(f"{_plain(case)}: {skipped.get('message')}")
        return
    counts = [int(value) for name, value in said if name == "cases_tried"]
    broken = case.find("failure") is not None or case.find("error") is not None
    if counts == [0] and not broken:
        broken = True  # A sweep over nothing holds nothing.
    cases = max(sum(counts), 1)
    if broken:
        account.broken.append(
            f"{'/'.join(numbers) or '?'}: {case.get('classname')}::{case.get('name')}"
        )
    account.tried += cases
    account.held += 0 if broken else cases
    for row in rows:
        row.tried += cases
        row.held += 0 if broken else cases
        row.seconds += float(case.get("time", 0))


def _plain(case: ElementTree.Element) -> str:
    return (case.get("name") or "").partition("[")[0].removeprefix("test_").replace("_", " ")


def table(account: Account, shown: list[str]) -> Iterator[str]:
    """Yield the lines of the table, none wider than WIDTH."""
    yield f"{'':5}{'case':<{WIDTH - 37}}{'tried':>8}{'held':>8}{'not held':>9}{'s':>7}"
    for part, title in PARTS.items():
        numbers = [number for number in shown if number[0] == part]
        if not numbers:
            continue
        yield ""
        yield f"{part}    {title} ".ljust(WIDTH, "─")
        for number in numbers:
            yield from _row(number, account.rows[number])
    rows = [account.rows[number] for number in shown]
    yield "─" * WIDTH
    yield _line("", "all", account.tried, account.held, sum(row.seconds for row in rows))


def _row(number: str, row: Row) -> Iterator[str]:
    what = CATALOGUE[number].partition(": ")[2]
    yield _line(number, what, row.tried, row.held, row.seconds)
    for reason in reasons(number, row):
        yield from textwrap.wrap(
            f"not tried: {reason}", WIDTH, initial_indent=" " * 7, subsequent_indent=" " * 9
        )


def _line(number: str, what: str, tried: int, held: int, seconds: float) -> str:
    return f"{number:<5}{what:<{WIDTH - 37}}{tried:>8,}{held:>8,}{tried - held or '–':>9}{seconds:>7,.0f}"


def reasons(number: str, row: Row) -> list[str]:
    """Return why parts of a number are not tried: on any machine of ours, or on this one."""
    return [*NOT_HERE.get(number, ()), *row.reasons]


def main() -> int:
    """Run, print the table, and say by the exit code whether everything held."""
    wanted = sys.argv[1:]
    shown = [n for n in CATALOGUE if not wanted or n in wanted or n[0] in wanted]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        code = run_tests(wanted, report)
        to_the_end = code in _RAN and report.exists()
        account = counted(report) if report.exists() else Account()
    print("\n".join(table(account, shown)))
    if to_the_end:
        silent = [n for n in shown if not account.rows[n].tried and not account.rows[n].reasons]
        account.broken += [f"{number}: no test of it ran" for number in silent]
    else:
        account.broken.append(f"the tests did not run to their end: pytest ended with {code}")
    for line in account.broken:
        print(f"not held  {line}")
    not_tried = sum(len(reasons(number, account.rows[number])) for number in shown)
    print(json.dumps({"tried": account.tried, "held": account.held, "not_tried": not_tried}))
    return 1 if account.broken else 0


if __name__ == "__main__":
    raise SystemExit(main())
