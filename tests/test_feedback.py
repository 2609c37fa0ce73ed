"""What plans learn from proofs: what is kept, what is believed, what is ruled out."""

import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.damage import kv_cache_damage, predicted_damage
from bundler.errors import LockError, PluginError, Problem, ProofFailed, StepFailed
from bundler.events import Note, StepStarted
from bundler.feedback.device_names import is_own_device, same_card
from bundler.feedback.measured import informed, measured_memory, scaled
from bundler.feedback.measurements import (
    Known,
    known_of,
    learned,
    making_digest,
    measurement_of,
    still_true,
)
from bundler.feedback.ruling import rule
from bundler.gates import check_gates, held, measured_figures
from bundler.hardware import Target
from bundler.hookspecs import hookimpl
from bundler.lock import Lock, Measurement, files_digest
from bundler.locking import make_lock
from bundler.measured import Device, Quality, Speed
from bundler.offering import make_the_plan
from bundler.plan import FileInput, Memory, Offer, Step, StepInput
from bundler.plugins import load_plugins
from bundler.proof import LongAnswers, Proof, Repetitiveness
from bundler.recipe import Gates
from bundler.recipe_file import parse_recipe
from bundler.resolve import MeasuredFacts, lock_text, read_lock
from bundler.store import Store
from bundler.testing.fakes import MAGIC
from bundler.verify import verify_bundle
from bundler.world import World
from tests.fake_build import RECIPE, fakes, run

GIB = 2**30
CARD = Target(
    name="rtx-4090", title="NVIDIA RTX 4090 24 GB", accelerator="cuda",
    usable_vram_bytes=22 * GIB, ram_bytes=60 * GIB,
)  # fmt: skip
COMPUTER = Target(name="cpu-16gb", title="PC without a GPU", ram_bytes=12 * GIB)
FILE = FileInput(sha256="a" * 64, size_bytes=16)
PREDICTED = {"Q8_0": 0.0014, "Q5_K_M": 0.011, "Q4_K_M": 0.028, "Q3_K_M": 0.084, "Q2_K": 0.33}


