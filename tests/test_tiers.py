"""One bundle for several machines: the recipe's words, shared files, proofs and replans per tier."""

from __future__ import annotations

import json

import pytest

from bundler.compose import ModelPaths
from bundler.errors import DoesNotFit, ProofFailed, RecipeError
from bundler.plan import Memory
from bundler.planning.tiers import bundled_tiers, never_picked, recipe_digest, tier_notes, together
from bundler.recipe import Recipe
from bundler.recipe_file import parse_recipe, starter_recipe
from bundler.recipe_schema import recipe_schema
from bundler.station.configuration import read_bundle
from bundler.testing.fakes import FakeEngine
from bundler.verify import read_manifest, verify_bundle
from tests import fake_build
from tests.fake_build import fakes

HEAD = 'schema = 1\n[bundle]\nname = "many"\n'
CHAT = '[models.chat]\nsource = "path:chat"\n'
TWO = '[tiers.card]\nuse = "rtx-4090"\ntitle = "A card"\n[tiers.cpu]\nram = "8 GB"\n'


def problems(text):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text.encode())
    return [(problem.where.partition(":")[2], problem.message) for problem in caught.value.problems]


def hints(text):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text.encode())
    return [problem.hint for problem in caught.value.problems]


# -- the recipe ------------------------------------------------------------------------------------


def test_tiers_keep_the_order_of_the_file():
    recipe = parse_recipe((HEAD + TWO + CHAT).encode())
    assert list(recipe.targets) == ["card", "cpu"]
    assert recipe.tiers["card"].title == "A card"
    assert recipe.target is None


def test_a_recipe_for_one_machine_has_one_tier_without_a_name():
    recipe = parse_recipe((HEAD + '[target]\nram = "8 GB"\n' + CHAT).encode())
    assert list(recipe.targets) == [""]
    assert list(recipe.models_of("")) == ["chat"]


def test_a_model_may_be_kept_to_some_tiers():
    more = '[models.small]\nsource = "path:small"\ntiers = ["cpu"]\n'
    recipe = parse_recipe((HEAD + TWO + CHAT + more).encode())
    assert list(recipe.models_of("card")) == ["chat"]
    assert list(recipe.models_of("cpu")) == ["chat", "small"]


def test_a_recipe_names_a_machine_one_way_and_only_one():
    assert problems(HEAD + CHAT) == [("1:1", "target: is missing")]
    assert "[tiers.<name>] for several machines" in hints(HEAD + CHAT)[0]
    both = HEAD + '[target]\nram = "8 GB"\n' + TWO + CHAT
    assert problems(both) == [
        ("4:2", "target: stands beside [tiers.<name>]: which machine is meant?")
    ]
    assert "keep [target] for one machine" in hints(both)[0]


def test_every_wrong_word_about_tiers_has_its_place():
    models = '[models.chat]\nsource = "path:chat"\ntiers = ["card", "cpuu", "card"]\n'
    assert problems(HEAD + TWO + models) == [
        ("7:2", "tiers.cpu: a bundle would hold nothing for it"),
        ("11:18", "models.chat.tiers.1: there is no tier called 'cpuu'"),
        ("11:26", "models.chat.tiers.2: 'card' stands here twice"),
    ]
    assert hints(HEAD + TWO + models)[1] == "did you mean `cpu`?"


@pytest.mark.parametrize(
    ("text", "where", "said"),
    [
        ("[tiers.Big]\nram = '8 GB'\n", "4:2", "cannot be a name"),
        ("[tiers.con]\nram = '8 GB'\n", "4:2", "cannot be a name"),
        ("[tiers.big]\n", "4:2", "name a target with `use`"),
        ("[tiers.big]\nram = '8 GB'\nrom = 1\n", "6:1", "unknown key"),
        ("[tiers.big]\nram = '-8 GB'\n", "5:1", "not a size"),
        ("[tiers.big]\nram = '8 GB'\ntitle = '" + "x" * 201 + "'\n", "6:1", "at most 200"),
        ("[tiers]\n", "1:1", "is missing"),
        ("tiers = []\n", "4:1", "unknown key"),
        ("".join(f"[tiers.t{n}]\nram = '8 GB'\n" for n in range(17)), "4:2", "at most 16"),
    ],
)
def test_a_bad_tier_is_refused_at_its_place(text, where, said):
    found = problems(HEAD + text + CHAT)
    assert [message for place, message in found if place == where and said in message]


