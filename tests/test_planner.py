"""Plans: what is taken, in which order, and what is said when nothing fits."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.offers import make_offers
from bundler.builtin.targets import CATALOGUE
from bundler.errors import DoesNotFit, RecipeError
from bundler.hardware import Target
from bundler.lock import Lock, LockedFile, LockedModel, Resolution
from bundler.plan import FileInput, Memory, Offer, StepInput
from bundler.planning.planner import make_plan
from bundler.planning.targeting import choose_target
from bundler.recipe import ModelRequest, Recipe
from tests.real_shapes import REPOSITORIES
from tests.shapes import facts_of

GIB = 1 << 30
RAM_TARGET = Target(name="box", title="a box", ram_bytes=16 * GIB)


def offer(memory: int, *, disk: int = 1, quality: float = 0.1, quant: str = "Q", kv: str = "f16",
          host: int = 0, gpu_layers: int = -1, steps: tuple[Any, ...] = ()) -> Offer:  # fmt: skip
    return Offer(
        engine="fake", quant=quant, format="gguf", kv_cache=kv, context_tokens=4096, parallel=1,
        memory=Memory(
            weights_bytes=memory - memory // 4, kv_cache_bytes=memory // 4, compute_bytes=0,
            host_bytes=host,
        ),
        disk_bytes=disk, scratch_bytes=0, bits_per_weight=4.0, quality=quality,
        gpu_layers=gpu_layers, steps=steps, output=FileInput(sha256="0" * 64, size_bytes=disk),
    )  # fmt: skip


def request(role: str = "chat", residency: str = "resident", **more: Any) -> ModelRequest:
    return ModelRequest.model_validate(
        {"role": role, "source": "path:x", "residency": residency, **more}
    )


# -- plans -----------------------------------------------------------------------------------------


def resolution(size: int = 10, path: str = "f.bin", count: int = 1) -> Resolution:
    files = tuple(
        LockedFile(path=f"{number}-{path}", size_bytes=size, sha256=f"{size:064x}")
        for number in range(count)
    )
    return Resolution(source="path", reference="path:x", revision="1", files=files)


def plan_of(models: dict[str, Any], offers: dict[str, list[Offer]], target: Target = RAM_TARGET,
            corpora: dict[str, int] | None = None, **bundle: Any) -> Any:  # fmt: skip
    recipe = Recipe.model_validate(
        {
            "schema": 1,
            "bundle": {"name": "b", "parity": 0, **bundle},
            "target": {"ram": "16 GB"},
            "models": {name: {"source": "path:x", **more} for name, more in models.items()},
            "corpora": {name: {"source": "path:x"} for name in corpora or {}},
        }
    )
    facts = facts_of(REPOSITORIES[0].config)
    lock = Lock(
        request_digest="0" * 64,
        created=1,
        models={n: LockedModel(resolution=resolution(), facts=facts) for n in models},
        corpora={name: resolution(size, "c.zim") for name, size in (corpora or {}).items()},
    )
    formats = frozenset({"gguf"})
    return make_plan(recipe, lock, {"": target}, {"": offers}, runtime_formats=formats)


def test_models_that_take_turns_share_their_room():
    models = {"a": {"residency": "on-demand"}, "b": {"residency": "on-demand"}, "c": {}}
    offers = {"a": [offer(9 * GIB)], "b": [offer(8 * GIB)], "c": [offer(6 * GIB)]}
    plan = plan_of(models, offers)
    (ram,) = [budget for budget in plan.all_budgets if budget.name == "RAM"]
    assert ram.used_bytes == 15 * GIB


def test_what_stays_in_main_memory_counts_there_and_not_on_the_card():
    card = Target(name="card", accelerator="cuda", usable_vram_bytes=10 * GIB, ram_bytes=16 * GIB)
    plan = plan_of({"a": {}}, {"a": [offer(8 * GIB, host=3 * GIB)]}, card)
    used = {budget.name: budget.used_bytes for budget in plan.all_budgets}
    assert (used["VRAM"], used["RAM"]) == (8 * GIB, 3 * GIB)
    with pytest.raises(DoesNotFit, match=r"1\.00 GiB too much"):
        plan_of({"a": {}}, {"a": [offer(8 * GIB, host=17 * GIB)]}, card)


def test_an_optional_model_that_does_not_fit_is_left_out_and_named():
    models = {"a": {}, "b": {"optional": True}, "c": {"optional": True}}
    offers = {"a": [offer(9 * GIB)], "b": [offer(6 * GIB)], "c": [offer(5 * GIB)]}
    plan = plan_of(models, offers)
    assert [choice.model for choice in plan.choices] == ["a", "b"]
    assert plan.tiers[0].notes == ("left out, since it does not fit: models.c",)


def test_a_plan_that_cannot_fit_says_by_how_much_and_what_would_help():
    offers = {
        "a": [offer(12 * GIB, quant="Q8_0", quality=0.0), offer(10 * GIB, quant="Q4_K_M")],
        "b": [offer(9 * GIB, quant="Q2_K")],
    }
    with pytest.raises(DoesNotFit) as caught:
        plan_of({"a": {}, "b": {}}, offers)
    (problem,) = caught.value.problems
    assert "need 19.0 GiB of RAM, a box has 16.0 GiB; 3.00 GiB too much" in problem.message
    assert "a 10.0 GiB (Q4_K_M: weights 7.50 GiB, KV cache 2.50 GiB" in problem.message
    assert 'residency = "on-demand"' in problem.hint
    # The KV cache of b is 2.25 GiB: less than what is missing, so a shorter context of it alone
    # would not do; nor would that of a.
    assert "context_tokens" not in problem.hint


def test_a_shorter_context_is_proposed_when_it_would_be_enough():
    with pytest.raises(DoesNotFit) as caught:
        plan_of({"a": {}}, {"a": [offer(17 * GIB)]})
    (hint,) = re.findall(r"models\.a: context_tokens = (\d+)", caught.value.problems[0].hint)
    kept = int(hint) / 4096 * (17 * GIB // 4)
    assert 17 * GIB - 17 * GIB // 4 + kept <= 16 * GIB


def test_the_sticks_size_limits_too():
    offers = {"a": [offer(GIB, disk=9 * GIB, quality=0.0, quant="F16"), offer(GIB, disk=2 * GIB)]}
    roomy = plan_of({"a": {}}, offers, corpora={"w": 5 * GIB}, max_size=20 * GIB)
    tight = plan_of({"a": {}}, offers, corpora={"w": 5 * GIB}, max_size=8 * GIB)
    assert (roomy.choices[0].offer.quant, tight.choices[0].offer.quant) == ("F16", "Q")
    assert "6.44 GB more disk" in tight.choices[0].reason
    with pytest.raises(DoesNotFit, match="of disk"):
        plan_of({"a": {}}, offers, corpora={"w": 7 * GIB}, max_size=8 * GIB)


def test_fat32_refuses_every_file_of_four_gib_by_name():
    offers = {"a": [offer(GIB, disk=4 * GIB)], "b": [offer(GIB, disk=4 * GIB - 1)]}
    with pytest.raises(DoesNotFit) as caught:
        plan_of({"a": {}, "b": {}}, offers, corpora={"w": 5 * GIB}, filesystem="fat32")
    assert [problem.message.split()[0] for problem in caught.value.problems] == [
        "models.a", "corpora.w",
    ]  # fmt: skip
    plan_of({"b": {}}, {"b": offers["b"]}, corpora={"w": GIB}, filesystem="fat32")


def test_a_better_offer_that_was_not_taken_is_named_with_what_it_lacks():
    offers = {
        "a": [offer(14 * GIB, quality=0.0, quant="Q8_0"), offer(7 * GIB, quality=0.2)],
        "b": [offer(4 * GIB, quality=0.1)],
    }
    plan = plan_of({"a": {}, "b": {}}, offers)
    choice = plan.choices[0]
    assert choice.runner_up is not None
    assert choice.runner_up.quant == "Q8_0"
    assert choice.reason == "the best that fits; Q8_0 with f16 KV would need 2.00 GiB more RAM"
    assert plan.choices[1].reason == "the only one that keeps to the recipe"


def test_a_model_that_takes_turns_is_not_charged_for_its_neighbours():
    models = {"a": {"residency": "on-demand"}, "b": {"residency": "on-demand"}}
    better = offer(17 * GIB, quality=0.0, quant="F16")
    plan = plan_of(models, {"a": [better, offer(9 * GIB)], "b": [offer(15 * GIB)]})
    assert "1.00 GiB more RAM" in plan.choices[0].reason


def test_steps_carry_their_models_name_and_proofs_what_the_recipe_demands():
    facts = facts_of(REPOSITORIES[0].config)
    model = LockedModel(resolution=resolution(path="model.safetensors"), facts=facts)
    texts = {"calibration": resolution(), "heldout": resolution(11)}
    asked = request(quant="Q8_0", context_tokens=1024)
    offers = {"a": make_offers(asked, model, RAM_TARGET, texts)}
    plan = plan_of({"a": {"context_tokens": 1024}}, offers)
    assert [step.name for step in plan.steps] == [
        "models/a/convert", "models/a/quantize", "models/a/prove",
    ]  # fmt: skip
    prove = plan.steps[-1]
    assert prove.inputs["model.gguf"] == StepInput(step="models/a/quantize", file="model.gguf")
    assert prove.inputs["reference.gguf"] == StepInput(step="models/a/convert", file="model.gguf")
    assert (prove.parameters["require"], prove.parameters["tokens"]) == ("any", 4096)


def test_a_format_that_no_runtime_loads_is_refused():
    strange = offer(GIB).model_copy(update={"format": "exl3"})
    with pytest.raises(DoesNotFit, match=r"models\.a: none of the recipe's runtimes"):
        plan_of({"a": {}}, {"a": [strange]})


def test_a_target_is_named_or_spelled_out_and_its_figures_can_be_overridden():
    catalogue = {target.name: target for target in CATALOGUE}
    asked = {"use": "rtx-4090", "usable_vram": "23.5 GB"}
    chosen = choose_target(
        Recipe.model_validate(
            {"bundle": {"name": "b"}, "target": asked, "corpora": {"w": {"source": "path:x"}}}
        ).target,
        catalogue,
    )
    assert chosen.usable_vram_bytes == 23_500_000_000
    assert chosen.ram_bytes == catalogue["rtx-4090"].ram_bytes
    with pytest.raises(RecipeError, match="no target called"):
        choose_target(
            Recipe.model_validate(
                {"bundle": {"name": "b"}, "target": {"use": "rtx"},
                 "corpora": {"w": {"source": "path:x"}}}
            ).target,
            catalogue,
        )  # fmt: skip


# -- limits that contradict ------------------------------------------------------------------------


def refused(models: dict[str, Any], offers: dict[str, list[Offer]], **bundle: Any) -> str:
    with pytest.raises(DoesNotFit) as caught:
        plan_of(models, offers, **bundle)
    return str(caught.value)


def test_a_minimum_speed_that_no_offer_reaches_is_refused_with_the_fastest():
    slow = offer(GIB).model_copy(update={"tokens_per_second": 7.5})
    said = refused({"a": {"min_tokens_per_second": 20}}, {"a": [slow]})
    assert said.startswith("models.a.min_tokens_per_second: 20 tokens/s cannot be reached on a box")
    assert "at most 7.5" in said
    assert "is not known" in refused({"a": {"min_tokens_per_second": 20}}, {"a": [offer(GIB)]})
    plan = plan_of({"a": {"min_tokens_per_second": 5}}, {"a": [slow]})
    assert plan.choices[0].offer.tokens_per_second == 7.5


speedy = st.tuples(st.integers(1, 12), st.floats(0, 1), st.floats(1, 50) | st.just(0.0)).map(
    lambda drawn: offer(drawn[0] * GIB, quality=drawn[1]).model_copy(
        update={"tokens_per_second": drawn[2]}
    )
)
floors = st.tuples(st.floats(0.5, 60), st.floats(0.5, 60)).map(sorted)


@settings(max_examples=60, deadline=None)
@given(
    st.fixed_dictionaries({name: st.lists(speedy, min_size=1, max_size=4) for name in "ab"}), floors
)
def test_who_asks_for_more_speed_never_gets_a_better_plan(offers, floors):
    def least_damage(floor: float) -> float:
        try:
            plan = plan_of({"a": {"min_tokens_per_second": floor}, "b": {}}, offers)
        except DoesNotFit:
            return math.inf
        by_model = {choice.model: choice.offer for choice in plan.choices}
        assert by_model["a"].tokens_per_second >= floor
        return sum(choice.quality for choice in by_model.values())

    slow, fast = floors
    assert least_damage(slow) <= least_damage(fast) + 1e-6


def test_an_accelerator_that_is_not_there_and_corpora_larger_than_the_stick_are_refused():
    said = refused({"a": {"placement": "accelerator"}}, {"a": [offer(GIB)]})
    assert said == "models.a.placement: a box has no accelerator"
    said = refused({"a": {}}, {"a": [offer(GIB)]}, corpora={"w": 9 * GIB}, max_size=8 * GIB)
    assert said.startswith("bundle.max_size: does not fit")
    said = refused({"a": {}}, {"a": [offer(GIB, disk=9)]}, max_download=8)
    assert said.startswith("bundle.max_download: does not fit")


def test_models_stay_in_memory_or_take_turns_as_the_room_allows():
    models = {"a": {"residency": "auto"}, "b": {"residency": "auto"}}
    roomy = plan_of(models, {"a": [offer(8 * GIB)], "b": [offer(8 * GIB)]})
    tight = plan_of(models, {"a": [offer(9 * GIB)], "b": [offer(8 * GIB)]})
    assert [choice.residency for choice in roomy.choices] == ["resident", "resident"]
    assert [choice.residency for choice in tight.choices] == ["on-demand", "on-demand"]
    assert "takes turns: always in memory it would need" in tight.choices[0].reason