def offer(quant="Q4_K_M", kv_cache="f16", *, gib=5.0, speed=0.0, **other) -> Offer:
    steps = (
        Step(name="quantize", plugin="engine:e", action="quantize", inputs={"w": FILE},
             parameters={"quant": quant}),
        Step(name="prove", plugin="engine:e", action="prove"),
    )  # fmt: skip
    given = {
        "engine": "e", "quant": quant, "format": "gguf", "kv_cache": kv_cache,
        "context_tokens": 4096, "parallel": 1, "disk_bytes": int(gib * GIB), "scratch_bytes": 0,
        "memory": Memory(weights_bytes=int(gib * GIB), kv_cache_bytes=GIB, compute_bytes=GIB // 2,
                         overhead_bytes=GIB // 2),
        "bits_per_weight": 4.0,
        "quality": PREDICTED.get(quant, 0.0) + kv_cache_damage(kv_cache),
        "kv_cache_quality": kv_cache_damage(kv_cache), "tokens_per_second": speed,
        "steps": steps, "output": StepInput(step="quantize", file="model.gguf"),
    }  # fmt: skip
    return Offer(**(given | other))


def quality(kld, top1=0.95) -> Quality:
    return Quality(
        tokens=2048, context_tokens=512, text_sha256="0" * 64, perplexity=6.2,
        perplexity_standard_error=0.1, reference_perplexity=6.0, kld_mean=kld,
        kld_standard_error=0.001, kld_median=kld, kld_p99=kld, kld_max=kld, top1_agreement=top1,
    )  # fmt: skip


def measurement(of: Offer, kld=0.02, *, top1=0.95, speed=50.0, device=None, **other) -> Measurement:
    given = {
        "model": "b" * 64, "reference": "hf:a/b", "made_by": making_digest(of), "role": "chat",
        "engine": of.engine, "tool": "here", "quant": of.quant, "kv_cache": of.kv_cache,
        "context_tokens": of.context_tokens, "parallel": of.parallel, "gpu_layers": of.gpu_layers,
        "text": "c" * 64, "asked_tokens": 4096, "predicted_quality": of.quality,
        "predicted_kv_cache_quality": of.kv_cache_quality,
        "predicted_memory_bytes": of.memory.total_bytes, "model_sha256": "d" * 64,
        "device": device or Device(kind="cpu", name="some processor"),
        "speed": Speed(prompt_tokens_per_second=1.0, generation_tokens_per_second=speed,
                       prompt_tokens=1, generated_tokens=64, repeats=3, load_seconds=1.0),
        "quality": None if kld is None else quality(kld, top1),
    }  # fmt: skip
    return Measurement(**(given | other))


def known(*found: Measurement, asked_tokens=4096) -> Known:
    return Known(found, "c" * 64, asked_tokens)


def card(peak_gib=0.0, *, name="NVIDIA GeForce RTX 4090", source="nvml", kind="cuda") -> Device:
    return Device(
        kind=kind, name=name, offloaded_layers=33, total_layers=33,
        peak_memory_bytes=int(peak_gib * GIB), peak_memory_source=source,
    )  # fmt: skip


# -- what is kept ----------------------------------------------------------------------------------


@pytest.fixture
def lock() -> Lock:
    resolution = {
        "source": "hf", "reference": "hf:a/b", "revision": "1",
        "files": [{"path": "m.gguf", "size_bytes": 1, "sha256": "e" * 64}],
    }  # fmt: skip
    facts = {
        "format": "gguf", "architecture": "llama", "parameters": 1, "context_tokens": 4096,
        "layers": 1, "hidden": 1, "feed_forward": 1, "heads": 1, "kv_heads": [1],
        "head_dim_key": 1, "head_dim_value": 1, "vocabulary": 1, "tensors": [],
    }  # fmt: skip
    text = {**resolution, "files": [{"path": "t.txt", "size_bytes": 1, "sha256": "f" * 64}]}
    return Lock(
        request_digest="0" * 64, created=1, corpora={}, texts={"heldout": text},
        models={"chat": {"resolution": resolution, "facts": facts}},
    )  # fmt: skip


def of_lock(lock: Lock, of: Offer, **other) -> Measurement:
    model = files_digest(lock.models["chat"].resolution)
    return measurement(of, model=model, text=files_digest(lock.texts["heldout"]), **other)


def test_a_lock_of_before_has_nothing_measured_and_the_same_digest(lock):
    text = json.loads(lock_text(lock))
    del text["measured"]
    assert Lock.model_validate(text) == lock
    assert Lock.model_validate(text).inputs_sha256 == lock.inputs_sha256


def test_measurements_are_written_sorted_and_read_back_the_same(lock, tmp_path):
    found = [of_lock(lock, offer(quant)) for quant in PREDICTED]
    there, back = learned(lock, found), learned(lock, reversed(found))
    assert lock_text(there) == lock_text(back)
    (tmp_path / "a.lock").write_text(lock_text(there))
    again = read_lock(tmp_path / "a.lock")
    assert again == there
    assert lock_text(again) == lock_text(there)
    assert learned(there, found) is there


def test_what_was_measured_is_no_input(lock):
    assert learned(lock, [of_lock(lock, offer())]).inputs_sha256 == lock.inputs_sha256
    assert lock.model_copy(update={"created": 2}).inputs_sha256 != lock.inputs_sha256


def test_a_later_measurement_of_the_same_replaces_the_earlier(lock):
    first, second = of_lock(lock, offer(), kld=0.02), of_lock(lock, offer(), kld=0.03)
    elsewhere = of_lock(lock, offer(), device=card())
    after = learned(learned(lock, [first]), [second, elsewhere])
    assert sorted(one.quality.kld_mean for one in after.measured) == [0.02, 0.03]
    assert {one.device.kind for one in after.measured if one.quality.kld_mean == 0.03} == {"cpu"}


def test_measurements_of_another_revision_are_dropped(lock):
    mine, other = of_lock(lock, offer()), measurement(offer())
    assert still_true([mine, other], lock) == (mine,)


@pytest.mark.parametrize(
    ("part", "figure", "value"),
    [
        ("quality", "kld_mean", float("nan")), ("quality", "kld_mean", float("inf")),
        ("quality", "perplexity", -3.0), ("device", "peak_memory_bytes", -1),
        ("speed", "generation_tokens_per_second", -50.0), ("", "embedding_cosine_min", 7.0),
        ("", "predicted_quality", -1.0), ("", "gpu_layers", -2),
    ],
)  # fmt: skip
def test_a_lock_with_impossible_figures_is_refused(lock, tmp_path, part, figure, value):
    text = json.loads(lock_text(learned(lock, [of_lock(lock, offer())])))
    (text["measured"][0][part] if part else text["measured"][0])[figure] = value
    (tmp_path / "a.lock").write_text(json.dumps(text))
    with pytest.raises(LockError):
        read_lock(tmp_path / "a.lock")


def proof(**other) -> Proof:
    one = measurement(offer())
    given = {
        "model_sha256": "d" * 64, "device": card(5.0), "predicted_memory_bytes": 1,
        "quality": one.quality, "speed": one.speed, "sample_prompt": "", "sample_text": "",
        "settings": {"context_filled": True},
    }  # fmt: skip
    return Proof(**(given | other))


def long_answers(new: int, gone: int) -> LongAnswers:
    like = Repetitiveness(
        tokens=1, looped=0, ended_by_themselves=1, repeated_share=0.0, distinct_pairs=1.0,
        compression_ratio=1.0, entropy_first=1.0, entropy_last=1.0,
    )  # fmt: skip
    return LongAnswers(
        answers=20, most_tokens=9, sampling={}, sampling_source="", new_loops=new, loops_gone=gone,
        new_loops_p_value=1.0, model=like, control=like,
    )  # fmt: skip


@pytest.mark.parametrize(("new", "gone", "passed"), [(3, 1, True), (4, 1, False), (0, 9, True)])
def test_new_loops_are_gated_by_their_share_less_those_that_went(lock, new, gone, passed):
    found = proof(long_answers=long_answers(new, gone))
    (result,) = check_gates(found, Gates(max_new_loops=0.1), "chat")
    assert result.measured == max(0, new - gone) / 20
    assert result.passed is passed


def test_a_measurement_says_of_a_proof_all_that_gates_ask(lock):
    found = proof(embedding_cosine_min=0.9, long_answers=long_answers(3, 1))
    quality = found.quality.model_copy(update={"kld_p999": 0.5})
    found = found.model_copy(update={"quality": quality})
    kept = measurement_of(
        offer(), Step(name="prove", plugin="engine:e", action="prove", parameters={"tokens": 99}),
        found, "tool", lock, "chat", "chat",
    )  # fmt: skip
    assert measured_figures(kept) == measured_figures(found)
    assert None not in measured_figures(found).values()
    limits = Gates(max_kld_mean=0.01, min_top1=0.5, max_memory="1 GB")
    assert held(measured_figures(kept), limits) == check_gates(found, limits, "chat")
    assert kept.context_filled
    assert kept.asked_tokens == 99
    assert kept.text == files_digest(lock.texts["heldout"])


def test_a_prediction_that_was_scaled_is_kept_as_the_engine_made_it(lock):
    told = offer(quality=0.5, predicted_quality=0.028)
    step = Step(name="prove", plugin="engine:e", action="prove")
    assert measurement_of(
        told, step, proof(), "", lock, "chat", "chat"
    ).predicted_quality == pytest.approx(0.028)


def test_how_a_model_was_made_is_told_apart_and_how_it_is_run_is_not():
    assert making_digest(offer("Q4_K_M")) != making_digest(offer("Q3_K_M"))
    assert making_digest(offer(kv_cache="q8_0")) == making_digest(offer(kv_cache="f16"))
    ready = offer(steps=(), output=FILE)
    assert making_digest(ready) != making_digest(offer())
    other = FileInput(sha256="1" * 64, size_bytes=16)
    assert making_digest(ready) != making_digest(offer(steps=(), output=other))


# -- quality ---------------------------------------------------------------------------------------


def test_a_measured_quality_replaces_the_prediction_and_scales_the_others():
    offers = [offer(quant) for quant in PREDICTED]
    after = informed(offers, known(measurement(offer("Q4_K_M"), 0.014)), CARD)
    by_quant = {one.quant: one for one in after}
    assert by_quant["Q4_K_M"].quality == 0.014
    assert by_quant["Q4_K_M"].predicted_quality == pytest.approx(0.028)
    assert by_quant["Q4_K_M"].measured.quality.kld_mean == 0.014
    assert by_quant["Q3_K_M"].quality == pytest.approx(0.042)
    assert by_quant["Q3_K_M"].predicted_quality == pytest.approx(0.084)
    assert by_quant["Q3_K_M"].measured is None


def test_without_measurements_offers_stay_as_they_are():
    offers = [offer(quant) for quant in PREDICTED]
    assert informed(offers, known(), CARD) == offers


def test_the_cache_is_counted_beside_the_weights():
    offers = [offer("Q4_K_M", "f16"), offer("Q4_K_M", "q8_0"), offer("Q3_K_M", "q8_0")]
    plain, quantized, other = informed(offers, known(measurement(offers[0], 0.014)), CARD)
    assert plain.quality == 0.014
    assert quantized.quality == pytest.approx(0.014 + kv_cache_damage("q8_0"))
    assert other.quality == pytest.approx(0.042 + kv_cache_damage("q8_0"))
    plain, quantized, _ = informed(offers, known(measurement(offers[1], 0.014)), CARD)
    assert quantized.quality == 0.014
    assert plain.quality == pytest.approx(0.014 - kv_cache_damage("q8_0"))


@pytest.mark.parametrize("kld", [0.0, -0.0005, 1e-9])
def test_a_measured_zero_keeps_everything_finite_and_in_order(kld):
    offers = [offer(quant) for quant in PREDICTED]
    after = informed(offers, known(measurement(offers[2], kld)), CARD)
    assert after[2].quality == max(kld, 0.0)
    assert [one.quality for one in after[:2]] == sorted(one.quality for one in after[:2])
    # One quant that came out perfect does not make all of them so.
    assert after[4].quality >= PREDICTED["Q2_K"] / 8


@pytest.mark.parametrize(
    "other",
    [{"text": "1" * 64}, {"quality": None}, {"text": None}],
    ids=["another text", "no quality", "no text"],
)
def test_quality_on_another_text_says_nothing(other):
    offers = [offer(quant) for quant in PREDICTED]
    after = informed(offers, known(measurement(offers[2], **other)), CARD)
    assert [one.quality for one in after] == [one.quality for one in offers]


def test_a_lock_knows_a_model_by_its_files_and_its_role(lock):
    there = learned(lock, [of_lock(lock, offer()), measurement(offer())])
    assert len(known_of(there, "chat", "chat").measurements) == 1
    assert known_of(there, "chat", "embed").measurements == ()
    assert known_of(lock, "chat", "chat").measurements == ()


def test_a_quant_that_is_no_longer_offered_still_tells_of_the_model():
    after = informed([offer("Q3_K_M")], known(measurement(offer("Q4_K_M"), 0.014)), CARD)
    assert after[0].quality == pytest.approx(0.042)


positive = st.floats(1e-6, 10.0)
points = st.lists(st.tuples(positive, positive), min_size=1, max_size=5, unique_by=lambda p: p[0])


@settings(deadline=None)
@given(points, positive, positive)
@example([(0.01, 5.0), (0.02, 0.001)], 0.011, 0.012)
def test_scaling_keeps_the_order_of_predictions(found, one, other):
    low, high = sorted((one, other))
    assert scaled(low, found) <= scaled(high, found)
    if high > low * 1.001:
        assert scaled(low, found) < scaled(high, found)


@settings(deadline=None)
@given(st.floats(1e-6, 3.0), positive, positive)
def test_one_measurement_keeps_the_order_with_itself(kld, predicted, other):
    found = [(predicted, kld)]
    if other < predicted * 0.999:
        assert scaled(other, found) < kld
    if other > predicted * 1.001:
        assert scaled(other, found) > kld


@settings(deadline=None)
@given(points, positive)
def test_no_model_is_believed_to_be_eight_times_better_than_published_ones(found, predicted):
    assert scaled(predicted, found) > 0
    floor = min(measured for _, measured in found)
    assert scaled(predicted, found) >= min(predicted / 8, floor * 0.8)


# -- memory ----------------------------------------------------------------------------------------


def test_a_larger_peak_on_the_same_kind_of_device_is_believed():
    own = measurement(offer(), device=card(9.0, name="NVIDIA H200", source="nvml-device"))
    (after,) = informed([offer()], known(own), CARD)
    assert after.memory.total_bytes == 9 * GIB
    assert after.predicted_memory.total_bytes == 7 * GIB
    assert after.memory.overhead_bytes - after.predicted_memory.overhead_bytes == 2 * GIB


def test_a_backend_leaves_out_what_it_takes_itself():
    own = measurement(offer(), device=card(6.8, source="backend"))
    assert measured_memory(offer(), [own], CARD).total_bytes == int(6.8 * GIB) + GIB // 2


def test_the_drivers_word_on_the_own_card_is_believed_downwards_too():
    smaller = measurement(offer(), device=card(6.7), context_filled=True)
    assert measured_memory(offer(), [smaller], CARD).total_bytes == int(6.7 * GIB)
    elsewhere = measurement(offer(), device=card(9.0, name="NVIDIA H200"), context_filled=True)
    assert measured_memory(offer(), [smaller, elsewhere], CARD).total_bytes == int(6.7 * GIB)


def test_weights_and_caches_are_arithmetic_whatever_was_measured():
    tiny = measurement(offer(), device=card(0.5), context_filled=True)
    after = measured_memory(offer(), [tiny], CARD)
    assert after.total_bytes == int(6.5 * GIB)
    assert after.overhead_bytes == 0


@pytest.mark.parametrize(
    "other",
    [
        {"device": card(6.7)},
        {"device": card(6.7, source="nvml-device"), "context_filled": True},
        {"device": card(6.2, source="backend"), "context_filled": True},
        {"device": card(6.7, name="NVIDIA GeForce RTX 4090 Laptop GPU"), "context_filled": True},
        {"device": card(6.7, name="NVIDIA H200"), "context_filled": True},
        {"device": card(6.7, kind="rocm"), "context_filled": True},
        {"device": card(6.7, kind="cpu"), "context_filled": True},
        {"device": Device(kind="cuda", name="NVIDIA GeForce RTX 4090", offloaded_layers=20,
                          total_layers=33, peak_memory_bytes=1, peak_memory_source="nvml"),
         "context_filled": True},
    ],
    ids=["not full", "whole device", "own account", "laptop", "other card", "other backend",
         "processor", "half of it"],
)  # fmt: skip
def test_what_is_less_certain_never_makes_a_plan_bolder(other):
    assert measured_memory(offer(), [measurement(offer(), **other)], CARD) == offer().memory


def test_the_memory_of_several_cards_stays_the_sum_of_them():
    split = (4 * GIB, 3 * GIB)
    two = offer(memory=offer().memory.model_copy(update={"by_device": split}))
    own = measurement(two, device=card(9.0 + 1 / GIB, name="NVIDIA H200 + NVIDIA H200"))
    after = measured_memory(two, [own], CARD.model_copy(update={"device_count": 2}))
    assert sum(after.by_device) == after.total_bytes == 9 * GIB + 1
    assert all(new >= old for new, old in zip(after.by_device, split, strict=True))


devices = st.builds(
    Device,
    kind=st.sampled_from(["cpu", "cuda", "vulkan", "metal", "rocm", "other"]),
    name=st.sampled_from(["NVIDIA GeForce RTX 4090", "NVIDIA H200", "some processor"]),
    offloaded_layers=st.sampled_from([0, 20, 33]), total_layers=st.just(33),
    peak_memory_bytes=st.integers(0, 40 * GIB),
    peak_memory_source=st.sampled_from(["nvml", "nvml-device", "backend", ""]),
)  # fmt: skip


@settings(deadline=None)
@given(st.lists(devices, max_size=4), st.booleans(), st.sampled_from([-1, 0, 20]))
def test_no_proof_on_another_kind_of_device_makes_room(found, filled, layers):
    one = offer(gpu_layers=layers)
    own = [measurement(one, device=device, context_filled=filled) for device in found]
    for target in (CARD, COMPUTER):
        after = measured_memory(one, own, target)
        if not any(is_own_device(device, target) for device in found):
            assert after.total_bytes >= one.memory.total_bytes
        assert after.total_bytes >= one.memory.total_bytes - one.memory.overhead_bytes
        assert after.overhead_bytes >= 0


# -- speed -----------------------------------------------------------------------------------------


def test_a_speed_measured_on_the_own_card_replaces_the_bandwidth_and_lowers_the_others():
    offers = [offer("Q4_K_M", speed=200.0), offer("Q8_0", speed=100.0)]
    found = measurement(offers[0], speed=120.0, device=card(1.0))
    fast, slow = informed(offers, known(found), CARD)
    assert (fast.tokens_per_second, fast.predicted_tokens_per_second) == (120.0, 200.0)
    assert (slow.tokens_per_second, slow.predicted_tokens_per_second) == (60.0, 100.0)


@pytest.mark.parametrize(
    "device",
    [card(1.0, name="NVIDIA H200"), card(1.0, kind="vulkan"), Device(kind="cpu", name="x")],
)
def test_a_speed_from_elsewhere_is_only_shown(device):
    (after,) = informed(
        [offer(speed=200.0)], known(measurement(offer(), speed=120.0, device=device)), CARD
    )
    assert after.tokens_per_second == 200.0
    assert after.predicted_tokens_per_second is None
    assert after.measured.speed.generation_tokens_per_second == 120.0


def test_no_measurement_makes_others_faster_than_the_bandwidth_allows():
    offers = [offer("Q4_K_M", speed=200.0), offer("Q8_0", speed=100.0)]
    found = measurement(offers[0], speed=260.0, device=card(1.0))
    fast, slow = informed(offers, known(found), CARD)
    assert (fast.tokens_per_second, slow.tokens_per_second) == (260.0, 100.0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("NVIDIA GeForce RTX 4090", "NVIDIA RTX 4090 24 GB", True),
        ("NVIDIA GeForce RTX 4090", "rtx-4090", True),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "NVIDIA RTX 4060 Laptop 8 GB", True),
        ("NVIDIA GeForce RTX 4060 Laptop GPU", "NVIDIA RTX 4060 8 GB", False),
        ("NVIDIA GeForce RTX 4070 Ti", "NVIDIA RTX 4070 12 GB", False),
        ("NVIDIA H100 80GB HBM3", "NVIDIA H100 80 GB", True),
        ("NVIDIA H100 PCIe", "NVIDIA H100 80 GB", False),
        ("NVIDIA A100-SXM4-40GB", "NVIDIA A100 80 GB", False),
        ("NVIDIA H200", "NVIDIA H200 141 GB", True),
        ("AMD Radeon RX 7900 XTX", "AMD RX 7900 XTX 24 GB", True),
        ("Apple M3 Max", "Apple M3 Max, 64 GB", True),
        ("Apple M3", "Apple M3 Max, 64 GB", False),
        ("", "NVIDIA GPU", False),
    ],
)
def test_cards_are_known_by_their_names(one, other, same):
    assert same_card(one, other) is same
    assert same_card(other, one) is same


