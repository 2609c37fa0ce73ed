"""The 13 faults of a network, kill -9 at any point, and what else must never harm a transfer."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import bundler.download
import bundler.part
from bundler.builtin.sources import HttpSource, HubSource, PathSource
from bundler.errors import (
    BundlerError,
    DamagedError,
    DoesNotFit,
    LockError,
    PluginError,
    SourceError,
)
from bundler.events import Event, Note, Progress
from bundler.hookspecs import Source
from bundler.lock import LockedFile
from bundler.pacing import Patience
from bundler.recipe import SourceReference
from bundler.store import Store, hash_file
from bundler.testing.hub import Fault, TestHub
from bundler.transfer import fetch, read_range
from bundler.world import World

MIB = 1 << 20
WEIGHTS = random.Random(7).randbytes(24 * MIB)
OTHER = random.Random(8).randbytes(24 * MIB)
FAST = Patience(first_delay_seconds=0.01, longest_delay_seconds=0.02)
CDN = "/cdn/owner/name/model.safetensors"
RESOLVE = "/owner/name/resolve/*/model.safetensors"
ROOT = Path(__file__).parent.parent


class WitnessedStore(Store):
    """A store that looks at every transfer in the moment in which it becomes an object."""

    def finish_part(self, sha256: str) -> None:
        assert hash_file(self.part_path(sha256)) == sha256, "wrong bytes enter the store"
        super().finish_part(sha256)


@pytest.fixture
def hub() -> Iterator[TestHub]:
    with TestHub() as hub:
        hub.add_repository("owner/name", {"model.safetensors": WEIGHTS})
        yield hub


@pytest.fixture
def world(hub: TestHub, tmp_path: Path) -> World:
    return World(WitnessedStore(tmp_path / "store"), environment={"HF_ENDPOINT": hub.url})


SOURCE = HubSource(stall_seconds=0.4, patience=FAST)


def locked(hub: TestHub, data: bytes = WEIGHTS, name: str = "model.safetensors") -> LockedFile:
    return LockedFile(
        path=name,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        addresses=(f"{hub.url}/owner/name/resolve/{'0123456789abcdef' * 2}01234567/{name}",),
    )


def get(hub: TestHub, world: World, patience: Patience = FAST) -> None:
    fetch([(SOURCE, locked(hub))], world, step="fetch", patience=patience)


def assert_whole_and_clean(world: World, data: bytes = WEIGHTS) -> None:
    path = world.store.object_path(hashlib.sha256(data).hexdigest())
    assert path.read_bytes() == data
    assert leftovers(world.store.root) == []


def leftovers(root: Path) -> list[str]:
    return sorted(
        str(p.relative_to(root)) for folder in ("parts", "work") for p in (root / folder).iterdir()
    )


def objects(world: World) -> list[Path]:
    return [path for path in (world.store.root / "objects").rglob("*") if path.is_file()]


CHILD = """
import json, sys
from pathlib import Path
from bundler.builtin.sources import HubSource
from bundler.events import Progress
from bundler.lock import LockedFile
from bundler.store import Store
from bundler.transfer import fetch
from bundler.world import World
given = json.loads(sys.argv[1])
if given.get("file_limit"):
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (given["file_limit"],) * 2)
connects = []
sys.addaudithook(lambda name, args: connects.append(str(args[1])) if name == "socket.connect" else None)
world = World(Store(Path(given["store"])), environment=given["environment"],
              offline=given.get("offline", False))
source = HubSource(stall_seconds=30)
try:
    fetch([(source, LockedFile.model_validate(f)) for f in given["files"]], world, step="fetch")
except BaseException as error:
    print(json.dumps({"error": type(error).__name__, "text": str(error), "connects": connects}))
    raise SystemExit(getattr(error, "exit_code", 130))
