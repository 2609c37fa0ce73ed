"""Questions that a recipe asks of its models: `[verify.tasks.<name>]`. Values."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, WithJsonSchema, field_validator

from bundler.recipe_source import SourceReference
from bundler.value import Name, Value


def _as_text(given: Any) -> Any:
    """Return a JSON Schema, written as a table, as JSON text."""
    return json.dumps(given, sort_keys=True) if isinstance(given, dict) else given


SchemaText = Annotated[
    str,
    Field(max_length=100_000),
    BeforeValidator(_as_text),
    WithJsonSchema({"anyOf": [{"type": "string", "maxLength": 100_000}, {"type": "object"}]}),
]


_KINDS = {
    "scoring": ("choice",), "match": ("written",), "schema_text": ("written",),
    "language": ("written",), "extract": ("written",), "tokens": ("written", "code"),
    "seconds": ("code",),
}  # fmt: skip


class TaskRequest(Value):
    """`[verify.tasks.<name>]`: questions with known answers, asked of the model and of the unquantized
    one, so that the proof tells what quantization cost on them.
    """

    kind: Literal["choice", "written", "code"]
    """`choice`: several answers to each question, one is right. `written`: the model writes an answer,
    through its chat template, always taking the likeliest token, and it is held against the file's.
    `code`: it writes a program the same way, which is run against the file's tests in a sandbox
    (Linux with bubblewrap; refused elsewhere)."""
    source: SourceReference
    """One file: MMLU's CSV (`question,A,B,C,D,answer`), JSON lines or Parquet (`question`, `choices`,
    `answer`); without choices where answers are written; HumanEval's or MBPP's for code."""
    scoring: Literal["letters", "texts"] = "letters"
    """`letters`: the choices are listed and the likeliest letter is the answer, as for MMLU. `texts`:
    the choice whose own text is likeliest by its length is; for small models, which know no letters."""
    prompt: str = Field(default="", max_length=2000)
    """With `scoring = "texts"`: the words before each choice, with `{question}` in them; ARC's when
    absent. With `kind = "written"` or `"code"`: what is asked; the bare question, or the usual
    words for a program, when absent."""
    match: Literal["exact", "regex", "json", "language"] = "exact"
    """Written answers: `exact` when they are the file's but for blanks, upper case and a full stop at
    the end; `regex` when the file's answer, a regular expression, is found in them; `json` when they
    are JSON, and follow the `schema`; `language` when they are written in it."""
    schema_text: Annotated[SchemaText, Field(alias="schema")] = ""
    """With `match = "json"`: the JSON Schema of all answers of which the file gives none of their own
    (`schema`), as a table or as JSON text. Its `$ref` may point into itself only."""
    language: str = Field(default="", pattern=r"^([a-z]{3})?$")
    """With `match = "language"`: ISO 639-3 code of all answers of which the file gives none of their
    own (`language`)."""
    extract: str = Field(default="", max_length=1000)
    """Written answers: a regular expression; the last that it finds (its group, if it has one) is the
    answer. All that was written when absent."""
    tokens: int | None = Field(default=None, ge=1, le=8192)
    """Written answers and programs: the most tokens of one; 128, and 512 for programs, when absent."""
    seconds: int = Field(default=5, ge=1, le=60)
    """Programs: of processor time, which each has for all of its tests."""
    items: int = Field(default=400, ge=1, le=100_000)
    """The most questions that are asked; more in the file are drawn from."""
    seed: int = Field(default=1, ge=0, le=2**31)
    """Decides which are drawn."""
    minutes: float = Field(default=30, gt=0, le=10_000, allow_inf_nan=False)
    """The most minutes that both models may take together; questions that were not come to are left
    out, and the proof says so."""
    models: tuple[Name, ...] = ()
    """Models that are asked; all that answer (`chat`, `code`) when empty."""

    @field_validator("prompt")
    @classmethod
    def _asks(cls, given: str, info: ValidationInfo) -> str:
        if given and info.data.get("kind") == "choice" and info.data.get("scoring") == "letters":
            raise ValueError("is for scoring = 'texts'; letters are asked for as MMLU does")
        if given and given.count("{question}") != 1:
            raise ValueError("must have {question} in it, once")
        return given

    @field_validator("scoring", "match", "schema_text", "language", "extract", "tokens", "seconds")
    @classmethod
    def _belongs(cls, given: str | int | None, info: ValidationInfo) -> str | int | None:
        kinds = _KINDS[str(info.field_name)]
        if info.data.get("kind", kinds[0]) not in kinds:
            raise ValueError(f"is for kind = {' or '.join(map(repr, kinds))}")
        return given

    @field_validator("schema_text", "language")
    @classmethod
    def _matches(cls, given: str, info: ValidationInfo) -> str:
        match = "json" if info.field_name == "schema_text" else "language"
        if given and info.data.get("match", match) != match:
            raise ValueError(f"is for match = {match!r}")
        return given

    @property
    def most_tokens(self) -> int:
        """Return the most tokens of one answer."""
        return self.tokens or (512 if self.kind == "code" else 128)

    @field_validator("extract")
    @classmethod
    def _finds(cls, given: str) -> str:
        try:
            groups = re.compile(given).groups
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"is no regular expression: {error}") from error
        if groups > 1:
            raise ValueError("has several groups; write (?:…) for those that are not the answer")
        return given
