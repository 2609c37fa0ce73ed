"""What a new user meets: where a problem is, in whose words, what to type next, and no needless line."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler import events
from bundler.command_order import PANELS
from bundler.console import Screen
from bundler.errors import BusyError, DoesNotFit, LockError, Problem, SourceError
from bundler.events import Note
from bundler.execute import _progress
from bundler.machine.as_target import gibibytes
from bundler.media.copies import check_is_bundle
from bundler.recipe_places import placed
from bundler.store import Store
from bundler.turns import turn
from bundler.value import format_bytes, format_size
from bundler.world import World
from tests.demo import bundler, demo_bundle, quickstart

RECIPE = """\
schema = 1
[bundle]
name = "b"
max_size = "1.5 GB"
[target]
use = "cpu-8gb"
ram = "0.3 GB"
[tiers.small]
use = "rtx-4090"
[models.chat]
source = "hf:some/model"
context_tokens = 131_072
quant = ["Q8_0", "Q6_K"]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "r.toml"
    path.write_text(RECIPE)
    return path


# -- where a problem is ------------------------------------------------------------------------------


@pytest.mark.parametrize(("problem", "said"), [
    (Problem("too small", key="target.ram"), '7:1: target.ram = "0.3 GB": too small'),
    (Problem("too small", key="bundle.max_size"), '4:1: bundle.max_size = "1.5 GB": too small'),
    (Problem("too long", key="models.chat.context_tokens"),
     "12:1: models.chat.context_tokens = 131072: too long"),
    (Problem("no", key="models.chat.quant"), '13:1: models.chat.quant = ["Q8_0", "Q6_K"]: no'),
    # The figure is the catalogue's, so the place is where the catalogue is named.
    (Problem("too small", key="tiers.small.usable_vram"), '9:1: tiers.small.use = "rtx-4090": too'),
    # The key is not there: the table that it would stand in.
    (Problem("no", key="models.chat.kv_cache"), "10:2: models.chat.kv_cache: no"),
    (Problem("target.use: not known"), '6:1: target.use = "cpu-8gb": not known'),
    (Problem("changed", "models.chat"), "10:2: models.chat: changed"),
])  # fmt: skip
def test_a_problem_has_its_line_and_the_value_as_it_was_written(recipe, problem, said):
    (found,) = placed(DoesNotFit([problem]), recipe).problems
    assert str(found).startswith(f"{recipe}:{said}")
    assert str(found).count(found.key) == 1


@pytest.mark.parametrize("problem", [
    Problem("the disk is full", "/somewhere"), Problem("nothing fits"), Problem("x.y: z"),
    Problem("cannot be read", "https://host/file", key="models.chat.source"),
])  # fmt: skip
def test_a_problem_that_is_elsewhere_keeps_its_own_place(recipe, problem):
    error = DoesNotFit([problem])
    assert placed(error, recipe) is error


def test_what_else_an_error_carries_stays(recipe):
    error = DoesNotFit([Problem("no", key="target.ram")])
    error.more = "kept"
    assert placed(error, recipe).more == "kept"
    assert placed(error, recipe.parent / "gone.toml") is error


def test_a_stale_lock_has_the_command_that_makes_it_anew(recipe):
    (problem,) = placed(LockError("is not the file that was locked", where="a.md"), recipe).problems
    assert problem.hint.endswith(f"bundler lock {recipe}")


# A value that nobody would want to read whole, or that would break a line, is not shown.
@given(st.text(max_size=300))
def test_whatever_stands_in_a_recipe_a_problem_has_one_line(text):
    path = Path(f"{id(text)}.toml")  # never read: the document is given below
    document = f"[target]\nram = {json.dumps(text)}\n"
    from bundler.recipe_file import find_places
    from bundler.recipe_places import _Given

    given_ = _Given(find_places(document.encode()), {"target": {"ram": text}}, str(path))
    found = given_.placed(Problem("too small", key="target.ram"))
    assert found.message.isprintable()
    assert len(found.message) < 200


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """Return the quickstart recipe with one change; its lock still fits it."""
    original = quickstart()
    text = original.read_text()
    assert old in text
    shutil.copytree(original.parents[1] / "examples", tmp_path / "examples")
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "r.toml").write_text(text.replace(old, new))
    shutil.copy(original.with_suffix(".lock"), folder / "r.lock")
    return folder / "r.toml"


