"""Bits go where they matter: what is measured, how a budget is spent, and what comes out."""

import itertools
import json
import os
import shutil
import subprocess
import sysconfig
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.allocation.budgets import Asked, asked, is_mix, written
from bundler.builtin.llamacpp.allocation.candidates import choices_of
from bundler.builtin.llamacpp.allocation.damages import costs, sensitivities
from bundler.builtin.llamacpp.allocation.evidence import evidence
from bundler.builtin.llamacpp.allocation.matrices import narrowed, widened
from bundler.builtin.llamacpp.allocation.record import Record
from bundler.builtin.llamacpp.allocation.relaxing import Relaxed
from bundler.builtin.llamacpp.allocation.sensitivity import _plan
from bundler.builtin.llamacpp.allocation.solving import largest, smallest, solve
from bundler.builtin.llamacpp.allocation.tables import ErrorTable, Sensitivity
from bundler.builtin.llamacpp.damage import predicted_damage
from bundler.builtin.llamacpp.imatrix import read_imatrix
from bundler.errors import DoesNotFit, RecipeError, UnsafeInput
from bundler.hookspecs import Task
from bundler.lock import TensorFact
from bundler.store import Store
from bundler.weights.gguf import read_gguf_file
from bundler.world import World
from tests.models import Shape, imatrix_of, job, llama_fields, llama_weights, text_file, tiny_gguf
from tests.official_converter import official_converter
from tests.test_offers import offers

SMALL = Shape(layers=2, feed_forward=256, vocabulary=288)
QUICK = ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "Q8_0")


# -- spending a budget -----------------------------------------------------------------------------

one = st.tuples(st.integers(1, 60), st.floats(0, 10, allow_nan=False).map(lambda d: round(d, 3)))
tensor = st.lists(one, min_size=1, max_size=4).map(
    lambda found: {f"T{n}": (32 * size, damage) for n, (size, damage) in enumerate(found)}
)
problems = st.lists(tensor, min_size=1, max_size=5).map(
    lambda found: {f"t{n}": options for n, options in enumerate(found)}
)


def best_of_all(options, budget):
    """Try every combination."""
    found = (
        (sum(d for _, d in taken), sum(s for s, _ in taken))
        for taken in itertools.product(*(given.values() for given in options.values()))
    )
    return min(damage for damage, size in found if size <= budget)


@settings(max_examples=150, deadline=None)
@given(problems, st.integers(0, 6000))
def test_a_choice_fits_and_is_as_near_the_best_as_it_says(options, more):
    budget = smallest(options) + more
    found = solve(options, budget)
    best = best_of_all(options, budget)
    assert found.size_bytes == sum(options[n][kind][0] for n, kind in found.types.items()) <= budget
    assert found.damage == pytest.approx(sum(options[n][k][1] for n, k in found.types.items()))
    assert found.bound <= best + 1e-9 <= found.damage + 2e-9
    assert found.gap == 0
    assert found.damage == pytest.approx(best)  # few units: it is exact
    quick = Relaxed(options).quick(budget)
    assert quick.size_bytes <= budget
    assert Relaxed(options).bound(budget) <= best + 1e-9 <= quick.damage + 2e-9


@settings(max_examples=60, deadline=None)
@given(problems, st.lists(st.integers(0, 6000), min_size=2, max_size=6))
def test_more_room_never_does_more_damage(options, rooms):
    least = smallest(options)
    damages = [solve(options, least + room).damage for room in sorted(rooms)]
    assert all(later <= sooner + 1e-9 for sooner, later in itertools.pairwise(damages))


@settings(max_examples=60, deadline=None)
@given(problems, st.integers(0, 6000))
def test_where_units_are_coarse_the_gap_that_is_said_holds(options, more):
    from bundler.builtin.llamacpp.allocation import solving

    budget = smallest(options) + more
    kept = solving.MOST_UNITS
    solving.MOST_UNITS = 7
    try:
        found = solve(options, budget)
        larger = solve(options, budget + 500)
    finally:
        solving.MOST_UNITS = kept
    best = best_of_all(options, budget)
    assert found.size_bytes <= budget
    assert found.bound <= best + 1e-9
    assert found.damage * (1 - found.gap) <= best + 1e-6
    assert larger.damage <= found.damage + 1e-9


