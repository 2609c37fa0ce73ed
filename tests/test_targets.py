"""The catalogue, the recipe's own figures on top of it, and this machine as a target."""

import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.builtin.targets import CATALOGUE
from bundler.errors import RecipeError
from bundler.machine import processor
from bundler.machine.as_target import chosen_cards, gibibytes, gigabytes, target_lines, target_toml
from bundler.machine.bandwidth import memory_bandwidth
from bundler.machine.disk import (
    LARGE_FILE_BYTES,
    disk_of,
    disk_read_speed,
    large_file,
    mounted,
    resident_share,
)
from bundler.machine.graphics import amd_cards, cards, metal_limit
from bundler.machine.look import look
from bundler.machine.memory import control_groups, mac_free_bytes, main_memory
from bundler.machine.nvml import nvidia_cards
from bundler.machine.values import Card, Figure, Machine
from bundler.offering import make_the_plan
from bundler.planning.targeting import choose_target, target_warnings
from bundler.plugins import load_plugins
from bundler.recipe import TargetRequest
from bundler.recipe_file import parse_recipe, read_recipe
from bundler.recipe_places import placed
from bundler.resolve import read_lock
from bundler.testing.contract import check_target
from bundler.value import parse_bytes
from tests.demo import bundler, quickstart
from tests.pretended import Nvml, tree

BY_NAME = {target.name: target for target in CATALOGUE}
GIB = 2**30
linux_only = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


# -- the catalogue -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "rtx-3060-12gb",
        "rtx-3060-laptop",
        "rtx-4050-laptop",
        "rtx-4060",
        "rtx-4060-laptop",
        "rtx-4070",
        "rtx-4070-laptop",
        "rtx-4080",
        "rtx-4080-laptop",
        "rtx-4090",
        "rtx-4090-laptop",
        "rtx-5090",
        "rtx-5090-laptop",
        "a100-40gb",
        "a100-80gb",
        "h100-80gb",
        "h200",
        "rx-7900-xtx",
        "mi300x",
        "apple-m1-8gb",
        "apple-m2-16gb",
        "apple-m3-max-64gb",
        "apple-m4-max-128gb",
        "raspberry-pi-4-4gb",
        "raspberry-pi-4-8gb",
        "raspberry-pi-5-4gb",
        "raspberry-pi-5-8gb",
        "cpu-8gb",
        "cpu-16gb",
        "cpu-32gb",
        "cpu-64gb",
    ],
)
def test_machines_that_people_have_are_in_the_catalogue(name):
    assert name in BY_NAME


@pytest.mark.parametrize("target", CATALOGUE, ids=lambda t: t.name)
def test_a_machine_gives_less_than_its_box_says_and_each_figure_has_a_source(target):
    check_target(target)
    nominal = target.nominal_vram_bytes
    if target.accelerator != "none":
        assert 0.6 * nominal < target.usable_vram_bytes < nominal
        reserves = target.driver_reserve_bytes + target.display_reserve_bytes
        assert target.usable_vram_bytes == nominal - reserves
    else:
        assert nominal == target.usable_vram_bytes == 0
    assert target.ram_bytes % 10**6 == 0 or target.ram_bytes % 2**20 == 0
    assert target.memory_bandwidth_bytes_per_second > 10**9
    assert 10**9 < target.host_memory_bandwidth_bytes_per_second < 10**12
    assert 10**7 < target.disk_read_bytes_per_second < 10**10
    for field, figure in target.model_dump().items():
        if field.endswith(("_bytes", "_bytes_per_second")) and figure:
            assert len(target.sources.get(field, "")) > 10, field
    assert set(target.sources) <= set(type(target).model_fields)


def test_equal_targets_are_one_key():
    again = [target.model_copy(deep=True) for target in CATALOGUE]
    assert len({*CATALOGUE, *again}) == len(CATALOGUE)


def test_names_are_told_apart():
    assert len(BY_NAME) == len(CATALOGUE)
    assert len({target.title for target in CATALOGUE}) == len(CATALOGUE)