print(json.dumps({"error": "", "connects": connects}))
"""


def child(hub: TestHub, world: World, **more: object) -> subprocess.Popen[str]:
    given = {
        "store": str(world.store.root),
        "environment": dict(world.environment),
        "files": [locked(hub).model_dump(mode="json")],
        **more,
    }
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(given)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def outcome(process: subprocess.Popen[str]) -> dict[str, object]:
    out, errors = process.communicate(timeout=120)
    assert out, errors
    found: dict[str, object] = json.loads(out.splitlines()[-1])
    return found


def wait_for_part(world: World, length: int) -> None:
    part = world.store.part_path(hashlib.sha256(WEIGHTS).hexdigest())
    deadline = time.monotonic() + 60
    while not part.exists() or part.stat().st_size < length:
        assert time.monotonic() < deadline, "the child does not come on"
        time.sleep(0.01)


# -- the 13 faults -----------------------------------------------------------------------------------


def wrong_bytes(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.wrong_bytes())
    get(hub, world)


def swapped_between_parts(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.reset(10 * MIB), Fault.changed(OTHER))
    get(hub, world)


def stored_object_flipped(hub: TestHub, world: World) -> None:
    get(hub, world)
    [path] = objects(world)
    path.chmod(0o644)
    with path.open("r+b") as stream:
        stream.seek(12345)
        stream.write(bytes([WEIGHTS[12345] ^ 1]))
    get(hub, world)


def stored_object_truncated(hub: TestHub, world: World) -> None:
    get(hub, world)
    [path] = objects(world)
    path.chmod(0o644)
    os.truncate(path, 5000)
    get(hub, world)


def reset(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.reset(10 * MIB))
    get(hub, world)
    assert hub.bytes_sent(CDN) < len(WEIGHTS) + 8 * MIB


def one_500(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.status(500))
    get(hub, world)


def killed(hub: TestHub, world: World) -> None:
    at = len(WEIGHTS) * 83 // 100
    hub.inject(CDN, Fault.stall(at))
    process = child(hub, world)
    wait_for_part(world, at)
    process.kill()
    process.communicate()
    get(hub, world)
    assert hub.bytes_sent(CDN) <= len(WEIGHTS) + 8 * MIB


def early_close(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.early_close(10 * MIB))
    get(hub, world)
    assert hub.bytes_sent(CDN) == len(WEIGHTS)


def stall(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.stall(10 * MIB))
    get(hub, world)
    assert hub.bytes_sent(CDN) == len(WEIGHTS)


def range_ignored(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.early_close(10 * MIB), Fault.ignores_range())
    get(hub, world)
    assert hub.bytes_sent(CDN) == len(WEIGHTS) + 10 * MIB, "bytes of elsewhere were appended"


def too_many_requests(hub: TestHub, world: World) -> None:
    hub.inject(RESOLVE, Fault.status(429, retry_after="1"))
    began = time.monotonic()
    get(hub, world)
    assert time.monotonic() - began >= 1


def one_503(hub: TestHub, world: World) -> None:
    hub.inject(RESOLVE, Fault.status(503))
    get(hub, world)


def captive_page(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.early_close(10 * MIB), Fault.captive_page())
    get(hub, world)
    assert hub.bytes_sent(CDN) < len(WEIGHTS) + 1000, "the part was given up for a login page"


THIRTEEN = {
    "01-wrong-bytes-of-the-right-size": wrong_bytes,
    "02-content-swapped-between-part-and-resume": swapped_between_parts,
    "03-one-bit-flipped-in-the-store": stored_object_flipped,
    "04-object-in-the-store-truncated": stored_object_truncated,
    "05-connection-reset-mid-body": reset,
    "06-one-500": one_500,
    "07-kill-9-at-83-percent": killed,
    "08-clean-early-close": early_close,
    "09-stall": stall,
    "10-range-ignored": range_ignored,
    "11-429-with-retry-after": too_many_requests,
    "12-one-503": one_503,
    "13-captive-page": captive_page,
}


def marked(*values: object) -> object:
    """Return a test's parameters, the last being the number in the fault catalogue."""
    return pytest.param(*values[:-1], marks=pytest.mark.fault(str(values[-1])))


NUMBERS = ["B5", "B6", "A12", "A12", "B4", "B2", "B13", "B4", "B1", "B7", "B3", "B2", "B5"]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=name, marks=pytest.mark.fault(number))
        for (name, fault), number in zip(THIRTEEN.items(), NUMBERS, strict=True)
    ],
)
def test_each_of_the_13_faults_ends_in_the_right_bytes(fault, hub: TestHub, world: World) -> None:
    fault(hub, world)
    assert_whole_and_clean(world)
    assert len(objects(world)) == 1


