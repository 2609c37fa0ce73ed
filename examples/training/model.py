"""A small Llama decoder in plain PyTorch, with parameters named as Hugging Face names them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    """The sizes of the decoder; the defaults are those of the example model."""

    vocabulary_size: int = 4096
    hidden_size: int = 256
    feed_forward_size: int = 768
    layers: int = 5
    heads: int = 4
    key_value_heads: int = 2
    head_size: int = 64
    context_tokens: int = 1024
    norm_epsilon: float = 1e-5
    rope_base: float = 10_000.0
    family: str = "llama"

    @property
    def is_qwen2(self) -> bool:
        """Qwen2 has biases on queries, keys and values, and here an output matrix of its own."""
        return self.family == "qwen2"


FAMILIES = {
    "llama": Config(),
    "qwen2": Config(layers=4, norm_epsilon=1e-6, rope_base=1_000_000.0, family="qwen2"),
}


# (keys, values) of one layer, each [batch, key_value_heads, tokens, head_size].
LayerCache = tuple[Tensor, Tensor]


def rotary_angles(config: Config) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each [context_tokens, head_size]."""
    exponents = torch.arange(0, config.head_size, 2).float() / config.head_size
    angles = torch.outer(torch.arange(config.context_tokens).float(), config.rope_base**-exponents)
    doubled = torch.cat([angles, angles], -1)
    return doubled.cos(), doubled.sin()


