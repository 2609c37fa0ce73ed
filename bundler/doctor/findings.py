"""What was found, in a form that a person, a script and an exit code can be made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import field_validator

from bundler.value import Value

State = Literal["good", "note", "warning", "missing"]
Topic = Literal["machine", "software", "build", "recipe", "bundle", "network"]


class Finding(Value):
    """One thing that was looked at."""

    topic: Topic
    name: str
    """What was looked at, in a word or two: `RAM`, `llama.cpp`, `output`."""
    state: State
    """`warning`: works, with a drawback; `missing`: a need of recipe or bundle cannot be met."""
    said: str
    """What there is, with figures."""
    remedy: str = ""
    """What to do; never empty for a warning or for what is missing."""
    exit_code: int = 0
    """Of what is missing: as the error that a build would end with."""

    @field_validator("name", "said", "remedy")
    @classmethod
    def _on_one_plain_line(cls, given: str) -> str:
        # Titles come from bundles and names from drivers: no control codes for a terminal.
        return "".join(c if c.isprintable() else " " for c in given)


def exit_code(findings: Iterable[Finding]) -> int:
    """Return 0 when every need is met, else the code of the first one that is not."""
    return next((f.exit_code for f in findings if f.state == "missing"), 0)