@pytest.mark.parametrize(
    "fault",
    [
        marked(fault, number) for fault, number in (
            (Fault.wrong_range(), "B7"), (Fault.endless(), "B9"), (Fault.lying_length(-5000), "B9"),
            (Fault.lying_length(5000), "B9"), (Fault.gzip(), "B9"), (Fault.redirect_loop(), "B8"),
            (Fault.status(408), "B2"), (Fault.status(504), "B2"),
            (Fault.status(429, retry_after="Thu, 01 Jan 1970 00:00:00 GMT"), "B3"),
            (Fault.status(429), "B3"),
        )
    ],
    ids=lambda fault: f"{fault.kind}{fault.status_code if fault.kind == 'status' else ''}",
)  # fmt: skip
@pytest.mark.parametrize("resuming", [False, True], ids=["fresh", "resuming"])
def test_a_fault_that_passes_does_no_harm(
    fault: Fault, resuming: bool, hub: TestHub, world: World
) -> None:
    pattern = RESOLVE if fault.kind == "redirect_loop" else CDN
    if fault.kind == "redirect_loop":
        faults = [fault]  # One hop of a loop: the next request is answered.
    else:
        faults = [Fault.early_close(10 * MIB), fault] if resuming else [fault]
    hub.inject(pattern, *faults)
    get(hub, world)
    assert_whole_and_clean(world)


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        marked(Fault.wrong_bytes(), DamagedError, "B5"),
        marked(Fault.changed(OTHER), DamagedError, "B6"),
        marked(Fault.changed(OTHER[:1000]), DamagedError, "B6"),
        marked(Fault.captive_page(), DamagedError, "B5"),
        marked(Fault.status(500), SourceError, "B2"),
        marked(Fault.status(404), SourceError, "B10"),
        marked(Fault.reset(), SourceError, "B4"),
        marked(Fault.early_close(5000), SourceError, "B4"),
        marked(Fault.gzip(), SourceError, "B9"),
        marked(Fault.lying_length(-5000), DamagedError, "B9"),
    ],
    ids=lambda given: getattr(given, "kind", ""),
)
def test_a_fault_that_stays_is_an_error_and_nothing_enters_the_store(
    fault: Fault, error: type[BundlerError], hub: TestHub, world: World
) -> None:
    hub.inject(CDN, fault, always=True)
    with pytest.raises(error, match=r"model\.safetensors") as caught:
        get(hub, world)
    assert caught.value.exit_code == error.exit_code
    assert objects(world) == []
    # Random bytes grow by a few in 10,000 when they are compressed.
    assert hub.bytes_sent(CDN) < 3.01 * len(WEIGHTS), "asked too often"


@pytest.mark.fault("B8")
def test_a_redirect_loop_is_left_after_ten_hops(hub: TestHub, world: World) -> None:
    hub.inject(RESOLVE, Fault.redirect_loop(), always=True)
    with pytest.raises(SourceError, match="redirected more than 10 times"):
        get(hub, world)
    assert len(hub.requests(RESOLVE)) == 11


@pytest.mark.fault("B9")
def test_an_endless_body_is_stopped_at_the_expected_size(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.endless(), always=True)
    get(hub, world)
    assert_whole_and_clean(world)