def test_tiers_of_a_model_say_nothing_in_a_recipe_for_one_machine():
    text = HEAD + '[target]\nram = "8 GB"\n' + CHAT + 'tiers = ["cpu"]\n'
    assert problems(text) == [("8:10", "models.chat.tiers.0: there is no tier called 'cpu'")]
    assert "for several, write [tiers.<name>]" in hints(text)[0]


def test_the_order_of_tiers_is_part_of_a_recipes_digest():
    first, second = "[tiers.a]\nram = '8 GB'\n", "[tiers.b]\nram = '4 GB'\n"
    one = parse_recipe((HEAD + first + second + CHAT).encode())
    two = parse_recipe((HEAD + second + first + CHAT).encode())
    assert recipe_digest(one) != recipe_digest(two)


def test_the_schema_demands_one_of_both():
    schema = recipe_schema()
    assert schema["oneOf"] == [{"required": ["target"]}, {"required": ["tiers"]}]
    assert "target" not in schema["required"]


def test_the_starter_shows_how_and_is_a_recipe_either_way():
    text = starter_recipe("clinic", "cpu-16gb")
    assert isinstance(parse_recipe(text.encode()), Recipe)
    several = text.replace('[target]\nuse = "cpu-16gb"', "#").replace("# [tiers", "[tiers")
    several = several.replace("# use =", "use =")
    assert list(parse_recipe(several.encode()).targets) == ["big", "small"]


# -- a bundle for two machines ---------------------------------------------------------------------

RECIPE = """\
schema = 1
[bundle]
name = "fake"
[tiers.big]
title = "A large computer"
ram = "1 GB"
[tiers.small]
ram = "300 MB"
[models.chat]
source = "memory:weights"
engine = "fake"
context_tokens = 64
[corpora.book]
kind = "fake"
source = "memory:book"
[runtime]
use = ["fake"]
"""


class RoomyEngine(FakeEngine):
    """The fake engine with models that take a thousand times their file: 512 or 102 MB."""

    def __init__(self, half_speed=1.0):
        super().__init__()
        self.half_speed = half_speed

    def offers(self, request, model, target, texts):
        return [
            offer.model_copy(update={"memory": Memory(
                weights_bytes=1000 * offer.memory.weights_bytes, kv_cache_bytes=0, compute_bytes=0,
            )})
            for offer in super().offers(request, model, target, texts)
        ]  # fmt: skip

    def run(self, task):
        if task.action == "quantize":
            self.runs.append(f"quantize by {task.parameters['keep_every']}")
        facts = super().run(task)
        if task.action == "prove":
            speed = self.half_speed if task.parameters["quant"] == "half" else 5.0
            facts["speed"]["generation_tokens_per_second"] = speed
            facts["speed"]["generated_tokens"] = 8
        return facts


def build(folder, recipe=RECIPE, engine=None):
    plugin = fakes()
    plugin.engine = engine or RoomyEngine()
    return fake_build.run(folder, plugin, recipe), plugin.engine


def station_of(built):
    return json.loads((built.output / "station.json").read_text())


def test_each_machine_gets_its_own_models_and_shares_the_rest(tmp_path):
    built, _ = build(tmp_path)
    manifest = read_manifest(built.output)
    assert [(m.name, m.tier, m.quant) for m in manifest.models] == [
        ("chat", "big", "half"), ("chat", "small", "tenth"),
    ]  # fmt: skip
    assert [(t.name, t.title, t.vram_bytes, t.ram_bytes) for t in manifest.tiers] == [
        ("big", "A large computer", 0, 512_007_000), ("small", "small", 0, 102_402_000),
    ]  # fmt: skip
    assert [file.path for file in manifest.files if file.path.startswith(("models", "corpora"))] == [
        "corpora/book.zim", "models/chat/chat-half.fake", "models/chat/chat-tenth.fake",
    ]  # fmt: skip
    assert {key[1]: proof.quality.kld_mean for key, proof in built.proofs.items()} == {
        "big": 0.01, "small": 0.1,
    }  # fmt: skip
    assert verify_bundle(built.output).findings == ()