def test_two_cards_are_not_one():
    two = CARD.model_copy(update={"device_count": 2})
    pair = card(name="NVIDIA GeForce RTX 4090 + NVIDIA GeForce RTX 4090")
    assert is_own_device(pair, two)
    assert not is_own_device(pair, CARD)
    assert not is_own_device(card(), two)


# -- what is ruled out -----------------------------------------------------------------------------


def ruled(offers, found, gates, tool="here", asked_tokens=4096):
    it = known(*found, asked_tokens=asked_tokens)
    return rule(informed(offers, it, CARD), it, gates, lambda: tool)


def quants(offers):
    return [one.quant for one in offers]


ALL = [offer(quant, gib=8 - n) for n, quant in enumerate(PREDICTED)]


def test_a_failed_gate_of_quality_takes_what_is_predicted_worse_with_it():
    found = [measurement(ALL[2], 0.2)]
    after = ruled(ALL, found, Gates(max_kld_mean=0.1))
    assert quants(after.allowed) == ["Q8_0", "Q5_K_M"]
    assert [failure.offer.quant for failure in after.failures] == ["Q4_K_M"]
    assert after.dropped == 2
    assert "max_kld_mean: measured 0.2, the limit is 0.1" in str(after.failures[0])


def test_what_the_models_own_measurements_predict_to_fail_is_tried_last():
    found = [measurement(ALL[2], 0.2)]
    after = ruled(ALL, found, Gates(max_kld_mean=0.05))
    assert quants(after.allowed) == ["Q8_0", "Q5_K_M"]
    assert quants(after.hopeful) == ["Q8_0"]  # Q5_K_M: 0.011 / 0.028 * 0.2 = 0.079


