import errno
import multiprocessing
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.errors import BusyError, DamagedError, DoesNotFit, UnsafeInput
from bundler.store import Store, StoredResult, full_disk_is_an_error, share_or_copy

KEY = "ab" * 32


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "store")


@settings(max_examples=25)
@given(data=st.binary(max_size=5000))
def test_what_is_put_is_what_is_verified(data, tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("s"))
    sha256, size = store.put(data)
    assert store.verified(sha256).read_bytes() == data
    assert size == len(data)


@pytest.mark.fault("A12")
def test_one_flipped_bit_in_an_object_is_noticed_and_the_object_removed(store):
    sha256, _ = store.put(b"hello")
    path = store.object_path(sha256)
    path.chmod(0o644)
    path.write_bytes(b"hellp")
    with pytest.raises(DamagedError, match="damaged"):
        store.verified(sha256)
    assert not path.exists()


def test_an_adopted_file_is_not_linked_to_its_original(store, tmp_path):
    original = tmp_path / "mine"
    original.write_bytes(b"first")
    sha256, _ = store.adopt(original)
    original.write_bytes(b"other")
    assert store.verified(sha256).read_bytes() == b"first"


def test_an_adopted_file_must_be_what_is_expected(store, tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    with pytest.raises(DamagedError, match="expected"):
        store.adopt(tmp_path / "f", expect="0" * 64)
    assert not list((store.root / "objects").rglob("*" * 1 + "?" * 64))


def test_a_link_is_not_taken_into_the_store(store, tmp_path):
    (tmp_path / "link").symlink_to("/etc/hostname")
    with pytest.raises(UnsafeInput):
        store.adopt(tmp_path / "link")


def test_a_result_counts_only_while_all_its_files_are_there(store):
    sha256, size = store.put(b"made")
    store.keep_result(KEY, StoredResult({"a": (sha256, size)}, {"n": 1}))
    assert store.result(KEY).facts == {"n": 1}
    store.object_path(sha256).unlink()
    assert store.result(KEY) is None


def test_a_torn_record_is_removed_and_said(store):
    (store.root / "results" / f"{KEY}.json").write_bytes(b'{"files": {"a')
    with pytest.raises(DamagedError, match="damaged and has been removed"):
        store.result(KEY)
    assert store.result(KEY) is None


def test_sharing_holds_the_bytes_once(tmp_path):
    (tmp_path / "a").write_bytes(b"x" * 100_000)
    how = share_or_copy(tmp_path / "a", tmp_path / "b", link=True)
    assert how in ("reflink", "link")
    assert (tmp_path / "b").read_bytes() == b"x" * 100_000
    assert share_or_copy(tmp_path / "a", tmp_path / "c", link=False) in ("reflink", "copy")
    assert (tmp_path / "c").stat().st_nlink == 1
    with pytest.raises(FileExistsError):
        share_or_copy(tmp_path / "a", tmp_path / "b", link=True)


@pytest.mark.fault("A4")
def test_a_full_disk_names_the_figures_and_the_way_on(tmp_path):
    with pytest.raises(DoesNotFit) as caught, full_disk_is_an_error(tmp_path, "model.gguf"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert "model.gguf" in str(caught.value)
    assert "left" in str(caught.value)
    assert "same command" in caught.value.problems[0].hint


def _hold(root, started, seconds):
    with Store(root).locked("thing"):
        started.set()
        time.sleep(seconds)


@pytest.mark.fault("A9")
def test_a_lock_is_exclusive_and_dies_with_its_process(store):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    other = context.Process(target=_hold, args=(store.root, started, 60))
    other.start()
    assert started.wait(30)
    with (
        pytest.raises(BusyError, match="another bundler"),
        store.locked("thing", timeout_seconds=0.2),
    ):
        pass
    other.kill()
    other.join()
    with store.locked("thing", timeout_seconds=5):
        pass


def test_scratch_of_a_dead_process_is_swept(store):
    code = (
        "import sys, os; from pathlib import Path; from bundler.store import Store\n"
        "with Store(Path(sys.argv[1])).scratch() as folder:\n"
        "    (folder / 'x').write_text('x'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, store.root], check=False)
    assert list((store.root / "work").iterdir())
    with store.scratch() as mine:
        assert list((store.root / "work").iterdir()) == [mine]
    assert os.listdir(store.root / "work") == []
