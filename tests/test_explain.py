"""Why a plan is as it is: what is said is what solving the question again gives."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, get_args
from xml.etree import ElementTree

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from rich.console import Console

from bundler.advice import explanation as values
from bundler.advice.case import Case, less_damage
from bundler.advice.explain import STEPS_BYTES, explain
from bundler.advice.explanation import Explanation
from bundler.console import Screen
from bundler.drawing.explain_text import in_lines
from bundler.drawing.plan_view import show_plan
from bundler.solver.choosing import settle, solve
from bundler.solver.decision import DAMAGE_UNITS
from bundler.value import Value
from tests.demo import bundler, quickstart
from tests.toy_cases import GIB, plan_of, recipe_of, toy_case, toy_target

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
MODELS = st.dictionaries(
    st.sampled_from(["ada", "bob", "cyd"]),
    st.fixed_dictionaries(
        {
            "context_tokens": st.integers(8, 64).map(lambda n: n * 256),
            "parallel": st.integers(1, 4),
            "kv_cache": st.sampled_from(["auto", "f16"]),
            "residency": st.sampled_from(["resident", "on-demand"]),
            "optional": st.booleans(),
        }
    ),
    min_size=1, max_size=3,
)  # fmt: skip
WEIGHTS = st.fixed_dictionaries(dict.fromkeys(("ada", "bob", "cyd"), st.integers(100, 5000)))


class Explained(NamedTuple):
    case: Case
    found: Explanation

    def __repr__(self) -> str:
        # Whole, it has tens of thousands of characters, which hypothesis warns of.
        return f"Explained(limits={self.case.decision.limits}, found={self.found.more})"


@st.composite
def explained_cases(draw: Any) -> Explained:
    case = toy_case(
        recipe_of(draw(MODELS)), draw(WEIGHTS), vram_mib=draw(st.integers(100, 9000)),
        disk_mib=draw(st.none() | st.integers(100, 9000)),
    )  # fmt: skip
    found = explain(case, {"": toy_target(1)})
    assume(found is not None)
    assert found is not None
    return Explained(case, found)


@settings(max_examples=40, deadline=None)
@given(explained_cases())
def test_more_of_a_limit_never_buys_less(explained: Explained):
    found = explained[1]
    by_limit: dict[str, list[values.More]] = {}
    for more in found.more:
        by_limit.setdefault(more.limit, []).append(more)
    for steps in by_limit.values():
        assert [step.more_bytes for step in steps] == list(STEPS_BYTES)
        for one, other in pairwise(steps):
            returned = [sum(c.before is None for c in step.changes) for step in (one, other)]
            assert returned[0] <= returned[1]
            if returned[0] == returned[1] and not found.left_out:
                assert one.less_damage <= other.less_damage


@settings(max_examples=40, deadline=None)
@given(explained_cases())
def test_what_more_buys_is_what_a_larger_limit_gives(explained: Explained):
    case, found = explained
    plan = settle(case.decision)
    assert plan is not None
    for more in found.more:
        if more.limit == values.EVERY_LIMIT:
            continue
        (limit,) = (limit for limit in case.decision.limits if limit.name == more.limit)
        after = settle(
            case.decision.with_capacity(limit.name, "", limit.capacity_bytes + more.more_bytes)
        )
        assert after is not None
        if more.changes:
            assert more.less_damage == pytest.approx(less_damage(plan, after), abs=1e-6)
        else:
            assert after.solution.damage >= plan.solution.damage
            assert len(after.left_out) == len(plan.left_out)


@settings(max_examples=40, deadline=None)
@given(explained_cases())
def test_a_runner_up_misses_what_it_is_said_to_miss_and_costs_what_it_is_said_to_cost(
    explained: Explained,
):
    case, found = explained
    plan = settle(case.decision)
    assert plan is not None
    for model in found.tiers[0].models:
        other, own = model.runner_up, plan.solution.chosen[model.model, ""]
        options = next(w.options for w in plan.decision.wanted if w.name == model.model)
        if other is None:
            assert len(options) == 1
            continue
        (option,) = (
            o for o in options
            if (o.offer.quant, o.offer.kv_cache) == (other.taken.quant, other.taken.kv_cache)
        )  # fmt: skip
        assert other.better == (option.damage < own.damage)
        swapped = {**plan.solution.chosen, (model.model, ""): option}
        broken = plan.decision.broken(plan.decision.used(swapped))
        said = {short.limit: short.missing_bytes for short in other.missing}
        assert said == {limit.name: excess for limit, excess in broken}
        if other.costs is not None and other.missing:
            assert other.costs >= 0  # what was chosen is the best


@settings(max_examples=40, deadline=None)
@given(explained_cases())
def test_what_is_given_up_gains_what_it_is_said_to_gain(explained: Explained):
    case, found = explained
    plan = settle(case.decision)
    assert plan is not None
    for give_up in found.give_up:
        match = re.fullmatch(r"models\.(\w+)\.(\w+) = (\S+)", give_up.edit)
        if match is None:
            assert give_up.edit == f"without models.{give_up.model}"
            after = settle(case.decision.without(give_up.model))
        else:
            value = match[3].strip('"') if '"' in match[3] else int(match[3])
            decision = case.edited(match[1], **{match[2]: value})
            assert decision is not None
            after = settle(decision)
        assert after is not None
        assert give_up.less_damage == pytest.approx(less_damage(plan, after), abs=1e-6)
        assert give_up.less_damage > 0 or give_up.changes


@settings(max_examples=30, deadline=None)
@given(explained_cases())
def test_steps_are_between_real_offers_and_cost_bytes(explained: Explained):
    for model in explained[1].tiers[0].models:
        for step in (model.last_step, model.next_step):
            if step is not None:
                assert step.more_bytes > 0
                assert step.less_damage > 0
                rate = step.less_damage / (step.more_bytes / GIB)
                assert step.less_damage_per_gib == pytest.approx(rate, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(explained_cases(), st.integers(40, 160))
def test_no_line_is_wider_than_the_screen(explained: Explained, columns: int):
    words = [word for _, line in in_lines(explained[1], columns) for word in line.split()]
    longest = max(len(word) for word in words) + 6
    assert all(len(line) <= max(columns, longest) for _, line in in_lines(explained[1], columns))


def test_nothing_is_said_honestly_where_nothing_would_help():
    case = toy_case(recipe_of({"ada": {}}), {"ada": 100}, vram_mib=9000, disk_mib=9000)
    found = explain(case, {"": toy_target(9000)})
    assert found is not None
    assert all(more.changes == () and more.less_damage == 0 for more in found.more)
    text = "\n".join(line for _, line in in_lines(found, 120))
    assert "nothing would come of 1, 2 or 4 GiB more VRAM or RAM or disk alone" in text
    assert "no limit is in the way; the fullest is" in text
    assert "tightest" not in text
    assert "nothing that the recipe could do without would help the rest" in text
    (model,) = found.tiers[0].models
    assert model.runner_up is not None
    assert not model.runner_up.better


def test_a_model_that_was_left_out_comes_back_with_more_memory():
    case = toy_case(
        recipe_of({"ada": {}, "bob": {"optional": True}}), {"ada": 1000, "bob": 1000}, vram_mib=800
    )
    found = explain(case, {"": toy_target(800)})
    assert found is not None
    assert [left.model for left in found.left_out] == ["bob"]
    assert [len([c for c in more.changes if c.before is None]) for more in found.more][:3] == [
        1, 1, 1,
    ]  # fmt: skip
    assert found.tightest is not None
    assert found.tightest.limit == "VRAM"


def test_what_does_not_fit_has_no_explanation():
    case = toy_case(recipe_of({"ada": {}}), {"ada": 1000}, vram_mib=100)
    assert explain(case, {"": toy_target(100)}) is None


def test_a_runner_up_can_be_forced_at_the_cost_of_the_others():
    case = big_case()
    found = explain(case, {"": toy_target(5000)})
    plan = solve(case.decision)
    assert found is not None
    assert plan is not None
    forced = [m.runner_up for m in found.tiers[0].models if m.runner_up and m.runner_up.instead]
    assert forced
    assert all(other.costs and other.costs * DAMAGE_UNITS >= 1 for other in forced)


def test_in_a_large_recipe_the_small_models_are_not_asked_to_give_up_and_that_is_said():
    names = [f"m{number:02}" for number in range(11)]
    recipe = recipe_of({name: {"kv_cache": "f16", "context_tokens": 1024} for name in names})
    weights = {name: 400 + 100 * number for number, name in enumerate(names)}
    found = explain(toy_case(recipe, weights, vram_mib=7000), {"": toy_target(7000)})
    assert found is not None
    assert found.unasked == ("m00", "m01", "m02", "m03", "m04")
    assert {give_up.model for give_up in found.give_up}.isdisjoint(found.unasked)
    text = "\n".join(line for _, line in in_lines(found, 120))
    assert "not asked of the smaller models: m00, m01, m02, m03, m04" in text


# -- the screen ------------------------------------------------------------------------------------


def big_case() -> Case:
    recipe = recipe_of({
        "chat": {"context_tokens": 8192, "parallel": 2},
        "code": {"context_tokens": 4096, "residency": "on-demand"},
        "second": {"context_tokens": 4096, "residency": "on-demand", "optional": True},
        "embed": {"role": "embed", "context_tokens": 512, "kv_cache": "f16"},
    })  # fmt: skip
    weights = {"chat": 3000, "code": 2600, "second": 2200, "embed": 60}
    return toy_case(recipe, weights, vram_mib=5000, ram_mib=8000, disk_mib=6500)


def shown(case: Case, columns: int, *, explained: bool, colour: bool = False) -> str:
    target = toy_target(5000, 8000)
    screen = Screen("plain")
    screen.out = Console(
        file=io.StringIO(), width=columns, highlight=False, soft_wrap=True, force_terminal=colour,
        color_system="standard" if colour else None,
    )  # fmt: skip
    why = explain(case, {"": target}) if explained else None
    show_plan(screen, plan_of(case, target), 0, GIB, explanation=why, recipe="toy.toml")
    assert isinstance(screen.out.file, io.StringIO)
    return screen.out.file.getvalue()


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("explained", [False, True], ids=["plain", "explain"])
def test_the_screen_is_the_one_on_record(columns: int, explained: bool):
    found = shown(big_case(), columns, explained=explained)
    path = GOLDEN / f"plan-{'explain' if explained else 'plain'}-{columns}.txt"
    if os.environ.get("BUNDLER_UPDATE_GOLDEN"):
        path.write_text(found)
    assert found == path.read_text()
    assert all(len(line) <= columns for line in found.splitlines())


def test_colour_changes_no_letter():
    coloured = shown(big_case(), 100, explained=True, colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == shown(big_case(), 100, explained=True)


def test_a_plain_plan_is_one_screen_and_names_the_way_to_its_reasons():
    lines = shown(big_case(), 80, explained=False).splitlines()
    assert len(lines) <= 32
    assert lines[-1] == "why, and what would change it: bundler plan toy.toml --explain"


# -- what programs read ----------------------------------------------------------------------------


def test_every_field_of_an_explanation_is_documented():
    text = (ROOT / "docs/commands.md").read_text()
    for kind in vars(values).values():
        if isinstance(kind, type) and issubclass(kind, Value) and kind is not Value:
            for name in kind.model_fields:
                assert f"`{name}`" in text, f"{kind.__name__}.{name}"
    for word in (*get_args(values.RemedyKind), *get_args(values.GiveUpKind)):
        assert f"`{word}`" in text


def test_an_explanation_survives_json():
    found = explain(big_case(), {"": toy_target(5000)})
    assert found is not None
    assert Explanation.model_validate(found.model_dump(mode="json")) == found


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def recipes() -> Path:
    return quickstart().parent


def plan_command(recipe: Path, *words: Any) -> subprocess.CompletedProcess[str]:
    return bundler("plan", recipe, "--offline", "--frozen", "--store", recipe.parent / "s", *words)


def test_the_command_explains_and_draws(recipes: Path):
    done = plan_command(recipes / "quickstart.toml", "--explain", "--frontier", recipes / "f.svg")
    assert done.returncode == 0, done.stderr
    assert "What more would buy" in done.stdout
    assert "--explain" not in done.stdout
    drawn = (recipes / "f.svg").read_text()
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    assert "quickstart: what memory buys" in drawn


def test_json_carries_the_explanation(recipes: Path):
    done = plan_command(recipes / "quickstart.toml", "--json")
    found = json.loads(done.stdout)
    why = Explanation.model_validate(found["explanation"])
    assert [model.model for model in why.tiers[0].models] == ["chat"]
    assert why.proved_best


def test_a_recipe_that_does_not_fit_gets_remedies_on_both_ways(recipes: Path):
    text = (recipes / "quickstart.toml").read_text()
    (recipes / "tight.toml").write_text(re.sub(r"(\[bundle\]\n)", '\\1max_size = "20 MB"\n', text))
    shutil.copy(recipes / "quickstart.lock", recipes / "tight.lock")
    done = plan_command(recipes / "tight.toml", "--json")
    assert done.returncode == 4, done.stderr
    found = json.loads(done.stdout)
    (remedy,) = (one for one in found["remedies"] if one["kind"] == "larger-stick")
    assert remedy["edits"][0] in done.stderr
    (recipes / "tight.toml").write_text(
        (recipes / "tight.toml").read_text().replace('max_size = "20 MB"', remedy["edits"][0][7:])
    )
    assert plan_command(recipes / "tight.toml", "--json").returncode == 0