def test_a_bare_prediction_rules_nothing_out():
    after = ruled(ALL, [], Gates(max_kld_mean=0.0001))
    assert after.hopeful == after.allowed == tuple(ALL)


def test_a_loosened_gate_lets_it_in_again_and_a_tightened_one_shuts_it_out():
    found = [measurement(ALL[2], 0.02)]
    assert quants(ruled(ALL, found, Gates(max_kld_mean=0.021)).allowed) == quants(ALL)
    assert quants(ruled(ALL, found, Gates(max_kld_mean=0.019)).allowed) == quants(ALL[:2])
    assert quants(ruled(ALL, found, Gates(min_top1=0.5)).allowed) == quants(ALL)


def test_an_offer_that_was_measured_is_judged_by_that_alone():
    found = [measurement(ALL[2], 0.03, top1=0.90), measurement(ALL[3], 0.04, top1=0.96)]
    after = ruled(ALL, found, Gates(min_top1=0.93))
    assert quants(after.allowed) == ["Q8_0", "Q5_K_M", "Q3_K_M"]


def test_other_caches_of_a_failed_quant_that_are_predicted_no_better_go_too():
    offers = [offer(kv_cache="f16"), offer(kv_cache="q8_0"), offer(kv_cache="q4_0")]
    after = ruled(offers, [measurement(offers[1], 0.2)], Gates(max_kld_mean=0.1))
    assert [one.kv_cache for one in after.allowed] == ["f16"]


