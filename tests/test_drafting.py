"""Models that draft for others: what a recipe may say of them, and what both take of memory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from bundler.builtin.llamacpp.caches import kv_cache_bytes
from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.drafting.counting import DRAFTED_TOKENS
from bundler.builtin.llamacpp.engine import LlamaCppEngine
from bundler.builtin.llamacpp.graph.backends import DEVICES
from bundler.builtin.llamacpp.graph.reserve import compute_buffers
from bundler.builtin.llamacpp.graph.shape import Run
from bundler.builtin.llamacpp.offers import make_offers
from bundler.builtin.llamacpp.placement import place_weights, placement_of
from bundler.builtin.llamacpp.placements import placed_ways
from bundler.builtin.llamacpp.vocabularies import Vocabulary, difference
from bundler.errors import DoesNotFit, RecipeError
from bundler.hardware import Target
from bundler.lock import LockedFile, LockedModel, Resolution
from bundler.plan import Memory
from bundler.recipe import PairedDraft, Recipe
from bundler.recipe_file import parse_recipe
from bundler.resolve import request_digest
from bundler.store import hash_file
from tests.memory_cases import CARD, CPU, SHAPES, types_of
from tests.models import Shape, tiny_gguf
from tests.published_shapes import Cell, cell
from tests.shapes import write_header_gguf
from tests.test_offers import TEXTS, model_of

HEAD = 'schema = 1\n[bundle]\nname = "x"\n[target]\nuse = "rtx-4090"\n'


def recipe_of(text: str) -> Recipe:
    return parse_recipe((HEAD + text).encode())


def model(name: str, rest: str = "") -> str:
    return f'[models.{name}]\nsource = "path:{name}"\n{rest}'


SMALL = model("small", 'role = "draft"\n')
PAIR = (
    model("chat", 'draft = "small"\ncontext_tokens = 8192\nparallel = 2\n')
    + SMALL
)  # fmt: skip


# -- recipes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "said", "hint"),
    [
        (model("chat", 'draft = "smal"\n') + SMALL, "8:1", "there is no model called 'smal'",
         "did you mean `small`?"),
        (model("chat", 'draft = "chat"\n'), "8:1", "a model cannot draft for itself", ""),
        (model("chat", 'draft = "b"\n') + model("b"), "8:1", "'b' is not a draft", "role = \"draft\""),
        (model("chat", 'draft = "small"\n') + model("small", 'role = "draft"\ndraft = "chat"\n'),
         "12:1", "models.small.draft: is for models that answer", ""),
        (model("chat", 'draft = "small"\n') + model("b", 'draft = "small"\n') + SMALL,
         "11:1", "drafts for models.chat already", "name another one"),
        (model("chat", 'draft = "small"\noptional = true\n') + SMALL, "8:1", "may be left out", ""),
        (model("chat", 'draft = "small"\n') + SMALL + "parallel = 2\n", "12:1",
         "models.small.parallel: a draft has it from the model it drafts for, models.chat",
         "leave it out"),
        (model("chat", 'draft = "small"\n') + SMALL + 'engine = "other"\n', "8:1",
         "made by another engine", "models.small.engine"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_draft_is_said_with_its_place(text, where, said, hint):
    with pytest.raises(RecipeError) as caught:
        recipe_of(text)
    (problem,) = caught.value.problems
    assert problem.where == f"recipe.toml:{where}"
    assert said in problem.message
    assert hint in problem.hint


def test_all_that_is_wrong_with_drafts_is_said_at_once():
    with pytest.raises(RecipeError) as caught:
        recipe_of(
            model("a", 'draft = "a"\n') + model("b", 'draft = "no"\n')
            + model("c", 'draft = "small"\n') + SMALL + 'residency = "resident"\n'
        )  # fmt: skip
    assert len(caught.value.problems) == 3


def test_a_draft_is_asked_for_what_its_model_is_asked_for():
    recipe = recipe_of(PAIR)
    draft = recipe.request_of("small")
    assert isinstance(draft, PairedDraft)
    assert (draft.context_tokens, draft.parallel, draft.drafts_for) == (8192, 2, "chat")
    assert recipe.models_of("")["small"] == draft
    assert recipe.request_of("chat") == recipe.models["chat"]


def test_a_draft_that_nobody_names_is_a_model_like_others():
    recipe = recipe_of(SMALL)
    assert recipe.request_of("small") == recipe.models["small"]


def test_a_draft_goes_where_its_model_goes():
    tiers = '[tiers.big]\nuse = "rtx-4090"\n[tiers.little]\nuse = "cpu-16gb"\n'
    text = model("chat", 'draft = "small"\ntiers = ["big"]\n') + SMALL + model("other")
    recipe = parse_recipe(f'schema = 1\n[bundle]\nname = "x"\n{tiers}{text}'.encode())
    assert set(recipe.models_of("big")) == {"chat", "small", "other"}
    assert set(recipe.models_of("little")) == {"other"}


def test_a_lock_without_drafts_keeps_its_digest_and_one_with_drafts_has_another():
    plain = recipe_of(model("chat") + SMALL)
    paired = recipe_of(model("chat", 'draft = "small"\n') + SMALL)
    assert (
        request_digest(plain) == "34449d00914de1cb75e7bb4d3ed0b7ec1aceb1097455a70a55c332ab2157a6c9"
    )
    assert request_digest(paired) != request_digest(plain)


# -- vocabularies ----------------------------------------------------------------------------------

WORDS = tuple(f"w{n}".encode() for n in range(1000))
VOCABULARY = Vocabulary("gpt2", 1, None, WORDS)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (VOCABULARY, ""),
        (replace(VOCABULARY, tokens=WORDS[:872]), ""),
        (replace(VOCABULARY, tokens=(*WORDS, *WORDS[:128])), ""),
        (replace(VOCABULARY, tokens=(b"other", *WORDS[1:])), ""),
        (replace(VOCABULARY, tokens=WORDS[:871]), "871 tokens and the model 1,000"),
        (replace(VOCABULARY, kind="llama"), "of the kind 'llama'"),
        (replace(VOCABULARY, first=None), "begin with no token of their own"),
        (replace(VOCABULARY, last=2), "end with token 2"),
        (replace(VOCABULARY, tokens=(*WORDS[:5], b"x", *WORDS[6:])), "its token 5 is 'x'"),
    ],
)
def test_a_draft_must_have_its_models_vocabulary_but_for_a_tail(other, said):
    found = difference(VOCABULARY, other)
    assert (said in found) if said else not found


def located(path: Path) -> tuple[Resolution, object]:
    file = LockedFile(path=path.name, size_bytes=path.stat().st_size, sha256=hash_file(path))
    found = Resolution(source="path", reference=f"path:{path.name}", revision="1", files=(file,))

    def read(file: LockedFile, start: int, length: int) -> bytes:
        return path.read_bytes()[start : start + length]

    return found, read


def test_vocabularies_are_read_from_headers():
    large, small = tiny_gguf(Shape(layers=3)), tiny_gguf(Shape(layers=1))
    LlamaCppEngine().check_draft(*located(large), *located(small))
    with pytest.raises(RecipeError, match="1,024 tokens and the model 512"):
        LlamaCppEngine().check_draft(*located(large), *located(tiny_gguf(Shape(vocabulary=1024))))


# -- memory ----------------------------------------------------------------------------------------

CELLS = (cell(4096, "f16", True, 512, 1), cell(8192, "q8_0", True, 512, 4))


def theirs(folder: Path, each: Cell, models: list[tuple[str, str]], **more: int):
    """Let llama.cpp account for a model and its draft, opened together as a server opens them."""
    users, asked = each["parallel"], []
    for number, (name, kv_cache) in enumerate(models):
        path = folder / f"{number}.gguf"
        write_header_gguf(path, SHAPES[name], types_of(SHAPES[name]))
        asked.append([str(path), users * (1 if number else 1 + DRAFTED_TOKENS), kv_cache])
    return run_child(
        "tests.drafting_jobs:pair_breakdown", {"models": asked, "cell": each, **more},
        environment=os.environ,
    )  # fmt: skip


@pytest.mark.parametrize("each", CELLS, ids=["one user", "four users"])
@pytest.mark.parametrize(
    ("main", "draft"), [("Qwen2.5-14B", "Qwen2.5-0.5B"), ("Llama-3-8B", "Llama-3.2-1B")]
)
@pytest.mark.parametrize("devices", [0, 1])
def test_a_model_and_its_draft_take_what_llama_cpp_says(
    main: str, draft: str, each: Cell, devices: int, tmp_path: Path
):
    models = [(main, each["kv_cache"]), (draft, "f16")]
    more = {"devices": devices, "gpu_layers": -1 if devices else 0}
    target = Target(name="x", ram_bytes=1, accelerator="cuda") if devices else CPU
    plain = replace(DEVICES["cuda"], fuses=False)
    rows = [each["parallel"] * (1 + DRAFTED_TOKENS), each["parallel"]]
    answers = theirs(tmp_path, each, models, **more)
    for (name, kv_cache), outputs, found in zip(models, rows, answers, strict=True):
        facts = SHAPES[name]
        run = Run(**{**each, "kv_cache": kv_cache, "output_rows": outputs})
        placement = placement_of(facts, -1, target)
        if devices:
            placement = replace(placement, device=plain)
        types = types_of(facts)
        placed = place_weights(facts, types, gpu_layers=-1, target=target)
        weights = [*([placed.device_bytes] if devices else []), placed.host_bytes]
        caches = sum(kv_cache_bytes(facts, run, *([plain] if devices else [])))
        exact = compute_buffers(facts, run, placement, types)
        planned = compute_buffers(facts, replace(run, output_rows=0), placement, types)
        names = [*(f"PRETENDED{n}" for n in range(devices)), "CPU"]
        assert [found[one][0] for one in names] == weights
        assert found[names[0]][1] == caches
        assert [found[one][2] for one in names] == list(exact)
        assert all(ours >= real for ours, real in zip(planned, exact, strict=True))


def ways(name: str, request, target: Target):
    locked = LockedModel(resolution=model_of("Qwen/Qwen2.5-7B-Instruct").resolution,
                         facts=SHAPES[name])  # fmt: skip
    return list(placed_ways(request, locked, types_of(SHAPES[name]), ["f16"], target))


@pytest.mark.parametrize("target", [CARD, CPU], ids=["card", "cpu"])
def test_a_checked_word_costs_a_row_and_a_shared_process_counts_once(target: Target):
    paired, alone = recipe_of(PAIR), recipe_of(PAIR.replace('draft = "small"\n', ""))
    (with_draft,) = ways("Qwen2.5-14B", paired.request_of("chat"), target)
    (without,) = ways("Qwen2.5-14B", alone.request_of("chat"), target)
    more = everything(with_draft.memory) - everything(without.memory)
    assert more == 4 * SHAPES["Qwen2.5-14B"].vocabulary * 2 * DRAFTED_TOKENS
    (draft,) = ways("Qwen2.5-0.5B", paired.request_of("small"), target)
    by_itself = ways(
        "Qwen2.5-0.5B",
        alone.models["small"].model_copy(update={"context_tokens": 8192, "parallel": 2}),
        target,
    )[0]
    saved = everything(by_itself.memory) - everything(draft.memory)
    assert saved == (586 << 20 if target is CARD else 256 << 20)
    assert draft.memory.weights_bytes == by_itself.memory.weights_bytes
    assert draft.memory.kv_cache_bytes == by_itself.memory.kv_cache_bytes


def everything(memory: Memory) -> int:
    return memory.total_bytes + memory.host_bytes


def test_a_draft_follows_its_model_onto_the_cpu_and_no_half_way():
    floor = "min_tokens_per_second = 1\n"
    recipe = recipe_of(model("chat", f'draft = "small"\n{floor}') + SMALL)
    layers = {way.gpu_layers for way in ways("Qwen2.5-14B", recipe.request_of("chat"), CARD)}
    assert 0 not in layers
    assert [w.gpu_layers for w in ways("Qwen2.5-0.5B", recipe.request_of("small"), CARD)] == [-1]
    on_cpu = recipe_of(model("chat", 'draft = "small"\nplacement = "cpu"\n') + SMALL)
    for name, shape in (("chat", "Qwen2.5-14B"), ("small", "Qwen2.5-0.5B")):
        assert [w.gpu_layers for w in ways(shape, on_cpu.request_of(name), CARD)] == [0]


def test_a_model_that_cannot_forget_words_gets_no_draft():
    recipe = recipe_of(PAIR)
    with pytest.raises(RecipeError, match="cannot forget single words"):
        ways("Granite-4.0-H-Tiny", recipe.request_of("chat"), CARD)


def test_a_draft_that_was_made_for_less_context_than_its_model_has_is_refused():
    recipe = recipe_of(PAIR)
    small = model_of("Qwen/Qwen2.5-7B-Instruct", facts={"context_tokens": 2048})
    with pytest.raises(DoesNotFit, match=r"drafts for models\.chat with its context of 8,192"):
        make_offers(recipe.request_of("small"), small, CARD, TEXTS)
