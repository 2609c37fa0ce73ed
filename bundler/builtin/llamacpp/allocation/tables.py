"""What was measured, as values that are kept in files: error of each type, sensitivity of each tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from bundler.errors import UnsafeInput
from bundler.lock import TensorFact
from bundler.value import Value, pretty_json
from bundler.weights.gguf import GgufHeader

_Table = TypeVar("_Table", bound="Kept")


class Tensors(Value):
    """The tensors of a file."""

    tensors: tuple[TensorFact, ...]


def facts_of(header: GgufHeader) -> Tensors:
    """Return what is needed of a header's tensors."""
    return Tensors(
        tensors=tuple(TensorFact(name=t.name, type=t.type, shape=t.shape) for t in header.tensors)
    )


class Kept(Value):
    """A table that is kept as JSON."""

    def to_json(self) -> str:
        """Return it as text; the same table gives the same text."""
        return pretty_json(self)

    @classmethod
    def from_json(cls: type[_Table], text: str, where: str) -> _Table:
        """Read it back. Raises UnsafeInput."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            raise UnsafeInput(
                f"is not a table of measurements: {place}: {first['msg']}", where=where
            ) from error


class TensorErrors(Value):
    """One tensor under each type that it may get."""

    values: int = Field(gt=0)
    """How many weights it has."""
    sampled_values: int
    """How many of them were rounded."""
    guided: bool
    """Whether the importance matrix has an entry for it."""
    sizes: Mapping[str, int]
    """Type → bytes in the file."""
    errors: Mapping[str, float]
    """Type → relative error of its output."""


class ErrorTable(Kept):
    """Every tensor whose type is open."""

    version: Literal[1] = 1
    tensors: Mapping[str, TensorErrors]


class Poke(Value):
    """What the model did when some tensors alone were rounded."""

    type: str
    """What they were rounded to."""
    error: float
    """Their relative error, all of their weights."""
    divergence: float
    """Mean KL divergence to the untouched model, nats."""
    standard_error: float


class Sensitivity(Kept):
    """How much the model minds an error in each tensor."""

    version: Literal[1] = 1
    method: Literal["each", "groups", "none"]
    """Every tensor was tried alone; or tensors of one kind and depth together; or none was."""
    reason: str = ""
    """Why not every tensor was tried."""
    tokens: int = 0
    """Scored tokens of each evaluation."""
    evaluations: int = 0
    seconds: float = 0.0
    groups: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Group → the tensors that were rounded together."""
    pokes: Mapping[str, tuple[Poke, ...]] = Field(default_factory=dict)
    """Group → what was seen."""
    restored_divergence: float = 0.0
    """Divergence after everything was put back: 0, or the figures mean nothing."""