def test_a_card_of_24_gigabytes_has_between_20_and_23_and_a_half_to_give():
    for target in CATALOGUE:
        if target.nominal_vram_bytes == 24 * GIB:
            assert 20 * GIB < target.usable_vram_bytes < 23.5 * GIB


# -- the recipe's own figures ------------------------------------------------------------------------


def asked(**keys) -> TargetRequest:
    return TargetRequest.model_validate(keys)


def chosen(**keys):
    return choose_target(asked(**keys), BY_NAME)


def test_the_cap_is_honoured_to_the_byte_and_never_raises_what_is_usable():
    assert chosen(use="rtx-4090", max_vram="23.5 GB").usable_vram_bytes == 23_500_000_000
    assert chosen(use="rtx-4090", max_vram="23.5 GB", display_reserve=0).usable_vram_bytes == (
        23_500_000_000
    )
    small = chosen(use="rtx-4060", max_vram="23.5 GB").usable_vram_bytes
    assert small == BY_NAME["rtx-4060"].usable_vram_bytes
    both = chosen(use="rtx-4090", usable_vram="22 GB", max_vram="21 GB")
    assert both.usable_vram_bytes == 21_000_000_000
    assert both.sources["usable_vram_bytes"] == "the recipe's cap"


@given(
    st.sampled_from([t for t in CATALOGUE if t.accelerator != "none"]),
    st.integers(GIB // 4, 64 * GIB),
    st.integers(0, 3 * GIB),
)
def test_usable_memory_is_the_smaller_of_cap_and_what_is_left(target, cap, display):
    found = chosen(use=target.name, max_vram=cap, display_reserve=display)
    left = target.nominal_vram_bytes - target.driver_reserve_bytes - display
    assert found.usable_vram_bytes == min(cap, left)
    assert found.display_reserve_bytes == display


def test_a_cap_above_the_box_is_a_warning_and_changes_nothing():
    (warning,) = target_warnings(asked(use="rtx-4060", max_vram="23.5 GB"), BY_NAME)
    assert "target.max_vram" in warning.message
    assert "8.00 GiB" in warning.message
    assert not target_warnings(asked(use="rtx-4090", max_vram="23.5 GB"), BY_NAME)


def test_the_plan_notes_a_cap_that_changes_nothing():
    path = quickstart()
    recipe, lock = read_recipe(path), read_lock(path.with_suffix(".lock"))
    capped = recipe.model_copy(update={"target": asked(use="rtx-4060", max_vram="23.5 GB")})
    plan = make_the_plan(capped, lock, load_plugins(installed=False))
    assert any("target.max_vram: the cap of 21.9 GiB is above" in note for note in plan.notes)


def test_a_card_without_a_display_gives_more():
    headless = chosen(use="rtx-4090", display_reserve=0)
    assert headless.usable_vram_bytes == BY_NAME["rtx-4090"].usable_vram_bytes + GIB
    assert headless.sources["display_reserve_bytes"] == "the recipe"


def test_several_devices_and_speeds_are_taken_over_with_their_source():
    found = chosen(
        use="rtx-3090", devices=2, host_memory_bandwidth="89.6 GB", disk_read="3.5 GB", ram="96 GB"
    )
    assert found.device_count == 2
    assert found.usable_vram_bytes == BY_NAME["rtx-3090"].usable_vram_bytes
    assert found.host_memory_bandwidth_bytes_per_second == 89_600_000_000
    assert found.disk_read_bytes_per_second == 3_500_000_000
    assert found.sources["disk_read_bytes_per_second"] == "the recipe"
    assert found.sources["memory_bandwidth_bytes_per_second"].startswith("NVIDIA")


def test_a_card_that_is_not_used_leaves_a_machine_with_main_memory_only():
    found = chosen(use="rtx-4090", accelerator="none")
    assert (found.usable_vram_bytes, found.nominal_vram_bytes, found.device_count) == (0, 0, 1)
    assert found.memory_bandwidth_bytes_per_second == found.host_memory_bandwidth_bytes_per_second


def test_a_machine_can_be_spelled_out():
    found = chosen(accelerator="vulkan", usable_vram="10 GB", ram="16 GB", devices=3)
    assert (found.name, found.device_count) == ("custom", 3)
    assert chosen(accelerator="cuda", max_vram="10 GB", ram="16 GB").usable_vram_bytes == 10**10


@pytest.mark.parametrize(
    ("table", "line", "words"),
    [
        ('use = "rtx-4050"', 4, "did you mean `rtx-4050-laptop`"),
        ('use = "cpu-16gb"\ndevices = 2', 5, "has no accelerator"),
        ('use = "cpu-16gb"\nusable_vram = "8 GB"', 5, "has no accelerator"),
        ('use = "cpu-16gb"\naccelerator = "cuda"', 5, "give `usable_vram` too"),
        ('use = "rtx-4060"\nusable_vram = "9 GB"', 5, "is more than the 8.00 GiB"),
        ('use = "rtx-4060"\ndisplay_reserve = "8 GiB"', 5, "leaves nothing"),
        ('use = "rtx-4090"\nusable_vram = "22 GB"\ndisplay_reserve = 0', 6, "give one of them"),
        ('use = "rtx-4090"\naccelerator = "none"\nmax_vram = "23.5 GB"', 6, "says nothing when"),
        ('ram = "16 GB"\nusable_vram = "8 GB"', 5, "of which accelerator"),
        ('ram = "16 GB"\naccelerator = "cuda"', 3, "give `usable_vram`"),
        ('ram = "16 GB"\naccelerator = "cuda"\nmax_vram = "8 GB"\ndisplay_reserve = 0', 7,
         "replaces a figure of the catalogue"),
        ("ram = 16", 4, "write it with its unit"),
        ('use = "rtx-4090"\nmax_vram = 23.5', 5, "is not a size"),
        ('use = "rtx-4090"\nusable_vram = 0', 5, "cannot be right"),
        ('use = "rtx-4090"\ndevices = 0', 5, "must be at least 1"),
        ('use = "rtx-4090"\nram = "900 TB"', 5, "cannot be right"),
        ('use = "rtx-4090"\ndisk_read = -5', 5, "is not a size"),
        ('use = "rtx-4090"\nmemory_bandwidth = "1 GB"\nhost_memory_bandwidth = 51', 6, "51 B"),
    ],
)  # fmt: skip
def test_contradictions_and_slips_are_named_by_line_and_column(tmp_path, table, line, words):
    path = tmp_path / "r.toml"
    path.write_text(f'[bundle]\nname = "b"\n[target]\n{table}\n[corpora.w]\nsource = "path:x"\n')
    with pytest.raises(RecipeError) as caught:
        choose_target(parse_recipe(path.read_bytes(), str(path)).target, BY_NAME)
    error = placed(caught.value, path)
    (problem,) = error.problems
    assert re.match(rf"{re.escape(str(path))}:{line}:\d+$", problem.where)
    assert words in f"{problem.message} {problem.hint}"


def test_all_contradictions_are_said_at_once():
    with pytest.raises(RecipeError) as caught:
        chosen(use="cpu-8gb", devices=2, max_vram="8 GB", display_reserve=0)
    assert len(caught.value.problems) == 3


def test_problems_of_other_kinds_stay_as_they_are(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text('[target]\nuse = "x"\n')
    error = RecipeError("the sun is too bright")
    assert placed(error, path) is error
    assert placed(RecipeError("target.use: no"), tmp_path / "gone.toml").problems[0].where == ""


def test_the_command_line_says_where_a_problem_stands(tmp_path):
    path = tmp_path / "r.toml"
    path.write_text(
        'schema = 1\n[bundle]\nname = "b"\n[target]\nuse = "cpu-8gb"\ndevices = 2\n'
        '[corpora.w]\nkind = "folder"\nsource = "path:docs"\n'
    )
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/a.md").write_text("# A\n\nwords\n")
    done = bundler("plan", path, "--store", tmp_path / "store")
    assert done.returncode == 2
    assert f"{path}:6:1: target.devices = 2: PC without a GPU" in done.stderr


# -- accelerators ------------------------------------------------------------------------------------


def test_nvml_gives_total_and_free_and_computes_the_bandwidth():
    library = Nvml("h200")
    (card,), notes = nvidia_cards(library)
    assert notes == ()
    assert library.open == 0
    assert (card.kind, card.name, card.drives_display) == ("cuda", "NVIDIA H200", False)
    assert card.total_bytes == 143771 * 2**20
    assert card.free_bytes == 143150 * 2**20
    assert card.bandwidth_bytes_per_second == 3201 * 10**6 * 2 * 6144 // 8
    assert "580.159.04" in card.how


def test_a_device_that_hides_its_memory_is_said_and_not_guessed():
    library = Nvml("shy")
    (card,), (note,) = nvidia_cards(library)
    assert card.bandwidth_bytes_per_second == 0
    assert card.drives_display is None
    assert "device 1" in note
    assert library.open == 0


def test_the_library_that_is_pretended_has_the_functions_of_the_real_one():
    pynvml = pytest.importorskip("pynvml")
    for name in vars(Nvml):
        if name.lower().startswith("nvml"):
            assert hasattr(pynvml, name), name


def test_no_driver_means_no_cards():
    assert nvidia_cards(Nvml(None)) == ((), ())


def test_sysfs_shows_amd_cards(tmp_path):
    (card,) = amd_cards(tree("7900xtx", tmp_path))
    assert (card.name, card.kind, card.drives_display) == ("Radeon RX 7900 XTX", "rocm", True)
    assert card.free_bytes == card.total_bytes - GIB
    assert card.driver == "amdgpu 6.10.5"


def test_without_the_compute_driver_an_amd_card_is_one_for_vulkan(tmp_path):
    root = tree("7900xtx", tmp_path)
    (root / "sys/class/kfd/kfd/topology/generation_id").unlink()
    (root / "sys/class/kfd/kfd/topology").rmdir()
    assert amd_cards(root)[0].kind == "vulkan"


def test_damaged_sysfs_files_give_no_card(tmp_path):
    root = tree("7900xtx", tmp_path)
    (root / "sys/class/drm/card1/device/mem_info_vram_total").write_text("12\n34")
    assert amd_cards(root) == ()


def told(kind: str, description: str, is_gpu: bool = True) -> dict:
    return {
        "build": "llama-cpp-python 0", "devices": [{
            "name": "X0", "kind": kind, "description": description, "is_gpu": is_gpu,
            "free_bytes": 5 * GIB, "total_bytes": 6 * GIB,
        }],
    }  # fmt: skip


def test_a_card_that_only_an_engine_sees_counts_and_no_card_counts_twice(tmp_path):
    root = tree("intel", tmp_path)
    found, notes = cards([told("vulkan", "Intel(R) Arc(tm) A770")], root, Nvml(None))
    assert [card.name for card in found] == ["Intel(R) Arc(tm) A770"]
    assert notes == ()
    for kind in ("cuda", "vulkan"):
        found, _ = cards([told(kind, "NVIDIA H200")], tmp_path, Nvml("h200"))
        assert len(found) == 1
    found, _ = cards([told("cpu", "AMD EPYC", is_gpu=False)], tmp_path, Nvml(None))
    assert found == ()


def test_graphics_whose_memory_nobody_tells_are_said(tmp_path):
    found, (note,) = cards([], tree("intel", tmp_path), Nvml(None))
    assert found == ()
    assert "card0 is Intel graphics" in note


def test_metal_gives_what_llama_cpp_logs():
    assert metal_limit(32 * GIB, 0)[0] // 2**20 == 21845
    assert metal_limit(64 * GIB, 0)[0] // 2**20 == 49152
    assert metal_limit(64 * GIB, 60000)[0] == 60000 * 2**20


# -- memory and processor ----------------------------------------------------------------------------


@linux_only
@pytest.mark.parametrize(
    ("name", "total", "left", "how"),
    [
        ("container-v2", 8 * GIB, 6 * GIB, "/user.slice/box.scope"),
        ("container-v1", 4 * GIB, 3 * GIB, "/docker/abc"),
        ("raspberry-pi-5", 8257216 * 1024, 7340032 * 1024, "/proc/meminfo"),
    ],
)
def test_a_containers_limit_counts(tmp_path, name, total, left, how):
    there, free = main_memory(tree(name, tmp_path))
    assert (there.value, free.value) == (total, left)
    assert how in there.how
    assert how in free.how


@linux_only
def test_where_a_group_is_slowed_down_is_a_limit_too(tmp_path):
    root = tree("container-v2", tmp_path)
    (root / "sys/fs/cgroup/user.slice/box.scope/memory.high").write_text(f"{5 * GIB}\n")
    there, free = main_memory(root)
    assert (there.value, free.value) == (5 * GIB, 3 * GIB)


def test_paths_of_control_groups_cannot_lead_out(tmp_path):
    root = tree("container-v2", tmp_path / "root")
    (tmp_path / "memory.max").write_text("1\n")
    (root / "proc/self/cgroup").write_text("0::/../../../..\n")
    assert list(control_groups(root)) == []


def test_vm_stat_is_read():
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10000.\nPages active:      5.\n"
        "Pages inactive:                            2000.\nPages speculative:      30.\n"
        "Pages purgeable:                              4.\n"
    )
    assert mac_free_bytes(text) == 16384 * 12034
    assert mac_free_bytes("") is None


LEVEL_3 = "cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("flags\t\t: cx16 lahf_lm popcnt pni sse4_1 sse4_2 ssse3", "x86-64-v2"),
        (f"flags\t\t: {LEVEL_3}", "x86-64-v3"),
        (f"flags\t\t: {LEVEL_3.replace('avx2', '')}", "x86-64-v2"),
        (f"flags: {LEVEL_3} avx512f avx512bw avx512cd avx512dq avx512vl", "x86-64-v4"),
        ("flags: fpu", "any"),
        ("Features\t: fp asimd evtstrm crc32 cpuid", "armv8"),
        ("Features\t: fp asimd atomics asimdrdm dcpop", "armv8.2"),
        ("", "any"),
    ],
)
def test_the_processors_level_is_read_from_its_flags(line, level):
    assert processor.level_of(f"processor\t: 0\n{line}\n\n")[0] == level