@pytest.mark.fault("B1")
def test_a_server_that_hardly_sends_anything_is_left(
    hub: TestHub, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SLOW_SECONDS", 0.1), ("SLOW_BYTES", MIB), ("PROGRESS_BYTES", 4 * MIB)):
        monkeypatch.setattr(bundler.download, name, value)
    hub.inject(CDN, Fault.slow(0.15), always=True)
    with pytest.raises(SourceError, match=r"hardly sends anything \(6 attempts"):
        get(hub, world)
    assert len(hub.requests(CDN)) == 6


# -- interruption ------------------------------------------------------------------------------------


@pytest.mark.parametrize("percent", [10, 50, 99])
@pytest.mark.fault("B13")
def test_after_kill_9_at_most_8_mib_are_sent_again(
    percent: int, hub: TestHub, world: World
) -> None:
    at = len(WEIGHTS) * percent // 100
    hub.inject(CDN, Fault.stall(at))
    process = child(hub, world)
    wait_for_part(world, at)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert outcome(child(hub, world))["error"] == ""
    assert_whole_and_clean(world)
    again = hub.bytes_sent(CDN) - len(WEIGHTS)
    assert 0 <= again <= 8 * MIB


@pytest.mark.fault("B13")
def test_kill_9_after_the_last_byte_sends_nothing_again(hub: TestHub, world: World) -> None:
    part = world.store.part_path(locked(hub).sha256)
    part.write_bytes(WEIGHTS)
    part.chmod(0o444)  # Between taking the right to write and the final name.
    get(hub, world)
    assert_whole_and_clean(world)
    assert hub.connections == 0


@pytest.mark.parametrize("torn", [b"\0" * 100_000, b""], ids=["zeros", "cut"])
def test_a_torn_tail_costs_at_most_one_sync_interval(
    torn: bytes, hub: TestHub, world: World
) -> None:
    good = 13 * MIB + 17
    world.store.part_path(locked(hub).sha256).write_bytes(WEIGHTS[: good - len(torn)] + torn)
    get(hub, world)
    assert_whole_and_clean(world)
    assert hub.bytes_sent(CDN) == len(WEIGHTS) - 12 * MIB


def test_a_part_that_is_damaged_at_its_beginning_is_fetched_again_once(
    hub: TestHub, world: World
) -> None:
    world.store.part_path(locked(hub).sha256).write_bytes(OTHER[: 13 * MIB])
    get(hub, world)
    assert_whole_and_clean(world)


@pytest.mark.fault("B6")
def test_a_part_of_another_version_is_not_continued(hub: TestHub, world: World) -> None:
    sha256 = locked(hub).sha256
    world.store.part_path(sha256).write_bytes(OTHER[: 13 * MIB])
    record = {"address": locked(hub).addresses[0], "validator": f'{hub.cdn_url} "old"'}
    (world.store.root / "parts" / f"{sha256}.json").write_text(json.dumps(record))
    get(hub, world)
    assert [r.status for r in hub.requests(CDN)] == [200]
    assert_whole_and_clean(world)


@pytest.mark.fault("A3")
def test_control_c_stops_at_once_and_keeps_the_part(hub: TestHub, world: World) -> None:
    at = 10 * MIB
    hub.inject(CDN, Fault.stall(at))
    process = child(hub, world)
    wait_for_part(world, at)
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert outcome(process)["error"] == "KeyboardInterrupt"
    assert time.monotonic() - began < 4
    get(hub, world)
    assert_whole_and_clean(world)
    assert hub.bytes_sent(CDN) <= len(WEIGHTS) + 4 * MIB


@pytest.mark.fault("A8")
def test_two_processes_fetch_the_same_file_once(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.slow(0.003), always=True)
    both = [child(hub, world), child(hub, world)]
    assert [outcome(process)["error"] for process in both] == ["", ""]
    assert hub.bytes_sent(CDN) == len(WEIGHTS)
    assert_whole_and_clean(world)


# -- no network, no room -----------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["--offline", "HF_HUB_OFFLINE"])
@pytest.mark.fault("B11")
def test_offline_makes_no_connection_and_lists_what_is_missing(
    way: str, hub: TestHub, world: World
) -> None:
    second = LockedFile(
        path="b.gguf", size_bytes=7, sha256="ab" * 32, addresses=locked(hub).addresses
    )
    files = [file.model_dump(mode="json") for file in (locked(hub), second)]
    if way == "--offline":
        process = child(hub, world, files=files, offline=True)
    else:
        environment = {**world.environment, "HF_HUB_OFFLINE": "1"}
        process = child(hub, world, files=files, environment=environment)
    found = outcome(process)
    assert found["connects"] == []
    assert hub.connections == 0
    assert "model.safetensors" in str(found["text"])
    assert "b.gguf" in str(found["text"])
    assert process.returncode == SourceError.exit_code


@pytest.mark.fault("B11")
def test_offline_is_enough_when_everything_is_in_the_store(hub: TestHub, world: World) -> None:
    get(hub, world)
    before = hub.connections
    found = outcome(child(hub, world, offline=True))
    assert found == {"error": "", "connects": []}
    assert hub.connections == before


@pytest.mark.fault("A4")
def test_no_room_is_said_before_the_first_byte(hub: TestHub, world: World) -> None:
    huge = LockedFile(
        path="huge.gguf", size_bytes=1 << 55, sha256="ab" * 32, addresses=locked(hub).addresses
    )
    with pytest.raises(DoesNotFit, match=r"36029 TB are to be fetched and .* are free"):
        fetch([(SOURCE, huge)], world, step="fetch")
    assert hub.connections == 0


@pytest.mark.fault("A4")
def test_a_disk_that_ends_early_is_a_clear_error_and_keeps_the_part(
    hub: TestHub, world: World
) -> None:
    process = child(hub, world, file_limit=10 * MIB)
    found = outcome(process)
    assert process.returncode == DoesNotFit.exit_code, found
    get(hub, world)
    assert_whole_and_clean(world)
    assert hub.requests(CDN)[-1].start == 8 * MIB


# -- other places ------------------------------------------------------------------------------------


@pytest.mark.fault("B12")
def test_a_mirror_with_other_bytes_is_found_out(hub: TestHub, tmp_path: Path) -> None:
    with TestHub() as mirror:
        mirror.add_repository("owner/name", {"model.safetensors": OTHER})
        world = World(WitnessedStore(tmp_path / "m"), environment={"HF_ENDPOINT": mirror.url})
        with pytest.raises(DamagedError, match="not what was locked"):
            get(hub, world)
        assert hub.connections == 0
        assert objects(world) == []


def test_the_next_mirror_continues_where_the_first_one_broke(hub: TestHub, world: World) -> None:
    first = hub.add_file("a/wiki.zim", WEIGHTS)
    second = hub.add_file("b/wiki.zim", WEIGHTS, etag='"another"')
    hub.inject("/files/a/*", Fault.early_close(10 * MIB), Fault.status(404))
    file = LockedFile(
        path="wiki.zim", size_bytes=len(WEIGHTS), sha256=locked(hub).sha256,
        addresses=(first, second),
    )  # fmt: skip
    fetch([(HttpSource(), file)], world, step="fetch", patience=FAST)
    assert_whole_and_clean(world)
    assert hub.requests("/files/b/*")[0].start == 10 * MIB
    assert hub.bytes_sent("/files/*.zim") < len(WEIGHTS) + 100


@pytest.mark.fault("B12")
def test_a_bad_mirror_is_passed_over(hub: TestHub, world: World) -> None:
    bad = [hub.add_file(f"{name}/wiki.zim", OTHER) for name in ("a", "b")]
    good = hub.add_file("c/wiki.zim", WEIGHTS)
    file = LockedFile(
        path="wiki.zim", size_bytes=len(WEIGHTS), sha256=locked(hub).sha256,
        addresses=(*bad, good),
    )  # fmt: skip
    fetch([(HttpSource(), file)], world, step="fetch", patience=FAST)
    assert_whole_and_clean(world)


def test_all_refusals_of_all_addresses_are_told(hub: TestHub, world: World) -> None:
    gone = tuple(f"{hub.url}/files/{name}" for name in ("x", "y"))
    file = LockedFile(path="z", size_bytes=5, sha256="ab" * 32, addresses=gone)
    with pytest.raises(SourceError) as caught:
        fetch([(HttpSource(), file), (SOURCE, locked(hub))], world, step="fetch", patience=FAST)
    assert [str(p) for p in caught.value.problems] == [
        f"z ({gone[0]}): the server answered 404 Not Found",
        f"z ({gone[1]}): the server answered 404 Not Found",
    ]
    assert_whole_and_clean(world)  # …and the other file is here all the same.


def test_a_local_file_is_taken_without_being_downloaded(tmp_path: Path, world: World) -> None:
    (tmp_path / "wiki.zim").write_bytes(WEIGHTS)
    there = World(world.store, folder=tmp_path, offline=True)
    source = PathSource()
    reference = SourceReference.model_validate("path:wiki.zim")
    [file] = source.resolve(reference, there).files
    fetch([(source, file)], there, step="fetch")
    assert_whole_and_clean(world)


def test_a_local_file_that_changed_is_never_taken(tmp_path: Path, world: World) -> None:
    (tmp_path / "wiki.zim").write_bytes(WEIGHTS)
    there = World(world.store, folder=tmp_path)
    source = PathSource()
    [file] = source.resolve(SourceReference.model_validate("path:wiki.zim"), there).files
    (tmp_path / "wiki.zim").write_bytes(OTHER)
    with pytest.raises(LockError, match="not the file that was locked"):
        fetch([(source, file)], there, step="fetch", patience=FAST)
    assert objects(world) == []


def test_the_cache_of_huggingface_hub_is_used_after_hashing(
    hub: TestHub, world: World, tmp_path: Path
) -> None:
    blobs = tmp_path / "cache" / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / locked(hub).sha256).write_bytes(WEIGHTS)
    environment = {**world.environment, "HF_HUB_CACHE": str(tmp_path / "cache")}
    get(hub, World(world.store, environment))
    assert_whole_and_clean(world)
    assert hub.connections == 0


