"""What is suggested for a recipe that does not fit is enough, and no more than enough."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from bundler.advice.case import Case, fits, raisables
from bundler.advice.explanation import Remedy
from bundler.advice.raising import format_bytes_up, least_capacity
from bundler.advice.remedies import (
    CONTEXT_STEP_TOKENS,
    find_remedies,
    remedies_by_machine,
    suggestion,
)
from bundler.solver.decision import Decision, Limit, Option, Wanted
from bundler.value import parse_bytes
from tests.toy_cases import MIB, recipe_of, toy_case

MODELS = st.dictionaries(
    st.sampled_from(["ada", "bob", "cyd"]),
    st.fixed_dictionaries(
        {
            "context_tokens": st.integers(8, 64).map(lambda n: n * 256),
            "parallel": st.integers(1, 4),
            "kv_cache": st.sampled_from(["auto", "f16", "q8_0"]),
            "residency": st.sampled_from(["resident", "on-demand"]),
            "quant": st.sampled_from([["auto"], ["Q8_0"], ["Q6_K", "Q4_K_M"]]),
            "optional": st.booleans(),
        }
    ),
    min_size=1, max_size=3,
)  # fmt: skip
WEIGHTS = st.fixed_dictionaries(dict.fromkeys(("ada", "bob", "cyd"), st.integers(100, 4000)))


@st.composite
def cases_that_do_not_fit(draw: Any) -> Case:
    case = toy_case(
        recipe_of(draw(MODELS)), draw(WEIGHTS), vram_mib=draw(st.integers(100, 6000)),
        ram_mib=draw(st.integers(50, 1000)), disk_mib=draw(st.none() | st.integers(100, 6000)),
    )  # fmt: skip
    assume(not fits(case.decision))
    return case


def applied(case: Case, remedy: Remedy, *, less: int = 0) -> Decision | None:
    """Change a case as the text of a remedy says; `less` bytes fewer of what it raises."""
    decision: Decision | None = case.decision
    edits: dict[str, dict[str, Any]] = {}
    for edit in remedy.edits:
        key = re.fullmatch(r"models\.(\w+)\.(\w+) = (.+?)( \(.*\))?", edit)
        if key:
            edits.setdefault(key[1], {})[key[2]] = value_of(key[3])
    if edits:
        models = dict(case.recipe.models)
        for name, update in edits.items():
            models[name] = models[name].model_copy(update=update)
        return case.decide_again(case.recipe.model_copy(update={"models": models}))
    (edit,) = remedy.edits
    if remedy.kind == "larger-stick":
        written = parse_bytes(edit.split('"')[1])
        exact = (case.recipe.bundle.max_size or 0) + remedy.more_bytes
        assert exact <= written < exact + 10**8
        return with_stick(case, exact - 1 if less else written)
    name = edit.split()[-1]
    (limit,) = (limit for limit in case.decision.limits if limit.name == name)
    capacity = (limit.capacity_bytes or 0) + remedy.more_bytes - less
    return decision and decision.with_capacity(name, "", capacity)


def with_stick(case: Case, size: int) -> Decision | None:
    bundle = case.recipe.bundle.model_copy(update={"max_size": size})
    return case.decide_again(case.recipe.model_copy(update={"bundle": bundle}))


def value_of(text: str) -> Any:
    if text.startswith("["):
        return tuple(re.findall(r'"([^"]*)"', text))
    if text == "true":
        return True
    return text.strip('"') if text.startswith('"') else int(text)


@settings(max_examples=40, deadline=None)
@given(cases_that_do_not_fit())
def test_every_remedy_is_enough_when_the_changed_recipe_is_solved(case: Case):
    for remedy in find_remedies(case):
        if len(remedy.edits) == 1 or remedy.kind in ("take-turns", "leave-out"):
            assert fits(applied(case, remedy)), remedy


@settings(max_examples=40, deadline=None)
@given(cases_that_do_not_fit())
def test_one_byte_less_of_a_raised_limit_is_not_enough(case: Case):
    for remedy in find_remedies(case):
        if remedy.more_bytes and len(remedy.edits) == 1:
            assert not fits(applied(case, remedy, less=1)), remedy


@settings(max_examples=40, deadline=None)
@given(cases_that_do_not_fit())
def test_no_longer_context_and_no_more_users_would_fit(case: Case):
    for remedy in find_remedies(case):
        match = re.fullmatch(r"models\.(\w+)\.(context_tokens|parallel) = (\d+)", remedy.edits[0])
        if match:
            step = CONTEXT_STEP_TOKENS if match[2] == "context_tokens" else 1
            request = case.recipe.models[match[1]]
            more = int(match[3]) + step
            assert more > getattr(request, match[2]) or not fits(
                case.edited(match[1], **{match[2]: more})
            )


@settings(max_examples=30, deadline=None)
@given(cases_that_do_not_fit())
def test_there_is_always_a_remedy_and_all_raised_together_are_enough(case: Case):
    remedies = find_remedies(case)
    assert remedies
    assert [r.size for r in remedies] == sorted(r.size for r in remedies)
    if len(remedies[0].edits) > 1 and remedies[0].more_bytes:
        assert len(remedies) == 1  # no single change is enough
        for limit in raisables(case.decision):
            assert least_capacity(case.decision, limit) is None


def test_a_recipe_that_fits_needs_no_remedy():
    case = toy_case(recipe_of({"ada": {}}), {"ada": 100}, vram_mib=4000)
    assert find_remedies(case) == ()


def test_the_smallest_changes_come_first_and_each_kind_is_there():
    case = toy_case(
        recipe_of({
            "ada": {"context_tokens": 16384, "kv_cache": "f16", "quant": "Q8_0", "parallel": 2},
            "bob": {"context_tokens": 4096},
        }),
        {"ada": 1000, "bob": 600}, vram_mib=1500,
    )  # fmt: skip
    remedies = find_remedies(case)
    assert {remedy.kind for remedy in remedies} == {
        "more-memory", "shorter-context", "fewer-users", "kv-cache", "take-turns", "smaller-quant",
        "leave-out",
    }  # fmt: skip
    assert remedies[-1].kind == "leave-out"
    assert suggestion(remedies).count("; or ") == 3


def test_a_floor_of_speed_and_a_placement_that_are_too_much_are_named():
    def decide(recipe: Any) -> Decision:
        request = recipe.models["ada"]
        need = 10 if request.min_tokens_per_second is None else 30
        need -= 5 if request.placement == "auto" else 0
        (offer,) = toy_case(recipe_of({"ada": {"quant": "Q8_0", "kv_cache": "f16"}}), {"ada": 1},
                            vram_mib=None).decision.wanted[0].options  # fmt: skip
        option = Option(offer.offer, 1, (need,))
        return Decision((Wanted("ada", "", (option,)),), (Limit("RAM", 8, turns=True),))

    recipe = recipe_of({"ada": {"placement": "cpu", "context_tokens": 512}})
    assert "placement" in {r.kind for r in find_remedies(Case(recipe, decide(recipe), decide))}
    recipe = recipe_of({"ada": {"min_tokens_per_second": 5.0, "context_tokens": 512}})
    remedies = find_remedies(Case(recipe, decide(recipe), decide))
    assert ("without models.ada.min_tokens_per_second",) in {r.edits for r in remedies}


def test_each_machine_that_is_too_small_has_its_own_remedies():
    def decide(recipe: Any) -> Decision:
        box = toy_case(recipe, {"ada": 1000}, vram_mib=None).decision
        wanted = tuple(
            Wanted("ada", tier, tuple(
                Option(o.offer, o.damage, (o.needs[0], 0, 0) if tier == "big" else (0, o.needs[0], 0))
                for o in box.wanted[0].options))
            for tier in ("big", "small")
        )  # fmt: skip
        limits = (Limit("RAM", 9000 * MIB, turns=True, tier="big"),
                  Limit("RAM", 300 * MIB, turns=True, tier="small"), Limit("disk", None, turns=False))  # fmt: skip
        return Decision(wanted, limits)

    recipe = recipe_of({"ada": {}})
    found = remedies_by_machine(Case(recipe, decide(recipe), decide))
    assert list(found) == ["small"]
    assert any("more RAM" in remedy.edits[0] for remedy in found["small"])


@given(st.integers(0, 1 << 45))
def test_an_amount_that_is_asked_for_is_never_written_too_small(count: int):
    written = format_bytes_up(count)
    assert parse_bytes(written) >= count
    assert parse_bytes(written) <= count * 1.02 + 2


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1025, "1.01 KiB")])
def test_small_amounts_are_written_plainly(count: int, text: str):
    assert format_bytes_up(count) == text


def test_alike_accelerators_are_raised_together():
    box = toy_case(recipe_of({"ada": {"quant": "Q8_0", "kv_cache": "f16"}}), {"ada": 1},
                   vram_mib=None).decision.wanted[0].options[0]  # fmt: skip

    def decide(recipe: Any) -> Decision:
        limits = tuple(Limit(f"VRAM {n}", 100, turns=True) for n in (1, 2))
        return Decision((Wanted("ada", "", (Option(box.offer, 1, (150, 130)),)),), limits)

    recipe = recipe_of({"ada": {"context_tokens": 512}})
    (remedy,) = find_remedies(Case(recipe, decide(recipe), decide))
    assert remedy.edits == ("target.use = a machine with 50 B more VRAM on each accelerator",)
    assert remedy.more_bytes == 50


def test_several_models_are_left_out_where_one_is_not_enough():
    models = {name: {"context_tokens": 512} for name in ("ada", "bob", "cyd")}
    case = toy_case(recipe_of(models), {"ada": 1000, "bob": 1000, "cyd": 100}, vram_mib=200)
    (remedy,) = (r for r in find_remedies(case) if r.kind == "leave-out")
    assert remedy.edits == ("models.ada.optional = true", "models.bob.optional = true")


def test_a_corpus_is_left_out_where_the_stick_is_too_small():
    def decide(recipe: Any) -> Decision:
        taken = 900 * MIB * len(recipe.corpora)
        return toy_case(recipe, {"ada": 100}, vram_mib=None, disk_mib=max(0, 1000 - taken // MIB)
                        ).decision  # fmt: skip

    recipe = recipe_of({"ada": {"context_tokens": 512, "quant": "Q8_0"}})
    corpora = {"corpora": {name: {"source": "path:x"} for name in ("one", "two")}}
    recipe = type(recipe).model_validate({**recipe.model_dump(by_alias=True), **corpora})
    remedies = find_remedies(Case(recipe, decide(recipe), decide))
    assert {"without corpora.one", "without corpora.two"} <= {r.edits[0] for r in remedies}