@linux_only
def test_a_board_is_called_by_its_name_and_shared_caches_count_once(tmp_path):
    root = tree("raspberry-pi-5", tmp_path)
    assert processor.processor_name(root) == "Raspberry Pi 5 Model B Rev 1.0"
    assert processor.last_level_cache_bytes(root) == 2 * 2**20
    assert not processor.is_virtual(root)


# -- this very machine -------------------------------------------------------------------------------


@linux_only
def test_this_machines_memory_is_what_proc_says_or_less():
    there, free = main_memory()
    text = Path("/proc/meminfo").read_text()
    total = int(re.search(r"^MemTotal:\s+(\d+)", text)[1]) * 1024
    assert 0 < free.value <= there.value <= total


@linux_only
def test_memory_bandwidth_is_measured_and_plausible():
    figure, why = memory_bandwidth(None, passes=3)
    assert why == ""
    assert 10**8 < figure.low <= figure.value <= figure.high < 10**13
    assert "3 passes" in figure.how


def test_too_little_memory_is_said_instead_of_measured():
    figure, why = memory_bandwidth(2**20)
    assert figure is None
    assert "1.00 MiB are free" in why


def test_a_measurement_that_does_not_end_is_given_up():
    figure, why = memory_bandwidth(None, seconds=0.001)
    assert figure is None
    assert "longer" in why


