"""The station picks a set of models for the computer it stands on, and says what it picked."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.station.configuration import (
    RuntimeCommand,
    TierEntry,
    read_bundle,
    this_platform,
)  # fmt: skip
from bundler.station.memory import free_memory, linux_bytes, mac_bytes
from bundler.station.probe import (
    Device,
    Machine,
    amd_devices,
    list_devices,
    nvidia_devices,
    nvidia_rows,
    probe,
    read_machine,
)  # fmt: skip
from bundler.station.problems import StationError
from bundler.station.tiers import judge, pick
from bundler.testing.station_bundle import make_bundle, model_entry
from bundler.testing.station_process import running_station

GB = 10**9
TIERS = (
    TierEntry("big", "A card with 24 GB", "cuda", 21 * GB, 1 * GB),
    TierEntry("small", "A card with 8 GB", "cuda", 6 * GB, 1 * GB),
    TierEntry("cpu", "Any computer with 8 GB of memory", "none", 0, 5 * GB),
)
CARD_24 = Device("cuda", "RTX 4090", 23 * GB, 24 * GB)
CARD_8 = Device("cuda", "RTX 4060 Laptop", 7 * GB, 8 * GB)


def machine(ram_gb=32, *devices, **more):
    return Machine(ram_gb * GB, devices=tuple(devices), **more)


# -- what is picked --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "name", "by"),
    [
        (machine(32, CARD_24), "big", "machine"),
        (machine(32, CARD_8, CARD_24), "big", "machine"),
        (machine(32, CARD_8), "small", "machine"),
        (machine(8), "cpu", "machine"),
        (machine(32, CARD_24, seen=(CARD_24,)), "big", "machine"),
        (machine(32, seen=(CARD_24,)), "cpu", "machine"),  # a card the runtime cannot drive
        (machine(32, Device("vulkan", "RTX 4090", 23 * GB)), "big", "machine"),
        (machine(32, Device("metal", "Apple M4", 23 * GB, shared=True)), "cpu", "machine"),
        (machine(1, CARD_24), "cpu", "smallest"),  # no memory to load through
        (machine(2), "cpu", "smallest"),
    ],
)
def test_the_first_set_that_fits_is_picked(there, name, by):
    picked = pick(TIERS, there)
    assert (picked.tier.name, picked.by) == (name, by)
    assert bool(picked.warning) == (by == "smallest")


def test_two_small_cards_are_not_one_large_one():
    assert pick(TIERS, machine(32, CARD_8, CARD_8, CARD_8)).tier.name == "small"
    two = (TierEntry("two", "Two cards", "cuda", 6 * GB, 0, device_count=2), TIERS[2])
    assert pick(two, machine(32, CARD_8, CARD_8)).tier.name == "two"
    one = pick(two, machine(32, CARD_8))
    assert one.tier.name == "cpu"
    assert "2 accelerators are needed" in one.judged[0].reason


def test_memory_that_is_shared_is_not_counted_twice():
    apple = Device("metal", "Apple M2", 11 * GB, 11 * GB, shared=True)
    tiers = (TierEntry("mac", "A Mac", "metal", 10 * GB, 1 * GB), TIERS[2])
    assert pick(tiers, machine(13, apple)).tier.name == "mac"
    assert pick(tiers, machine(10, apple)).tier.name == "cpu"


def test_something_is_left_over_for_everything_else():
    exact = pick(TIERS[2:] * 1, machine(5))
    assert not exact.own.fits
    assert "too few to leave some for all else" in exact.own.reason
    assert pick(TIERS[2:], machine(6)).own.fits


def test_a_machine_that_is_too_small_is_told_with_figures_and_remedy():
    picked = pick(TIERS, machine(2))
    assert "4.7 GiB of memory are needed, 1.9 GiB are free" in picked.warning
    assert "Close other programs" in picked.warning
    assert "None fits this computer" in picked.line


def test_a_bundle_for_one_machine_says_when_there_is_less():
    only = (TierEntry("", "A workstation", "none", 0, 16 * GB),)
    assert pick(only, machine(32)).warning == ""
    assert pick(only, machine(32)).line == ""
    assert "14.9 GiB of memory are needed, 7.5 GiB are free" in pick(only, machine(8)).warning


def test_a_card_that_is_missing_is_not_a_matter_of_closing_programs():
    only = (TierEntry("", "RTX 4060", "cuda", 6 * GB, 1 * GB),)
    warning = pick(only, machine(32, seen=(CARD_8,))).warning
    assert "run on the processor, which is slow" in warning
    assert "RTX 4060 Laptop is there, but no program of this bundle can use it" in warning
    assert "may not start" in pick(only, machine(4)).warning


def test_a_system_that_does_not_say_gets_the_smallest():
    picked = pick(TIERS[1:], Machine(None))
    assert (picked.tier.name, picked.by) == ("cpu", "smallest")
    assert "does not say what is free" in picked.line
    assert picked.warning == ""


def test_a_limit_on_the_container_is_named():
    assert "within a limit on this container" in pick(TIERS, machine(2, ram_limited_by="a limit on this container")).warning  # fmt: skip


def test_a_person_may_choose_and_is_told_what_to_expect():
    picked = pick(TIERS, machine(8), "big")
    assert (picked.tier.name, picked.by) == ("big", "person")
    assert "as you asked" in picked.line
    assert "--tier cpu" in picked.warning


def test_an_unknown_set_is_refused_with_those_there_are():
    with pytest.raises(StationError) as caught:
        pick(TIERS, machine(8), "bigg")
    assert "Did you mean big?" in caught.value.hint
    assert "cpu (Any computer with 8 GB of memory)" in caught.value.hint
    with pytest.raises(StationError, match="holds one set of models"):
        pick((TierEntry("", "One"),), machine(8), "big")


def test_a_bundle_of_before_there_were_tiers_picks_nothing():
    assert pick((), machine(8)) is None


sizes = st.integers(0, 64 * GB)
cards = st.builds(
    Device, st.sampled_from(["cuda", "vulkan", "metal"]), st.just("card"), sizes,
    shared=st.booleans(),
)  # fmt: skip
entries = st.builds(
    TierEntry, st.just(""), st.just("a machine"), st.sampled_from(["none", "cuda", "metal"]),
    sizes, sizes, st.integers(1, 3),
)  # fmt: skip


@given(
    st.lists(entries, min_size=2, max_size=5),
    st.builds(Machine, sizes, devices=st.lists(cards, max_size=3).map(tuple)),
    sizes,
)
def test_more_memory_never_gives_a_later_set(found, there, more):
    tiers = [TierEntry(**{**vars(tier), "name": f"t{n}"}) for n, tier in enumerate(found)]
    richer = Machine(there.ram_bytes + more, devices=there.devices)
    before, after = pick(tiers, there), pick(tiers, richer)
    if before.by == "machine":
        assert after.by == "machine"
        assert tiers.index(after.tier) <= tiers.index(before.tier)
        assert all(not one.fits for one in before.judged[: tiers.index(before.tier)])
    else:
        assert before.by == "smallest"
        assert before.warning


# -- what is found ---------------------------------------------------------------------------------


def write(root, files):
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    return root


MEMINFO = "MemTotal: 16000000 kB\nMemFree: 100 kB\nMemAvailable:    8000000 kB\n"


@pytest.mark.parametrize(
    ("files", "available", "limited"),
    [
        ({}, 8_192_000_000, False),
        # Version 2: a group, less what it uses, and file pages that go when needed.
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "3000000000\n",
          "sys/fs/cgroup/a/b/memory.current": "1000000000\n",
          "sys/fs/cgroup/a/b/memory.stat": "anon 5\ninactive_file 250000000\n"}, 2_250_000_000, True),
        # A parent's limit counts, `max` is none, and so does the limit at which it is slowed.
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/b/memory.max": "max\n",
          "sys/fs/cgroup/a/b/memory.current": "7\n", "sys/fs/cgroup/a/memory.high": "2000000000",
          "sys/fs/cgroup/a/memory.current": "500000000"}, 1_500_000_000, True),
        # A container that sees its group as the root; a path that leads out of what it sees.
        ({"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/memory.max": "1000000000",
          "sys/fs/cgroup/memory.current": "2000000000"}, 0, True),
        # Version 1.
        ({"proc/self/cgroup": "4:cpu,memory:/docker/1\n1:name=systemd:/\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "4000000000",
          "sys/fs/cgroup/memory/memory.usage_in_bytes": "1000000000",
          "sys/fs/cgroup/memory/memory.stat": "total_inactive_file 1000\n"}, 3_000_001_000, True),
        ({"proc/self/cgroup": "4:memory:/\n",
          "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
          "sys/fs/cgroup/memory/memory.usage_in_bytes": "1"}, 8_192_000_000, False),
        ({"proc/self/cgroup": "nonsense\n\x00\n0::\n"}, 8_192_000_000, False),
    ],
)  # fmt: skip
def test_main_memory_on_linux_is_what_is_available_and_allowed(tmp_path, files, available, limited):
    write(tmp_path, {"proc/meminfo": MEMINFO, **files})
    assert linux_bytes(tmp_path) == (available, "a limit on this container" if limited else "")


def test_this_machine_says_how_much_it_has():
    found, _ = free_memory()
    assert found is not None
    assert 2**26 < found < 2**45


def test_what_macos_says_is_read():
    text = (
        "Mach Virtual Memory Statistics: (page size of 16384 bytes)\n"
        "Pages free:                               10.\nPages active:     99.\n"
        "Pages inactive:                           20.\nPages speculative: 3.\n"
        "Pages wired down:                         50.\nPages purgeable:   4.\n"
    )
    assert mac_bytes(text) == 37 * 16384
    with pytest.raises(ValueError, match="vm_stat"):
        mac_bytes("usage: vm_stat")


def test_the_table_of_nvidias_tool_is_read():
    text = "NVIDIA GeForce RTX 4090, 24564, 23028\nNVIDIA GB10, [N/A], [N/A]\nan error, occurred\n"
    assert nvidia_rows(text) == (Device("cuda", "NVIDIA GeForce RTX 4090", 23028 * 2**20, 24564 * 2**20),)  # fmt: skip


def test_nvidias_tool_is_run_where_there_is_one(tmp_path):
    assert nvidia_devices("no-such-program-anywhere") == ()
    tool = tmp_path / "tool"
    tool.write_text('#!/bin/sh\necho "RTX 4060, 8188, 7000"\n')
    tool.chmod(0o755)
    assert [device.free_bytes for device in nvidia_devices(str(tool))] == [7000 * 2**20]
    tool.write_text("#!/bin/sh\necho no driver\nexit 9\n")
    assert nvidia_devices(str(tool)) == ()


def test_amds_cards_are_read_from_the_kernel(tmp_path):
    card = "sys/class/drm/card1/device"
    write(tmp_path, {
        "sys/class/drm/card0/device/vendor": "0x8086\n",
        f"{card}/vendor": "0x1002\n", f"{card}/mem_info_vram_total": "25753026560\n",
        f"{card}/mem_info_vram_used": "753026560\n", f"{card}/product_name": "RX 7900 XTX\n",
        "sys/class/drm/card2/device/vendor": "0x1002\n",
    })  # fmt: skip
    assert amd_devices(tmp_path) == (Device("rocm", "RX 7900 XTX", 25 * GB, 25753026560),)


def runtime(script, *words):
    return RuntimeCommand("fake", ("x",), devices=("{python}", "-c", script, *words))


def test_a_runtime_is_asked_what_it_can_use(tmp_path):
    answer = [{"kind": "cuda", "name": "RTX\x1b[2J 4090", "free_bytes": 5, "total_bytes": 6}]
    script = "import sys; print('ggml_cuda_init: found 1'); print(sys.argv[1])"
    found, notes = list_devices(runtime(script, json.dumps(answer)), tmp_path, "linux-x86_64")
    assert found == (Device("cuda", "RTX [2J 4090", 5, 6),)
    assert notes == ()
    assert list_devices(RuntimeCommand("plain", ("x",)), tmp_path, "any") == ((), ())


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("import sys; sys.exit('libcuda is missing')", "could not say .* libcuda is missing"),
        ("import os; os.abort()", "could not say"),
        ("print('hello')", "wrongly: not JSON"),
        ("", "wrongly: not JSON"),
        ("print('[' * 100000)", "wrongly: not JSON"),
        ("print('{}')", "expected a list"),
        ("print('[7]')", "expected an object"),
        ("""print('[{"kind": "cuda", "name": "x", "free_bytes": -1}]')""", "free_bytes"),
        ("""print('[{"kind": "../x", "name": "x", "free_bytes": 1}]')""", "kind"),
    ],
)
def test_a_runtime_that_answers_nonsense_is_noted_and_not_believed(tmp_path, script, said):
    found, notes = list_devices(runtime(script), tmp_path, "linux-x86_64")
    assert found == ()
    assert len(notes) == 1
    assert re.search(said, notes[0]), notes


def test_a_runtime_that_is_not_there_is_noted(tmp_path):
    gone = RuntimeCommand("gone", ("x",), devices=("{runtime}/no-such-program",))
    assert "No such file" in list_devices(gone, tmp_path, "linux-x86_64")[1][0]


def test_a_machine_in_a_file_is_checked(tmp_path):
    path = tmp_path / "m.json"
    good = Machine(5 * GB, "", (CARD_8,), (CARD_24,), ("slow",))
    path.write_text(json.dumps(good.as_json()))
    assert read_machine(path) == good
    path.write_text(json.dumps({"ram_bytes": -1, "devices": [{"kind": "cuda"}], "seen": 3}))
    with pytest.raises(StationError) as caught:
        read_machine(path)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == [
        "ram_bytes", "devices[0].name", "seen",
    ]  # fmt: skip


# -- the station -----------------------------------------------------------------------------------

STATION_TIERS = [
    {"name": "big", "title": "A card with 24 GB", "accelerator": "cuda", "vram_bytes": 21 * GB,
     "ram_bytes": GB},
    {"name": "cpu", "title": "<b>Any</b> computer", "accelerator": "none", "ram_bytes": 5 * GB},
]  # fmt: skip
MODELS = [
    model_entry(tier="big", quant="Q8_0"),
    model_entry(tier="cpu", quant="Q4_K_M"),
    model_entry(name="words", role="embed", residency="on-demand"),
]
CLIENT = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), trust_env=False)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiers")
    listed = [{"kind": "cuda", "name": "RTX 4090", "free_bytes": 23 * GB, "total_bytes": 24 * GB}]
    changes = {"tiers": STATION_TIERS, "models": MODELS}
    return make_bundle(root / "b", platform=this_platform(), devices=listed, changes=changes)


def described(tmp_path, there):
    path = tmp_path / "machine.json"
    path.write_text(json.dumps(there.as_json()))
    return "--machine", str(path)


def get(station, path):
    return CLIENT.get(station.url + path)


def test_what_listing_itself_takes_of_a_card_is_not_held_against_it(tmp_path, monkeypatch):
    """A process that lists CUDA devices takes half a gigabyte of each; the driver was asked first."""
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    listed = [
        {"kind": "cuda", "name": "RTX 4090", "free_bytes": 22 * 2**30, "total_bytes": 24 * GB}
    ]
    changes = {"tiers": STATION_TIERS, "models": MODELS}
    root = make_bundle(tmp_path / "b", platform=this_platform(), devices=listed, changes=changes)
    for driver_mib, counted in ((22 * 1024 + 500, 22 * 1024 + 500), (24 * 1024, 22 * 1024)):
        tool.write_text(f"#!/bin/sh\necho 'RTX 4090, 24564, {driver_mib}'\n")
        tool.chmod(0o755)
        found = probe(read_bundle(root), this_platform())
        assert [device.free_bytes for device in found.devices] == [counted * 2**20]
        assert [device.free_bytes for device in found.seen] == [driver_mib * 2**20]


def test_a_set_that_does_not_start_names_the_next(tmp_path):
    changes = {"tiers": STATION_TIERS, "models": MODELS}
    command = ["{python}", "-c", "raise SystemExit('error: out of memory')", "{model}", "{port}"]
    root = make_bundle(tmp_path / "b", platform=this_platform(), command=command, changes=changes)
    with running_station(root, *described(tmp_path, machine(32, CARD_24))) as station:
        deadline = time.monotonic() + 20
        while (status := get(station, "api/status").json())["chat"] != "off":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert status["warnings"] == [
            "The model chat did not start. The set made for smaller computers may: start again "
            "with --tier cpu."
        ]


def test_the_runtimes_own_list_decides(bundle):
    with running_station(bundle) as station:
        tier = get(station, "api/status").json()["tier"]
        assert (tier["name"], tier["by"], tier["fits"]) == ("big", "machine", True)
        said = "\n".join(station.output)
        assert (
            "The models for “A card with 24 GB” are in use: of 2 sets, the best that fits" in said
        )
        assert "RTX 4090 has 21.4 GiB free" in said
        assert "--tier NAME takes another: cpu" in said


def test_only_models_of_the_set_are_served(bundle, tmp_path):
    with running_station(bundle, *described(tmp_path, machine(8))) as station:
        status = get(station, "api/status").json()
        assert status["tier"]["name"] == "cpu"
        assert [(m["name"], m["quant"]) for m in status["models"]] == [
            ("chat", "Q4_K_M"), ("words", "Q4_K_M"),
        ]  # fmt: skip
        listed = [model["id"] for model in get(station, "v1/models").json()["data"]]
        assert listed == ["chat", "words"]
        assert status["warnings"] == []
        page = get(station, "library").text
        assert "“&lt;b&gt;Any&lt;/b&gt; computer” are in use" in page
        assert "<code>./start --tier big</code>" in page
        assert "an NVIDIA card is needed and there is none" in page


def test_a_machine_that_is_too_small_is_warned_on_screen_and_page(bundle, tmp_path):
    with running_station(bundle, *described(tmp_path, machine(2))) as station:
        status = get(station, "api/status").json()
        assert (status["tier"]["name"], status["tier"]["by"]) == ("cpu", "smallest")
        assert "4.7 GiB of memory are needed, 1.9 GiB are free" in status["warnings"][0]
        assert any(line.startswith("warning: The models may not start") for line in station.output)
        assert "The models may not start" in get(station, "").text


@pytest.mark.parametrize("how", ["option", "variable"])
def test_a_person_overrides_the_probe(bundle, tmp_path, monkeypatch, how):
    if how == "variable":
        monkeypatch.setenv("BUNDLER_TIER", "big")
    words = ["--tier", "big"] if how == "option" else []
    with running_station(bundle, *described(tmp_path, machine(8)), *words) as station:
        tier = get(station, "api/status").json()["tier"]
        assert (tier["name"], tier["by"], tier["fits"]) == ("big", "person", False)


def start(bundle, *words, **environment):
    command = [sys.executable, "-m", "bundler.station", "--bundle", bundle, "--no-browser"]
    return subprocess.run(
        [*command, *words], capture_output=True, text=True, cwd=Path(__file__).parents[1],
        env={**os.environ, **environment}, check=False, timeout=30,
    )  # fmt: skip


@pytest.mark.parametrize("environment", [{}, {"BUNDLER_TIER": "cpuu"}])
def test_an_unknown_set_is_exit_code_2_with_those_there_are(bundle, environment):
    done = start(bundle, "--port", "0", *([] if environment else ["--tier", "cpuu"]), **environment)
    assert done.returncode == 2
    assert "no set of models called 'cpuu'" in done.stderr
    assert "Did you mean cpu? There is: big (A card with 24 GB), cpu" in done.stderr


def test_a_running_station_is_not_taken_for_one_with_other_models(bundle):
    with running_station(bundle, "--tier", "cpu") as station:
        again = start(bundle, "--port", str(station.port), "--tier", "big")
        assert again.returncode == 2
        assert "already open" in again.stderr
        assert "'cpu'" in again.stderr
        same = start(bundle, "--port", str(station.port), "--tier", "cpu")
        assert same.returncode == 0
        assert "already open" in same.stdout


def test_the_probe_prints_what_it_sees(bundle, tmp_path):
    done = start(bundle, "--probe")
    assert done.returncode == 0
    path = tmp_path / "seen.json"
    path.write_text(done.stdout)
    found = read_machine(path)
    assert found.devices == (CARD_24,)
    assert found.ram_bytes > 2**26


def test_a_bundle_without_sets_starts_as_before(tmp_path):
    root = make_bundle(tmp_path / "old", platform=this_platform())
    with running_station(root) as station:
        assert get(station, "api/status").json()["tier"] is None
        assert "--tier" not in get(station, "library").text
    done = start(root, "--port", "0", "--tier", "big")
    assert done.returncode == 2
    assert "holds one set of models" in done.stderr


def test_a_bundle_for_one_machine_warns_and_leaves_the_variable_be(tmp_path, monkeypatch):
    monkeypatch.setenv("BUNDLER_TIER", "of-another-bundle")
    only = [{"name": "", "title": "A workstation", "accelerator": "none", "ram_bytes": 16 * GB}]
    root = make_bundle(tmp_path / "one", platform=this_platform(), changes={"tiers": only})
    with running_station(root, *described(tmp_path, machine(8))) as station:
        status = get(station, "api/status").json()
        assert "14.9 GiB of memory are needed" in status["warnings"][0]
        assert "are in use" not in "\n".join(station.output)


def test_one_card_that_two_backends_list_is_one_card():
    two = TierEntry(
        "two", "two cards", accelerator="cuda", vram_bytes=20 * GB, ram_bytes=GB, device_count=2
    )
    cuda = Device("cuda", "NVIDIA GeForce RTX 4090", 23 * GB, 24 * GB)
    vulkan = Device("vulkan", "NVIDIA GeForce RTX 4090", 23 * GB, 24 * GB)
    assert not judge(two, Machine(64 * GB, devices=(cuda, vulkan))).fits
    assert judge(two, Machine(64 * GB, devices=(cuda, cuda))).fits
    assert judge(two, Machine(64 * GB, devices=(vulkan, cuda, vulkan))).fits