def test_a_whole_model_is_solved_exactly_within_seconds():
    rng = np.random.default_rng(3)
    shapes = [(4096, 4096), (1024, 4096), (14336, 4096)]
    options = {}
    for number in range(224):
        tensor = TensorFact(name=f"blk.{number}.x.weight", type="BF16", shape=shapes[number % 3])
        found = choices_of(tensor, "BF16", QUICK, guided=True)
        damages = np.sort(rng.random(len(found)))[::-1] * rng.random()
        options[tensor.name] = {
            c.type: (c.size_bytes, float(d)) for c, d in zip(found, damages, strict=True)
        }
    budget = (smallest(options) * 3 + largest(options)) // 4
    found = solve(options, budget)
    assert found.gap == 0
    assert found.size_bytes <= budget
    assert Relaxed(options).bound(budget) <= found.damage <= Relaxed(options).quick(budget).damage


def test_a_budget_below_the_smallest_choice_is_no_budget():
    with pytest.raises(ValueError, match="below the smallest choice, 64"):
        solve({"t": {"Q2_K": (64, 1.0)}}, 63)


# -- what may be chosen ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "guided", "types"),
    [
        (512, True, {"IQ2_XS", "Q2_K", "Q4_K", "Q8_0", "F16"}),
        (512, False, {"Q2_K", "Q4_K", "Q8_0", "F16"}),
        (96, True, {"Q5_0", "Q8_0", "F16"}),
        (80, True, {"F16"}),
    ],
)
def test_only_types_that_the_rows_hold_are_choices(row, guided, types):
    tensor = TensorFact(name="blk.0.ffn_up.weight", type="F16", shape=(256, row))
    asked_types = ("IQ2_XS", "Q2_K", "Q4_K", "Q5_0", "Q8_0")
    found = choices_of(tensor, "F16", asked_types, guided=guided)
    assert {choice.type for choice in found} == types
    assert [c.size_bytes for c in found] == sorted(c.size_bytes for c in found)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_bf16_is_rounded_to_the_nearest(values):
    given_values = np.array(values, np.float32)
    given_values = given_values[np.abs(given_values) < 1e38]
    back = widened(narrowed(given_values, "BF16"), "BF16")
    assert (np.abs(back - given_values) <= np.abs(given_values) * 2**-8 + 1e-38).all()


# -- measuring -------------------------------------------------------------------------------------


def measured(folder, model=None, imatrix="yes", types=QUICK):
    """Measure a model; returns the folder."""
    model = model or tiny_gguf(SMALL)
    given_imatrix = str(imatrix_of(model)) if imatrix == "yes" else imatrix
    job(
        "allocation.errors:errors_job",
        {"model": str(model), "imatrix": given_imatrix, "output": str(folder / "errors.json"),
         "types": list(types)},
    )  # fmt: skip
    return folder


def sensed(folder, model=None, minutes=5, **more):
    model = model or tiny_gguf(SMALL)
    return job(
        "allocation.sensitivity:sensitivity_job",
        {"model": str(model), "imatrix": str(imatrix_of(model)),
         "errors": str(folder / "errors.json"), "texts": {"text.txt": str(text_file())},
         "output": str(folder / "sensitivity.json"), "scratch": str(folder), "window_tokens": 64,
         "tokens": 128, "minutes": minutes, **more},
    )  # fmt: skip


def mixed(folder, budget_bytes, model=None, **more):
    model = model or tiny_gguf(SMALL)
    given_sensitivity = folder / "sensitivity.json"
    return job(
        "allocation.mixing:mix_job",
        {"model": str(model), "imatrix": str(imatrix_of(model)),
         "errors": str(folder / "errors.json"),
         "sensitivity": str(given_sensitivity) if given_sensitivity.exists() else None,
         "name": "mixed@4bpw", "budget_bytes": budget_bytes, "output": str(folder / "model.gguf"),
         "record": str(folder / "allocation.json"), **more},
    )  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = measured(tmp_path_factory.mktemp("tables"))
    sensed(folder)
    return folder


