"""The quantization schemes of llama.cpp by name, and what each puts where. Pure.

Numbers are `enum llama_ftype` of llama.h (llama.cpp 0c1e57098, in llama-cpp-python 0.3.36); a
scheme's base type is what `llama_ftype_get_default_type` of src/llama-quant.cpp says.
"""

from __future__ import annotations

from dataclasses import dataclass

from bundler.errors import RecipeError
from bundler.weights.ggml_types import BY_NAME


@dataclass(frozen=True, slots=True)
class Scheme:
    """One scheme: `Q4_K_M` is number 15 and mostly made of `Q4_K`."""

    name: str
    number: int
    base_type: str


_TABLE = """
F32 0 F32       F16 1 F16       BF16 32 BF16    Q8_0 7 Q8_0     MXFP4_MOE 38 MXFP4
Q4_0 2 Q4_0     Q4_1 3 Q4_1     Q5_0 8 Q5_0     Q5_1 9 Q5_1     Q1_0 40 Q1_0    Q2_0 41 Q2_0
Q2_K 10 Q2_K    Q2_K_S 21 Q2_K  Q3_K_S 11 Q3_K  Q3_K_M 12 Q3_K  Q3_K_L 13 Q3_K  Q4_K_S 14 Q4_K
Q4_K_M 15 Q4_K  Q5_K_S 16 Q5_K  Q5_K_M 17 Q5_K  Q6_K 18 Q6_K    TQ1_0 36 TQ1_0  TQ2_0 37 TQ2_0
IQ1_S 24 IQ1_S  IQ1_M 31 IQ1_M  IQ2_XXS 19 IQ2_XXS      IQ2_XS 20 IQ2_XS        IQ2_S 28 IQ2_XS
IQ2_M 29 IQ2_S  IQ3_XXS 23 IQ3_XXS      IQ3_XS 22 IQ3_S IQ3_S 26 IQ3_S          IQ3_M 27 IQ3_S
IQ4_NL 25 IQ4_NL        IQ4_XS 30 IQ4_XS
"""

SCHEMES: dict[str, Scheme] = {
    name: Scheme(name, int(number), base)
    for name, number, base in zip(*[iter(_TABLE.split())] * 3, strict=True)
}
"""Every scheme that this llama.cpp can write, by name."""

UNQUANTIZED = frozenset({"F32", "F16", "BF16"})
"""Schemes (and tensor types) that keep every weight as a floating-point number."""

# tensor_requires_imatrix of src/llama-quant.cpp
_NEED_IMPORTANCE = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
_NEVER_NEED_IMPORTANCE = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
# llama_tensor_get_type_impl: schemes whose output tensor would be Q5_K, all others Q6_K
_OUTPUT_Q5_K = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS")


def scheme_named(name: str) -> Scheme:
    """Return the scheme called `name`; raises RecipeError with the names there are."""
    if name not in SCHEMES:
        raise RecipeError(
            f"{name!r} is no quantization of llama.cpp", hint="it has: " + " ".join(SCHEMES)
        )
    return SCHEMES[name]


def needs_importance(tensor: str, type_name: str, scheme: Scheme) -> bool:
    """Tell whether llama.cpp refuses to make this tensor of this type without an imatrix entry."""
    if tensor in _NEVER_NEED_IMPORTANCE:
        return False
    return type_name in _NEED_IMPORTANCE or (type_name == "Q2_K" and scheme.name == "Q2_K_S")


def output_type_wanted(scheme: Scheme, row_elements: int, architecture: str) -> str | None:
    """Return the output tensor's type where llama.cpp drops it for Q8_0 without a word, else None.

    It does so when the row length is not a multiple of the base type's block. (For Falcon it
    always writes Q8_0, and Q8_0 schemes want it anyway: nothing is replaced there.)
    """
    if row_elements % BY_NAME[scheme.base_type].block_values == 0:
        return None
    if architecture == "falcon" or scheme.base_type in ("Q8_0", "MXFP4"):
        return None
    return "Q5_K" if scheme.name in _OUTPUT_Q5_K else "Q6_K"