@linux_only
def test_the_disk_is_read_past_the_cache_or_it_is_said(tmp_path):
    figure, why = disk_read_speed(tmp_path, sample_bytes=16 * 2**20)
    assert (figure is None) == bool(why)
    assert figure is None or figure.value > 10**5
    assert list(tmp_path.iterdir()) == []


@linux_only
def test_a_file_that_is_there_is_read_instead_of_a_new_one(tmp_path):
    sample = tmp_path / "model.gguf"
    sample.write_bytes(os.urandom(8 * 2**20))
    sample.chmod(0o444)
    figure, why = disk_read_speed(tmp_path, sample=sample)
    assert (figure is None) == bool(why)
    assert figure is None or "8.39 MB" in figure.how
    assert sample.stat().st_size == 8 * 2**20


def test_the_largest_object_of_a_store_is_read_when_it_is_large(tmp_path):
    folder = tmp_path / "objects/ab"
    folder.mkdir(parents=True)
    (folder / "small").write_bytes(b"x")
    assert large_file(tmp_path) is None
    with (folder / "large").open("wb") as stream:
        stream.truncate(LARGE_FILE_BYTES)
    assert large_file(tmp_path) == folder / "large"
    assert large_file(tmp_path / "nowhere") is None


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs a filesystem in memory")
def test_memory_is_no_disk():
    figure, why = disk_read_speed(Path("/dev/shm"))
    assert figure is None
    assert "in memory" in why