def test_the_station_reads_what_was_planned(tmp_path):
    built, _ = build(tmp_path)
    bundle = read_bundle(built.output)
    assert [(t.name, t.title, t.ram_bytes) for t in bundle.tiers] == [
        ("big", "A large computer", 512_007_000), ("small", "small", 102_402_000),
    ]  # fmt: skip
    (chat,) = bundle.for_tier("small").models
    assert (chat.file, chat.gpu_layers) == ("models/chat/chat-tenth.fake", 0)


def test_machines_that_take_the_same_file_share_it_and_its_work(tmp_path):
    built, engine = build(tmp_path, RECIPE.replace("300 MB", "900 MB"))
    assert engine.runs == ["quantize by 2", "quantize", "prove"]
    models = read_manifest(built.output).models
    assert [(m.tier, m.file) for m in models] == [
        ("big", "models/chat/chat-half.fake"), ("small", "models/chat/chat-half.fake"),
    ]  # fmt: skip
    assert len([f for f in (built.output / "models").rglob("*") if f.is_file()]) == 1
    components = json.loads((built.output / "bom.cdx.json").read_text())["components"]
    (model,) = [c for c in components if c["type"] == "machine-learning-model"]
    assert [p["value"] for p in model["properties"]] == ["big", "small"]


def test_all_machines_are_planned_together_against_the_sticks_size(tmp_path):
    """Both files are 614 KB; without room for both, both machines take the small one, once."""
    sizes = [512_007, 102_402]
    fixed = _plan_of(tmp_path / "free", RECIPE).budgets
    disk = next(budget for budget in fixed if budget.name == "bundle on disk")
    other = disk.used_bytes - sum(sizes)
    assert other >= 0
    tight = RECIPE.replace('name = "fake"', f'name = "fake"\nmax_size = {other + sizes[0]}', 1)
    built, engine = build(tmp_path / "tight", tight)
    assert [m.quant for m in read_manifest(built.output).models] == ["tenth", "tenth"]
    assert engine.runs.count("quantize") == 1
    hopeless = RECIPE.replace('name = "fake"', f'name = "fake"\nmax_size = {other + 1}', 1)
    with pytest.raises(DoesNotFit):
        build(tmp_path / "hopeless", hopeless)


def _plan_of(folder, recipe):
    return build(folder, recipe)[0].plan


def test_a_model_for_some_machines_is_in_no_other(tmp_path):
    more = '[models.extra]\nsource = "memory:weights"\nengine = "fake"\ncontext_tokens = 64\n'
    built, _ = build(tmp_path, RECIPE + more + 'tiers = ["small"]\nquant = "tenth"\n')
    assert [(m.name, m.tier) for m in read_manifest(built.output).models] == [
        ("chat", "big"), ("chat", "small"), ("extra", "small"),
    ]  # fmt: skip
    # Two models of the same bytes are one file, too.
    files = {m.file for m in read_manifest(built.output).models}
    assert files == {"models/chat/chat-half.fake", "models/chat/chat-tenth.fake"}


def test_a_failed_proof_on_one_machine_leaves_the_other(tmp_path):
    gates = RECIPE.replace("[corpora", "gates = { min_tokens_per_second = 2 }\n[corpora", 1)
    gates = gates.replace("[corpora.book]", "[corpora.book]")
    built, engine = build(tmp_path, gates)
    assert [(m.tier, m.quant) for m in read_manifest(built.output).models] == [
        ("big", "tenth"), ("small", "tenth"),
    ]  # fmt: skip
    # Nothing was done twice: the small machine's model was finished before the large one's failed.
    assert sorted(engine.runs) == sorted(
        ["quantize by 2", "quantize", "prove", "quantize by 10", "quantize", "prove"]
    )


def test_a_failure_that_nothing_helps_names_the_machine(tmp_path):
    gates = RECIPE.replace("[corpora", "gates = { min_tokens_per_second = 6 }\n[corpora", 1)
    with pytest.raises(ProofFailed) as caught:
        build(tmp_path, gates)
    assert any("tiers.small" in f"{problem}" for problem in caught.value.problems)


def test_a_second_build_does_nothing_again(tmp_path):
    first, _ = build(tmp_path)
    second, engine = build(tmp_path)
    assert engine.runs == []
    assert second.manifest_sha256 == first.manifest_sha256