def test_a_failed_speed_takes_what_reads_as_much_with_it_on_that_machine_only():
    found = [measurement(ALL[2], speed=5.0)]
    gates = Gates(min_tokens_per_second=10)
    assert quants(ruled(ALL, found, gates).allowed) == ["Q3_K_M", "Q2_K"]
    assert quants(ruled(ALL, found, gates, tool="another machine").allowed) == quants(ALL)


def test_a_failed_memory_takes_what_is_as_large_with_it():
    found = [measurement(ALL[2], device=card(7.5))]
    gates = Gates(max_memory="7 GiB")
    assert quants(ruled(ALL, found, gates).allowed) == ["Q3_K_M", "Q2_K"]
    on_processor = [*ALL, offer("Q8_0", gib=8, gpu_layers=0)]
    assert len(ruled(on_processor, found, gates).allowed) == 3


def test_the_machine_is_asked_only_when_a_figure_is_the_machines():
    def never() -> str:
        raise AssertionError("the engine was asked")

    it = known(measurement(ALL[2], 0.2, speed=5.0))
    rule(informed(ALL, it, CARD), it, Gates(max_kld_mean=0.1), never)


def test_a_shorter_proof_than_is_asked_for_now_rules_nothing_out():
    found = [measurement(ALL[2], 0.2)]
    assert not ruled(ALL, found, Gates(max_kld_mean=0.1), asked_tokens=8192).failures
    assert ruled(ALL, found, Gates(max_kld_mean=0.1), asked_tokens=2048).failures


def test_other_settings_are_another_offer():
    found = [measurement(ALL[2], 0.2)]
    longer = [one.model_copy(update={"context_tokens": 8192}) for one in ALL]
    after = ruled(longer, found, Gates(max_kld_mean=0.1))
    assert not after.failures
    assert quants(after.hopeful) == ["Q8_0", "Q5_K_M"]


# -- the prediction itself -------------------------------------------------------------------------

BITS = {"Q8_0": 8.5, "Q6_K": 6.56, "Q5_K_M": 5.7, "Q4_K_M": 4.9, "Q4_K_S": 4.67, "IQ4_XS": 4.46,
        "Q3_K_M": 4.0, "Q3_K_S": 3.64, "Q2_K": 3.16}  # fmt: skip
sizes = st.floats(1e6, 1e13)


@settings(deadline=None)
@given(sizes, sizes, st.sampled_from(sorted(BITS)), st.sampled_from(["f16", "q8_0", "q4_0"]))
def test_larger_models_are_predicted_to_lose_no_more(one, other, scheme, kv_cache):
    small, large = sorted((one, other))
    found = [
        predicted_damage(scheme, kv_cache, has_imatrix=True, bits_per_weight=BITS[scheme],
                         parameters=size)
        for size in (large, small)
    ]  # fmt: skip
    assert found == sorted(found)
    assert found[0] >= kv_cache_damage(kv_cache)


@settings(deadline=None)
@given(sizes)
def test_more_bits_are_predicted_to_lose_less_at_every_size(size):
    found = [
        predicted_damage(scheme, "f16", has_imatrix=True, bits_per_weight=bits, parameters=size)
        for scheme, bits in BITS.items()
    ]
    assert found == sorted(found)
    assert found[0] > 0


