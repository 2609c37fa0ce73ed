"""What this machine can build, verify and serve: good and bad situations, and what to do in them."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from bundler.doctor.findings import Finding, exit_code
from bundler.doctor.loading import compiled_libraries
from bundler.doctor.machine_findings import machine_findings
from bundler.doctor.needs import needs
from bundler.doctor.recipes import recipe_findings
from bundler.doctor.serving import serving, shortage, tiers_of
from bundler.doctor.software import ask_engines, engine_findings, software
from bundler.doctor.storage import storage
from bundler.errors import BundlerError, StepFailed
from bundler.hardware import Target
from bundler.machine.disk import disk_of
from bundler.machine.values import Card, Figure, Machine
from bundler.manifest import BundledTier, BundleFile, Manifest
from bundler.offering import make_the_plan
from bundler.plugins import load_plugins
from bundler.recipe_file import read_recipe
from bundler.resolve import read_lock
from tests.demo import bundler, quickstart
from tests.pretended import Nvml
from tests.test_targets import linux_only, machine

GIB = 2**30
CARD = Card(
    name="NVIDIA H200", kind="cuda", total_bytes=140 * GIB, free_bytes=139 * GIB, how="NVML"
)
CPU_ONLY = {
    "build": "llama-cpp-python 0.3.36 | CPU : SSE3 = 1 | AVX2 = 1 | F16C = 1 | AVX512 = 0 |",
    "devices": [{"name": "CPU", "kind": "cpu", "description": "AMD EPYC", "is_gpu": False,
                 "free_bytes": GIB, "total_bytes": GIB}],
}  # fmt: skip
WITH_CUDA = {
    "build": "llama-cpp-python 0.3.36 | CUDA : ARCHS = 900 | CPU : AVX512 = 1 |",
    "devices": [{"name": "CUDA0", "kind": "cuda", "description": "NVIDIA H200", "is_gpu": True,
                 "free_bytes": 139 * GIB, "total_bytes": 140 * GIB}],
}  # fmt: skip


def by_name(findings, name: str) -> list[Finding]:
    return [finding for finding in findings if finding.name == name]


def missing(findings) -> list[Finding]:
    return [finding for finding in findings if finding.state == "missing"]


@pytest.fixture(scope="module")
def plugins():
    return load_plugins(installed=False)


@pytest.fixture(scope="module")
def planned(plugins):
    recipe, lock = read_recipe(quickstart()), read_lock(quickstart().with_suffix(".lock"))
    return recipe, lock, make_the_plan(recipe, lock, plugins)


# -- findings ----------------------------------------------------------------------------------------


def test_warnings_alone_end_with_zero_and_a_missing_need_with_its_own_code():
    good = Finding(topic="machine", name="a", state="good", said="x")
    warning = Finding(topic="machine", name="b", state="warning", said="x", remedy="y")
    first = Finding(topic="build", name="c", state="missing", said="x", remedy="y", exit_code=4)
    second = Finding(topic="recipe", name="d", state="missing", said="x", remedy="y", exit_code=9)
    assert exit_code([good, warning]) == 0
    assert exit_code([good, warning, first, second]) == 4


def test_no_title_of_a_bundle_reaches_the_terminal_with_control_codes():
    finding = Finding(topic="bundle", name="a\x1b[2J", state="good", said="b\nc\u202e", remedy="\a")
    assert (finding.name, finding.said, finding.remedy) == ("a [2J", "b c ", " ")


# -- software ----------------------------------------------------------------------------------------


def test_the_libraries_of_this_very_python_are_as_bundler_needs_them():
    found = list(software({"llama.cpp": CPU_ONLY}, []))
    assert missing(found) == []
    assert [f.name for f in found] == ["Python", "libraries", "compiled parts", "llama.cpp"]
    assert "AVX2, F16C" in found[3].said
    assert "AVX512" not in found[3].said


def test_a_compiled_library_that_does_not_load_is_named_with_its_purpose(tmp_path, monkeypatch):
    (tmp_path / "broken_by_test.py").write_text("import os\nos.kill(os.getpid(), 4)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    modules = {"json": "plans", "broken_by_test": "soup", "not_there_at_all": "bread"}
    killed, absent = compiled_libraries(modules)
    assert (killed.name, killed.state) == ("broken_by_test", "warning")
    assert "SIGILL" in killed.said
    assert "soup" in killed.said
    assert "No module named" in absent.said


def test_a_card_that_llama_cpp_was_not_built_for_is_a_warning_with_the_command():
    engine, card = engine_findings("llama.cpp", CPU_ONLY, [CARD])
    assert (engine.state, card.state) == ("good", "warning")
    assert "-DGGML_CUDA=on" in card.remedy
    (only,) = engine_findings("llama.cpp", WITH_CUDA, [CARD])
    assert "runs on NVIDIA H200 (cuda)" in only.said


def test_an_engine_that_cannot_be_loaded_is_a_warning_with_its_own_hint():
    error = StepFailed("llama-cpp-python cannot be loaded: no", hint="pip install llama-cpp-python")
    (finding,) = engine_findings("llama.cpp", error, [])
    assert (finding.state, finding.remedy) == ("warning", "pip install llama-cpp-python")


def test_the_real_engine_answers_from_a_child(plugins):
    answers = ask_engines(plugins, dict(os.environ))
    answer = answers["llama.cpp"]
    assert not isinstance(answer, BundlerError)
    assert answer["build"].startswith("llama-cpp-python")
    assert any(device["kind"] == "cpu" for device in answer["devices"])


def test_an_engine_without_its_library_is_an_answer_too(plugins, tmp_path):
    answers = ask_engines(plugins, {**os.environ, "LLAMA_CPP_LIB_PATH": str(tmp_path)})
    assert isinstance(answers["llama.cpp"], BundlerError)


# -- the machine -------------------------------------------------------------------------------------


def test_a_slow_disk_and_little_memory_are_felt_and_said():
    small = machine(
        ram_free=Figure(value=2 * GIB, how="told"), disk_read=Figure(value=30_000_000, how="read")
    )
    found = list(machine_findings(small))
    assert [f.name for f in found if f.state == "warning"] == ["RAM", "disk"]
    assert all(f.remedy for f in found if f.state == "warning")
    assert "0.03 GB/s" in by_name(found, "disk")[0].said


def test_a_machine_that_says_little_is_not_guessed_at():
    found = list(machine_findings(Machine(notes=("disk: not measured",))))
    assert by_name(found, "RAM")[0].state == "warning"
    assert by_name(found, "not known")[0].said == "disk: not measured"
    assert by_name(found, "accelerator")[0].state == "note"


# -- disks -------------------------------------------------------------------------------------------


def test_room_for_store_and_bundle_on_one_disk_is_added_up(tmp_path):
    found = list(
        storage(tmp_path / "store", tmp_path / "out", build_bytes=6 * GIB, bundle_bytes=5 * GIB,
                free_bytes=10 * GIB)
    )  # fmt: skip
    assert [f.name for f in missing(found)] == ["store", "output"]
    assert "1.07 GB too much" in missing(found)[0].said
    assert exit_code(found) == 4
    enough = storage(tmp_path / "store", tmp_path / "out", build_bytes=6 * GIB,
                     bundle_bytes=4 * GIB, free_bytes=10 * GIB)  # fmt: skip
    assert missing(enough) == []


@pytest.mark.skipif(
    not Path("/dev/shm").is_dir() or Path("/dev/shm").stat().st_dev == Path("/tmp").stat().st_dev,
    reason="needs a second filesystem, in memory",
)
def test_a_store_in_memory_is_a_warning_and_two_disks_are_counted_apart(tmp_path):
    found = list(storage(Path("/dev/shm/s"), tmp_path / "o", build_bytes=6 * GIB,
                         bundle_bytes=6 * GIB, free_bytes=10 * GIB))  # fmt: skip
    assert missing(found) == []
    (warning,) = [f for f in found if f.state == "warning"]
    assert "gone after a restart" in warning.said


def test_an_output_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    stick = tmp_path / "stick"
    stick.mkdir()
    mounts = tmp_path / "proc/self/mounts"
    mounts.write_text(f"/dev/sdb1 {stick} vfat ro 0 0\n")
    assert disk_of(stick, tmp_path).read_only
    found = list(storage(tmp_path, Path("/proc/self")))
    assert [f.name for f in missing(found)] == ["output"]
    assert "mount it writable" in missing(found)[0].remedy or "another" in missing(found)[0].remedy


def test_fat32_refuses_a_file_of_four_gibibytes(tmp_path):
    from bundler.doctor.storage import file_sizes

    disk = disk_of(tmp_path)._replace(filesystem="vfat")
    (warning,) = file_sizes(disk, 2**32 - 1)
    (refusal,) = file_sizes(disk, 2**32)
    assert (warning.state, refusal.state, refusal.exit_code) == ("warning", "missing", 4)
    assert list(file_sizes(disk_of(tmp_path)._replace(filesystem="exfat"), 2**40)) == []


def test_nothing_is_left_behind_by_looking(tmp_path):
    list(storage(tmp_path, tmp_path / "dist/x"))
    assert list(tmp_path.iterdir()) == []


# -- a recipe ----------------------------------------------------------------------------------------


def test_the_quickstart_can_be_built_here(plugins, tmp_path):
    found = list(
        recipe_findings(quickstart(), tmp_path / "out", tmp_path / "store", plugins, machine(),
                        {"llama.cpp": CPU_ONLY}, environment={})
    )  # fmt: skip
    assert missing(found) == []
    (loading,) = by_name(found, "loading")
    assert "0.57 GB/s" in loading.said
    assert "largest tensor" in by_name(found, "RAM")[0].said
    assert not (tmp_path / "store").exists()


def test_a_disk_that_is_too_small_for_the_plan_is_a_need_not_met(plugins, tmp_path):
    found = list(
        recipe_findings(quickstart(), tmp_path / "out", tmp_path / "store", plugins, machine(),
                        {"llama.cpp": CPU_ONLY}, environment={}, free_bytes=10 * 2**20)
    )  # fmt: skip
    assert exit_code(found) == 4
    assert all("too much" in finding.said and finding.remedy for finding in missing(found))


def test_a_recipe_that_demands_an_accelerator_ends_with_the_code_of_a_failed_proof(planned):
    recipe, lock, plan = planned
    verify = recipe.verify.model_copy(update={"require": "gpu"})
    strict = recipe.model_copy(update={"verify": verify})
    found = list(needs(strict, lock, plan, machine(), {"llama.cpp": CPU_ONLY}))
    assert exit_code(found) == 9
    found = list(needs(strict, lock, plan, machine(cards=(CARD,)), {"llama.cpp": WITH_CUDA}))
    assert missing(found) == []
    assert "NVIDIA H200" in by_name(found, "proofs")[0].said


def test_a_recipe_whose_engine_is_missing_cannot_be_built(planned):
    found = list(needs(*planned, machine(), {"llama.cpp": StepFailed("gone", hint="install")}))
    (gone,) = missing(found)
    assert (gone.exit_code, gone.remedy) == (1, "install")
    assert "models.chat" in gone.said


def test_too_little_memory_for_the_largest_tensor_is_a_need_not_met(planned):
    tiny = machine(ram_free=Figure(value=64 * 2**20, how="limit of control group /box"))
    found = list(needs(*planned, tiny, {"llama.cpp": CPU_ONLY}))
    assert [f.name for f in missing(found)] == ["RAM"]
    assert exit_code(found) == 4
    assert any(f.name == "proofs" and f.state == "warning" for f in found)


def test_without_a_lock_it_is_said_how_to_make_one_and_no_connection_is_opened(plugins, tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(quickstart().read_text().replace("path:../", "path:"))
    found = list(
        recipe_findings(path, None, tmp_path / "store", plugins, machine(), {}, environment={})
    )
    (lock,) = by_name(found, "lock")
    assert (lock.state, missing(found)) == ("warning", [])
    assert f"bundler lock {path}" in lock.remedy


def test_a_lock_of_another_recipe_is_told_and_not_used(plugins, tmp_path):
    shutil.copy(quickstart().with_suffix(".lock"), tmp_path / "r.lock")
    path = tmp_path / "r.toml"
    path.write_text(quickstart().read_text().replace("[models.chat", "[models.other"))
    found = list(
        recipe_findings(path, None, tmp_path / "store", plugins, machine(), {}, environment={})
    )
    (lock,) = by_name(found, "lock")
    assert lock.state == "warning"
    assert "models.other: is in the recipe and not in its lock" in lock.said


def test_a_plan_that_does_not_fit_its_target_is_told_with_its_own_code(plugins, tmp_path):
    for name in ("quickstart.toml", "quickstart.lock"):
        shutil.copy(quickstart().parent / name, tmp_path / name)
    path = tmp_path / "quickstart.toml"
    text = path.read_text()
    assert "context_tokens = " in text
    path.write_text(re.sub(r"context_tokens = .*", "context_tokens = 9000000", text))
    found = list(
        recipe_findings(path, None, tmp_path / "store", plugins, machine(), {}, environment={})
    )
    assert exit_code(found) == 4
    assert all(finding.remedy for finding in missing(found))


# -- a bundle ----------------------------------------------------------------------------------------


def manifest(tiers=(), **changed) -> Manifest:
    target = Target(name="t", title="a PC", ram_bytes=8 * GIB, cpu_level="x86-64-v3")
    plain = {
        "name": "b", "version": "1", "title": "B", "created": 0, "builder": "bundler",
        "target": target, "platforms": ["linux-x86_64"], "recipe_sha256": "0" * 64,
        "lock_sha256": "0" * 64, "corpora": [], "step_keys": {}, "tiers": list(tiers),
        "models": [MODEL], "files": [FILE],
    }  # fmt: skip
    return Manifest.model_validate({**plain, **changed})


SEGMENT_BYTES = Manifest.model_fields["segment_bytes"].default
FILE = BundleFile(
    path="models/chat/chat.gguf", size_bytes=4 * GIB, sha256="0" * 64,
    segments=("0" * 64,) * (4 * GIB // SEGMENT_BYTES),
)  # fmt: skip
MODEL = {
    "name": "chat", "role": "chat", "file": "models/chat/chat.gguf", "engine": "llama.cpp",
    "quant": "Q4_K_M", "kv_cache": "f16", "context_tokens": 4096, "parallel": 1,
    "predicted_memory": {"weights_bytes": 4 * GIB, "kv_cache_bytes": GIB, "compute_bytes": GIB},
    "bits_per_weight": 4.8, "origin": {"reference": "x", "revision": "", "licence": "MIT"},
}  # fmt: skip
CARD_TARGET = Target(
    name="card", title="a 24 GB card", accelerator="cuda", usable_vram_bytes=22 * GIB,
    ram_bytes=8 * GIB, cpu_level="x86-64-v3",
)  # fmt: skip
LARGE = BundledTier(
    name="large", title="a 24 GB card", target=CARD_TARGET, vram_bytes=20 * GIB, ram_bytes=GIB
)
SMALL = BundledTier(
    name="small", title="a PC", target=Target(name="pc", ram_bytes=8 * GIB), vram_bytes=0,
    ram_bytes=6 * GIB,
)  # fmt: skip


def test_a_bundle_for_this_machine_can_be_served(tmp_path):
    found = list(serving(manifest(), tmp_path, machine(), {}))
    assert missing(found) == []
    assert "x86-64-v3" in by_name(found, "processor")[0].said
    assert "7.6 s" in by_name(found, "loading")[0].said


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"platform": "linux-aarch64", "cpu_level": "armv8.2"}, "platform"),
        ({"platform": None, "cpu_level": "any"}, "platform"),
        ({"cpu_level": "x86-64-v2"}, "processor"),
        ({"ram_free": Figure(value=5 * GIB, how="told")}, "models"),
    ],
)
def test_what_stands_in_the_way_of_a_bundle_is_named(tmp_path, changed, name):
    found = list(serving(manifest(), tmp_path, machine(**changed), {}))
    assert [f.name for f in missing(found)] == [name]
    assert exit_code(found) == 4
    assert missing(found)[0].remedy


def test_of_several_sets_one_that_fits_is_enough(tmp_path):
    both = manifest([LARGE, SMALL])
    found = list(serving(both, tmp_path, machine(), {}))
    assert missing(found) == []
    assert by_name(found, "models large")[0].state == "note"
    assert "would take these" in by_name(found, "models small")[0].said
    with_card = machine(cards=(CARD,))
    found = list(serving(both, tmp_path, with_card, {}))
    assert "would take these" in by_name(found, "models large")[0].said
    none = machine(ram_free=Figure(value=GIB, how="told"))
    found = list(serving(both, tmp_path, none, {}))
    assert [f.name for f in missing(found)] == ["models large", "models small"]


def test_several_accelerators_are_needed_where_the_models_were_split():
    two = CARD_TARGET.model_copy(update={"device_count": 2})
    tier = LARGE.model_copy(update={"target": two})
    assert "2 accelerators are needed" in shortage(tier, machine(cards=(CARD,)))
    assert shortage(tier, machine(cards=(CARD, CARD))) == ""
    weak = CARD.model_copy(update={"free_bytes": 19 * GIB})
    assert "has 19.0 GiB free" in shortage(tier, machine(cards=(CARD, weak)))


def test_doctor_says_what_the_station_would_take():
    """A card that the bundle's programs cannot use, and memory that leaves no room for all else."""
    assert shortage(LARGE, machine(cards=(CARD,)), {"cuda"}) == ""
    said = shortage(LARGE, machine(cards=(CARD,)), set())
    assert "NVIDIA H200 is there, but no program of this bundle can use it" in said
    tight = machine(ram_free=Figure(value=SMALL.ram_bytes + 2**20, how="told"))
    assert "too few to leave some for all else" in shortage(SMALL, tight)