def test_errors_are_those_of_the_file_that_llama_cpp_writes(tables, tmp_path):
    """The same rounding by the quantizer itself, read back by the gguf package."""
    gguf = pytest.importorskip("gguf")
    model = tiny_gguf(SMALL)
    table = ErrorTable.from_json((tables / "errors.json").read_text(), "errors.json")
    assert set(table.tensors) == {
        t.name for t in read_gguf_file(model).tensors if len(t.shape) > 1
    }  # fmt: skip
    arguments = {"model": str(model), "output": str(tmp_path / "q.gguf"), "quant": "Q4_K_M",
                 "imatrix": str(imatrix_of(model)),
                 "overrides": [["blk.0.ffn_down.weight", "Q3_K"]]}  # fmt: skip
    job("quantize:quantize_job", arguments)
    back = {
        t.name: gguf.quants.dequantize(t.data, t.tensor_type)
        for t in gguf.GGUFReader(tmp_path / "q.gguf").tensors
        if t.name == "blk.0.ffn_down.weight"
    }
    weight = llama_weights(SMALL)["blk.0.ffn_down.weight"].astype(np.float16).astype(np.float64)
    means = read_imatrix(imatrix_of(model))["blk.0.ffn_down.weight"]
    noise = ((weight - back["blk.0.ffn_down.weight"]) ** 2 @ means).sum()
    expected = noise / (weight**2 @ means).sum()
    found = table.tensors["blk.0.ffn_down.weight"].errors
    assert found["Q3_K"] == pytest.approx(expected, rel=1e-4)
    assert [found[kind] for kind in (*QUICK, "F16")] == sorted(found.values(), reverse=True)
    assert found["F16"] == 0


def test_without_an_importance_matrix_types_that_need_one_are_not_tried(tmp_path):
    measured(tmp_path, imatrix=None, types=("IQ2_XXS", "Q4_K"))
    table = ErrorTable.from_json((tmp_path / "errors.json").read_text(), "errors.json")
    assert {kind for one in table.tensors.values() for kind in one.errors} == {"Q4_K", "F16"}
    assert not any(one.guided for one in table.tensors.values())


def test_the_model_is_what_it_was_after_it_was_measured(tables):
    found = Sensitivity.from_json((tables / "sensitivity.json").read_text(), "sensitivity.json")
    assert found.method == "each"
    assert found.restored_divergence == 0
    assert found.evaluations == 2 * len(found.groups) == 2 * 16
    for pokes in found.pokes.values():
        assert all(poke.divergence > 0 for poke in pokes)
        # Q2_K is coarser than Q3_K, and the model minds it more.
        assert pokes[0].divergence < pokes[1].divergence


def test_divergence_grows_in_proportion_to_the_error(tables):
    """On which the whole prediction rests: the ratio is the same for two types."""
    found = Sensitivity.from_json((tables / "sensitivity.json").read_text(), "sensitivity.json")
    ratios = [
        (coarse.divergence / coarse.error) / (fine.divergence / fine.error)
        for fine, coarse in found.pokes.values()
    ]
    assert 0.6 < float(np.median(ratios)) < 1.6


def test_a_mixture_is_measured_and_mixed_too(tmp_path):
    model = tiny_gguf(Shape(layers=1, feed_forward=256, vocabulary=288, experts=4, experts_used=2))
    measured(tmp_path, model)
    facts = sensed(tmp_path, model, pokes=["Q3_K"])
    table = ErrorTable.from_json((tmp_path / "errors.json").read_text(), "errors.json")
    assert "blk.0.ffn_up_exps.weight" in table.tensors
    assert facts["groups"] == len(table.tensors)
    mixed(tmp_path, 900_000, model)
    types = {t.name: t.type for t in read_gguf_file(tmp_path / "model.gguf").tensors}
    assert types["blk.0.ffn_up_exps.weight"] in QUICK


def names_of(layers):
    return [f"blk.{n}.{kind}.weight" for n in range(layers) for kind in ("attn_q", "ffn_up")]


@pytest.mark.parametrize(
    ("seconds", "method", "groups", "types"),
    [(1000, "each", 128, 2), (150, "each", 128, 1), (40, "groups", 32, 1), (5, "groups", 4, 1),
     (1, "none", 0, 0), (0, "none", 0, 0)],
)  # fmt: skip
def test_what_is_measured_fits_the_time_there_is(seconds, method, groups, types):
    found, made, pokes, reason = _plan(names_of(64), 1.0, seconds, ("Q3_K", "Q2_K"))
    assert (found, len(made), len(pokes)) == (method, groups, types)
    members = [name for group in made.values() for name in group]
    assert sorted(members) == sorted(names_of(64)) * bool(groups)
    assert ("would take" in reason) == (seconds < 1000)


