"""How much a quantization is expected to hurt: published measurements, as a prediction only.

The figures are mean KL divergence to F16 in nats for Llama-3-8B on wikitext-2
(`tools/perplexity/README.md` of llama.cpp, "LLaMA 3 8b Scoreboard"), scaled to the size of the model
at hand. Families differ by a factor of two or three in both directions (Llama-2-7B loses 2.5 times
less than Llama-3-8B), which no header tells; the order of schemes does not. Good enough to choose
among offers for one model, and to decide which of two models should have the memory. What a model
really lost is measured by its proof, and replaces this (`bundler.feedback.measured`).
"""

from __future__ import annotations

import bisect

# scheme → (with an importance matrix, without one); None where the table has no such row.
_LLAMA_3_8B: dict[str, tuple[float | None, float | None]] = {
    "Q8_0": (None, 0.001355),
    "Q6_K": (None, 0.005452),
    "Q5_K_M": (None, 0.010762),
    "Q5_K_S": (None, 0.016595),
    "Q5_1": (None, 0.018045),
    "Q5_0": (None, 0.022239),
    "Q4_K_M": (0.028152, 0.031273),
    "Q4_K_S": (0.031951, 0.043136),
    "IQ4_NL": (0.035742, None),
    "IQ4_XS": (0.036334, None),
    "Q4_1": (None, 0.071683),
    "Q4_0": (None, 0.071940),
    "Q3_K_L": (0.073077, 0.087176),
    "Q3_K_M": (0.084358, 0.101913),
    "IQ3_M": (0.102534, None),
    "IQ3_S": (0.111278, None),
    "IQ3_XS": (0.138693, None),
    "IQ3_XXS": (0.183625, None),
    "Q3_K_S": (0.199821, 0.228217),
    "IQ2_M": (0.325989, None),
    "Q2_K": (0.332223, 0.445132),
    "Q2_K_S": (0.403360, None),
    "IQ2_S": (0.439197, None),
    "IQ2_XS": (0.546290, None),
    "IQ2_XXS": (0.812022, None),
    "IQ1_M": (1.393084, None),
    "IQ1_S": (2.254554, None),
}
_EXACT = ("F32", "BF16", "F16")
# Bits per weight of some rows above (file size over 8.03 billion weights) for schemes that are
# not in the table: their loss is read off the curve at their own bits per weight.
_CURVE = ((1.9, 2.25), (2.4, 0.81), (3.0, 0.40), (3.5, 0.20), (4.0, 0.084), (4.6, 0.030),
          (5.6, 0.0135), (6.6, 0.0055), (8.5, 0.0014), (16.0, 0.0))  # fmt: skip

# KLD of a quantized cache less that of an F16 one, Llama-3-8B (llama.cpp pull request #7412);
# Q4_0 by its perplexity with rotation (+0.22 %, pull request #21038) on the same scale.
_KV_CACHE = {"f16": 0.0, "q8_0": 0.0008, "q4_0": 0.004}


# Larger models lose less at the same bits. From 7 to 70 billion parameters of Llama 2 the logarithm
# of the perplexity's ratio to F16 falls by an exponent of 0.07 (Q4_K_M), 0.08 (Q2_K) and 0.18 (Q6_K;
# both tables in tools/perplexity/README.md); from 0.8 (Qwen3.5, Q4_K_M with 0.0363 nats by its model
# card) to 8 billion by 0.11. Sizes beyond those that were published count as the nearest of them.
_SIZE_EXPONENT = 0.11
_TABLE_PARAMETERS = 8.03e9
# Types chosen by measuring, against llama.cpp's own mix in as many bytes: published gains leave 0.77 to
# 0.84 of the divergence (llama.cpp pull request #15550 and a model card of its branch).
_MIXED = 0.8
_LEAST_PARAMETERS, _MOST_PARAMETERS = 0.5e9, 100e9


def predicted_damage(
    scheme: str, kv_cache: str, *, has_imatrix: bool, bits_per_weight: float,
    parameters: float = _TABLE_PARAMETERS,
) -> float:  # fmt: skip
    """Return the predicted mean KL divergence in nats.

    Args:
        scheme: of the weights: `Q4_K_M`; one that is in no table is judged by its bits.
        kv_cache: type of the cache.
        has_imatrix: whether an importance matrix guides the rounding.
        bits_per_weight: over the whole file.
        parameters: how many weights the model has.
    """
    weights = _weights_damage(scheme, has_imatrix, bits_per_weight) * size_factor(parameters)
    return round(weights + kv_cache_damage(kv_cache), 6)


def kv_cache_damage(kv_cache: str) -> float:
    """Return the part of the prediction that the cache's type costs; 0 for `f16`."""
    return _KV_CACHE[kv_cache]


def size_factor(parameters: float) -> float:
    """Return how much more (or less) than the table's model one of this size is expected to lose."""
    counted = min(max(parameters, _LEAST_PARAMETERS), _MOST_PARAMETERS)
    return float((_TABLE_PARAMETERS / counted) ** _SIZE_EXPONENT)


def _weights_damage(scheme: str, has_imatrix: bool, bits_per_weight: float) -> float:
    if scheme in _EXACT:
        return 0.0
    if scheme.startswith("mixed"):
        return _MIXED * _from_curve(bits_per_weight)
    guided, plain = _LLAMA_3_8B.get(scheme, (None, None))
    first, second = (guided, plain) if has_imatrix else (plain, guided)
    found = first if first is not None else second
    return _from_curve(bits_per_weight) if found is None else found


def _from_curve(bits: float) -> float:
    """Interpolate between the published points; constant beyond their ends."""
    at = [point[0] for point in _CURVE]
    index = bisect.bisect_left(at, bits)
    if index == 0:
        return _CURVE[0][1]
    if index == len(_CURVE):
        return _CURVE[-1][1]
    (low, worse), (high, better) = _CURVE[index - 1], _CURVE[index]
    return worse + (better - worse) * (bits - low) / (high - low)