def test_a_bundle_of_before_there_were_tiers_is_added_up():
    (tier,) = tiers_of(manifest())
    assert (tier.vram_bytes, tier.ram_bytes) == (0, 6 * GIB)
    (tier,) = tiers_of(manifest(target=CARD_TARGET))
    assert (tier.vram_bytes, tier.ram_bytes) == (6 * GIB, 0)


# -- the command -------------------------------------------------------------------------------------


@linux_only
def test_doctor_of_the_quickstart_is_calm_and_ends_with_zero(tmp_path):
    done = bundler("doctor", quickstart(), "--store", tmp_path / "s", "--output", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("This machine\n")
    for title in ("Software", "Disks", "The recipe"):
        assert f"\n{title}\n" in done.stdout
    assert "\x1b" not in done.stdout
    assert list(tmp_path.iterdir()) == []


@linux_only
def test_doctor_gives_json_with_the_same_exit_code(tmp_path):
    done = bundler("doctor", "--json", "--store", tmp_path / "s", "--bundle", tmp_path)
    assert done.returncode == 2
    assert "not a bundle" in done.stderr
    done = bundler("doctor", "--json", "--store", tmp_path / "s")
    record = json.loads(done.stdout)
    assert record["exit_code"] == done.returncode
    for finding in record["findings"]:
        assert finding["remedy"] or finding["state"] in ("good", "note")


@linux_only
def test_doctor_of_a_bundle_tells_what_is_missing_with_figures(tmp_path):
    wanted = manifest(models=[], files=[], platforms=["windows-x86_64"])
    (tmp_path / "manifest.json").write_text(wanted.model_dump_json())
    done = bundler("doctor", "--bundle", tmp_path, "--store", tmp_path / "s")
    assert done.returncode == 4, done.stderr
    assert "✗ platform" in done.stdout
    assert "made for windows-x86_64; this is linux-" in done.stdout
    assert "1 need cannot be met" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json"]


def test_doctor_asks_the_network_for_a_recipe_only():
    assert bundler("doctor", "--online").returncode == 2


@linux_only
def test_asked_to_doctor_tries_the_sources(plugins, tmp_path):
    found = list(
        recipe_findings(quickstart(), tmp_path / "o", tmp_path / "s", plugins, machine(),
                        {"llama.cpp": CPU_ONLY}, environment={}, online=True)
    )  # fmt: skip
    network = [finding for finding in found if finding.topic == "network"]
    assert network
    assert {finding.state for finding in network} <= {"good", "warning"}
    assert all(finding.remedy for finding in network if finding.state == "warning")


def test_a_pretended_card_is_told_to_the_person():
    from bundler.machine.nvml import nvidia_cards

    found, _ = nvidia_cards(Nvml("two-4090"))
    said = [f.said for f in machine_findings(machine(cards=found)) if f.name == "accelerator"]
    assert len(said) == 2
    assert "driver 575.51.03" in said[0]