def test_without_time_every_tensor_counts_alike_and_the_record_says_so(tables, tmp_path):
    shutil.copy(tables / "errors.json", tmp_path)
    sensed(tmp_path, minutes=0)
    mixed(tmp_path, 700_000)
    record = Record.from_json((tmp_path / "allocation.json").read_text(), "allocation.json")
    assert record.sensitivity == "none"
    assert "0 are allowed" in record.sensitivity_reason
    table = ErrorTable.from_json((tables / "errors.json").read_text(), "errors.json")
    assert set(sensitivities(table, None).values()) == {1.0}


def test_weights_that_are_no_numbers_are_named_with_tensor_and_row(tmp_path):
    from tests.models import write_gguf

    weights = llama_weights(SMALL)
    weights["blk.1.ffn_up.weight"][37, 5] = np.nan
    weights["blk.0.attn_q.weight"][2, 9] = np.inf
    model = tmp_path / "bad.gguf"
    write_gguf(model, llama_fields(SMALL), weights, "F16")
    arguments = {"model": str(model), "texts": {"text.txt": str(text_file())},
                 "output": str(tmp_path / "i.gguf"), "context_tokens": 64, "chunks": 1}  # fmt: skip
    with pytest.raises(UnsafeInput) as caught:
        job("calibrate:calibrate_job", arguments)
    said = str(caught.value)
    assert "blk.1.ffn_up.weight (row 37)" in said
    assert "blk.0.attn_q.weight (row 2)" in said


@pytest.mark.parametrize("text", ["", "{}", '{"tensors": {"a": {"values": -1}}}', "[1]"])
def test_a_table_that_is_none_is_refused(text):
    with pytest.raises(UnsafeInput, match="not a table of measurements"):
        ErrorTable.from_json(text, "errors.json")


# -- the mix ---------------------------------------------------------------------------------------