def rotate(vectors: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary position embedding of [batch, heads, tokens, head_size]."""
    first, second = vectors.chunk(2, -1)
    return vectors * cosines + torch.cat([-second, first], -1) * sines


class Attention(nn.Module):
    """Causal attention with grouped key and value heads."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        query_size = config.heads * config.head_size
        key_value_size = config.key_value_heads * config.head_size
        self.q_proj = nn.Linear(config.hidden_size, query_size, bias=config.is_qwen2)
        self.k_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.is_qwen2)
        self.v_proj = nn.Linear(config.hidden_size, key_value_size, bias=config.is_qwen2)
        self.o_proj = nn.Linear(query_size, config.hidden_size, bias=False)

    def split(self, projected: Tensor, heads: int) -> Tensor:
        """[batch, tokens, heads * head_size] to [batch, heads, tokens, head_size]."""
        batch, tokens, _ = projected.shape
        return projected.view(batch, tokens, heads, self.config.head_size).transpose(1, 2)

    def forward(
        self, hidden: Tensor, cosines: Tensor, sines: Tensor, cache: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        """[batch, tokens, hidden_size] to the same; with a cache, for the tokens after it."""
        query = rotate(self.split(self.q_proj(hidden), self.config.heads), cosines, sines)
        key = self.split(self.k_proj(hidden), self.config.key_value_heads)
        key = rotate(key, cosines, sines)
        value = self.split(self.v_proj(hidden), self.config.key_value_heads)
        if cache is not None:
            key, value = torch.cat([cache[0], key], 2), torch.cat([cache[1], value], 2)
        group = self.config.heads // self.config.key_value_heads
        mixed = functional.scaled_dot_product_attention(
            query,
            key.repeat_interleave(group, 1),
            value.repeat_interleave(group, 1),
            is_causal=cache is None,
        )
        batch, tokens, _ = hidden.shape
        output: Tensor = self.o_proj(mixed.transpose(1, 2).reshape(batch, tokens, -1))
        return output, (key, value)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.feed_forward_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.feed_forward_size, bias=False)
        self.down_proj = nn.Linear(config.feed_forward_size, config.hidden_size, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        gated = functional.silu(self.gate_proj(hidden)) * self.up_proj(hidden)
        output: Tensor = self.down_proj(gated)
        return output


class Layer(nn.Module):
    """Attention and feed-forward, each behind a norm and around a residual."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.norm_epsilon)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.norm_epsilon)
        self.mlp = FeedForward(config)

    def forward(
        self, hidden: Tensor, cosines: Tensor, sines: Tensor, cache: LayerCache | None
    ) -> tuple[Tensor, LayerCache]:
        mixed, cache = self.self_attn(self.input_layernorm(hidden), cosines, sines, cache)
        hidden = hidden + mixed
        return hidden + self.mlp(self.post_attention_layernorm(hidden)), cache


class Decoder(nn.Module):
    """The whole model; in a Llama the embedding is also the output matrix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocabulary_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.norm_epsilon)
        if config.is_qwen2:
            self.lm_head = nn.Linear(config.hidden_size, config.vocabulary_size, bias=False)
        cosines, sines = rotary_angles(config)
        self.register_buffer("cosines", cosines, persistent=False)
        self.register_buffer("sines", sines, persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                scale = 0.02 / (math.sqrt(2 * config.layers) if residual else 1.0)
                nn.init.normal_(parameter, 0.0, scale)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(
        self, tokens: Tensor, caches: list[LayerCache] | None = None
    ) -> tuple[Tensor, list[LayerCache]]:
        """Token numbers [batch, tokens] to final vectors [batch, tokens, hidden_size]."""
        states, new_caches = self.states(tokens, caches)
        return self.norm(states[-1]), new_caches

    def states(
        self, tokens: Tensor, caches: list[LayerCache] | None = None
    ) -> tuple[list[Tensor], list[LayerCache]]:
        """The residual vectors after each layer, each [batch, tokens, hidden_size]."""
        start = caches[0][0].shape[2] if caches else 0
        cosines = self.get_buffer("cosines")[start : start + tokens.shape[1]]
        sines = self.get_buffer("sines")[start : start + tokens.shape[1]]
        hidden = self.embed_tokens(tokens)
        states, new_caches = [], []
        for index, layer in enumerate(self.layers):
            hidden, cache = layer(hidden, cosines, sines, caches[index] if caches else None)
            states.append(hidden)
            new_caches.append(cache)
        return states, new_caches

    def freeze(self, layers: int) -> None:
        """Leave the embedding and the lowest layers as they are; with 0, nothing is frozen."""
        if layers:
            self.embed_tokens.requires_grad_(requires_grad=False)
        for layer in self.layers[:layers]:
            layer.requires_grad_(requires_grad=False)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., hidden_size] to [..., vocabulary_size]."""
        head = self.lm_head if self.config.is_qwen2 else self.embed_tokens
        return functional.linear(hidden, head.weight)

    def load_exported(self, folder: Path) -> None:
        """Take the weights of a Hugging Face folder with the same sizes.

        Layers that the folder does not have stay on top and begin as identity: what they add to
        the residual is zero until they are trained.
        """
        tensors = load_file(folder / "model.safetensors")
        found = {name.removeprefix("model."): tensor.float() for name, tensor in tensors.items()}
        for name, parameter in self.named_parameters():
            if name not in found:
                silent = name.endswith(("o_proj.weight", "down_proj.weight"))
                found[name] = torch.zeros_like(parameter) if silent else parameter.detach()
        self.load_state_dict(found)


def load_model(folder: Path) -> Decoder:
    """The model of a Hugging Face folder, sizes included, ready to run."""
    sizes = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model = Decoder(
        Config(
            vocabulary_size=sizes["vocab_size"],
            hidden_size=sizes["hidden_size"],
            feed_forward_size=sizes["intermediate_size"],
            layers=sizes["num_hidden_layers"],
            heads=sizes["num_attention_heads"],
            key_value_heads=sizes["num_key_value_heads"],
            head_size=sizes["head_dim"],
            context_tokens=sizes["max_position_embeddings"],
            norm_epsilon=sizes["rms_norm_eps"],
            rope_base=sizes["rope_theta"],
            family=sizes["model_type"],
        )
    )
    model.load_exported(folder)
    return model.eval()