def plan(path: Path, *words: str):
    return bundler("plan", path, "--store", path.parents[1] / "store", "--offline", *words)


def line_of(path: Path, start: str) -> int:
    lines = path.read_text().splitlines()
    return 1 + next(n for n, line in enumerate(lines) if line.startswith(start))


@pytest.mark.parametrize(("old", "new", "key", "said", "hint"), [
    ("context_tokens = 1024", "context_tokens = 99_999", "context_tokens = 99_999",
     "models.chat.context_tokens = 99999: the recipe asks for a context of 99,999 tokens, ",
     "context_tokens = 1024"),
    ('use = "cpu-8gb"', 'ram = "0.3 GB"', "ram =", 'target.ram = "0.3 GB": does not fit: even the '
     "smallest choices need ", 'target.ram = "0.'),
    ('name = "quickstart"', 'name = "quickstart"\nmax_size = "20 MB"', "max_size =",
     'bundle.max_size = "20 MB": does not fit: ', 'bundle.max_size = "0.'),
    ('"Q6_K"', '"Q99"', "quant =", 'models.chat.quant = ["Q8_0", "Q99", "Q4_K_M"]: llama.cpp has no '
     "quantization 'Q99'", "did you mean"),
])  # fmt: skip
def test_what_cannot_be_planned_says_where_in_which_words_and_what_helps(
    tmp_path, old, new, key, said, hint
):
    path = changed(tmp_path, old, new)
    done = plan(path)
    assert done.returncode in (2, 4)
    assert f"{path}:{line_of(path, key)}:1: {said}" in done.stderr
    assert hint in done.stderr.partition("hint:")[2] or hint == "did you mean"
    assert "hint:" in done.stderr


def test_a_folder_that_is_not_there_is_the_recipes_problem(tmp_path):
    path = changed(tmp_path, "path:../examples/handbook", "path:../examples/hand")
    path.with_suffix(".lock").unlink()
    done = bundler("lock", path, "--store", tmp_path / "store")
    assert done.returncode == 2
    line = line_of(path, 'source = "path:../examples/hand')
    where = f"{path}:{line}:1"
    assert f'{where}: corpora.handbook.source = "path:../examples/hand": there is no' in done.stderr
    shutil.copy(quickstart().with_suffix(".lock"), path.with_suffix(".lock"))
    (tmp_path / "examples/model").rename(tmp_path / "examples/elsewhere")
    path.write_text(quickstart().read_text())
    done = plan(path)
    assert done.returncode == 2
    assert "models.chat.source" in done.stderr


def test_a_changed_file_makes_the_lock_stale_and_is_no_damage(tmp_path):
    path = changed(tmp_path, "tokens = 2048", "tokens = 2048")
    document = next((tmp_path / "examples/handbook").rglob("*.md"))
    document.write_text(document.read_text() + "\nOne more line.\n")
    done = plan(path)
    assert done.returncode == 3
    assert (
        f"corpora.handbook: {document.relative_to(tmp_path / 'examples/handbook')}" in done.stderr
    )
    words = ("--store", tmp_path / "store", "--output", tmp_path / "out", "--offline", "--frozen")
    done = bundler("build", path, *words)
    assert done.returncode == 3, done.stderr
    assert "is not the file that was locked" in done.stderr
    assert f"bundler lock {path}" in done.stderr
    assert "damage" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_lock_in_the_place_of_a_recipe_is_recognised(tmp_path):
    path = changed(tmp_path, "tokens = 2048", "tokens = 2048")
    done = plan(path.with_suffix(".lock"))
    assert done.returncode == 2
    assert "is a lock" in done.stderr
    assert f"give the recipe: {path}" in done.stderr


# -- what is no bundle -------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [("verify",), ("repair",), ("serve",), ("doctor", "--bundle")])
def test_what_was_never_a_bundle_is_a_slip_for_every_command(tmp_path, words):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    for place in (tmp_path, tmp_path / "nowhere", tmp_path / "holiday.jpg"):
        done = bundler(*words, place)
        assert done.returncode == 2, done.stderr
        assert "not a bundle" in done.stderr
        assert "hint:" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_folder_beside_the_bundle_names_the_one_that_is_in_it(tmp_path):
    (tmp_path / "clinic").mkdir()
    (tmp_path / "clinic/manifest.json").write_text("{}")
    with pytest.raises(Exception, match="not a bundle") as caught:
        check_is_bundle(tmp_path)
    assert caught.value.problems[0].hint == f"did you mean {tmp_path / 'clinic'}?"


