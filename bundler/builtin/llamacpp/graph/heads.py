"""How graphs end: logits, and vectors of whole texts."""

from __future__ import annotations

from bundler.builtin.llamacpp.graph import tensors as ggml
from bundler.builtin.llamacpp.graph.blocks import Blocks
from bundler.builtin.llamacpp.graph.shape import hyperparameters
from bundler.builtin.llamacpp.graph.tensors import Tensor, like, product

_NONE, _MEAN = 0, 1  # enum llama_pooling_type
_SOFTMAXED = ("qwen3", "qwen3vl")


def add_logits(
    blocks: Blocks,
    state: Tensor,
    *,
    capped: bool = False,
    scaled: bool = False,
    adapted: bool = True,
) -> None:
    """Put the output matrix behind the normed state; both are kept until the end."""
    home = blocks.homes[-1]
    state.is_output = True
    table = blocks.outside("output.weight", home) or blocks.outside("token_embd.weight", home)
    assert table is not None  # the embeddings are there: `embeddings` has read them
    logits = blocks.adapted(table, state) if adapted else product(table, state)
    bias = blocks.outside("output.bias", home)
    if bias is not None:
        logits = like("ADD", logits, bias)
    if scaled:
        logits = like("SCALE", logits)
    if capped:
        for op in ("SCALE", "UNARY", "SCALE"):
            logits = like(op, logits)
    logits.is_output = True
    blocks.graph.expand(logits)
    if blocks.run.embeddings:
        pool(blocks, state)


def pool(blocks: Blocks, state: Tensor) -> None:
    """`build_pooling`: the mean of a text's tokens, or one of them; none where all are wanted."""
    default = _MEAN if blocks.weights.is_encoder else _NONE
    kind = hyperparameters(blocks.facts).get("pooling_type", default)
    users = blocks.run.parallel
    if kind == _NONE:
        return
    if kind == _MEAN:
        turned = ggml.contiguous(ggml.transpose(state))
        found = product(turned, ggml.given("F32", blocks.tokens, users, name="mean"))
    else:
        found = ggml.get_rows(state, ggml.given("I32", users, name="cls"))
    found.is_output = True
    blocks.graph.expand(_ranked(blocks, found))


def _ranked(blocks: Blocks, found: Tensor) -> Tensor:
    """A reranker's classifier, for models that have one (LLAMA_POOLING_TYPE_RANK)."""
    home = blocks.homes[-1]
    head, out = (blocks.outside(f"cls{name}.weight", home) for name in ("", ".output"))
    if head is None and out is None:
        return found
    found.is_output = False
    if head is not None:
        bias = blocks.outside("cls.bias", home)
        found = product(head, found)
        found = like("UNARY", like("ADD", found, bias) if bias is not None else found)
    if out is not None:
        bias = blocks.outside("cls.output.bias", home)
        found = product(out, found)
        found = like("ADD", found, bias) if bias is not None else found
    if blocks.facts.architecture in _SOFTMAXED:
        found = like("SOFT_MAX", found)
    found.is_output = True
    return found