@settings(deadline=None)
@given(st.floats(0.5, 20), st.floats(0.5, 20), sizes)
def test_a_scheme_of_no_table_is_judged_by_its_bits(one, other, size):
    fewer, more = sorted((one, other))
    found = [
        predicted_damage("as-is", "f16", has_imatrix=False, bits_per_weight=bits, parameters=size)
        for bits in (more, fewer)
    ]
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("scheme", "small", "large"),
    # ln(PPL / PPL of F16), Llama-2-7B and 70B: tools/perplexity/README.md of llama.cpp
    [("Q2_K", 0.10252, 0.08452), ("Q4_K_M", 0.014142, 0.011929), ("Q6_K", 0.0024031, 0.0015987)],
)
def test_the_scale_by_size_is_what_was_published(scheme, small, large):
    found = [
        predicted_damage(scheme, "f16", has_imatrix=False, bits_per_weight=4, parameters=size)
        for size in (6.74e9, 68.98e9)
    ]
    assert found[1] / found[0] == pytest.approx(large / small, rel=0.2)


# -- a whole build, on fakes -----------------------------------------------------------------------

TWO = """\
schema = 1
[bundle]
name = "fake"
max_size = "{max_size}"
[target]
ram = "1 GB"
[verify]
replans = {replans}
[models.chat]
source = "memory:weights"
engine = "fake"
context_tokens = 64
{chat}
[models.other]
source = "memory:others"
engine = "fake"
context_tokens = 64
{other}
[corpora.book]
kind = "fake"
source = "memory:book"
licence = "CC0-1.0"
[runtime]
use = ["fake"]
"""


def two_models(*, chat="", other="", replans=2, max_size="20 MB") -> str:
    return TWO.format(chat=chat, other=other, replans=replans, max_size=max_size)


def two_fakes():
    plugin = fakes()
    plugin.source.files["others"] = {"all.fake": MAGIC + bytes(reversed(range(256))) * 4000}
    return plugin


def measured_in(folder):
    return read_lock(folder / "fake.lock").measured


def plan_of(folder, recipe=RECIPE, plugin=None):
    plugins = load_plugins(extra=[plugin or fakes()])
    return make_the_plan(parse_recipe(recipe.encode()), read_lock(folder / "fake.lock"), plugins)


def test_a_build_writes_what_it_measured_and_the_plan_shows_both(tmp_path):
    run(tmp_path)
    (one,) = measured_in(tmp_path)
    assert (one.quant, one.quality.kld_mean, one.tool) == ("half", 0.01, "fake-1")
    (choice,) = plan_of(tmp_path).choices
    assert choice.offer.measured == one
    assert (choice.offer.predicted_quality, choice.offer.quality) == (0.5, 0.01)
    shown = plan_of(tmp_path).model_dump(mode="json")["tiers"][0]["choices"][0]["offer"]
    assert shown["measured"]["quality"]["kld_mean"] == 0.01
    assert shown["predicted_quality"] == 0.5


def test_building_again_gives_the_same_bytes_and_writes_nothing(tmp_path):
    first = run(tmp_path)
    before = (tmp_path / "fake.lock").read_bytes()
    stamp = (tmp_path / "fake.lock").stat()
    plugin = fakes()
    second = run(tmp_path, plugin)
    assert second.manifest_sha256 == first.manifest_sha256
    assert plugin.engine.runs == []
    assert (tmp_path / "fake.lock").read_bytes() == before
    assert (tmp_path / "fake.lock").stat().st_ino == stamp.st_ino


def test_locking_anew_keeps_what_is_still_true(tmp_path):
    run(tmp_path)
    before = (tmp_path / "fake.lock").read_bytes()
    world = World(store=Store(tmp_path / "store"), folder=tmp_path)  # another clock
    plugin = fakes()
    make_lock(tmp_path / "fake.toml", parse_recipe(RECIPE.encode()), load_plugins([plugin]), world)
    assert (tmp_path / "fake.lock").read_bytes() == before
    plugin.source.files["weights"]["all.fake"] += b"new"
    make_lock(tmp_path / "fake.toml", parse_recipe(RECIPE.encode()), load_plugins([plugin]), world)
    assert measured_in(tmp_path) == ()


@pytest.mark.parametrize("option", ["locked", "frozen"])
def test_a_lock_that_may_not_be_written_is_not_and_it_is_said(tmp_path, option):
    make_lock_only(tmp_path)
    before = (tmp_path / "fake.lock").read_bytes()
    notes = []
    run(tmp_path, report=notes.append, **{option: True})
    assert (tmp_path / "fake.lock").read_bytes() == before
    said = [note.message for note in notes if isinstance(note, Note)]
    assert [text for text in said if "not kept" in text] == [
        "what was measured is not kept for later plans: under --locked and --frozen the lock is "
        "not written"
    ]


def make_lock_only(folder, recipe=RECIPE, plugin=None):
    folder.mkdir(exist_ok=True)
    (folder / "fake.toml").write_text(recipe)
    world = World(
        store=Store(folder / "store"), folder=folder, environment={"SOURCE_DATE_EPOCH": "1"}
    )
    make_lock(
        folder / "fake.toml", parse_recipe(recipe.encode()),
        load_plugins([plugin or fakes()]), world,
    )  # fmt: skip


def test_a_lock_that_was_made_anew_meanwhile_is_left_alone(tmp_path):
    run(tmp_path)
    lock = read_lock(tmp_path / "fake.lock")
    notes = []
    world = World(store=Store(tmp_path / "store"), report=notes.append)
    facts = MeasuredFacts(
        tmp_path / "fake.lock", lock.model_copy(update={"created": 7}), world, read_only=False
    )
    before = (tmp_path / "fake.lock").read_bytes()
    facts.keep([lock.measured[0].model_copy(update={"reference": "later"})])
    facts.keep([lock.measured[0].model_copy(update={"reference": "later"})])
    assert (tmp_path / "fake.lock").read_bytes() == before
    assert len(notes) == 1
    assert "made anew" in notes[0].message


def test_what_another_build_measured_meanwhile_stays(tmp_path):
    run(tmp_path)
    lock = read_lock(tmp_path / "fake.lock")
    world = World(store=Store(tmp_path / "store"))
    for name in ("one", "two"):
        facts = MeasuredFacts(tmp_path / "fake.lock", lock, world, read_only=False)
        facts.keep([lock.measured[0].model_copy(update={"reference": name})])
    kept = [one.reference for one in measured_in(tmp_path)]
    assert kept == ["memory:weights", "one", "two"]


