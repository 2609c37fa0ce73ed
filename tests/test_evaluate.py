"""Perplexity, divergence and proofs: held against plain numpy, against themselves, against sense."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bundler.builtin.llamacpp.breakdown import Buffers, from_log
from bundler.builtin.llamacpp.chat import TemplateUnusable, render
from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.divergence import Scores, log_softmax
from bundler.builtin.llamacpp.engine import LlamaCppEngine
from bundler.errors import DoesNotFit, PluginError, ProofFailed, RecipeError, StepFailed
from bundler.hookspecs import Task
from bundler.proof import Proof
from bundler.store import Store, hash_file
from bundler.world import World
from tests import llama_numpy
from tests.models import (
    TEXT,
    Shape,
    example_gguf,
    folder,
    job,
    llama_fields,
    llama_weights,
    quantized,
    text_file,
    tiny_gguf,
    write_gguf,
)

SMALL = Shape(hidden=64, feed_forward=96, vocabulary=320, heads=4, kv_heads=2, layers=2)
TEMPLATE = "{{bos_token}}{% for m in messages %}[{{m.role}}] {{m.content}}{% endfor %}[assistant]"
TALKER = Shape(chat_template=TEMPLATE)


def evaluate(model, reference=None, **more):
    given = {
        "model": str(model), "reference": str(reference) if reference else None,
        "text": str(text_file()), "window_tokens": 64, "tokens": 256, "kv_cache": "f16",
        "gpu": False, "scratch": str(folder()), "mode": "lockstep",
    }  # fmt: skip
    return job("evaluate:evaluate_job", given | more)


def windows(model, most=4):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    arguments = {"model": str(model), "text": str(text_file()), "window_tokens": 64, "most": most}
    return run_child("tests.child_jobs:tokens", arguments, environment=environment)


def test_a_model_does_not_diverge_from_itself():
    found = evaluate(tiny_gguf(), tiny_gguf())
    assert abs(found["kld_mean"]) < 1e-6
    assert found["kld_max"] < 1e-6
    assert found["top1_agreement"] == 1.0
    assert found["perplexity"] == found["reference_perplexity"]
    assert found["tokens"] == found["windows"] * 31  # half of 64, the last has no successor


def perturbed(shape):
    rng = np.random.default_rng(3)
    return {
        name: array + 0.02 * rng.standard_normal(array.shape, np.float32) * array.std()
        for name, array in llama_weights(shape).items()
    }


def test_perplexity_and_divergence_equal_numpys(tmp_path):
    other = perturbed(SMALL)
    write_gguf(tmp_path / "other.gguf", llama_fields(SMALL), other, "F32")
    reference = tiny_gguf(SMALL, type_="F32")
    found = evaluate(tmp_path / "other.gguf", reference, kv_cache="f32")
    losses, divergences, agreements = [], [], []
    for window in windows(reference):
        base, _ = llama_numpy.forward(llama_weights(SMALL), SMALL, window)
        logits, _ = llama_numpy.forward(other, SMALL, window)
        p, q = llama_numpy.softmax(base[32:-1]), llama_numpy.softmax(logits[32:-1])
        losses.append(-np.log(q[np.arange(31), window[33:]]))
        divergences.append((p * np.log(p / q)).sum(-1))
        agreements.append(p.argmax(-1) == q.argmax(-1))
    losses, divergences = np.concatenate(losses), np.concatenate(divergences)
    assert found["perplexity"] == pytest.approx(math.exp(losses.mean()), rel=1e-3)
    assert found["kld_mean"] == pytest.approx(divergences.mean(), rel=0.02)
    assert found["kld_max"] == pytest.approx(divergences.max(), rel=0.05)
    assert found["kld_standard_error"] == pytest.approx(
        divergences.std(ddof=1) / math.sqrt(divergences.size), rel=0.05
    )
    assert found["top1_agreement"] == pytest.approx(np.concatenate(agreements).mean(), abs=0.03)


def test_side_by_side_and_one_after_the_other_give_the_same_figures():
    together = evaluate(quantized(tiny_gguf(), "Q4_K_M"), tiny_gguf())
    apart = evaluate(quantized(tiny_gguf(), "Q4_K_M"), tiny_gguf(), mode="two-pass")
    assert together.pop("mode") == "lockstep"
    assert apart.pop("mode") == "two-pass"
    assert together == apart


def test_without_a_reference_there_is_a_perplexity_and_nothing_else():
    found = evaluate(tiny_gguf())
    assert found["perplexity"] == pytest.approx(evaluate(tiny_gguf(), tiny_gguf())["perplexity"])
    assert "kld_mean" not in found


@pytest.mark.parametrize("trained", [False, True], ids=["random", "trained"])
def test_fewer_bits_cost_more(trained):
    model = example_gguf() if trained else tiny_gguf()
    text = Path(__file__).parents[1] / "bundler/texts/heldout.txt" if trained else text_file()
    damage = [
        evaluate(quantized(model, quant), model, text=str(text), tokens=1024, window_tokens=128)
        for quant in ("Q8_0", "Q4_K_M", "Q2_K")
    ]
    means = [found["kld_mean"] for found in damage]
    assert 0 < means[0] * 3 < means[1] * 3 < means[2]
    agreements = [found["top1_agreement"] for found in damage]
    assert agreements == sorted(agreements, reverse=True)
    if trained:  # a trained model knows its language; a random one does not
        assert damage[0]["reference_perplexity"] < damage[2]["perplexity"] < 320


def test_a_short_text_says_how_short(tmp_path):
    (tmp_path / "short.txt").write_text("nothing much")
    with pytest.raises(RecipeError, match="less than one window of 64"):
        evaluate(tiny_gguf(), tiny_gguf(), text=str(tmp_path / "short.txt"))


def test_a_model_of_another_vocabulary_is_no_pair(tmp_path):
    fields = llama_fields(SMALL)
    fields["tokenizer.ggml.add_bos_token"] = type(fields["general.name"])("BOOL", False)
    write_gguf(tmp_path / "other.gguf", fields, llama_weights(SMALL), "F16")
    with pytest.raises(RecipeError, match="no pair"):
        evaluate(tmp_path / "other.gguf", tiny_gguf(SMALL))


# -- the arithmetic --------------------------------------------------------------------------------

logits = arrays(np.float32, (4, 9), elements=st.floats(-30, 30, width=32))


@settings(max_examples=50)
@given(logits, logits, st.lists(st.integers(0, 8), min_size=4, max_size=4))
def test_divergence_is_never_negative_and_zero_only_to_itself(base, other, following):
    scores = Scores()
    scores.add(base, other, np.array(following))
    found = scores.summary()
    assert found["kld_mean"] >= 0
    assert found["kld_median"] <= found["kld_p99"] <= found["kld_max"]
    assert found["perplexity"] >= 1
    same = Scores()
    same.add(base, base, np.array(following))
    assert same.summary()["kld_max"] == 0


@settings(max_examples=50)
@given(logits)
def test_probabilities_add_up_to_one(rows):
    assert np.exp(log_softmax(rows)).sum(-1) == pytest.approx(np.ones(4))


# -- proofs ----------------------------------------------------------------------------------------


def prove(tmp_path, inputs, **parameters):
    output = tmp_path / "output"
    output.mkdir()
    world = World(store=Store(tmp_path / "store"), environment=os.environ)
    given = {"context_tokens": 256, "parallel": 2, "kv_cache": "q8_0", "tokens": 1024,
             "gpu_layers": 0, **parameters}  # fmt: skip
    task = Task("prove", inputs, given, output, lambda *_: None, world)
    return LlamaCppEngine().run(task), output


def test_a_proof_says_on_what_with_what_and_how_well(tmp_path):
    model, reference = quantized(tiny_gguf(TALKER), "Q4_K_M"), tiny_gguf(TALKER)
    inputs = {"model.gguf": model, "reference.gguf": reference, "heldout.txt": text_file()}
    facts, output = prove(tmp_path, inputs, predicted_memory_bytes=100_000_000)
    proof = Proof.model_validate(facts)
    assert Proof.model_validate(json.loads((output / "proof.json").read_text())) == proof
    assert proof.model_sha256 == hash_file(model)
    assert "llama-cpp-python" in proof.device.backend_build
    assert proof.device.name
    assert proof.settings["backend_memory_source"] in ("breakdown", "log")
    assert proof.device.total_layers == TALKER.layers + 1
    assert proof.settings["kv_cache"] == "q8_0"
    assert proof.settings["chat_template"] is True
    assert proof.settings["flash_attention"] is True
    assert proof.quality.context_tokens == 256
    assert 0 < proof.quality.kld_mean < 0.1
    assert proof.speed.generation_tokens_per_second > 0
    assert proof.sample_prompt
    # Weights and a KV cache of 512 cells: 8.5 bits, two layers, 128 channels, keys and values.
    weights = sum(tensor["bytes"] for tensor in tensor_sizes(model))
    cache = 2 * 512 * 2 * 128 * 34 // 32
    assert proof.notes == ()
    assert proof.device.peak_memory_bytes > weights + cache
    assert proof.device.peak_memory_bytes < weights + cache + 12_000_000


def test_the_logs_account_of_buffers_is_added_up_by_backend():
    log = """