@pytest.mark.fault("B14")
@pytest.mark.parametrize(
    "there", [OTHER, WEIGHTS[:-1] + bytes([WEIGHTS[-1] ^ 1]), WEIGHTS[:-1000], b""],
    ids=["other", "one bit", "cut short", "empty"],
)  # fmt: skip
def test_a_damaged_file_in_the_cache_of_huggingface_hub_is_not_used(
    there: bytes, hub: TestHub, world: World, tmp_path: Path
) -> None:
    blobs = tmp_path / "cache" / "models--owner--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / locked(hub).sha256).write_bytes(there)
    environment = {**world.environment, "HF_HUB_CACHE": str(tmp_path / "cache")}
    notes: list[Event] = []
    get(hub, World(world.store, environment, notes.append))
    told = any(isinstance(n, Note) and "is not used" in n.message for n in notes)
    assert told == (len(there) == len(WEIGHTS))  # of another size it is no candidate at all
    assert hub.bytes_sent(CDN) == len(WEIGHTS)
    assert_whole_and_clean(world)


# -- contract ----------------------------------------------------------------------------------------


def test_files_of_the_same_content_are_fetched_once(hub: TestHub, world: World) -> None:
    fetch([(SOURCE, locked(hub)), (SOURCE, locked(hub))], world, step="fetch")
    assert hub.bytes_sent(CDN) == len(WEIGHTS)