def test_a_lock_in_a_folder_that_cannot_be_written_is_a_warning(tmp_path, monkeypatch):
    run(tmp_path)
    lock = read_lock(tmp_path / "fake.lock")
    notes = []
    world = World(store=Store(tmp_path / "store"), report=notes.append)

    def refuse(path, data):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("bundler.resolve.write_durably", refuse)  # root may write anywhere
    facts = MeasuredFacts(tmp_path / "fake.lock", lock, world, read_only=False)
    facts.keep([lock.measured[0].model_copy(update={"reference": "more"})])
    assert "cannot be written (Permission denied)" in notes[0].message


def test_a_failed_build_keeps_what_was_learned_and_the_next_one_skips_it(tmp_path):
    plugin = two_fakes()
    plugin.engine.kld_by_quant = {"half": 0.9, "tenth": 0.1}
    recipe = two_models(chat="gates = { max_kld_mean = 0.5 }", replans=0)
    with pytest.raises(ProofFailed, match=r"measured 0\.9"):
        run(tmp_path, plugin, recipe)
    assert sorted((one.reference, one.quant) for one in measured_in(tmp_path)) == [
        ("memory:others", "half"), ("memory:weights", "half"),
    ]  # fmt: skip
    again = two_fakes()
    with pytest.raises(ProofFailed, match=r"half with f16 KV cache \(max_kld_mean: measured 0\.9"):
        run(tmp_path, again, recipe)
    assert again.engine.runs == []


def test_a_loosened_gate_is_tried_again_and_nothing_is_done_twice(tmp_path):
    plugin = fakes()
    plugin.engine.kld_by_quant = {"half": 0.9, "tenth": 0.95}
    with pytest.raises(ProofFailed):
        run(tmp_path, plugin)
    built = run(tmp_path, plugin, RECIPE.replace("0.5", "0.92"))
    assert [choice.offer.quant for choice in built.plan.choices] == ["half"]
    assert plugin.engine.runs == ["quantize", "prove"]


def test_a_failed_gate_moves_memory_from_another_model(tmp_path):
    """The stick holds one model at half: the chat model had to yield, fails, and gets it."""
    plugin = two_fakes()
    plugin.engine.kld_by_quant = {"half": 0.01, "tenth": 0.9}
    recipe = two_models(chat='role = "embed"\ngates = { max_kld_mean = 0.5 }', max_size="5.55 MB")
    notes = []
    built = run(tmp_path, plugin, recipe, report=notes.append)
    assert [c.offer.quant for c in built.plan.choices] == ["half", "tenth"]
    assert plugin.engine.runs == ["quantize", "prove"] * 4
    said = [note.message for note in notes if isinstance(note, Note)]
    assert any("max_kld_mean: measured 0.9, the recipe's limit is 0.5" in text for text in said)
    assert any(
        "next: models.chat: half with f16 KV cache in place of tenth" in text for text in said
    )
    again = two_fakes()
    assert run(tmp_path, again, recipe).manifest_sha256 == built.manifest_sha256
    assert again.engine.runs == []


def test_two_models_that_fail_at_once_are_both_replaced(tmp_path):
    plugin = two_fakes()
    plugin.engine.speed_by_quant = {"half": 1.0, "tenth": 9.0}
    gates = "gates = { min_tokens_per_second = 5 }"
    built = run(tmp_path, plugin, two_models(chat=gates, other=gates, replans=1))
    assert [c.offer.quant for c in built.plan.choices] == ["tenth", "tenth"]
    assert len(measured_in(tmp_path)) == 4


def test_tries_are_bounded_and_each_is_listed_with_its_figures(tmp_path):
    plugin = fakes()
    plugin.engine.shares = {"half": 2, "third": 3, "tenth": 10}
    plugin.engine.kld_by_quant = dict.fromkeys(plugin.engine.shares, 0.01)
    plugin.engine.speed_by_quant = {"half": 1.0, "third": 2.0, "tenth": 3.0}
    recipe = RECIPE.replace("max_kld_mean = 0.5", "min_tokens_per_second = 5")
    with pytest.raises(ProofFailed) as caught:
        run(tmp_path, plugin, recipe + "[verify]\nreplans = 1\n")
    said = [problem.message for problem in caught.value.problems]
    assert said == [
        "try 1: half with f16 KV cache: min_tokens_per_second: measured 1, the recipe's limit is 5",
        "try 2: third with f16 KV cache: min_tokens_per_second: measured 2, the recipe's limit is 5",
        "2 tries were made, and no more is allowed: verify.replans = 1",
    ]
    assert all(problem.where for problem in caught.value.problems[:2])
    assert plugin.engine.runs == ["quantize", "prove"] * 2
    with pytest.raises(ProofFailed) as caught:
        run(tmp_path, plugin, recipe + "[verify]\nreplans = 1\n")
    assert plugin.engine.runs == ["quantize", "prove"] * 3
    assert caught.value.problems[0].message.startswith("try 1: tenth")


def test_a_measured_peak_that_does_not_fit_changes_the_plan(tmp_path):
    plugin = fakes()
    plugin.engine.peak_by_quant = {"half": 2 * 10**9, "tenth": 5 * 10**8}
    built = run(tmp_path, plugin)
    (choice,) = built.plan.choices
    assert choice.offer.quant == "tenth"
    assert choice.offer.memory.total_bytes == 5 * 10**8
    assert choice.offer.predicted_memory.total_bytes < 10**6
    again = fakes()
    assert run(tmp_path, again).manifest_sha256 == built.manifest_sha256
    assert again.engine.runs == []


def test_measured_peaks_that_never_fit_end_the_build(tmp_path):
    plugin = fakes()
    plugin.engine.peak_by_quant = {"half": 2 * 10**9, "tenth": 2 * 10**9}
    with pytest.raises(ProofFailed, match="does not fit"):
        run(tmp_path, plugin)
    with pytest.raises(ProofFailed, match="does not fit"):
        run(tmp_path / "once", plugin, RECIPE + "[verify]\nreplans = 0\n")


