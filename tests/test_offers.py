"""What the llama.cpp engine offers for a model, and what it says when it cannot."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.damage import predicted_damage
from bundler.builtin.llamacpp.offers import make_offers
from bundler.builtin.llamacpp.schemes import SCHEMES
from bundler.builtin.llamacpp.ways import AUTO_SCHEMES
from bundler.builtin.targets import CATALOGUE
from bundler.errors import BundlerError, DoesNotFit, RecipeError
from bundler.lock import Lock, LockedFile, LockedModel, ModelFacts, Resolution
from bundler.plan import FileInput, Offer, StepInput, step_keys
from bundler.planning.options import prepare
from bundler.planning.ordering import file_inputs
from bundler.recipe import ModelRequest, Recipe
from bundler.solver.choosing import solve
from tests.real_shapes import REPOSITORIES
from tests.shapes import facts_of

TARGETS = {target.name: target for target in CATALOGUE}
CONFIGS = {repository.name: repository for repository in REPOSITORIES}


def resolution(*paths: str) -> Resolution:
    files = tuple(
        LockedFile(path=path, size_bytes=100 + number, sha256=f"{number:064x}")
        for number, path in enumerate(paths)
    )
    return Resolution(source="hf", reference="hf:a/b", revision="1", files=files)


_HELDOUT = LockedFile(path="heldout.txt", size_bytes=9, sha256="f" * 64)
TEXTS = {
    "calibration": resolution("calibration.txt"),
    "heldout": resolution("heldout.txt").model_copy(update={"files": (_HELDOUT,)}),
}


def model_of(name: str, *paths: str, facts: dict[str, Any] | None = None) -> LockedModel:
    repository = CONFIGS[name]
    found = facts_of(repository.config, type_=repository.type).model_copy(update=facts or {})
    files = paths or ("config.json", "model.safetensors", "tokenizer.json")
    return LockedModel(resolution=resolution(*files), facts=found)


def offers(name: str = "Qwen/Qwen2.5-7B-Instruct", target: str = "rtx-4090",
           model: LockedModel | None = None, **more: Any) -> list[Offer]:  # fmt: skip
    request = ModelRequest.model_validate({"source": "hf:a/b", **more})
    return make_offers(request, model or model_of(name), TARGETS[target], TEXTS)


def test_auto_offers_every_scheme_with_two_caches_best_quality_first_in_its_figures():
    found = offers()
    assert [(o.quant, o.kv_cache) for o in found] == [
        (quant, cache) for quant in ("BF16", *AUTO_SCHEMES) for cache in ("f16", "q8_0")
    ]
    plain = [o for o in found if o.kv_cache == "f16"]
    assert [o.quality for o in plain] == sorted(o.quality for o in plain)
    assert [o.disk_bytes for o in plain] == sorted((o.disk_bytes for o in plain), reverse=True)
    bits = {o.quant: o.bits_per_weight for o in plain}
    assert bits["Q4_K_M"] == pytest.approx(4.91, abs=0.01)
    assert bits["Q8_0"] == pytest.approx(8.5, abs=0.01)


@pytest.mark.parametrize("role", ["embed", "rerank"])
def test_an_embedder_is_offered_whole_and_in_eight_bits_with_no_cache(role: str):
    found = offers("BAAI/bge-small-en-v1.5", role=role, context_tokens=512)
    assert [(o.quant, o.gpu_layers, o.kv_cache, o.memory.kv_cache_bytes) for o in found] == [
        ("F16", -1, "f16", 0), ("F16", 0, "f16", 0), ("Q8_0", -1, "f16", 0), ("Q8_0", 0, "f16", 0),
    ]  # fmt: skip
    assert all([step.name for step in o.steps][-1] == "prove" for o in found)


def test_steps_lead_from_the_published_files_to_a_proof():
    (found,) = offers(quant="Q4_K_M", kv_cache="f16", context_tokens=8192, parallel=2)
    convert, calibrate, quantize, prove = found.steps
    assert set(convert.inputs) == {"config.json", "model.safetensors", "tokenizer.json"}
    assert convert.parameters == {"output_type": "auto", "name": "b"}
    converted = StepInput(step="convert", file="model.gguf")
    assert calibrate.inputs["model.gguf"] == converted
    assert calibrate.parameters == {"context_tokens": 512, "tokens": 65_536}
    assert quantize.inputs == {
        "model.gguf": converted,
        "imatrix.gguf": StepInput(step="calibrate", file="imatrix.gguf"),
    }
    assert quantize.parameters == {"quant": "Q4_K_M", "allow_fallback": False}
    assert prove.inputs["model.gguf"] == found.output == StepInput(
        step="quantize", file="model.gguf"
    )  # fmt: skip
    assert prove.inputs["reference.gguf"] == converted
    assert prove.parameters["context_tokens"] == 8192
    assert prove.parameters["predicted_memory_bytes"] == found.memory.total_bytes
    assert found.scratch_bytes > 15_000_000_000


def test_the_unquantized_model_needs_no_further_step_and_shares_its_conversion():
    whole, eight = offers(quant=["BF16", "Q8_0"], kv_cache="f16")
    assert [step.name for step in whole.steps] == ["convert", "prove"]
    assert whole.scratch_bytes == 0
    assert whole.steps[0] == eight.steps[0]
    (half,) = offers(quant="F16", kv_cache="f16")
    assert half.steps[0].parameters["output_type"] == "f16"


def test_equal_work_of_different_schemes_has_equal_keys():
    keys = [
        step_keys(offer.steps, {"engine:llama.cpp": "tool"})
        for offer in offers(quant=["Q4_K_M", "Q5_K_M"], kv_cache="f16")
    ]
    assert {k["convert"] for k in keys} == {keys[0]["convert"]}
    assert {k["calibrate"] for k in keys} == {keys[0]["calibrate"]}
    assert keys[0]["quantize"] != keys[1]["quantize"]


def test_eight_bits_and_a_wish_for_none_make_no_importance_matrix():
    names = [step.name for o in offers(quant="Q8_0") for step in o.steps]
    names += [s.name for o in offers(quant="Q4_K_M", importance_matrix="none") for s in o.steps]
    assert "calibrate" not in names


def test_weights_that_lie_twice_in_a_repository_are_read_once():
    paths = (
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "consolidated.safetensors", "original/params.json",
        "onnx/config.json", "tokenizer.model", "README.md", "1_Pooling/config.json",
    )  # fmt: skip
    model = model_of("mistralai/Mistral-7B-Instruct-v0.3", *paths)
    (found,) = offers(model=model, quant="Q8_0", kv_cache="f16")
    assert set(found.steps[0].inputs) == {
        "config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
        "model.safetensors.index.json", "tokenizer.model", "1_Pooling/config.json",
    }  # fmt: skip


# -- refusals --------------------------------------------------------------------------------------


def test_unknown_schemes_are_all_named_with_what_was_meant():
    with pytest.raises(RecipeError) as caught:
        offers(quant=["q4_k_m", "Q8_0", "W4A16"])
    assert [p.message for p in caught.value.problems] == [
        "llama.cpp has no quantization 'q4_k_m'", "llama.cpp has no quantization 'W4A16'",
    ]  # fmt: skip
    assert "did you mean 'Q4_K_M'" in caught.value.problems[0].hint
    assert "IQ4_XS" in caught.value.problems[1].hint


def test_rows_that_k_quants_cannot_hold_are_named_with_what_fits():
    name = "Qwen/Qwen2.5-0.5B-Instruct"
    with pytest.raises(RecipeError) as caught:
        offers(name, quant="Q4_K_M")
    (problem,) = caught.value.problems
    assert "rows of 896" in problem.message
    assert "Q8_0" in problem.hint
    assert "Q6_K" not in problem.hint.partition("; or")[0]
    assert {o.quant for o in offers(name)} == {"BF16", "Q8_0"}
    (allowed,) = offers(name, quant="Q4_K_M", kv_cache="f16", allow_fallback=True)
    assert allowed.steps[-2].parameters["allow_fallback"] is True
    assert allowed.bits_per_weight > 5


def test_a_context_beyond_the_models_own_is_refused_with_both_numbers():
    with pytest.raises(DoesNotFit, match=r"32,769 tokens.*made for 32,768"):
        offers(context_tokens=32769)
    with pytest.raises(DoesNotFit, match=r"4,096 tokens.*made for 512"):
        offers("BAAI/bge-small-en-v1.5", role="embed")


def test_a_cache_that_heads_do_not_divide_into_is_refused_or_not_offered():
    odd = model_of("Qwen/Qwen2.5-7B-Instruct", facts={"head_dim_key": 80, "head_dim_value": 80})
    assert {o.kv_cache for o in offers(model=odd)} == {"f16"}
    with pytest.raises(RecipeError, match="80 and 80"):
        offers(model=odd, kv_cache="q8_0")


def test_a_scheme_that_demands_an_importance_matrix_is_refused_without_one():
    with pytest.raises(RecipeError, match="only with an importance matrix"):
        offers(quant="IQ2_XS", importance_matrix="none")
    assert offers(quant="IQ2_XS")
    request = ModelRequest.model_validate({"source": "hf:a/b", "quant": "Q4_K_M"})
    model = model_of("Qwen/Qwen2.5-7B-Instruct")
    with pytest.raises(RecipeError, match=r"verify\.calibration"):
        make_offers(request, model, TARGETS["rtx-4090"], {"heldout": TEXTS["heldout"]})


# -- ready files -----------------------------------------------------------------------------------


def ready(*paths: str, **extra: Any) -> LockedModel:
    facts = facts_of(CONFIGS["Qwen/Qwen2.5-1.5B-Instruct"].config, type_="Q4_K")
    update = {"format": "gguf", "extra": extra}
    return LockedModel(
        resolution=resolution(*paths), facts=ModelFacts.model_validate(dict(facts) | update)
    )


def test_a_ready_file_is_offered_as_it_comes_with_nothing_but_a_proof():
    found = offers(model=ready("model-q4_k_m.gguf", file_type=15))
    assert [(o.quant, o.kv_cache) for o in found] == [("Q4_K_M", "f16"), ("Q4_K_M", "q8_0")]
    for each in found:
        assert [step.name for step in each.steps] == ["prove"]
        assert each.output == each.steps[0].inputs["model.gguf"]
        assert isinstance(each.output, FileInput)
        assert "reference.gguf" not in each.steps[0].inputs
        assert (each.disk_bytes, each.scratch_bytes) == (100, 0)


@pytest.mark.parametrize(
    ("path", "extra", "quant"),
    [
        ("x-Q4_K_S.gguf", {"file_type": 15}, "Q4_K_M"),
        ("x-Q4_K_S.gguf", {"file_type": 0}, "Q4_K_S"),  # nothing in it is F32 but vectors
        ("x-Q4_K_S.gguf", {}, "Q4_K_S"),
        ("mixed.gguf", {"file_type": 9999}, "as-is"),
    ],
)
def test_the_scheme_of_a_ready_file_is_what_its_header_says_then_its_name(
    path: str, extra: dict[str, int], quant: str
):
    model = ready(path, **extra)
    # Norms are F32 in every file, and would make that a plausible scheme.
    tensors = tuple(
        t if len(t.shape) > 1 else t.model_copy(update={"type": "F16"}) for t in model.facts.tensors
    )
    model = model.model_copy(update={"facts": model.facts.model_copy(update={"tensors": tensors})})
    assert {o.quant for o in offers(model=model)} == {quant}


def test_another_scheme_than_a_ready_file_has_is_refused():
    with pytest.raises(RecipeError, match=r"the file .* is Q4_K_M"):
        offers(model=ready("a.gguf", file_type=15), quant="Q8_0")


# -- predictions -----------------------------------------------------------------------------------


@given(
    st.sampled_from([*sorted(SCHEMES), "as-is"]), st.sampled_from(["f16", "q8_0", "q4_0"]),
    st.booleans(), st.floats(0.5, 32),
)  # fmt: skip
def test_every_scheme_has_a_prediction_and_a_smaller_cache_is_never_better(
    scheme: str, cache: str, has_imatrix: bool, bits: float
):
    damage = predicted_damage(scheme, cache, has_imatrix=has_imatrix, bits_per_weight=bits)
    plain = predicted_damage(scheme, "f16", has_imatrix=has_imatrix, bits_per_weight=bits)
    assert 0 <= plain <= damage < 3


@settings(deadline=None)
@given(
    st.sampled_from(sorted(CONFIGS)), st.sampled_from(sorted(TARGETS)),
    st.sampled_from(["chat", "code", "embed", "rerank", "draft"]),
    st.one_of(st.just("auto"), st.lists(st.sampled_from(sorted(SCHEMES)), min_size=1)),
    st.integers(64, 200_000), st.integers(1, 16),
)  # fmt: skip
def test_whatever_a_recipe_asks_there_are_sound_offers_or_an_error_for_people(
    name: str, target: str, role: str, quant: Any, context: int, parallel: int
):
    try:
        found = offers(
            name, target, role=role, quant=quant, context_tokens=context, parallel=parallel
        )
    except BundlerError as error:
        unhelpful = [problem for problem in error.problems if not problem.hint]
        if unhelpful:
            raise AssertionError(unhelpful) from error
        return
    assert found
    for each in found:
        assert each.context_tokens == context
        assert each.memory.total_bytes > 0
        assert each.disk_bytes > each.bits_per_weight * 1_000_000
        made = {step.name for step in each.steps}
        given_steps = [i for s in each.steps for i in s.inputs.values() if isinstance(i, StepInput)]
        assert {i.step for i in given_steps} <= made


def test_twenty_models_are_offered_and_planned_in_two_seconds():
    names = (sorted(CONFIGS) * 2)[:20]
    models = {f"m{number:02}": model_of(name) for number, name in enumerate(names)}
    recipe = Recipe.model_validate(
        {
            "schema": 1, "bundle": {"name": "b"}, "target": {"use": "h200"},
            "models": {
                name: {"source": "hf:a/b", "context_tokens": 512,
                       "residency": ("resident", "on-demand", "auto")[number % 3]}
                for number, name in enumerate(models)
            },
        }
    )  # fmt: skip
    lock = Lock(request_digest="0" * 64, created=1, models=models, corpora={}, texts=TEXTS)
    start = time.process_time()
    found = {
        name: make_offers(recipe.models[name], model, TARGETS["h200"], TEXTS)
        for name, model in models.items()
    }
    formats = frozenset({"gguf"})
    target = TARGETS["h200"].model_copy(update={"usable_vram_bytes": 90_000_000_000})
    decision = prepare(recipe, lock, {"": target}, {"": found}, runtime_formats=formats)
    solution = solve(decision)
    assert solution is not None
    assert solution.gap == 0
    assert time.process_time() - start <= 2.5  # half a second of it makes the test's own shapes


def test_files_of_a_lock_become_inputs_under_their_own_paths():
    assert set(file_inputs(resolution("a/b", "c").files)) == {"a/b", "c"}