def test_one_digest_with_two_sizes_is_a_damaged_lock(hub: TestHub, world: World) -> None:
    other = locked(hub).model_copy(update={"size_bytes": 5})
    with pytest.raises(LockError, match="different sizes"):
        fetch([(SOURCE, locked(hub)), (SOURCE, other)], world, step="fetch")


def test_an_empty_file_needs_no_connection(hub: TestHub, world: World) -> None:
    fetch([(SOURCE, locked(hub, b""))], world, step="fetch")
    assert world.store.verified(hashlib.sha256(b"").hexdigest()).read_bytes() == b""
    assert hub.connections == 0


def test_a_source_that_breaks_is_named(hub: TestHub, world: World) -> None:
    class Broken(HubSource):
        name = "broken"

        def open(self, *args: object, **more: object):  # type: ignore[override]
            raise ZeroDivisionError("oops")

    broken: Source = Broken()
    with pytest.raises(PluginError, match="source 'broken' failed with ZeroDivisionError: oops"):
        fetch([(broken, locked(hub))], world, step="fetch", patience=FAST)


def test_progress_never_goes_back_and_ends_at_the_total(hub: TestHub, world: World) -> None:
    hub.add_repository("owner/name", {"model.safetensors": WEIGHTS, "b.gguf": OTHER})
    hub.inject(CDN, Fault.reset(10 * MIB), Fault.changed(OTHER), Fault.ignores_range())
    events: list[Event] = []
    seen = World(world.store, world.environment, events.append)
    files = [(SOURCE, locked(hub)), (SOURCE, locked(hub, OTHER, "b.gguf"))]
    fetch(files, seen, step="fetch 2 files", patience=FAST)
    progress = [event for event in events if isinstance(event, Progress)]
    done = [event.done for event in progress]
    assert done == sorted(done)
    assert done[-1] == 48 * MIB
    assert {(event.step, event.total, event.unit) for event in progress} == {
        ("fetch 2 files", 48 * MIB, "bytes")
    }