def test_a_build_that_is_stopped_keeps_the_proofs_that_were_finished(tmp_path):
    plugin = two_fakes()
    seen = []

    def stop_at_the_third(event):
        if isinstance(event, StepStarted):
            seen.append(event.step)
            if event.step == "models/other/quantize":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, plugin, two_models(), report=stop_at_the_third)
    assert [one.reference for one in measured_in(tmp_path)] == ["memory:weights"]
    again = two_fakes()
    run(tmp_path, again, two_models())
    assert again.engine.runs == ["quantize", "prove"]
    assert len(measured_in(tmp_path)) == 2


def test_an_objection_of_a_plugin_rules_that_offer_out_and_is_not_written_down(tmp_path):
    class Doubter:
        __name__ = "doubter"

        @hookimpl
        def bundler_review_proof(self, model, proof):
            large = proof.predicted_memory_bytes > 200_000
            return [Problem(f"{model} rambles")] if large else []

    plugin = fakes()
    built = run(tmp_path, plugin, critics=[Doubter()])
    assert [c.offer.quant for c in built.plan.choices] == ["tenth"]
    (choice,) = plan_of(tmp_path).choices
    assert choice.offer.quant == "half"
    again = fakes()
    assert run(tmp_path, again, critics=[Doubter()]).manifest_sha256 == built.manifest_sha256
    assert again.engine.runs == []


def test_an_optional_model_whose_offers_all_fail_is_left_out_and_it_is_said(tmp_path):
    plugin = two_fakes()
    plugin.engine.kld_by_quant = {"half": 0.9, "tenth": 0.95}
    recipe = two_models(other="optional = true\ngates = { max_kld_mean = 0.5 }")
    built = run(tmp_path, plugin, recipe)
    assert [choice.model for choice in built.plan.choices] == ["chat"]
    assert any("models.other" in note and "max_kld_mean" in note for note in built.plan.notes)


def test_facts_that_are_no_proof_are_the_plugins_fault(tmp_path):
    plugin = fakes()
    plugin.engine._proof = lambda task: {"model_sha256": "0" * 64}
    with pytest.raises(PluginError, match=r"engine:fake left facts that are no proof.*device"):
        run(tmp_path, plugin)


def test_one_proof_serves_two_machines(tmp_path):
    recipe = RECIPE.replace('[target]\nram = "1 GB"', "").replace(
        "[models.chat]", '[tiers.big]\nram = "2 GB"\n[tiers.small]\nram = "1 GB"\n[models.chat]'
    )
    plugin = fakes()
    built = run(tmp_path, plugin, recipe)
    assert sorted(built.proofs) == [("chat", "big"), ("chat", "small")]
    assert plugin.engine.runs == ["quantize", "prove"]
    assert len(measured_in(tmp_path)) == 1
    assert run(tmp_path, fakes(), recipe).manifest_sha256 == built.manifest_sha256


def sensitive_and_robust():
    """Two models for a stick that holds one at half; the first to get it turns out to be robust."""
    plugin = two_fakes()
    original = plugin.engine._proof

    def proof(task):
        found = original(task)
        robust = task.inputs["model"].read_bytes()[len(MAGIC)] < 100
        half = task.parameters["quant"] == "half"
        kld = (0.01 if half else 0.02) if robust else (0.5 if half else 2.0)
        found["quality"]["kld_mean"] = kld
        return found

    plugin.engine._proof = proof
    return plugin


def test_a_build_ends_when_the_plan_that_follows_is_the_one_it_carried_out(tmp_path):
    recipe = two_models(max_size="5.55 MB")
    notes = []
    built = run(tmp_path, sensitive_and_robust(), recipe, report=notes.append)
    said = [note.message for note in notes if isinstance(note, Note)]
    assert any(text.startswith("what was measured changes the plan; next: ") for text in said)
    again = sensitive_and_robust()
    assert run(tmp_path, again, recipe).manifest_sha256 == built.manifest_sha256
    assert again.engine.runs == []


def test_with_no_try_left_what_passed_ships_and_the_change_is_announced(tmp_path):
    recipe = two_models(max_size="5.55 MB", replans=0)
    notes = []
    first = run(tmp_path, sensitive_and_robust(), recipe, report=notes.append)
    said = [note.message for note in notes if isinstance(note, Note)]
    assert any("the next build will choose otherwise: models." in text for text in said)
    second = run(tmp_path, sensitive_and_robust(), recipe)
    assert offers_of(first) != offers_of(second)


def offers_of(built):
    return [(choice.model, choice.offer.quant) for choice in built.plan.choices]


def test_a_machine_that_cannot_measure_believes_no_figure_of_a_machine(tmp_path):
    plugin = fakes()
    plugin.engine.speed_by_quant = {"half": 1.0, "tenth": 9.0}
    recipe = RECIPE.replace("max_kld_mean = 0.5", "min_tokens_per_second = 5")
    run(tmp_path, plugin, recipe)
    assert [c.offer.quant for c in plan_of(tmp_path, recipe).choices] == ["tenth"]
    elsewhere = fakes()

    def missing():
        raise StepFailed("llama.cpp is not installed")

    elsewhere.engine.tool = missing
    assert [c.offer.quant for c in plan_of(tmp_path, recipe, elsewhere).choices] == ["half"]


@pytest.mark.parametrize("replans", [0, 1, 2])
def test_an_optional_model_that_turns_out_too_large_is_left_out_and_the_build_ends(
    tmp_path, replans
):
    plugin = two_fakes()
    # Each fits alone into 1 GB; together they do not.
    plugin.engine.peak_by_quant = {"half": 6 * 10**8, "tenth": 6 * 10**8}
    recipe = two_models(other="optional = true", replans=replans)
    first = run(tmp_path, plugin, recipe)
    assert [choice.model for choice in first.plan.choices] == ["chat"]
    assert not verify_bundle(first.output).findings
    # With few tries, what passed ships, and the next build takes what was found to be better.
    later = [run(tmp_path, plugin, recipe).manifest_sha256 for _ in range(5)]
    assert later[-1] == later[-2]
    if replans == 2:
        assert {first.manifest_sha256} == set(later)