@linux_only
def test_pages_in_the_cache_are_counted(tmp_path):
    path = tmp_path / "cached"
    path.write_bytes(os.urandom(2**20))
    with path.open("r+b") as stream:
        assert resident_share(stream.fileno()) > 0.5
    (tmp_path / "empty").touch()
    with (tmp_path / "empty").open("r+b") as stream:
        assert resident_share(stream.fileno()) == 1.0


def test_the_mount_that_holds_a_folder_is_the_deepest(tmp_path):
    (tmp_path / "proc/self").mkdir(parents=True)
    deep = tmp_path / "a stick"
    deep.mkdir()
    escaped = str(deep).replace(" ", "\\040")
    (tmp_path / "proc/self/mounts").write_text(
        f"/dev/sda1 / ext4 rw 0 0\n/dev/sdb1 {escaped} vfat ro,noexec 0 0\nbroken\n"
    )
    assert mounted(deep, tmp_path) == ("vfat", frozenset({"ro", "noexec"}))
    assert mounted(tmp_path, tmp_path)[0] == "ext4"
    assert disk_of(deep / "not/there/yet", tmp_path).folder == deep
    assert disk_of(deep, tmp_path).read_only


# -- as a target -------------------------------------------------------------------------------------


def machine(**changed) -> Machine:
    plain = {
        "platform": "linux-x86_64",
        "processor": "Test \n[target]",
        "cores": 8,
        "cpu_level": "x86-64-v3",
        "ram_total": Figure(value=32 * GIB, how="told"),
        "ram_free": Figure(value=30 * GIB, how="told"),
        "ram_bandwidth": Figure(value=40 * 10**9, how="read", low=39 * 10**9, high=41 * 10**9),
        "disk_read": Figure(value=567_275_555, how="read"),
    }
    return Machine.model_validate({**plain, **changed})


