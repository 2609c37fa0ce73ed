import json
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bundler.errors import DoesNotFit, LockError, Problem, ProofFailed, RecipeError, UnsafeInput
from bundler.hookspecs import hookimpl
from bundler.plugins import load_plugins
from bundler.testing.fakes import MAGIC
from bundler.verify import read_manifest, verify_bundle
from tests import fake_build
from tests.fake_build import RECIPE, fakes, run


def test_a_recipe_becomes_a_bundle_that_says_what_it_is(tmp_path):
    built = run(tmp_path)
    manifest = read_manifest(built.output)
    (model,) = manifest.models
    assert model.quant == "half"
    assert model.proof.quality.kld_mean == 0.01
    assert [g.passed for g in model.proof.gates] == [True]
    assert manifest.corpora[0].coverage.articles_indexed == 6
    assert (built.output / "licenses/corpora-book/LICENSE").read_bytes() == b"CC0"
    assert (built.output / model.file).stat().st_size == model.predicted_memory.weights_bytes
    settings = json.loads((built.output / "station.json").read_text())
    assert settings["models"][0]["file"] == model.file


def test_the_second_build_does_nothing_again(tmp_path):
    first = run(tmp_path)
    plugin = fakes()
    second = run(tmp_path, plugin)
    assert second.manifest_sha256 == first.manifest_sha256
    assert plugin.engine.runs == []
    assert plugin.source.opened == []


@pytest.mark.fault("A13")
def test_the_same_lock_makes_the_same_bytes_in_another_place(tmp_path):
    one = run(tmp_path / "one")
    (tmp_path / "two").mkdir()
    shutil.copy(tmp_path / "one/fake.lock", tmp_path / "two/fake.lock")
    two = run(tmp_path / "two")
    assert one.manifest_sha256 == two.manifest_sha256


def test_only_what_changed_is_done_again(tmp_path):
    run(tmp_path)
    plugin = fakes()
    plugin.source.files["book"]["9.txt"] = b"one more"
    (tmp_path / "fake.lock").unlink()
    built = run(tmp_path, plugin)
    assert plugin.engine.runs == []
    assert read_manifest(built.output).corpora[0].coverage.articles_indexed == 7


def test_a_local_file_that_changed_makes_the_lock_stale_and_is_named(tmp_path):
    (tmp_path / "notes").mkdir(parents=True)
    (tmp_path / "notes/a.txt").write_text("one")
    recipe = RECIPE.replace("memory:book", "path:notes")
    run(tmp_path, recipe=recipe)
    (tmp_path / "notes/a.txt").write_text("two")
    (tmp_path / "notes/b.txt").write_text("new")
    with pytest.raises(LockError) as caught:
        run(tmp_path, recipe=recipe)
    assert [p.message for p in caught.value.problems] == [
        "a.txt changed since the lock was made", "b.txt is new since the lock was made",
    ]  # fmt: skip
    assert "bundler lock" in caught.value.problems[0].hint
    run(tmp_path, recipe=recipe, frozen=True)


def test_a_lock_is_never_changed_by_a_build(tmp_path):
    run(tmp_path)
    before = (tmp_path / "fake.lock").read_bytes()
    changed = RECIPE.replace("memory:book", "memory:weights")
    with pytest.raises(LockError, match="other things"):
        run(tmp_path, recipe=changed)
    assert (tmp_path / "fake.lock").read_bytes() == before


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda lock: lock["corpora"]["book"].update(source="path"), "for it"),
        (lambda lock: lock["corpora"]["book"].update(reference="memory:else"), "for it"),
        (lambda lock: lock["models"].clear(), "not in its lock"),
        (lambda lock: lock["corpora"].update(more=lock["corpora"]["book"]), "not in its recipe"),
        (lambda lock: lock["runtimes"].clear(), "other runtimes"),
    ],
)
def test_a_lock_that_was_tampered_with_is_held_against_the_recipe(tmp_path, spoil, said):
    run(tmp_path)
    lock = json.loads((tmp_path / "fake.lock").read_text())
    spoil(lock)
    (tmp_path / "fake.lock").write_text(json.dumps(lock))
    with pytest.raises(LockError, match=said):
        run(tmp_path, frozen=True)


def test_without_a_lock_locked_refuses(tmp_path):
    with pytest.raises(LockError, match="no lock"):
        run(tmp_path, locked=True)


