"""What a graph depends on: the shape of a model, how it is run, and where its layers lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, TypeVar

from bundler.lock import ModelFacts

T = TypeVar("T")
KV_TYPES = {"f16": "F16", "q8_0": "Q8_0", "q4_0": "Q4_0"}
CONTEXT_STEP = 256
"""Contexts are rounded up to it (`GGML_PAD(cparams.n_ctx, 256)` in src/llama-context.cpp)."""


@dataclass(frozen=True)
class ThinPair:
    """Two thin matrices that change one of a model's: down to the rank and up again."""

    name: str
    """Of the tensor that is changed."""
    down_type: str
    down: tuple[int, ...]
    """Its sides, innermost first."""
    up_type: str
    up: tuple[int, ...]


ThinPairs = tuple[ThinPair, ...]
"""A LoRA adapter."""


@dataclass(frozen=True)
class Run:
    """How a model is run."""

    context_tokens: int
    """Of each user; every user has a cache of its own (`kv_unified` is off)."""
    parallel: int
    kv_cache: str
    batch_tokens: int
    """The micro batch (`n_ubatch`)."""
    flash_attention: bool
    embeddings: bool = False
    """Whether vectors are asked for instead of words."""
    output_rows: int = 0
    """Rows of logits kept of one micro batch (`n_outputs_max`); 0 for all, llama.h's default."""

    adapters: tuple[ThinPairs, ...] = ()
    """LoRA adapters that are applied."""

    @property
    def cells(self) -> int:
        """KV cells of each user's stream."""
        return padded(self.context_tokens, CONTEXT_STEP)

    @property
    def tokens(self) -> int:
        """Tokens of one micro batch, the same number for each user (`graph_reserve`)."""
        return padded(min(self.batch_tokens, self.cells * self.parallel), self.parallel)

    @property
    def outputs(self) -> int:
        """Tokens of the largest micro batch whose logits are computed."""
        tokens = min(self.batch_tokens, self.cells * self.parallel)
        return min(tokens, self.output_rows) if self.output_rows else tokens


@dataclass(frozen=True, eq=False)
class Same(Generic[T]):
    """A frozen value as a key of caches: only the same object is equal, which costs no comparing.

    The key holds the value, so that its identity cannot pass to another.
    """

    value: T

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value


def padded(size: int, step: int) -> int:
    """Return `size` rounded up to a multiple of `step`."""
    return -(-size // step) * step


class Model:
    """A model's facts, and the shapes of its tensors by layer, innermost dimension first."""

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.outside: dict[str, tuple[int, ...]] = {}
        self.layers: list[dict[str, tuple[int, ...]]] = [{} for _ in range(facts.layers)]
        for tensor in facts.tensors:
            shape = tuple(reversed(tensor.shape))
            head, _, rest = tensor.name.partition(".")
            number, _, name = rest.partition(".")
            if head == "blk" and number.isdigit():
                if int(number) < facts.layers:
                    self.layers[int(number)][name] = shape
            else:
                self.outside[tensor.name] = shape
        self.names = [
            tuple(f"blk.{layer}.{name}" for name in shapes)
            for layer, shapes in enumerate(self.layers)
        ]
        self.cache_kinds = [
            (heads, slides(facts, layer)) for layer, heads in enumerate(facts.kv_heads)
        ]
        self.kinds = self._kinds()
        self.is_encoder = "output_norm.weight" not in self.outside

    def _kinds(self) -> list[int]:
        """Number the layers' kinds: layers of one number have the same graph."""
        seen: dict[object, int] = {}
        found = []
        for layer, shapes in enumerate(self.layers):
            kind = (tuple(sorted(shapes.items())), self.cache_kinds[layer])
            found.append(seen.setdefault(kind, len(seen)))
        return found


def model_of(facts: ModelFacts) -> Model:
    """Return a model's shapes, worked out once for each facts."""
    return _model_of(Same(facts))


@lru_cache(maxsize=64)
def _model_of(facts: Same[ModelFacts]) -> Model:
    return Model(facts.value)


@dataclass(frozen=True)
class Site:
    """Where the parts of a model lie: backends by number, best first, the CPU last."""

    homes: tuple[int, ...]
    """The backend of each layer and, last, of the output layer."""
    cpu: int
    layers: tuple[int, ...]
    """The layers to build (see `repetition`)."""
    types: Mapping[str, str]
    """Types of weights that may be copied to a device."""


def slides(facts: ModelFacts, layer: int) -> bool:
    """Tell whether a layer sees only a window (`llama_hparams::set_swa_pattern`)."""
    if not facts.sliding_window_tokens:
        return False
    listed = facts.extra.get("sliding_layers")
    if listed:
        return bool(listed[layer])
    every = facts.sliding_window_pattern
    return every == 0 or layer % every < every - 1


def sliding_cells(facts: ModelFacts, run: Run) -> int:
    """Return the cells of a window's cache: window and batch, padded (llama-kv-cache-iswa.cpp)."""
    wanted = facts.sliding_window_tokens + min(run.batch_tokens, run.cells * run.parallel)
    return padded(min(run.cells, wanted), CONTEXT_STEP)


@dataclass(frozen=True)
class StateSizes:
    """What a recurrent layer (Mamba 2) keeps of a text, and its widths."""

    inner: int
    state: int
    heads: int
    groups: int
    kernel: int

    @property
    def conv_values(self) -> int:
        """Values kept for the convolution (`llama_hparams::n_embd_r`)."""
        return (self.kernel - 1) * (self.inner + 2 * self.groups * self.state)

    @property
    def scan_values(self) -> int:
        """Values kept for the scan (`llama_hparams::n_embd_s`)."""
        return self.state * self.inner


def state_sizes(facts: ModelFacts) -> StateSizes:
    """Return the widths of a model's recurrent layers from its header."""
    given = hyperparameters(facts)
    names = ("inner_size", "state_size", "time_step_rank", "group_count", "conv_kernel")
    return StateSizes(*(int(str(given.get(f"ssm.{name}", 0))) for name in names))


def is_latent(facts: ModelFacts) -> bool:
    """Tell whether one latent row is kept in place of keys and values (`llama_hparams::is_mla`)."""
    given = hyperparameters(facts)
    return bool(given.get("attention.key_length_mla") and given.get("attention.value_length_mla"))


def hyperparameters(facts: ModelFacts) -> Mapping[str, object]:
    """Return the architecture's own fields of the header, as far as they are numbers or texts."""
    found = facts.extra.get("hyperparameters", {})
    return found if isinstance(found, Mapping) else {}
