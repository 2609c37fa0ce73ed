"""A model with its draft: the same answers, guesses counted as llama.cpp's server counts them."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bundler.builtin.llamacpp.child import run_child
from bundler.builtin.llamacpp.drafting.guessing import Answer, parted
from bundler.builtin.llamacpp.drafting.proving import TIE_LOGITS, drafting_of
from bundler.builtin.llamacpp.sharding import cut_offer
from bundler.errors import PluginError
from bundler.plan import Choice
from bundler.planning.drafts import draft_steps
from bundler.proof import Drafting
from bundler.proving import facts_in
from bundler.recipe_file import parse_recipe
from bundler.station.attempts import Attempt, attempts_of, beside, fallen_back
from bundler.station.configuration import DraftEntry, read_bundle
from bundler.station.problems import StationError
from bundler.store import StoredResult
from tests.demo import CACHE, ROOT, bundler, demo_bundle
from tests.models import Shape, tiny_gguf
from tests.test_offers import offers
from tests.test_runtime import Server
from tests.test_station_configuration import GOOD, write

TEXTS = ("What is a bird?", "A river is", "How do I stop bleeding?")


def answers(model: Path, draft: Path, texts: tuple[str, ...] = TEXTS, tokens: int = 40):
    return run_child(
        "tests.drafting_jobs:answers",
        {"model": str(model), "draft": str(draft), "texts": list(texts), "tokens": tokens},
        environment=os.environ,
    )  # fmt: skip


# -- guessing --------------------------------------------------------------------------------------


def test_a_models_own_copy_guesses_everything_and_a_strangers_guesses_change_no_answer():
    model = tiny_gguf(Shape(seed=1))
    for found in answers(model, model):
        assert found["accepted"] == found["drafted"] > 0
        assert found["pair"] == found["own"]
    strangers = answers(model, tiny_gguf(Shape(seed=2)))
    for found in strangers:
        assert found["pair"] == found["own"]
        assert found["parted"] is None
    assert sum(found["accepted"] for found in strangers) < sum(f["drafted"] for f in strangers) / 2


def test_every_token_is_a_guess_that_was_right_or_one_of_the_models_own():
    for found in answers(tiny_gguf(Shape(seed=1)), tiny_gguf(Shape(seed=3)), tokens=33):
        assert len(found["pair"]) - 1 == found["accepted"] + found["passes"]
        assert found["drafted"] <= 3 * found["passes"]


def rows_of(*rows: list[float]) -> list[Any]:
    return [np.asarray(row, np.float32) for row in rows]


def test_where_answers_part_it_is_said_how_sure_the_model_was():
    own = Answer([0, 1], rows_of([1, 0, 0], [0, 2.5, 2]))
    assert parted(own, Answer([0, 1])) is None
    assert parted(own, Answer([0, 2])) == pytest.approx(0.5)
    assert parted(own, Answer([0])) == float("inf")


FOUND = {"answers": 3, "asked": 3, "looping": 1, "tokens": 40, "drafted": 60, "accepted": 20,
         "passes": 20, "gaps": []}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "ties", "different", "note"),
    [
        ({}, 0, 0, ""),
        ({"gaps": [TIE_LOGITS / 2]}, 1, 0, ""),
        ({"gaps": [TIE_LOGITS * 2, None]}, 0, 2, "not its own"),
        ({"answers": 2}, 0, 0, "2 of 3 questions"),
        ({"looping": 3, "drafted": 0}, 0, 0, "is not known"),
    ],
)
def test_an_answer_that_is_not_the_models_own_is_told_from_a_tie(changes, ties, different, note):
    drafting = drafting_of({**FOUND, **changes}, "0" * 64)
    assert (drafting.ties, drafting.different) == (ties, different)
    assert note in " ".join(drafting.notes)
    assert bool(drafting.notes) == bool(note)


def test_figures_of_a_draft_are_shares():
    drafting = drafting_of(FOUND, "0" * 64)
    assert drafting.acceptance == pytest.approx(1 / 3)
    assert drafting.tokens_per_pass == 2
    nothing = drafting_of({**FOUND, "drafted": 0, "passes": 0}, "0" * 64)
    assert (nothing.acceptance, nothing.tokens_per_pass) == (0, 0)


# -- the whole way ---------------------------------------------------------------------------------

RECIPE = """
schema = 1
[bundle]
name = "pair"
platforms = ["linux-x86_64"]
[target]
use = "cpu-8gb"
[models.chat]
source = "path:../examples/model"
quant = "Q8_0"
kv_cache = "f16"
context_tokens = 1024
draft = "small"
licence = "GPL-3.0-or-later"
[models.small]
role = "draft"
source = "path:../examples/model"
quant = "Q4_K_M"
importance_matrix = "none"
licence = "GPL-3.0-or-later"
[verify]
long_tokens = 0
tokens = 1024
"""


@functools.cache
def pair_bundle() -> Path:
    """Return the bundle of the embedded example with a smaller quantization of it as its draft."""
    demo_bundle()  # its store has the runtime
    folder = Path(tempfile.mkdtemp(prefix="bundler-pair-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    shutil.copytree(ROOT / "examples", folder / "examples")
    (folder / "recipes").mkdir()
    recipe = folder / "recipes" / "pair.toml"
    recipe.write_text(RECIPE)
    for words in (("lock", recipe), ("build", recipe, "--output", folder / "pair")):
        done = bundler(*words, "--store", CACHE / "store")
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "pair"


def test_a_pair_is_proved_bundled_and_described_to_the_station():
    root = pair_bundle()
    manifest = json.loads((root / "manifest.json").read_text())
    chat, small = manifest["models"]
    assert chat["draft"] == "small"
    assert "draft" not in small
    found = Drafting.model_validate(chat["proof"]["drafting"])
    assert found.draft_sha256 == small["proof"]["model_sha256"]
    assert found.different == 0
    assert 0 < found.accepted < found.drafted, "a quantization of a model is no copy of it"
    assert found.answers > found.looping
    (entry,) = json.loads((root / "station.json").read_text())["models"]
    assert entry["draft"] == {
        "file": small["file"],
        "gpu_layers": -1,
        "kv_cache": small["kv_cache"],
    }
    report = (root / "report.html").read_text()
    assert f"{100 * found.acceptance:.1f} %" in report


def ask(server: Server, text: str) -> dict[str, Any]:
    body = {"prompt": text, "n_predict": 40, "temperature": 0, "cache_prompt": False}
    status, answer, _ = server.ask("POST", "/completion", body)
    assert status == 200, answer
    return dict(answer)


def test_guesses_are_counted_as_llama_cpps_own_server_counts_them():
    root = pair_bundle()
    (entry,) = json.loads((root / "station.json").read_text())["models"]
    model, draft = root / entry["file"], root / entry["draft"]["file"]
    ours = answers(model, draft)
    with Server(model) as server:
        plain = [ask(server, text)["content"] for text in TEXTS]
    with Server(model, more=("--draft", str(draft), "--draft-kv-cache", "f16")) as server:
        for text, said, found in zip(TEXTS, plain, ours, strict=True):
            paired = ask(server, text)
            assert paired["content"] == said
            # A server that guessed nothing, since the answer ended at once, does not name guesses.
            counted = [paired["timings"].get(name, 0) for name in ("draft_n", "draft_n_accepted")]
            assert counted == [found["drafted"], found["accepted"]]
        assert sum(found["accepted"] for found in ours)


def test_a_server_whose_draft_is_damaged_ends_with_a_reason(tmp_path):
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"GGUF and nothing more")
    code, said = Server(tiny_gguf(), more=("--draft", str(bad))).end()
    assert code == 4, said


# -- steps -----------------------------------------------------------------------------------------


def choices_of(*names: str, **more: Any) -> list[Choice]:
    return [
        Choice(model=name, role="chat", offer=offers(quant="Q4_K_M", kv_cache="f16", **more)[0],
               runner_up=None, reason="")
        for name in names
    ]  # fmt: skip


def test_a_pair_is_proved_by_the_files_of_both_and_the_text_that_is_written_on():
    recipe = parse_recipe(RECIPE.encode())
    (step,) = draft_steps(recipe, choices_of("chat", "small"))
    assert step.name == "models/chat/draft"
    assert step.inputs["model.gguf"].step == "models/chat/quantize"
    assert step.inputs["draft.gguf"].step == "models/small/quantize"
    assert set(step.inputs) == {"model.gguf", "draft.gguf", "heldout.txt"}
    assert step.parameters["draft_kv_cache"] == "f16"
    assert list(draft_steps(recipe, choices_of("chat"))) == []
    assert list(draft_steps(recipe, choices_of("small"))) == []


def test_a_pair_that_is_cut_for_a_stick_is_proved_before_it_is_cut():
    whole = choices_of("chat", "small")
    cut = [
        choice.model_copy(update={"offer": cut_offer(choice.offer, 2 << 30)}) for choice in whole
    ]  # fmt: skip
    recipe = parse_recipe(RECIPE.encode())
    assert [s.inputs for s in draft_steps(recipe, cut)] == [
        s.inputs for s in draft_steps(recipe, whole)
    ]


def test_facts_that_are_no_measurement_of_a_draft_are_the_plugins_fault():
    (step,) = draft_steps(parse_recipe(RECIPE.encode()), choices_of("chat", "small"))
    with pytest.raises(PluginError, match="no measurement of a draft"):
        facts_in(StoredResult({}, {"drafted": 1}), step, Drafting, "measurement of a draft")


# -- the station -----------------------------------------------------------------------------------

DRAFT = {"file": "models/small.gguf", "kv_cache": "q8_0", "gpu_layers": -1}
WORDS = ["--draft", "{file}", "--kv", "{kv_cache}", "--layers", "{gpu_layers}"]


def put_up(
    root: Path, *, words: list[str] | None = WORDS, files: tuple[str, ...] = ("chat", "small")
):
    write(root, {**GOOD, "models": [{**GOOD["models"][0], "draft": DRAFT}], "runtimes": ["one"]})
    (root / "models").mkdir()
    for name in files:
        (root / "models" / f"{name}.gguf").write_bytes(b"GGUF")
    folder = root / "runtime" / "linux-x86_64"
    folder.mkdir(parents=True)
    described = {"command": ["x", "{gpu_layers}"], **({"draft": words} if words else {})}
    (folder / "one.json").write_text(json.dumps(described))
    bundle = read_bundle(root)
    return bundle, bundle.models[0]


def tried(attempts: list[Attempt]) -> list[tuple[int, bool]]:
    return [(attempt.gpu_layers, attempt.draft is not None) for attempt in attempts]


def test_a_model_is_tried_with_its_draft_and_then_without(tmp_path):
    bundle, entry = put_up(tmp_path)
    assert entry.draft == DraftEntry("models/small.gguf", "q8_0", -1)
    attempts = attempts_of(entry, bundle, "linux-x86_64")
    assert tried(attempts) == [(-1, True), (-1, False), (0, True), (0, False)]
    assert beside(entry, attempts[0], tmp_path) == [
        "--draft", str(tmp_path / "models/small.gguf"), "--kv", "q8_0", "--layers", "-1",
    ]  # fmt: skip
    assert beside(entry, attempts[1], tmp_path) == []
    assert beside(entry, attempts[2], tmp_path)[-1] == "0", "it goes where its model goes"
    said = [fallen_back(entry, attempts[0], attempt, "no room") for attempt in attempts]
    assert said[0] == ""
    assert said[1].endswith("runs without its draft model, so more slowly: no room.")
    assert "without a graphics card: no room" in said[2]
    assert "without a graphics card and without its draft model" in said[3]


@pytest.mark.parametrize("more", [{"words": None}, {"files": ("chat",)}])
def test_without_the_drafts_file_or_a_runtime_that_drafts_it_runs_alone_and_says_so(more, tmp_path):
    bundle, entry = put_up(tmp_path, **more)
    attempts = attempts_of(entry, bundle, "linux-x86_64")
    assert tried(attempts) == [(-1, False), (0, False)]
    assert "without its draft model" in fallen_back(entry, attempts[0], attempts[0], "")


def test_a_hostile_draft_is_refused_by_name(tmp_path):
    for draft, said in (
        (7, "models[0].draft"), ({**DRAFT, "file": "../../x"}, "models[0].draft.file"),
        ({**DRAFT, "gpu_layers": -2}, "models[0].draft.gpu_layers"),
    ):  # fmt: skip
        write(tmp_path, {**GOOD, "models": [{**GOOD["models"][0], "draft": draft}]})
        with pytest.raises(StationError) as caught:
            read_bundle(tmp_path)
        assert said in str(caught.value.problems)