def test_a_failed_gate_makes_the_planner_try_the_next_offer(tmp_path):
    plugin = fakes()
    plugin.engine.speed_by_quant = {"half": 1.0, "tenth": 9.0}
    recipe = RECIPE.replace("max_kld_mean = 0.5", "min_tokens_per_second = 5")
    built = run(tmp_path, plugin, recipe)
    assert [choice.offer.quant for choice in built.plan.choices] == ["tenth"]
    assert plugin.engine.runs == ["quantize", "prove", "quantize", "prove"]


def test_when_no_offer_passes_the_build_stops_with_figure_and_limit(tmp_path):
    plugin = fakes()
    plugin.engine.kld_by_quant = {"half": 0.9, "tenth": 0.8}
    with pytest.raises(ProofFailed, match=r"max_kld_mean: measured 0\.9.*limit is 0\.5") as caught:
        run(tmp_path, plugin)
    assert [problem.message[:5] for problem in caught.value.problems] == ["try 1", "no ot"]
    assert plugin.engine.runs == ["quantize", "prove"]  # what is predicted worse is not tried
    assert not (tmp_path / "dist").exists()


def test_a_plugin_can_object_to_a_plan_and_to_a_proof(tmp_path):
    class Critic:
        __name__ = "critic"

        @hookimpl
        def bundler_review_plan(self, plan):
            return [Problem("too small for me")] if plan.bundle == "fake" else []

    class Doubter:
        __name__ = "doubter"

        @hookimpl
        def bundler_review_proof(self, model, proof):
            return [Problem(f"{model} rambles")]

    def build_with(critic, folder):
        plugins = load_plugins(extra=[fakes(), critic])
        original = fake_build.load_plugins
        fake_build.load_plugins = lambda extra: plugins
        try:
            run(folder)
        finally:
            fake_build.load_plugins = original

    with pytest.raises(DoesNotFit, match="too small for me"):
        build_with(Critic(), tmp_path / "a")
    with pytest.raises(ProofFailed, match="chat rambles"):
        build_with(Doubter(), tmp_path / "b")


@pytest.mark.fault("A4")
def test_what_does_not_fit_is_refused_before_anything_is_fetched(tmp_path):
    plugin = fakes()
    plugin.engine.cache_bytes_per_token = 1 << 30
    with pytest.raises(DoesNotFit, match="RAM"):
        run(tmp_path, plugin)
    assert set(plugin.source.opened) <= {"weights!all.fake"}  # its header, for the lock


def test_corpora_that_do_not_fit_the_stick_are_refused(tmp_path):
    recipe = RECIPE.replace('name = "fake"\n[target]', 'name = "fake"\nmax_size = "2 MB"\n[target]')
    without_models = recipe[: recipe.index("[models")] + recipe[recipe.index("[corpora") :]
    with pytest.raises(DoesNotFit, match=r"max_size.*limit is 2\.00 MB; 1\.04 MB too much"):
        run(tmp_path, recipe=without_models)


@pytest.mark.fault("E5")
def test_hostile_weights_are_refused_while_locking(tmp_path):
    plugin = fakes()
    plugin.source.files["weights"]["all.fake"] = b"\x80\x04pickle"
    with pytest.raises(UnsafeInput, match="magic"):
        run(tmp_path, plugin)


def test_an_unknown_engine_names_those_there_are(tmp_path):
    recipe = RECIPE.replace('engine = "fake"', 'engine = "exl9"').replace(
        '"fake"\nsource', '"foke"\nsource'
    )
    with pytest.raises(RecipeError) as caught:
        run(tmp_path, recipe=recipe)
    said = [(p.message, p.hint) for p in caught.value.problems]
    assert said == [
        ("models.chat.engine = \"exl9\": 'exl9' is not installed", "there is: fake, llama.cpp"),
        (
            "corpora.book.kind = \"foke\": 'foke' is not installed",
            "did you mean 'fake'? there is: fake, folder, zim",
        ),
    ]
    assert not (tmp_path / "fake.lock").exists()


def test_an_output_that_cannot_be_used_is_refused_before_any_work(tmp_path):
    plugin = fakes()
    (tmp_path / "dist/fake").mkdir(parents=True)
    (tmp_path / "dist/fake/diary.txt").write_text("dear")
    with pytest.raises(UnsafeInput, match="not a bundle"):
        run(tmp_path, plugin)
    assert plugin.source.opened == []


