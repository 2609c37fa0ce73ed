"""The chooser against brute force, and what it says when nothing fits."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.llamacpp.offers import make_offers
from bundler.builtin.targets import CATALOGUE
from bundler.choosing import ROLE_WEIGHT, Limits, Wanted, choose
from bundler.errors import DoesNotFit, RecipeError
from bundler.hardware import Target
from bundler.lock import Lock, LockedFile, LockedModel, Resolution
from bundler.plan import FileInput, Memory, Offer, StepInput
from bundler.planner import choose_target, make_plan
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


# -- properties ------------------------------------------------------------------------------------

OFFERS = st.lists(
    st.builds(
        offer,
        memory=st.integers(0, 12), disk=st.integers(0, 6),
        quality=st.integers(0, 20).map(lambda n: n / 8), quant=st.sampled_from("ABCDEF"),
        host=st.integers(0, 3), gpu_layers=st.sampled_from([-1, -1, 0]),
    ),
    min_size=1, max_size=5,
)  # fmt: skip
MODELS = st.lists(
    st.tuples(
        OFFERS, st.sampled_from(sorted(ROLE_WEIGHT)), st.sampled_from(["resident", "on-demand"])
    ),
    min_size=1, max_size=4,
)  # fmt: skip
LIMITS = st.builds(
    Limits,
    vram_bytes=st.none() | st.integers(0, 30),
    ram_bytes=st.integers(0, 30),
    disk_bytes=st.none() | st.integers(0, 15),
)


def wanted_of(models: Sequence[tuple[list[Offer], str, str]]) -> list[Wanted]:
    return [
        Wanted(f"m{number}", request(role, residency), tuple(offers))
        for number, (offers, role, residency) in enumerate(models)
    ]


def fits(wanted: Sequence[Wanted], picked: Sequence[Offer], limits: Limits) -> bool:
    """Say again, in other words than the planner, what it means to fit."""
    vram: dict[str, list[int]] = {"resident": [0], "on-demand": [0]}
    ram: dict[str, list[int]] = {"resident": [0], "on-demand": [0]}
    for want, chosen in zip(wanted, picked, strict=True):
        on_card = limits.vram_bytes is not None and chosen.gpu_layers != 0
        kind = want.request.residency
        total = chosen.memory.total_bytes
        vram[kind].append(total if on_card else 0)
        ram[kind].append(chosen.memory.host_bytes if on_card else total)
    needs = [sum(each["resident"]) + max(each["on-demand"]) for each in (vram, ram)]
    disk = sum(chosen.disk_bytes for chosen in picked)
    return (
        (limits.vram_bytes is None or needs[0] <= limits.vram_bytes)
        and needs[1] <= limits.ram_bytes
        and (limits.disk_bytes is None or disk <= limits.disk_bytes)
    )


def damage(wanted: Sequence[Wanted], picked: Sequence[Offer]) -> float:
    return sum(
        ROLE_WEIGHT[want.request.role] * o.quality for want, o in zip(wanted, picked, strict=True)
    )


def least_damage(wanted: Sequence[Wanted], limits: Limits) -> float | None:
    """Try every combination."""
    combinations = itertools.product(*(want.offers for want in wanted))
    return min(
        (damage(wanted, picked) for picked in combinations if fits(wanted, picked, limits)),
        default=None,
    )


@settings(max_examples=400, deadline=None)
@given(MODELS, LIMITS)
def test_the_choice_fits_and_no_combination_that_fits_is_better(models: Any, limits: Limits):
    wanted = wanted_of(models)
    best = least_damage(wanted, limits)
    chosen = choose(wanted, limits)
    if chosen is None:
        assert best is None
    else:
        picked = [chosen[want.name] for want in wanted]
        assert fits(wanted, picked, limits)
        assert best == pytest.approx(damage(wanted, picked), abs=1e-9)


@settings(max_examples=200, deadline=None)
@given(MODELS, LIMITS, st.randoms(use_true_random=False))
def test_the_order_of_offers_does_not_matter(models: Any, limits: Limits, chance: random.Random):
    wanted = wanted_of(models)
    shuffled = [
        Wanted(want.name, want.request, tuple(chance.sample(want.offers, len(want.offers))))
        for want in wanted
    ]
    first, second = choose(wanted, limits), choose(shuffled, limits)
    assert (first is None) == (second is None)
    if first and second:
        for name, one in first.items():
            two = second[name]
            # What a person sees is the same; equal offers may differ in what the choice ignores.
            assert (one.quality, one.memory.total_bytes, one.quant, one.kv_cache) == (
                two.quality, two.memory.total_bytes, two.quant, two.kv_cache,
            )  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(MODELS, LIMITS, st.integers(0, 10), st.integers(0, 10), st.integers(0, 10))
def test_more_room_never_makes_it_worse(
    models: Any, limits: Limits, vram: int, ram: int, disk: int
):
    wanted = wanted_of(models)
    wider = Limits(
        vram_bytes=None if limits.vram_bytes is None else limits.vram_bytes + vram,
        ram_bytes=limits.ram_bytes + ram,
        disk_bytes=None if limits.disk_bytes is None else limits.disk_bytes + disk,
    )
    before, after = choose(wanted, limits), choose(wanted, wider)
    if before is not None:
        assert after is not None
        assert damage(wanted, [after[w.name] for w in wanted]) <= 1e-9 + damage(
            wanted, [before[w.name] for w in wanted]
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
            "bundle": {"name": "b", **bundle},
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
    return make_plan(recipe, lock, target, offers, runtime_formats=frozenset({"gguf"}))


def test_models_that_take_turns_share_their_room():
    models = {"a": {"residency": "on-demand"}, "b": {"residency": "on-demand"}, "c": {}}
    offers = {"a": [offer(9 * GIB)], "b": [offer(8 * GIB)], "c": [offer(6 * GIB)]}
    plan = plan_of(models, offers)
    (ram,) = [budget for budget in plan.budgets if budget.name == "RAM"]
    assert ram.used_bytes == 15 * GIB


def test_what_stays_in_main_memory_counts_there_and_not_on_the_card():
    card = Target(name="card", accelerator="cuda", usable_vram_bytes=10 * GIB, ram_bytes=16 * GIB)
    plan = plan_of({"a": {}}, {"a": [offer(8 * GIB, host=3 * GIB)]}, card)
    used = {budget.name: budget.used_bytes for budget in plan.budgets}
    assert (used["VRAM"], used["RAM"]) == (8 * GIB, 3 * GIB)
    with pytest.raises(DoesNotFit, match=r"1\.00 GiB too much"):
        plan_of({"a": {}}, {"a": [offer(8 * GIB, host=17 * GIB)]}, card)


def test_an_optional_model_that_does_not_fit_is_left_out_and_named():
    models = {"a": {}, "b": {"optional": True}, "c": {"optional": True}}
    offers = {"a": [offer(9 * GIB)], "b": [offer(6 * GIB)], "c": [offer(5 * GIB)]}
    plan = plan_of(models, offers)
    assert [choice.model for choice in plan.choices] == ["a", "b"]
    assert plan.notes == ("left out, since it does not fit: models.c",)


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
    assert "6.00 GiB more disk" in tight.choices[0].reason
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
    assert plan.choices[1].reason == "the only one that is offered"


def test_a_model_that_takes_turns_is_not_charged_for_its_neighbours():
    models = {"a": {"residency": "on-demand"}, "b": {"residency": "on-demand"}}
    better = offer(17 * GIB, quality=0.0, quant="F16")
    plan = plan_of(models, {"a": [better, offer(9 * GIB)], "b": [offer(15 * GIB)]})
    assert "1.00 GiB more RAM" in plan.choices[0].reason


def test_steps_carry_their_models_name_and_proofs_what_the_recipe_demands():
    facts = facts_of(REPOSITORIES[0].config)
    model = LockedModel(resolution=resolution(path="model.safetensors"), facts=facts)
    texts = {"calibration": resolution(), "heldout": resolution()}
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


# -- speed -----------------------------------------------------------------------------------------


def many(count: int, of_each: int, seed: int) -> list[Wanted]:
    """Return models whose offers trade memory for quality in their own ways."""
    chance = random.Random(seed)
    found = []
    for number in range(count):
        size = chance.uniform(0.5, 15)
        offers = tuple(
            offer(
                int(size * bits / 16 * GIB) + chance.randrange(GIB),
                quality=2.0 ** (-bits) * chance.uniform(0.5, 2),
                disk=int(size * bits / 16 * GIB),
                quant=f"q{step}",
            )
            for step in range(of_each)
            for bits in [2 + 14 * step / of_each]
        )
        residency = chance.choice(["resident", "on-demand"])
        found.append(Wanted(f"m{number:02}", request(residency=residency), offers))
    return found


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("share", [0.2, 0.35, 0.6])
def test_hard_choices_among_twenty_models_of_forty_offers_end_soon(seed: int, share: float):
    wanted = many(20, 40, seed)
    residents = [w for w in wanted if w.request.residency == "resident"]
    largest = sum(max(o.memory.total_bytes for o in w.offers) for w in residents)
    limits = Limits(vram_bytes=None, ram_bytes=int(largest * share), disk_bytes=None)
    start = time.process_time()
    choose(wanted, limits)
    # Random figures are the hard case: real offers of twenty models take a quarter of a second.
    assert time.process_time() - start <= 4.0