@pytest.mark.parametrize("words", [("verify",), ("serve",), ("repair",)])
def test_a_bundle_that_lost_its_manifest_is_damaged(tmp_path, words):
    (tmp_path / "SHA256SUMS").write_text("")
    done = bundler(*words, tmp_path)
    assert done.returncode == 6
    assert "manifest" in done.stderr


def test_verify_names_the_bundle_once_and_each_file_on_a_line(tmp_path):
    bundle = tmp_path / "copy"
    shutil.copytree(demo_bundle(), bundle)
    (bundle / "start").unlink()
    (bundle / "README.html").write_text("x")
    (bundle / "diary.txt").write_text("x")
    done = bundler("verify", bundle)
    assert done.returncode == 6
    first, *rest = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert f"{bundle}: quickstart 1: 2 of " in first
    assert "one is not of it" in first
    assert not any(str(bundle) in line for line in rest)
    assert {line.split()[2] for line in rest} == {"start", "README.html", "diary.txt"}
    hints = [line for line in done.stderr.splitlines() if line.startswith("hint:")]
    assert len(hints) == 2
    repaired = bundler("repair", bundle).stdout
    assert "2 blocks are damaged, parity/" in repaired or "1 block is damaged" in repaired
    assert "can bring back" in repaired


# -- lines -------------------------------------------------------------------------------------------


def test_a_step_that_ends_soon_has_one_line(capsys):
    with Screen("plain") as screen:
        screen.report(events.StepStarted("lock models.chat"))
        screen.report(events.StepFinished("lock models.chat", "done", "10 MB"))
    assert capsys.readouterr().err.splitlines() == ["✓ lock models.chat  10 MB"]


def test_a_long_step_says_that_it_began(capsys, monkeypatch):
    monkeypatch.setattr("bundler.console.PLAIN_AFTER_SECONDS", 0.01)
    with Screen("plain") as screen:
        screen.report(events.StepStarted("prove"))
        deadline = time.monotonic() + 20
        while "…" not in (said := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
        screen.report(events.StepFinished("prove", "done", "9 s"))
    assert said.strip() == "prove …"


def test_what_was_locked_is_said_in_words(tmp_path):
    path = changed(tmp_path, "tokens = 2048", "tokens = 2048")
    path.with_suffix(".lock").unlink()
    first = bundler("lock", path, "--store", tmp_path / "store").stderr.splitlines()
    assert first[-1].startswith("locked 1 model, 1 corpus, 3 texts for proofs, 1 runtime; ")
    assert first[-1].endswith(str(path.with_suffix(".lock")))
    assert not [line for line in first if line.endswith("…")] or len(first) > 6
    again = bundler("lock", path, "--store", tmp_path / "store").stderr.splitlines()
    assert again[-1].startswith("nothing changed: 1 model")


def test_offline_says_which_files_are_missing_and_what_to_type(tmp_path):
    path = changed(tmp_path, "path:../examples/handbook", "https://example.org/handbook.zim")
    path.with_suffix(".lock").unlink()
    done = bundler("lock", path, "--offline", "--store", tmp_path / "store")
    assert done.returncode == 5
    assert 'corpora.handbook.source = "https://example.org/handbook.zim": cannot be' in done.stderr
    assert f"without --offline (or HF_HUB_OFFLINE): bundler lock {path}" in done.stderr


def test_many_missing_files_are_summed_up(tmp_path):
    from bundler.builtin.sources.http import HttpSource
    from bundler.lock import LockedFile
    from bundler.transfer import fetch

    files = [
        (HttpSource(), LockedFile(path=f"f{n}", size_bytes=n * 10**9, sha256=f"{n:064x}",
                                  addresses=(f"https://example.org/f{n}",)))
        for n in range(1, 31)
    ]  # fmt: skip
    with pytest.raises(SourceError) as caught:
        fetch(files, World(Store(tmp_path), offline=True), step="fetch")
    *named, total = caught.value.problems
    assert [problem.where for problem in named][:2] == [
        "f30 (https://example.org/f30)", "f29 (https://example.org/f29)",
    ]  # fmt: skip
    assert len(named) == 10
    assert total.message == "missing: 30 files of 465 GB"
    assert "without --offline" in total.hint


# -- waiting -----------------------------------------------------------------------------------------


def test_who_waits_for_another_build_says_for_whom(tmp_path):
    store, said = Store(tmp_path), []
    world = World(store, report=said.append)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with Store(tmp_path).locked("step-x"):
            held.set()
            release.wait(30)

    other = threading.Thread(target=hold)
    other.start()
    held.wait(30)
    try:
        with (
            pytest.raises(BusyError, match=r"quantize: another bundler \(process \d+\)"),
            turn(world, "step-x", "models/chat/quantize", longest_seconds=0.3),
        ):
            raise AssertionError("the lock was held")
        threading.Timer(1.5, release.set).start()
        with turn(world, "step-x", "models/chat/quantize", say_every_seconds=30):
            assert store.holder("step-x") is not None
    finally:
        release.set()
        other.join(30)
    assert [note.message.partition(";")[0] for note in said if isinstance(note, Note)] == [
        f"models/chat/quantize: another bundler (process {os.getpid()}) is working on it"
    ]
    assert store.holder("step-x") is None


def test_who_need_not_wait_says_nothing(tmp_path):
    said = []
    with turn(World(Store(tmp_path), report=said.append), "x", "x"):
        pass
    assert said == []


# -- figures -----------------------------------------------------------------------------------------


@given(st.integers(0, 1 << 60))
def test_a_size_has_three_digits_and_is_right_to_half_a_percent(count):
    number, unit = format_size(count).split()
    scale = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}[unit]
    assert abs(float(number) * scale - count) <= max(0.0051 * count, 0)
    assert float(number) < 1000 or unit == "TB"