@pytest.mark.fault("A8")
def test_two_builds_at_once_do_the_work_once_and_agree(tmp_path):
    plugins = [fakes(), fakes()]
    for plugin in plugins:
        plugin.engine.delay_seconds = 0.3
    run(tmp_path / "seed")
    shutil.copytree(tmp_path / "seed", tmp_path / "both")
    shutil.rmtree(tmp_path / "both/store")
    shutil.rmtree(tmp_path / "both/dist")
    results = {}

    def build(index):
        folder = tmp_path / "both"
        world = fake_build.World(store=fake_build.Store(folder / "store"), folder=folder)
        results[index] = fake_build.pipeline.build(
            folder / "fake.toml", folder / "dist" / "fake",
            load_plugins(extra=[plugins[index]]), world,
        )  # fmt: skip

    threads = [threading.Thread(target=build, args=(index,)) for index in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results[0].manifest_sha256 == results[1].manifest_sha256
    assert not verify_bundle(tmp_path / "both/dist/fake").findings
    assert [p.name for p in (tmp_path / "both/dist").iterdir()] == ["fake"]
    assert sorted(plugins[0].engine.runs + plugins[1].engine.runs) == ["prove", "quantize"]


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("call", ["rename", "fsync", "openat"])
@pytest.mark.fault("A1")
def test_a_build_killed_anywhere_goes_on_and_ends_in_the_same_bytes(tmp_path, call):
    """kill -9 at the n-th call of one kind, for n spread over the build's work; then once more."""
    expected = run(tmp_path / "whole").manifest_sha256
    lock = (tmp_path / "whole/fake.lock").read_bytes()
    numbers = _calls_in_folder(tmp_path / "counted", lock, call)
    assert len(numbers) > 8
    killed = 0
    for number in numbers[:: len(numbers) // 8]:
        folder = tmp_path / f"{call}-{number}"
        killed += _build(folder, lock, call, f"inject={call}:signal=KILL:when={number}") != 0
        assert run(folder).manifest_sha256 == expected
        assert not verify_bundle(folder / "dist/fake").findings
        assert [p.name for p in (folder / "dist").iterdir()] == ["fake"]
    assert killed >= 6


def _build(folder: Path, lock: bytes, call: str, rule: str) -> int:
    """Build in a process of its own under strace; return its exit code."""
    folder.mkdir(parents=True)
    (folder / "fake.lock").write_bytes(lock)
    trace = folder.with_suffix(".strace")
    return subprocess.run(
        ["strace", "-f", "-qq", "-y", "-o", trace, "-e", f"trace=execve,{call}", "-e", rule,
         sys.executable, "-B", "-m", "tests.fake_build", folder],
        capture_output=True, cwd=Path(__file__).parents[1], timeout=300,
    ).returncode  # fmt: skip


def _calls_in_folder(folder: Path, lock: bytes, call: str) -> list[int]:
    """Return which calls of one kind of a whole build's main thread touch its own folder.

    Counted from 1 and in that thread alone, since strace counts `when=` for each thread.
    """
    assert _build(folder, lock, call, f"trace=execve,{call}") == 0
    text = folder.with_suffix(".strace").read_text().splitlines()
    main = text[0].split()[0]  # whoever called execve
    lines = [line for line in text if line.split()[0] == main and f" {call}(" in line]
    return [n for n, line in enumerate(lines, 1) if str(folder) in line]


def _fails_for_want_of_room(folder: Path) -> bool:
    said = ""
    try:
        run(folder)
    except DoesNotFit as error:
        said = str(error)
    return "free" in said or "left" in said


@pytest.mark.root
@pytest.mark.fault("A4")
def test_a_full_disk_is_a_clear_error_and_loses_nothing(tmp_path):
    """On a sized tmpfs: fill it so that the build fails at different points, then make room."""
    import os

    if os.geteuid() != 0:
        pytest.skip("mounting a tmpfs needs root")
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", mount], check=True)
    try:
        expected = run(tmp_path / "whole").manifest_sha256
        failed = 0
        for free_kib in (200, 700, 1200, 1800, 2600, 3400):
            folder = mount / "b"
            folder.mkdir()
            shutil.copy(tmp_path / "whole/fake.lock", folder)
            room = shutil.disk_usage(mount).free - free_kib * 1024
            (mount / "ballast").write_bytes(b"\0" * room)
            failed += _fails_for_want_of_room(folder)
            (mount / "ballast").unlink()
            assert run(folder).manifest_sha256 == expected
            shutil.rmtree(folder)
        assert failed >= 3
    finally:
        subprocess.run(["umount", mount], check=True)


def test_a_recipe_that_cannot_be_read_is_said_with_its_name(tmp_path):
    with pytest.raises(RecipeError, match="nowhere"):
        fake_build.pipeline.read_recipe(tmp_path / "nowhere.toml")


assert MAGIC