load_tensors:   CPU_Mapped model buffer size =     2.75 MiB
load_tensors:        CUDA0 model buffer size =     8.00 MiB
llama_kv_cache:        CPU KV buffer size =     1.00 MiB
llama_context:        CPU  output buffer size =     0.50 MiB
sched_reserve:        CPU compute buffer size =     5.25 MiB
"""
    found = from_log(log)
    assert found["CPU"] == Buffers(int(2.75 * 2**20), int(1.5 * 2**20), int(5.25 * 2**20))
    assert found["CUDA0"].total == 8 << 20


def tensor_sizes(path):
    from bundler.weights.gguf import read_gguf_file

    return [{"bytes": tensor.size_bytes} for tensor in read_gguf_file(path).tensors]


def test_a_required_accelerator_that_is_missing_fails_and_says_how_to_get_one(tmp_path):
    devices = job("native:devices_job", {})["devices"]
    if any(device["is_gpu"] for device in devices):
        pytest.skip("this machine has an accelerator")
    with pytest.raises(ProofFailed, match="requires an accelerator") as caught:
        prove(tmp_path, {"model.gguf": tiny_gguf()}, require="gpu")
    problem = caught.value.problems[0]
    assert devices[0]["description"] in problem.message
    assert "GGML_CUDA" in problem.hint


def test_quality_that_could_not_be_measured_is_none_with_a_note(tmp_path):
    facts, _ = prove(tmp_path, {"model.gguf": tiny_gguf()}, parallel=1, predicted_memory_bytes=9)
    assert facts["quality"] is None
    assert "more than the plan's 9 B" in facts["notes"][-1]
    assert "no reference.gguf" in facts["notes"][0]


def test_a_short_held_out_text_is_noted(tmp_path):
    short = text_file("short.txt", TEXT[:2500])
    inputs = {"model.gguf": tiny_gguf(), "reference.gguf": tiny_gguf(), "heldout.txt": short}
    facts, _ = prove(tmp_path, inputs, tokens=100_000, context_tokens=512, parallel=1)
    assert any("held-out text is short" in note for note in facts["notes"])


def test_a_step_without_its_model_is_the_plugins_mistake(tmp_path):
    with pytest.raises(PluginError, match=r"model\.gguf"):
        prove(tmp_path, {})


def test_too_little_memory_is_does_not_fit():
    arguments = {
        "model": str(tiny_gguf()), "role": "chat", "context_tokens": 1 << 20, "parallel": 8,
        "kv_cache": "f16", "gpu": False, "prompt": "x",
    }  # fmt: skip
    with pytest.raises(DoesNotFit, match="memory"):
        job("measure:measure_job", arguments, memory_limit_bytes=3 << 30)


# -- embedders and rerankers -----------------------------------------------------------------------


def test_an_embedder_is_judged_by_its_worst_vector(tmp_path):
    text = tmp_path / "passages.txt"
    text.write_text("\n\n".join(f"Passage {n} is about the number {n * n}." for n in range(12)))
    worst = {}
    for quant in ("Q8_0", "Q2_K"):
        inputs = {
            "model.gguf": quantized(tiny_gguf(), quant), "reference.gguf": tiny_gguf(),
            "heldout.txt": text,
        }  # fmt: skip
        (tmp_path / quant).mkdir()
        facts, _ = prove(tmp_path / quant, inputs, role="embed", kv_cache="f16", parallel=1)
        worst[quant] = Proof.model_validate(facts).embedding_cosine_min
        assert facts["quality"] is None
        assert facts["settings"]["passages"] == 12
        assert facts["speed"]["generated_tokens"] == 0
    assert worst["Q2_K"] < worst["Q8_0"] < 1 + 1e-6
    assert worst["Q8_0"] > 0.99


def test_an_embedder_against_itself_is_the_same():
    arguments = {
        "model": str(tiny_gguf()), "reference": str(tiny_gguf()), "text": str(text_file()),
        "window_tokens": 128, "gpu": False,
    }  # fmt: skip
    (folder() / "two.txt").write_text("The first passage of two.\n\nAnd here the second one.")
    found = job("embed:embed_job", arguments | {"text": str(folder() / "two.txt")})
    assert found["cosine_min"] == pytest.approx(1.0, abs=1e-6)
    assert (found["passages"], found["dimensions"]) == (2, 256)


def test_a_text_without_passages_cannot_judge_an_embedder(tmp_path):
    (tmp_path / "one.txt").write_text("Only one passage is here.")
    arguments = {
        "model": str(tiny_gguf()), "reference": None, "text": str(tmp_path / "one.txt"),
        "window_tokens": 128, "gpu": False,
    }  # fmt: skip
    with pytest.raises(RecipeError, match="fewer than two passages"):
        job("embed:embed_job", arguments)


def test_a_model_that_does_not_rank_is_no_reranker():
    (folder() / "two.txt").write_text("The first passage of two.\n\nAnd here the second one.")
    arguments = {
        "model": str(tiny_gguf()), "reference": None, "text": str(folder() / "two.txt"),
        "window_tokens": 128, "gpu": False,
    }  # fmt: skip
    with pytest.raises(RecipeError, match="no reranker"):
        job("embed:rerank_job", arguments)


# -- a stranger's template -------------------------------------------------------------------------


def test_a_template_is_rendered_with_its_own_control_words():
    assert render(TEMPLATE, "Hi", bos="<s>", eos="</s>") == "<s>[user] Hi[assistant]"


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for a in range(10**9) %}{% endfor %}",
        "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 1000000000 }}",
        "{{ 9 ** 9 ** 9 }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ raise_exception('no') }}",
        "{% broken",
        "{{ nothing.at.all }}",
        "",
    ],
)
def test_a_template_that_does_harm_or_nonsense_is_not_used(template):
    with pytest.raises(TemplateUnusable):
        render(template, "Hi", bos="<s>", eos="</s>")


def test_a_model_with_a_broken_template_is_sampled_without_it(tmp_path):
    shape = Shape(chat_template="{{ raise_exception('never') }}")
    facts, _ = prove(tmp_path, {"model.gguf": tiny_gguf(shape)}, parallel=1)
    assert facts["settings"]["chat_template"] is False
    assert any("never" in note for note in facts["notes"])


def test_logits_that_are_not_finite_are_an_error_not_a_figure():
    broken = np.full((2, 5), np.nan, np.float32)
    with pytest.raises(StepFailed, match="the model gives logits that are not finite"):
        Scores().add(np.zeros((2, 5), np.float32), broken, np.array([0, 1]))