def as_recipe(text: str):
    return parse_recipe(
        f'schema = 1\n[bundle]\nname = "b"\n[corpora.w]\nsource = "path:x"\n{text}'.encode()
    ).target


@pytest.mark.parametrize("name", ["h200", "two-4090", "mixed", None])
def test_a_measured_machine_is_a_table_that_a_recipe_takes(name):
    found, _ = nvidia_cards(Nvml(name))
    text = target_toml(machine(cards=found), "2026-11-22", "0.1")
    target = choose_target(as_recipe(text), BY_NAME)
    assert 0 <= 30 * GIB - target.ram_bytes < 10**7
    assert target.disk_read_bytes_per_second == 567_000_000
    if name is None:
        assert target.accelerator == "none"
        assert target.memory_bandwidth_bytes_per_second == 40_000_000_000
    else:
        free = min(card.free_bytes for card in found if card.name == found[0].name)
        assert 0 <= free - target.usable_vram_bytes < 10**7
        assert target.device_count == (2 if name == "two-4090" else 1)
    assert ("RTX 3060" in text) == (name == "mixed")


def test_an_unsteady_measurement_is_called_that():
    steady = Figure(value=10, how="x", low=9, high=12)
    assert not steady.is_disturbed
    assert not Figure(value=10, how="x").is_disturbed
    loaded = machine(ram_bandwidth=Figure(value=10**10, how="x", low=4 * 10**9, high=2 * 10**10))
    assert "measure again when the machine is idle" in target_toml(loaded, "2026-11-22", "0.1")


