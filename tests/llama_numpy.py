"""A llama-type model in plain numpy, float64: the oracle that llama.cpp's figures are held against.

Written from the papers (RMSNorm, rotary positions, grouped-query attention, SwiGLU, top-k mixture
of experts), not from llama.cpp; slow and short.
"""

import numpy as np


def rms_norm(x, epsilon=1e-5):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon)


def rotate(x, base=10000.0):
    """Turn neighbouring pairs of each head by position-dependent angles; x is (tokens, heads, n)."""
    tokens, _, size = x.shape
    angles = np.arange(tokens)[:, None] * base ** (-np.arange(0, size, 2) / size)
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
    return out


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def silu(x):
    return x / (1 + np.exp(-x))


def forward(weights, shape, tokens):
    """Return logits of every position and, per weight, (squares summed, rows) of its input."""
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    seen = {}

    def times(x, name):
        seen[name] = ((x * x).sum(0), len(x))
        return x @ w[name].T

    x = w["token_embd.weight"][tokens]
    for layer in range(shape.layers):
        b = f"blk.{layer}."
        x = x + attention(rms_norm(x) * w[b + "attn_norm.weight"], b, shape, times)
        h = rms_norm(x) * w[b + "ffn_norm.weight"]
        if shape.experts:
            x = x + mixture(h, b, shape, w, seen)
        else:
            gate, up = times(h, b + "ffn_gate.weight"), times(h, b + "ffn_up.weight")
            x = x + times(silu(gate) * up, b + "ffn_down.weight")
    x = rms_norm(x) * w["output_norm.weight"]
    head = "token_embd.weight" if shape.tied else "output.weight"
    return x @ w[head].T, seen


def attention(h, b, shape, times):
    size = shape.hidden // shape.heads
    q = rotate(times(h, b + "attn_q.weight").reshape(len(h), shape.heads, size))
    k = rotate(times(h, b + "attn_k.weight").reshape(len(h), shape.kv_heads, size))
    v = times(h, b + "attn_v.weight").reshape(len(h), shape.kv_heads, size)
    group = shape.heads // shape.kv_heads
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(size)
    scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
    mixed = np.einsum("hij,jhd->ihd", softmax(scores), v).reshape(len(h), -1)
    return times(mixed, b + "attn_output.weight")


def mixture(h, b, shape, w, seen):
    """Route each token to its likeliest experts, their shares normalised to one."""
    seen[b + "ffn_gate_inp.weight"] = ((h * h).sum(0), len(h))
    shares = softmax(h @ w[b + "ffn_gate_inp.weight"].T)
    chosen = np.argsort(-shares, axis=1)[:, : shape.experts_used]
    out = np.zeros_like(h)
    squares = {
        k: np.zeros((shape.experts, s))
        for k, s in (("gate", h.shape[1]), ("down", shape.feed_forward))
    }
    counts = np.bincount(chosen.ravel(), minlength=shape.experts)
    for token in range(len(h)):
        total = shares[token, chosen[token]].sum()
        for expert in chosen[token]:
            gate = w[b + "ffn_gate_exps.weight"][expert] @ h[token]
            inner = silu(gate) * (w[b + "ffn_up_exps.weight"][expert] @ h[token])
            squares["gate"][expert] += h[token] ** 2
            squares["down"][expert] += inner**2
            down = w[b + "ffn_down_exps.weight"][expert] @ inner
            out[token] += shares[token, expert] / total * down
    seen[b + "ffn_gate_exps.weight"] = seen[b + "ffn_up_exps.weight"] = (squares["gate"], counts)
    seen[b + "ffn_down_exps.weight"] = (squares["down"], counts)
    return out
