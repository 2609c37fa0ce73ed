"""Facts of a published model in Hugging Face layout: config.json and safetensors headers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

from bundler.builtin.llamacpp.convert import config as configs
from bundler.builtin.llamacpp.convert.checkpoint import Checkpoint
from bundler.builtin.llamacpp.convert.families import family_of
from bundler.builtin.llamacpp.convert.family import Family, plan_tensors
from bundler.builtin.llamacpp.convert.fields import model_fields
from bundler.builtin.llamacpp.convert.llama import head_dimension
from bundler.builtin.llamacpp.convert.tensors import OutputTensor, main_type
from bundler.lock import LockedFile, ModelFacts, TensorFact


def safetensors_facts(
    files: Mapping[str, LockedFile], read: Callable[[LockedFile, int, int], bytes]
) -> ModelFacts:
    """Read config and headers, and say what the converted model will be. Raises UnsafeInput."""

    def read_named(name: str, start: int, length: int) -> bytes:
        return read(files[name], start, length)

    checkpoint = Checkpoint({name: file.size_bytes for name, file in files.items()}, read_named)
    config = configs.complete(checkpoint.json(configs.FILE))
    family = family_of(config)
    tensors = plan_tensors(family, config, checkpoint.tensors(), "auto")
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    kv_heads = configs.optional_whole(config, "num_key_value_heads") or heads
    return ModelFacts(
        format="safetensors",
        architecture=family.architecture,
        parameters=sum(prod(tensor.plan.shape) for tensor in tensors),
        context_tokens=configs.whole(config, "max_position_embeddings"),
        layers=layers,
        hidden=config["hidden_size"],
        feed_forward=configs.whole(config, "intermediate_size"),
        heads=heads,
        kv_heads=(kv_heads,) * layers,
        head_dim_key=head_dimension(config),
        head_dim_value=head_dimension(config),
        vocabulary=config["vocab_size"],
        tied_embeddings=_is_tied(family, tensors),
        tensors=tuple(_fact(tensor) for tensor in tensors),
        extra=_extra(checkpoint, family, config, tensors),
    )


def _is_tied(family: Family, tensors: Sequence[OutputTensor]) -> bool:
    """Whether the output uses the embeddings: a decoder without a tensor of its own for it."""
    if family.architecture == "bert":
        return False
    return all(tensor.plan.name != "output.weight" for tensor in tensors)


def _fact(tensor: OutputTensor) -> TensorFact:
    stored = tensor.source.type if tensor.source else tensor.plan.type
    return TensorFact(name=tensor.plan.name, type=stored, shape=tensor.plan.shape)


def _extra(
    checkpoint: Checkpoint,
    family: Family,
    config: Mapping[str, Any],
    tensors: Sequence[OutputTensor],
) -> dict[str, Any]:
    type_ = main_type(tensors, "auto")
    fields = model_fields(family.architecture, config, type_) | family.fields(checkpoint, config)
    prefix = family.architecture + "."
    hyperparameters = {
        key.removeprefix(prefix): given.value
        for key, given in fields.items()
        if key.startswith(prefix)
    }
    extra: dict[str, Any] = {"stored_type": type_, "hyperparameters": hyperparameters}
    if window := config.get("sliding_window"):
        # llama.cpp gives these architectures a cache for the full context all the same.
        extra["published_sliding_window_tokens"] = window
    return extra