def test_what_was_not_measured_is_left_out_and_said():
    lean = machine(ram_bandwidth=None, disk_read=None, notes=("disk: not measured, in memory",))
    text = target_toml(lean, "2026-11-22", "0.1")
    assert set(tomllib.loads(text)["target"]) == {"accelerator", "ram"}
    assert "# disk: not measured, in memory" in text


@given(st.text(max_size=60))
def test_no_name_of_a_driver_can_break_out_of_a_comment(name):
    card = Card(name=name, kind="cuda", total_bytes=GIB, free_bytes=GIB, how=name)
    text = target_toml(machine(cards=(card,), processor="x", notes=(name,)), "2026-11-22", "0")
    assert set(tomllib.loads(text)) == {"target"}
    assert tomllib.loads(text)["target"]["accelerator"] == "cuda"


@given(st.integers(10**6, 2**50))
def test_a_written_size_is_never_more_than_there_is(count):
    amount, unit = gigabytes(count).split()
    written = round(float(amount) * {"GB": 10**9, "MB": 10**6}[unit])
    assert count - max(10**7, 10**6) < written <= count


@given(st.integers(1 << 20, 1 << 50))
def test_a_written_memory_is_never_more_than_there_is(count):
    assert 0 <= count - parse_bytes(gibibytes(count)) < max(1 << 20, (1 << 30) // 100 + 1)


def test_the_largest_group_of_equal_cards_is_taken():
    two, _ = nvidia_cards(Nvml("two-4090"))
    small = Card(name="small", kind="vulkan", total_bytes=GIB, free_bytes=GIB, how="x")
    taken, left = chosen_cards((small, *two))
    assert taken == two
    assert left == (small,)
    lines = {line.key: line.value for line in target_lines(machine(cards=(small, *two)))}
    assert lines["devices"] == 2
    assert lines["usable_vram"] == gibibytes(two[0].free_bytes)


@linux_only
def test_looking_at_this_machine_finds_what_it_has(tmp_path):
    found = look(tmp_path, measure=False)
    assert found.platform == processor.this_platform()
    assert found.cores == len(os.sched_getaffinity(0))
    assert found.ram_bandwidth is None
    assert found.disk_read is None


@linux_only
def test_targets_here_writes_a_table_once(tmp_path):
    path = tmp_path / "here.toml"
    done = bundler("targets", "--here", "--store", tmp_path / "store", "--output", path)
    assert done.returncode == 0, done.stderr
    target = choose_target(as_recipe(path.read_text()), BY_NAME)
    assert 0 < target.ram_bytes <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    again = bundler("targets", "--here", "--store", tmp_path / "store", "--output", path)
    assert again.returncode == 8
    assert bundler("targets", "rtx-4090", "--here").returncode == 2


def test_one_target_is_shown_with_its_sources():
    done = bundler("targets", "raspberry-pi-4-8gb")
    assert "STREAM copy on a Pi 4" in done.stdout
    assert bundler("targets", "rtx-4050").returncode == 2
