"""Licences as data: may a copy be passed on, on which conditions, and where that is written.

It reads what licences say in their own words; it is no advice of a lawyer. What is not in this
table is unknown, and unknown is never taken for a yes.
"""

from __future__ import annotations

import re
from typing import Literal

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

from bundler.value import Value

Answer = Literal["yes", "conditions", "unknown", "no"]
_ORDER: tuple[Answer, ...] = ("yes", "conditions", "unknown", "no")


class Terms(Value):
    """What a licence says on passing on copies."""

    answer: Answer
    conditions: tuple[str, ...] = ()
    reason: str
    """Where that is written, or why it is not known."""


_KEEP = "keep the licence text and the names of the authors with it"
_SOURCE = "pass on the source code, or say where it can be had (SOURCES.txt in licenses/)"
_SAME = "changed versions come under the same licence"
_NAME = "name the authors, link the licence, say what was changed"
UNCHANGED = "unchanged only"
_FREE = "for non-commercial purposes only, and who gets it is told so"


def _rule(answer: Answer, reason: str, *conditions: str) -> Terms:
    return Terms(answer=answer, conditions=conditions, reason=reason)


def _cc(version: str) -> dict[str, Terms]:
    """Creative Commons: section 3 (4.0) and section 4 (2.0 to 3.0) of each legal code."""
    where = f"its section {'3' if version == '4.0' else '4'}"
    return {
        f"CC-BY-{version}": _rule("conditions", where, _NAME),
        f"CC-BY-SA-{version}": _rule("conditions", where, _NAME, _SAME),
        f"CC-BY-ND-{version}": _rule("conditions", where, _NAME, UNCHANGED),
        f"CC-BY-NC-{version}": _rule("conditions", where, _NAME, _FREE),
        f"CC-BY-NC-SA-{version}": _rule("conditions", where, _NAME, _FREE, _SAME),
        f"CC-BY-NC-ND-{version}": _rule("conditions", where, _NAME, _FREE, UNCHANGED),
    }


_PERMISSIVE = (
    "MIT", "BSD-2-Clause", "BSD-3-Clause", "ISC", "Zlib", "PSF-2.0", "Python-2.0", "bzip2-1.0.6",
    "X11", "NCSA", "BSL-1.0", "PostgreSQL", "CDLA-Permissive-2.0", "ODC-By-1.0", "Artistic-2.0",
)  # fmt: skip
_FREE_OF_ALL = ("CC0-1.0", "Unlicense", "0BSD", "MIT-0", "blessing", "WTFPL", "PDDL-1.0")
_COPYLEFT = tuple(
    f"{family}-{version}-{which}"
    for family, versions in {
        "GPL": ("2.0", "3.0"),
        "LGPL": ("2.1", "3.0"),
        "AGPL": ("3.0",),
    }.items()
    for version in versions
    for which in ("only", "or-later")
)
TABLE: dict[str, Terms] = {
    **{name: _rule("conditions", "the licence's own text", _KEEP) for name in _PERMISSIVE},
    **{name: _rule("yes", "the licence's own text") for name in _FREE_OF_ALL},
    **{name: _rule("conditions", "GNU licences, sections on conveying (GPL-3.0: 4 to 6)",
                   _KEEP, _SOURCE, _SAME) for name in _COPYLEFT},
    **{key: rule for version in ("2.0", "2.5", "3.0", "4.0") for key, rule in _cc(version).items()},
    "Apache-2.0": _rule("conditions", "its section 4", _KEEP, "keep NOTICE files, mark changed files"),
    "MPL-2.0": _rule("conditions", "its section 3", _KEEP, _SOURCE),
    "EPL-2.0": _rule("conditions", "its section 3", _KEEP, _SOURCE),
    "ODbL-1.0": _rule("conditions", "its section 4", _NAME, _SAME),
    "OFL-1.1": _rule("conditions", "its conditions 1 to 5", _KEEP, "not sold by itself"),
}  # fmt: skip
_POLICY = "its use policy binds whoever gets it"
_LLAMA = _rule(
    "conditions", "section 1.b of the Llama Community License",
    "pass on a copy of the agreement", "show “Built with Llama”", "keep its NOTICE", _POLICY,
    "more than 700 million monthly users need a licence of Meta's",
)  # fmt: skip
_NAMED: tuple[tuple[str, Terms], ...] = (
    (r"llama-?(2|3(\.[1-3])?|4)(-community(-license)?)?", _LLAMA),
    (r"gemma", _rule("conditions", "section 3.1 of the Gemma Terms of Use",
                     "pass on a copy of the terms", "the notice of its section 3.1", _POLICY)),
    (r"(tongyi-)?qwen(-license(-agreement)?)?", _rule(
        "conditions", "section 2 of the Qwen License Agreement", "pass on a copy of the agreement",
        _KEEP, "more than 100 million monthly users need a licence of the publisher's")),
    (r"qwen-research(-license)?", _rule(
        "conditions", "Qwen Research License Agreement", "pass on a copy of the agreement", _FREE)),
    (r"mrl|mistral-(ai-)?research-licen[cs]e", _rule(
        "conditions", "section 3 of the Mistral AI Research License",
        "pass on a copy of the agreement", "for research purposes only")),
    (r"(bigscience-|creativeml-)?(open)?rail(\+\+)?(-m)?", _rule(
        "conditions", "its section 4", "pass on a copy of the licence", _POLICY)),
    (r"bsd( license)?", _rule(
        "conditions", "which BSD licence is not said; all of them allow it", _KEEP)),
    (r"proprietary|all rights reserved", _rule("no", "nothing allows it")),
)  # fmt: skip
UNKNOWN = "its licence is not known, and without one nothing is allowed"