def test_a_mix_has_the_types_that_were_chosen_and_says_what_it_is(tables, tmp_path):
    for name in ("errors.json", "sensitivity.json"):
        shutil.copy(tables / name, tmp_path)
    facts = mixed(tmp_path, 700_000)
    record = Record.from_json((tmp_path / "allocation.json").read_text(), "allocation.json")
    header = read_gguf_file(tmp_path / "model.gguf")
    found = {tensor.name: tensor.type for tensor in header.tensors}
    assert {name: found[name] for name in record.types} == dict(record.types)
    taken = sum(-(-tensor.size_bytes // 32) * 32 for tensor in header.tensors)
    assert taken == record.size_bytes <= record.budget_bytes == 700_000
    assert record.gap == 0
    assert record.sensitivity == "each"
    assert header.metadata["bundler.mix.name"] == "mixed@4bpw"
    assert header.metadata["bundler.mix.sensitivity"] == "each"
    assert facts["predicted_damage"] == record.predicted_damage
    kinds = {control.kind: control for control in record.controls}
    assert set(kinds) == {"llama.cpp", "uniform"}
    for control in kinds.values():
        assert control.size_bytes <= record.budget_bytes
        # Where a control uses measured types only, it cannot be predicted to be better.
        if control.predicted_damage is not None:
            assert control.predicted_damage >= record.predicted_damage - 1e-12


def test_a_larger_budget_than_the_largest_mix_gives_the_largest(tables, tmp_path):
    shutil.copy(tables / "errors.json", tmp_path)
    mixed(tmp_path, 10**9)
    record = Record.from_json((tmp_path / "allocation.json").read_text(), "allocation.json")
    assert set(record.types.values()) == {"F16"}
    assert record.predicted_damage == 0
    assert (tmp_path / "model.gguf").stat().st_size <= tiny_gguf(SMALL).stat().st_size + 512


def test_a_budget_below_the_smallest_mix_is_refused_with_its_size(tables, tmp_path):
    shutil.copy(tables / "errors.json", tmp_path)
    with pytest.raises(DoesNotFit, match=r"smallest mix of this model takes \d+ kB"):
        mixed(tmp_path, 100_000)


def test_measurements_of_another_model_are_refused(tables, tmp_path):
    table = json.loads((tables / "errors.json").read_text())
    table["tensors"]["blk.9.ffn_up.weight"] = table["tensors"].pop("blk.1.ffn_up.weight")
    (tmp_path / "errors.json").write_text(json.dumps(table))
    with pytest.raises(RecipeError, match=r"of another model.*blk\.9"):
        mixed(tmp_path, 700_000)


def test_an_embedding_without_an_entry_in_a_type_at_which_ggml_aborts_is_refused(tmp_path):
    model = tiny_gguf(SMALL)
    arguments = {"model": str(model), "output": str(tmp_path / "q.gguf"), "quant": "Q4_K_M",
                 "imatrix": str(imatrix_of(model)),
                 "overrides": [["token_embd.weight", "IQ2_XS"]]}  # fmt: skip
    with pytest.raises(RecipeError, match="needs an importance matrix for 1 tensors"):
        job("quantize:quantize_job", arguments)


def test_a_proof_tells_the_decision_and_measures_the_controls(tables, tmp_path):
    from bundler.measured import Quality

    for name in ("errors.json", "sensitivity.json"):
        shutil.copy(tables / name, tmp_path)
    mixed(tmp_path, 700_000)
    store = Store(tmp_path / "store")
    (store.root / "work").mkdir(parents=True, exist_ok=True)
    model = tiny_gguf(SMALL)
    inputs = {
        "model.gguf": tmp_path / "model.gguf", "reference.gguf": model,
        "imatrix.gguf": imatrix_of(model), "allocation.json": tmp_path / "allocation.json",
    }  # fmt: skip
    task = Task("prove", inputs, {}, tmp_path, lambda *_: None, World(store=store))
    evaluation = {
        "model": str(tmp_path / "model.gguf"), "reference": str(model), "text": str(text_file()),
        "window_tokens": 64, "tokens": 128, "kv_cache": "f16", "gpu": False,
        "scratch": str(tmp_path),
    }  # fmt: skip
    figures = job("evaluate:evaluate_job", evaluation)
    own = Quality(**{k: v for k, v in figures.items() if k not in ("mode", "windows")})
    found = evidence(task, evaluation, own, controls=True)
    assert found.settings["mix_gap"] == 0
    assert found.settings["control_stock_kld_mean"] > 0
    assert found.settings["control_uniform_kld_mean"] > 0
    assert "no other choice of types has less" in found.notes[0]
    assert len(found.notes) == 3
    assert "control: llama.cpp's" in found.notes[1]
    assert evidence(task, {}, own, controls=False).notes == found.notes[:1]
    assert not any((store.root / "work").iterdir())
    bare = Task("prove", {}, {}, tmp_path, lambda *_: None, World(store=store))
    assert evidence(bare, {}, own, controls=True) == ({}, [])


# -- in a recipe -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "budget"),
    [("mixed", Asked()), ("mixed@4.6bpw", Asked(4.6)), ("mixed@6.2GB", Asked(None, 6_200_000_000)),
     ("mixed@512 MiB", Asked(None, 1 << 29)), ("mixed@3BPW", Asked(3.0))],
)  # fmt: skip
def test_a_budget_is_read_as_it_is_written(name, budget):
    assert is_mix(name)
    assert asked(name) == budget


@pytest.mark.parametrize(
    "name", ["mixed@", "mixed@4.6", "mixed@bpw", "mixed@0bpw", "mixed@99bpw", "mixed@4.6 elephants",
             "mixed@-1GB", "mixed@0GB", "mixed@4.6bpw; rm -rf"],
)  # fmt: skip
def test_a_budget_that_is_none_is_refused_with_what_to_write(name):
    with pytest.raises(RecipeError) as caught:
        offers(quant=name)
    assert "mixed@4.6bpw" in caught.value.problems[0].hint
    assert caught.value.problems[0].key == "quant"


@given(st.floats(0.5, 16))
def test_a_mix_is_written_as_it_can_be_read(bits):
    assert asked(written(bits)).bits_per_weight == pytest.approx(bits, abs=0.00501)


@pytest.mark.parametrize("target", ["rtx-4090", "cpu-8gb", "raspberry-pi-5-8gb"])
@pytest.mark.parametrize("quant", ["mixed@4.6bpw", "mixed@4.3GB", "gguf:mixed@4.6bpw"])
def test_a_plan_knows_the_size_before_anything_is_measured(quant, target):
    from tests.test_offers import TARGETS

    if target not in TARGETS:
        pytest.skip(f"the catalogue has no {target}")
    (found,) = offers(quant=quant, kv_cache="f16", target=target)
    asked_bytes = 4.3e9 if "GB" in quant else 4.6 * 7.6e9 / 8
    assert found.disk_bytes == pytest.approx(asked_bytes, rel=0.02)
    if "GB" in quant:
        assert found.disk_bytes <= 4_300_000_000
    else:
        assert found.bits_per_weight == pytest.approx(4.6, abs=1e-3)
    assert [step.action for step in found.steps] == [
        "convert", "calibrate", "errors", "sensitivity", "mix", "prove",
    ]  # fmt: skip
    assert found.quality < predicted_damage(
        "Q4_K_S", "f16", has_imatrix=True, bits_per_weight=4.6, parameters=7.6e9
    )
    assert found.memory.weights_bytes + found.memory.host_bytes >= 0.97 * asked_bytes


def test_a_mix_that_cannot_be_that_small_says_how_small_it_can_be():
    with pytest.raises(
        DoesNotFit, match=r"the smallest mix of this model takes .* GB \(2\.\d+ bits"
    ):
        offers(quant="mixed@1.5bpw")
    # Beside something that can be made it is one way less.
    assert {o.quant for o in offers(quant=["mixed@1.5bpw", "Q4_K_M"])} == {"Q4_K_M"}


def test_mixed_alone_offers_a_ladder_of_which_the_planner_takes_what_fits():
    found = offers(quant="mixed", kv_cache="f16")
    bits = [offer.bits_per_weight for offer in found]
    assert len(bits) > 10
    assert bits == sorted(bits)
    assert [offer.quality for offer in found] == sorted((o.quality for o in found), reverse=True)
    for offer in found[::4]:
        (again,) = offers(quant=offer.quant, kv_cache="f16")
        assert again == offer


def test_an_embedder_has_no_mix():
    with pytest.raises(RecipeError, match="writes nothing"):
        offers("BAAI/bge-small-en-v1.5", role="embed", context_tokens=512, quant="mixed@4.6bpw")


def test_no_time_for_measuring_means_no_step_for_it():
    (found,) = offers(quant="mixed@4.6bpw", kv_cache="f16", measure_minutes=0, controls=True)
    assert [step.action for step in found.steps] == [
        "convert",
        "calibrate",
        "errors",
        "mix",
        "prove",
    ]
    assert found.steps[-1].parameters["controls"] is True
    assert "allocation.json" in found.steps[-1].inputs


def test_a_text_that_models_are_scored_on_is_no_text_to_fit_them_to():
    from bundler.builtin.llamacpp.offers import make_offers
    from bundler.recipe import ModelRequest
    from tests.test_offers import TARGETS, TEXTS, model_of

    request = ModelRequest.model_validate({"source": "hf:a/b", "quant": "mixed@4.6bpw"})
    same = {"calibration": TEXTS["heldout"], "heldout": TEXTS["heldout"]}
    with pytest.raises(RecipeError, match="are the same text"):
        make_offers(request, model_of("Qwen/Qwen2.5-7B-Instruct"), TARGETS["rtx-4090"], same)


# -- llama.cpp's own program -----------------------------------------------------------------------


NEEDED = ("include/", "ggml/include/", "common/", "vendor/", "tools/imatrix/")


def llama_source(folder):
    """Unpack of llama.cpp's source what its tools are compiled with."""
    root = official_converter().source.parent
    archives = sorted(root.glob("llama_cpp_python-*.tar.gz"))
    if not archives:
        give_up(f"there is no source archive in {root}")
    with tarfile.open(archives[0]) as archive:
        for member in archive:
            name = member.name.partition("/vendor/llama.cpp/")[2]
            if member.isfile() and name.startswith(NEEDED):
                member.name = name
                archive.extract(member, folder, filter="data")
    return folder


def give_up(reason):
    say = pytest.fail if os.environ.get("BUNDLER_REQUIRE_ORACLES") == "1" else pytest.skip
    say(reason)


def llama_imatrix(folder):
    """Compile llama-imatrix against the libraries that are installed; about ten seconds."""
    source = llama_source(folder)
    libraries = Path(sysconfig.get_path("purelib")) / "lib"
    program = folder / "llama-imatrix"
    includes = [f"-I{source / part}" for part in ("include", "ggml/include", "common", "vendor")]
    made = subprocess.run(
        ["c++", "-O0", "-std=c++17", *includes, source / "tools/imatrix/imatrix.cpp", "-o", program,
         f"-L{libraries}", "-lllama-common", "-lllama", "-lggml", "-lggml-base", "-lpthread",
         f"-Wl,-rpath,{libraries}", f"-Wl,-rpath-link,{libraries}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if made.returncode != 0:
        give_up(f"llama-imatrix cannot be compiled here: {made.stderr[-400:]}")
    return program, {**os.environ, "LD_LIBRARY_PATH": str(libraries)}


def test_the_importance_matrix_is_that_of_llama_imatrix(tmp_path):
    program, environment = llama_imatrix(tmp_path)
    for shape in (
        SMALL,
        Shape(layers=1, feed_forward=256, vocabulary=288, experts=4, experts_used=2),
    ):
        model = tiny_gguf(shape, type_="F32")
        ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
        job(
            "calibrate:calibrate_job",
            {"model": str(model), "texts": {"t": str(text_file())}, "output": str(ours),
             "context_tokens": 128, "chunks": 4},
        )  # fmt: skip
        done = subprocess.run(
            [program, "-m", model, "-f", text_file(), "-o", theirs, "-c", "128", "-b", "128", "-ub",
             "128", "-t", "1", "-ngl", "0", "--chunks", "4", "--no-ppl"],
            env=environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
        one, other = read_imatrix(ours), read_imatrix(theirs)
        assert set(one) == set(other)
        for name, means in other.items():
            assert np.abs(one[name] - means).max() <= 1e-4 * means.max(), name


# -- calibrating -----------------------------------------------------------------------------------


def calibrated(folder, **more):
    return job(
        "calibrate:calibrate_job",
        {"model": str(tiny_gguf(SMALL)), "texts": {"t": str(text_file())},
         "output": str(folder / "imatrix.gguf"), "context_tokens": 64, "chunks": 6, **more},
    )  # fmt: skip


def test_a_calibration_that_was_cut_off_goes_on_to_the_same_bytes(tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    calibrated(whole)
    kept = tmp_path / "kept.npz"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    from bundler.builtin.llamacpp.child import run_child

    with pytest.raises(Exception, match="cut off"):
        run_child(
            "tests.child_jobs:calibrate_and_stop",
            {"model": str(tiny_gguf(SMALL)), "texts": {"t": str(text_file())},
             "output": str(tmp_path / "imatrix.gguf"), "context_tokens": 64, "chunks": 6,
             "kept": str(kept), "stop_after": 3},
            environment=environment,
        )  # fmt: skip
    assert kept.exists()
    facts = calibrated(tmp_path, kept=str(kept))
    assert facts["resumed_at"] == 3
    assert (tmp_path / "imatrix.gguf").read_bytes() == (whole / "imatrix.gguf").read_bytes()
    assert not kept.exists()


def test_sums_of_another_text_are_not_gone_on_from(tmp_path):
    kept = tmp_path / "kept.npz"
    kept.write_bytes(b"PK\x05\x06 no archive")
    assert calibrated(tmp_path, kept=str(kept))["resumed_at"] == 0


def test_what_is_wrong_with_a_text_is_said_with_numbers(tmp_path):
    facts = calibrated(tmp_path)
    short, strange = facts["warnings"]
    assert short.startswith("the calibration text has 384 tokens; under 16,384")
    assert "perplexity of" in strange  # the model is not trained: it guesses
    assert facts["not_covered"] == ["output.weight", "token_embd.weight"]
    assert calibrated(tmp_path, include_output=True)["not_covered"] == ["token_embd.weight"]


def test_a_tied_embedding_is_covered_as_the_output_that_it_is(tmp_path):
    tied = tiny_gguf(Shape(layers=1, feed_forward=256, vocabulary=288, tied=True))
    facts = job(
        "calibrate:calibrate_job",
        {"model": str(tied), "texts": {"t": str(text_file())}, "output": str(tmp_path / "i.gguf"),
         "context_tokens": 64, "chunks": 2, "include_output": True},
    )  # fmt: skip
    assert facts["not_covered"] == []
    assert read_imatrix(tmp_path / "i.gguf")["token_embd.weight"].size == 256


def test_costs_are_sizes_with_error_times_sensitivity(tables):
    table = ErrorTable.from_json((tables / "errors.json").read_text(), "errors.json")
    weights = dict.fromkeys(table.tensors, 2.0)
    for name, options in costs(table, weights).items():
        for kind, (size, damage) in options.items():
            assert size == table.tensors[name].sizes[kind]
            assert damage == 2 * table.tensors[name].errors[kind]