def test_the_pages_say_which_models_are_for_which_machine(tmp_path):
    built, _ = build(tmp_path, RECIPE.replace("A large computer", "A <b>large</b> computer"))
    readme = (built.output / "README.html").read_text()
    assert "A &lt;b&gt;large&lt;/b&gt; computer</td><td>488 MiB of memory</td>" in readme
    assert "chat (tenth)" in readme
    assert "<code>./start --tier small</code>" in readme
    report = (built.output / "report.html").read_text()
    assert "Which models for which computer" in report
    assert "<code>chat-tenth.fake</code>" in report
    assert "RAM of small" in report


def test_a_bundle_for_one_machine_has_one_set_without_a_name(tmp_path):
    one = RECIPE.replace('[tiers.big]\ntitle = "A large computer"', "[target]")
    one = one.replace('[tiers.small]\nram = "300 MB"\n', "")
    built, _ = build(tmp_path, one)
    (tier,) = station_of(built)["tiers"]
    assert (tier["name"], tier["ram_bytes"]) == ("", 512_007_000)
    assert station_of(built)["models"][0]["tier"] == ""
    assert "--tier" not in (built.output / "README.html").read_text()
    readme = (built.output / "README.html").read_text()
    assert "Made for a computer as its maker described it. The models need 488 MiB" in readme


def test_equal_bytes_have_one_place_and_other_bytes_never_the_same(tmp_path):
    plan = _plan_of(tmp_path, RECIPE)
    big, small = plan.choices
    alike = small.model_copy(update={"offer": big.offer})
    upper = big.offer.model_copy(update={"quant": "HALF"})
    paths = ModelPaths()
    assert [
        paths.path(big, "a" * 64),
        paths.path(alike, "b" * 64),
        paths.path(alike, "a" * 64),
        paths.path(alike, "c" * 64),
        paths.path(big.model_copy(update={"offer": upper}), "d" * 64),
    ] == [
        "models/chat/chat-half.fake",
        "models/chat/chat-half-small.fake",
        "models/chat/chat-half.fake",
        f"models/chat/chat-half-{'c' * 64}.fake",
        "models/chat/chat-HALF-big.fake",
    ]


# -- needs -----------------------------------------------------------------------------------------


def test_residents_add_up_and_the_largest_of_the_others_has_its_turn():
    assert together([]) == [0]
    assert together([(True, (1,)), (True, (2, 7))]) == [3, 7]
    assert together([(False, (5, 1)), (False, (2, 9)), (True, (1, 1))]) == [6, 10]


def test_a_set_that_stands_behind_a_smaller_one_is_told(tmp_path):
    turned = RECIPE.replace('ram = "1 GB"', 'ram = "200 MB"').replace("300 MB", "1 GB")
    plan = _plan_of(tmp_path, turned.replace("200 MB", "300 MB"))
    assert never_picked(bundled_tiers(plan)) == [("small", "big")]
    assert never_picked(bundled_tiers(_plan_of(tmp_path / "other", RECIPE))) == []


# -- what is said at once --------------------------------------------------------------------------


def test_a_set_that_no_machine_gets_is_a_note_of_the_plan(tmp_path):
    turned = RECIPE.replace('ram = "1 GB"', 'ram = "300 MB"').replace('"300 MB"\n[m', '"1 GB"\n[m')
    notes = _plan_of(tmp_path, turned).notes
    assert notes == (
        "tiers.small: no computer will get it, since what it needs is enough for big, which stands "
        "before it; put it first, leave it out, or name it at start",
    )


@pytest.mark.parametrize(
    ("drives", "said"),
    [
        ({}, "tiers.big: none of the recipe's runtimes can use cuda on linux-x86_64; the station"),
        ({"linux-x86_64": {"metal"}}, "tiers.big: none of the recipe's runtimes"),
        ({"linux-x86_64": {"cuda"}}, ""),
        ({"linux-x86_64": {"vulkan"}}, ""),
        (None, ""),
    ],
)
def test_an_accelerator_that_no_runtime_can_use_is_a_note_of_the_plan(tmp_path, drives, said):
    card = RECIPE.replace('ram = "1 GB"', 'use = "rtx-4090"')
    plan = _plan_of(tmp_path, card)
    found = tier_notes(plan, ["linux-x86_64"], [drives])
    assert [note[: len(said)] for note in found] == ([said] if said else [])