def canonical(word: str) -> str:
    """Return an SPDX expression in SPDX's spelling, "" for what is none.

    >>> canonical("apache-2.0"), canonical("llama3.1")
    ('Apache-2.0', '')
    """
    try:
        return str(canonicalize_license_expression(word)) if word else ""
    except InvalidLicenseExpression:
        return ""


def terms_of(word: str) -> Terms:
    """Return what a licence, an expression of several, or a publisher's word for one says.

    >>> terms_of("MIT OR CC-BY-NC-4.0").answer, terms_of("llama3.1").answer, terms_of("").answer
    ('conditions', 'conditions', 'unknown')
    """
    expression = canonical(word)
    if expression:
        return _Expression(re.findall(r"[()]|[^\s()]+", expression)).whole()
    for pattern, rule in _NAMED:
        if re.fullmatch(pattern, word.strip().lower()):
            return rule
    if not word.strip() or word.strip().lower() in ("unknown", "other"):
        return _rule("unknown", UNKNOWN)
    return _rule("unknown", f"nothing is known here of a licence {word!r:.80}")


class _Expression:
    """Reads an SPDX expression: AND binds more tightly than OR, WITH only adds permissions."""

    def __init__(self, words: list[str]) -> None:
        self._words = words[::-1]

    def whole(self) -> Terms:
        found = self._all_of()
        while self._words and self._words[-1] == "OR":
            self._words.pop()
            found = min(found, self._all_of(), key=lambda one: _ORDER.index(one.answer))
        return found

    def _all_of(self) -> Terms:
        found = self._one()
        while self._words and self._words[-1] == "AND":
            self._words.pop()
            other = self._one()
            worse = max(found, other, key=lambda one: _ORDER.index(one.answer))
            both = tuple(dict.fromkeys((*found.conditions, *other.conditions)))
            found = Terms(answer=worse.answer, conditions=both, reason=worse.reason)
        return found

    def _one(self) -> Terms:
        word = self._words.pop()
        if word == "(":
            found = self.whole()
            self._words.pop()
            return found
        if self._words and self._words[-1] == "WITH":
            del self._words[-2:]
        old = re.sub(r"^((?:A|L)?GPL-\d\.\d)(\+?)$", r"\1-\2", word)
        name = old.removesuffix("-+") + "-or-later" if old.endswith("-+") else old
        name = name + "only" if name.endswith("-") else name
        missing = _rule("unknown", f"nothing is known here of the licence {word}")
        return TABLE.get(name, missing)
