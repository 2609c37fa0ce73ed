"""Run every test of the fault catalogue and print what was tried and what held.

    python tools/faults.py [numbers or letters, as A5 or C]

The last line is JSON: {"tried": ..., "held": ...}. Exits with 1 when anything did not hold, or a
number of the catalogue was not tried at all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.fault_catalogue import CATALOGUE  # noqa: E402 - tests are not installed


def run_tests(wanted: list[str], report: Path) -> None:
    """Run the marked tests, long sweeps included, with JUnit's report in `report`."""
    environment = {**os.environ, "BUNDLER_SLOW_SWEEP": "1", "BUNDLER_FAULTS": ",".join(wanted)}
    command = [
        sys.executable, "-m", "pytest", "-m", "fault", "-n", "2", "--dist", "loadfile",
        f"--junitxml={report}", "-o", "junit_family=xunit1",
    ]  # fmt: skip
    subprocess.run(command, cwd=ROOT, env=environment, check=False, stdout=sys.stderr)


def counted(report: Path) -> tuple[Counter[str], Counter[str], list[str]]:
    """Return cases tried and held by number, and the tests that failed or were skipped."""
    tried: Counter[str] = Counter()
    held: Counter[str] = Counter()
    not_held = []
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        said = [(p.get("name"), p.get("value", "")) for p in case.iter("property")]
        numbers = [value for name, value in said if name == "fault"]
        cases = sum(int(value) for name, value in said if name == "cases_tried") or 1
        if case.find("skipped") is not None:
            not_held.append(f"skipped: {case.get('name')}: {case.find('skipped').get('message')}")  # type: ignore[union-attr]
            continue
        broken = case.find("failure") is not None or case.find("error") is not None
        if broken:
            not_held.append(f"failed: {case.get('classname')}::{case.get('name')}")
        for number in numbers:
            tried[number] += cases
            held[number] += 0 if broken else cases
    return tried, held, not_held


def main() -> int:
    """Run, print the table, and say by the exit code whether everything held."""
    wanted = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        run_tests(wanted, report)
        tried, held, not_held = counted(report)
    shown = [n for n in CATALOGUE if not wanted or n in wanted or n[0] in wanted]
    print(f"{'':4} {'tried':>7} {'held':>7}  case")
    for number in shown:
        print(f"{number:4} {tried[number]:>7,} {held[number]:>7,}  {CATALOGUE[number]}")
    for line in not_held:
        print(line)
    untried = [number for number in shown if not tried[number]]
    if untried:
        print(f"not tried: {', '.join(untried)}")
    total = {"tried": sum(tried.values()), "held": sum(held.values())}
    print(json.dumps(total))
    return 0 if total["tried"] == total["held"] and not untried and not not_held else 1


if __name__ == "__main__":
    raise SystemExit(main())
