"""Our choice of types against llama.cpp's own dry run, for every scheme and several families."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.schemes import SCHEMES, UNQUANTIZED
from bundler.builtin.llamacpp.types import (
    Inventory,
    choose_types,
    converted_type,
    data_section_bytes,
    find_scheme,
    fitting_type,
    quantizable,
    tensor_types,
)
from bundler.errors import RecipeError
from bundler.lock import ModelFacts, TensorFact
from bundler.weights import read_gguf_file
from bundler.weights.ggml_types import BY_NAME
from tests.shapes import facts_of, write_header_gguf

_BASE: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "hidden_size": 512, "intermediate_size": 1024,
    "num_hidden_layers": 12, "num_attention_heads": 8, "num_key_value_heads": 4,
    "vocab_size": 1000, "max_position_embeddings": 2048,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": _BASE,
    "llama, grouped and tied": _BASE | {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "llama with 80 layers": _BASE | {"num_hidden_layers": 80, "num_key_value_heads": 1},
    "mixture of 8": _BASE | {"num_local_experts": 8, "num_experts_per_tok": 2},
    "mixture of 4": _BASE | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2 with rows of 896": _BASE
    | {"architectures": ["Qwen2ForCausalLM"], "hidden_size": 896, "num_attention_heads": 14,
       "num_key_value_heads": 2, "intermediate_size": 4864},
    "qwen3": _BASE | {"architectures": ["Qwen3ForCausalLM"], "head_dim": 128},
    "gemma3": _BASE
    | {"architectures": ["Gemma3ForCausalLM"], "sliding_window": 512, "tie_word_embeddings": True},
    "bert": {
        "architectures": ["BertModel"], "hidden_size": 384, "intermediate_size": 1536,
        "num_hidden_layers": 6, "num_attention_heads": 12, "vocab_size": 1000,
        "max_position_embeddings": 512,
    },
}  # fmt: skip
# llama.cpp itself gives up on rows that Q1_0 cannot hold: there is no replacement for it.
TRIED = [name for name in SCHEMES if name != "Q1_0"]


@pytest.fixture(scope="module", params=MODELS)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ModelFacts, Path]:
    facts = facts_of(MODELS[request.param])
    path = tmp_path_factory.mktemp("types") / "model.gguf"
    write_header_gguf(path, facts, tensor_types(facts, "BF16", has_imatrix=False))
    return facts, path


@pytest.mark.parametrize("has_imatrix", [False, True])
def test_every_tensor_gets_the_type_that_llama_cpp_gives_it(
    model: tuple[ModelFacts, Path], has_imatrix: bool
):
    facts, path = model
    inventory = Inventory.of(facts)
    said = run_child(
        "tests.sizing_jobs:dry_run",
        {"path": str(path), "schemes": TRIED, "imatrix": has_imatrix},
        environment=os.environ,
    )
    for scheme in TRIED:
        ours, theirs = choose_types(inventory, scheme, has_imatrix), said[scheme]
        if scheme == "F32":  # the dry run keeps what is stored; converting is not its business
            continue
        assert theirs["types"] == dict(ours.types), scheme
        if not has_imatrix:
            assert ours.needs_importance_matrix == theirs["needs_imatrix"], scheme
        # The output tensor's silent Q8_0 is one that llama.cpp does not count.
        silent = sum(f.name in ("output.weight", "token_embd.weight") for f in ours.fallbacks)
        assert len(ours.fallbacks) - silent <= theirs["fallbacks"] <= len(ours.fallbacks), scheme


@pytest.mark.parametrize("scheme", ["Q4_K_M", "Q8_0", "IQ4_XS"])
def test_the_size_of_a_quantized_file_is_known_to_the_byte(tmp_path: Path, scheme: str):
    facts = facts_of(_BASE | {"num_hidden_layers": 2, "hidden_size": 256}, type_="F16")
    made, source = tmp_path / "made.gguf", tmp_path / "source.gguf"
    write_header_gguf(source, facts, tensor_types(facts, "F16", has_imatrix=False))
    run_child(
        "tests.sizing_jobs:quantize",
        {"source": str(source), "target": str(made), "scheme": scheme},
        environment=os.environ,
    )
    types = tensor_types(facts, scheme, has_imatrix=False)
    header = read_gguf_file(made)
    assert {tensor.name: tensor.type for tensor in header.tensors} == types
    assert made.stat().st_size - header.data_offset == data_section_bytes(facts, types)


@given(st.sampled_from(sorted(SCHEMES)), st.integers(1, 4096))
def test_whatever_the_row_length_the_type_holds_it(scheme: str, row_length: int):
    base = SCHEMES[scheme].base_type
    assert row_length % BY_NAME[fitting_type(base, row_length)].block_values == 0


@settings(max_examples=40)
@given(st.sampled_from(sorted(MODELS)), st.sampled_from(TRIED), st.booleans())
def test_every_tensor_has_a_type_and_only_matrices_are_quantized(
    name: str, scheme: str, has_imatrix: bool
):
    facts = facts_of(MODELS[name])
    types = tensor_types(facts, scheme, has_imatrix)
    assert types.keys() == {tensor.name for tensor in facts.tensors}
    quantized = {n for n, type_ in types.items() if type_ not in UNQUANTIZED}
    assert quantized <= {t.name for t in facts.tensors if quantizable(t)}


def test_norms_biases_routers_and_position_tables_stay_exact():
    types = {
        **tensor_types(facts_of(MODELS["mixture of 8"]), "Q2_K", has_imatrix=True),
        **tensor_types(facts_of(MODELS["bert"]), "Q4_0", has_imatrix=False),
    }
    for name in ("blk.0.attn_norm.weight", "blk.3.ffn_gate_inp.weight", "blk.0.attn_q.bias",
                 "position_embd.weight", "token_types.weight"):  # fmt: skip
        assert types[name] == "F32"


def test_a_model_stored_in_f32_is_converted_to_f16():
    facts = facts_of(MODELS["bert"], type_="F32")
    assert converted_type(facts) == "F16"
    assert tensor_types(facts, "Q8_0", has_imatrix=False)["token_embd.weight"] == "Q8_0"
    row = TensorFact(name="cls.output.weight", type="F32", shape=(1, 384))
    one_row = facts.model_copy(update={"tensors": (*facts.tensors, row)})
    # One row is a vector to llama.cpp and stays as the conversion left it.
    assert tensor_types(one_row, "Q8_0", has_imatrix=False)["cls.output.weight"] == "F16"


@pytest.mark.parametrize(
    ("asked", "meant"), [("q4_k_m", "Q4_K_M"), ("Q4-K-M", "Q4_K_M"), ("Q8", "Q8_0"), ("f16", "F16")]
)
def test_a_misspelt_scheme_is_recognised(asked: str, meant: str):
    with pytest.raises(RecipeError, match="no quantization") as caught:
        find_scheme(asked)
    assert f"did you mean '{meant}'" in caught.value.problems[0].hint
