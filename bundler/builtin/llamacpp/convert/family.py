"""What differs between families of models, as one value; `families` lists those we know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint, StoredTensor
from bundler.builtin.llamacpp.convert.fields import Fields
from bundler.builtin.llamacpp.convert.tensors import (
    NameMap,
    OutputTensor,
    Reorder,
    output_type,
    rename_all,
    stored_type,
)
from bundler.errors import UnsafeInput
from bundler.weights import TensorPlan

Config = Mapping[str, Any]


def no_fields(checkpoint: Checkpoint, config: Config) -> Fields:
    """A family whose hyper-parameters are only those that all text models have."""
    return {}


def no_tensors(config: Config) -> Sequence[OutputTensor]:
    """A family that writes no tensor but those it is given."""
    return ()


def no_reorder(config: Config, name: str, rows: int) -> Reorder | None:
    """A family whose tensors are written as they are stored."""
    return None


@dataclass(frozen=True)
class Family:
    """How one kind of checkpoint becomes GGUF. All members but the first four are optional."""

    architecture: str
    """llama.cpp's name: the prefix of its hyper-parameters."""
    classes: tuple[str, ...]
    """What `architectures` in config.json may say."""
    names: NameMap
    tokenizer: Callable[[Checkpoint, Config], Fields]
    """Makes the `tokenizer.*` fields, in the order they are written."""
    fields: Callable[[Checkpoint, Config], Fields] = no_fields
    """Hyper-parameters beyond `fields.model_fields`, under their full names."""
    reorder: Callable[[Config, str, int], Reorder | None] = no_reorder
    """Says how the rows of the tensor with that (new) name are permuted, if they are."""
    computed: Callable[[Config], Sequence[OutputTensor]] = no_tensors
    """Tensors that are computed from the config; they come first."""
    defaults: Mapping[str, Any] = field(default_factory=dict)


def plan_tensors(
    family: Family, config: Config, stored: Sequence[StoredTensor], wanted: str
) -> list[OutputTensor]:
    """Say what every tensor of the output is made of. `wanted` is `auto`, `bf16`, `f16`, `f32`.

    Raises UnsafeInput, naming all problems, for tensors that the family does not have.
    """
    layers = config["num_hidden_layers"]
    kept = rename_all(stored, lambda name: family.names.rename(name, layers))
    type_ = stored_type([tensor for _, tensor in kept]) if wanted == "auto" else wanted.upper()
    if not kept:
        raise UnsafeInput("there is no tensor of the model in the weights")
    return [*family.computed(config), *(_output(family, config, *pair, type_) for pair in kept)]


def _output(
    family: Family, config: Config, name: str, tensor: StoredTensor, wanted: str
) -> OutputTensor:
    shape = tensor.shape
    if not shape or 0 in shape or prod(shape) >= 1 << 48 or len(shape) > 4:
        raise UnsafeInput(f"tensor {tensor.name!r} has the shape {list(shape)}", where=tensor.file)
    if name == "token_embd.weight" and shape[0] != config["vocab_size"]:
        raise UnsafeInput(
            f"there are embeddings of {shape[0]} tokens, vocab_size is {config['vocab_size']}",
            where="config.json",
        )
    plan = TensorPlan(name, output_type(name, shape, wanted), shape)
    return OutputTensor(plan, tensor, family.reorder(config, name, shape[0]))