def test_a_plan_counts_memory_in_binary_and_the_rest_in_decimal_units(tmp_path):
    path = changed(tmp_path, "tokens = 2048", "tokens = 2048")
    text = plan(path, "--explain").stdout
    assert "of 5.00 GiB" in text
    table = text.partition("there is")[2].partition("Why these")[0]
    assert "iB" not in table
    assert table.count("no limit") == 3
    assert "no limit is in the way" in text
    assert gibibytes(5 << 30) == "5.00 GiB"


def test_the_report_says_what_each_figure_counts():
    bundle = demo_bundle()
    text = " ".join((bundle / "report.html").read_text().split())
    (model,) = json.loads((bundle / "manifest.json").read_text())["models"]
    proof, memory = model["proof"], model["predicted_memory"]
    scored, read = proof["quality"]["tokens"], proof["settings"]["evaluated_tokens"]
    assert f"{scored:,} tokens scored of {read:,} held-out ones" in text
    assert scored < read
    counted = memory["weights_bytes"] + memory["kv_cache_bytes"] + memory["compute_bytes"]
    same = f"predicted for the same: {format_bytes(counted)}"
    assert proof["device"]["peak_memory_source"] != "backend" or same in text
    assert "no limit" in text


# -- help --------------------------------------------------------------------------------------------


def test_the_help_goes_from_the_recipe_to_the_far_end():
    text = bundler("--help").stdout
    places = {
        name: text.find(f"\n│ {name} ") for names in PANELS.values() for name in names
    }  # fmt: skip
    there = [place for place in places.values() if place >= 0]
    assert there == sorted(there)
    assert {"init", "lock", "plan", "build", "verify", "repair", "key", "serve", "targets"} <= {
        name for name, place in places.items() if place >= 0
    }
    assert "╭─ Commands" not in text, "a command is under no title: see bundler/command_order.py"


def test_a_step_that_begins_to_count_something_else_begins_at_nothing(tmp_path):
    seen = []
    step = _progress("models/chat/prove", World(store=Store(tmp_path), report=seen.append))
    step(4096, 4096, "tokens")
    step(0, 1500, "tokens")
    step(200, 1500, "tokens")
    step(100, 1500, "tokens")  # late news of another thread
    step(1, 2, "rounds")
    assert [(event.done, event.total) for event in seen] == [
        (4096, 4096), (0, 1500), (200, 1500), (200, 1500), (1, 2),
    ]  # fmt: skip