def test_the_bandwidth_cap_holds_for_all_transfers_together(hub: TestHub, world: World) -> None:
    files = {f"{n}.gguf": random.Random(n).randbytes(MIB) for n in range(4)}
    hub.add_repository("owner/name", files)
    capped = World(world.store, world.environment, bandwidth_bytes_per_second=4 * MIB)
    began = time.monotonic()
    fetch([(SOURCE, locked(hub, d, n)) for n, d in files.items()], capped, step="fetch")
    assert 0.9 < time.monotonic() - began < 3


def test_files_come_in_parallel(hub: TestHub, world: World) -> None:
    files = {f"{n}.gguf": random.Random(n).randbytes(MIB) for n in range(4)}
    hub.add_repository("owner/name", files)
    hub.inject("/cdn/*", Fault.slow(0.03), always=True)  # 16 blocks: half a second for each file
    began = time.monotonic()
    fetch([(SOURCE, locked(hub, d, n)) for n, d in files.items()], world, step="fetch")
    assert time.monotonic() - began < 1.5


def test_a_header_is_read_by_range_and_again_after_a_fault(hub: TestHub, world: World) -> None:
    hub.inject(CDN, Fault.status(503), Fault.ignores_range())
    read = read_range(SOURCE, locked(hub), 1000, 500, world, patience=FAST)
    assert read == WEIGHTS[1000:1500]
    assert read_range(SOURCE, locked(hub), 23 * MIB, 9 * MIB, world) == WEIGHTS[23 * MIB :]
    assert hub.requests(CDN)[-1].bytes_sent == MIB


# -- for all inputs ----------------------------------------------------------------------------------

SMALL = random.Random(9).randbytes(300_000)
_CUTS = st.integers(0, len(SMALL))
_FAULTS = st.one_of(
    st.builds(Fault.reset, _CUTS),
    st.builds(Fault.early_close, _CUTS),
    st.builds(Fault.changed, st.sampled_from([SMALL[::-1], SMALL[:1000]])),
    st.builds(Fault.lying_length, st.integers(-1000, 1000)),
    st.sampled_from(
        [
            Fault.wrong_bytes(), Fault.ignores_range(), Fault.wrong_range(), Fault.endless(),
            Fault.gzip(), Fault.captive_page(), Fault.status(503), Fault.none(),
        ]
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def small_hub() -> Iterator[TestHub]:
    with TestHub() as hub:
        yield hub


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(faults=st.lists(_FAULTS, max_size=6), attempts=st.integers(1, 4), number=st.uuids())
@pytest.mark.fault("B4")
def test_whatever_goes_wrong_and_however_often_we_begin_anew_the_object_is_right(
    faults: list[Fault],
    attempts: int,
    number: object,
    small_hub: TestHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bundler.part, "SYNC_BYTES", 10_000)
    address = small_hub.add_file(f"{number}/file", SMALL)
    small_hub.inject(f"/files/{number}/file", *faults)
    file = LockedFile(
        path="file", size_bytes=len(SMALL), sha256=hashlib.sha256(SMALL).hexdigest(),
        addresses=(address,),
    )  # fmt: skip
    world = World(WitnessedStore(tmp_path / str(number)))
    patience = Patience(attempts=attempts, first_delay_seconds=0.001, longest_delay_seconds=0.001)
    for _ in range(len(faults) + 1):
        try:
            fetch([(HttpSource(stall_seconds=5), file)], world, step="fetch", patience=patience)
        except (SourceError, DamagedError):
            assert objects(world) == []
        else:
            break
    assert_whole_and_clean(world, SMALL)
