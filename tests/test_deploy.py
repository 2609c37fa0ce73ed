"""Bundles onto sticks: filesystems in memory, behind loop devices, and behind FUSE."""

import contextlib
import fcntl
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.console import pace
from bundler.deploy import checks, mounts
from bundler.deploy.capacity import probe_capacity
from bundler.deploy.cargo import cargo_of
from bundler.deploy.evidence import Evidence, doubts, proofs
from bundler.deploy.ground import Ground, look_at
from bundler.deploy.kernel import forget_pages, pages_in_memory
from bundler.deploy.outcome import Outcome, Wishes
from bundler.deploy.probes import folds_case, refused_names, refused_size
from bundler.deploy.stick import deploy_to
from bundler.deploy.sticks import deploy, failure, worst
from bundler.deploy.survey import Survey, Task
from bundler.deploy.writing import batches
from bundler.errors import BusyError, DamagedError, DoesNotFit, RecipeError, UnsafeInput
from bundler.events import Progress, StepStarted, silent
from bundler.grouping import Piece
from bundler.manifest import BESIDE, UNFINISHED_NAME, UPDATE_NAME, BundleFile
from bundler.media import keys
from bundler.media.repair import repair_bundle
from bundler.verify import verify_bundle
from tests import sticks
from tests.demo import ROOT
from tests.media import SEGMENT_BYTES, digests, empty_manifest, noise, overwrite, sealed, some_files

LARGE = "models/chat/chat.gguf"
needs_strace = pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
WITH_PROBE = Wishes()
PLAIN = Wishes(probe=False)
CLEAN = Wishes(probe=False, delete=True)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return sealed(tmp_path_factory.mktemp("made"))


@pytest.fixture
def target(tmp_path):
    folder = tmp_path / "stick"
    folder.mkdir()
    return folder


def onto(bundle: Path, target: Path, wishes: Wishes = PLAIN, report=silent) -> Outcome:
    return deploy_to(cargo_of(bundle), target, wishes, threading.Event(), report)


def copied(bundle: Path, target: Path, wishes: Wishes = PLAIN, report=silent) -> Outcome:
    """Copy, expecting that it works and that the stick holds the bundle afterwards."""
    outcome = onto(bundle, target, wishes, report)
    assert outcome.errors == []
    assert outcome.state in ("copied", "unchanged")
    assert digests(outcome.place) == digests(bundle)
    assert verify_bundle(outcome.place).findings == ()
    return outcome


def refused(bundle: Path, target: Path, wishes: Wishes = PLAIN):
    """Copy, expecting that it is refused before the first byte; return the one error."""
    before = digests(target)
    outcome = onto(bundle, target, wishes)
    assert outcome.state == "failed"
    assert digests(target) == before
    assert sorted(p.name for p in target.glob(".bundler*")) == []
    return failure([outcome])


def bundler(*words, **popen):
    return [sys.executable, "-m", "bundler", "deploy", "--no-probe", *map(str, words)], {
        "cwd": ROOT, "text": True, **popen,
        "env": {**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **popen.get("env", {})},
    }  # fmt: skip


def command(*words, **environment):
    line, how = bundler(*words, env=environment)
    return subprocess.run(line, capture_output=True, **how)


# -- the plain way -------------------------------------------------------------------------------------


@pytest.mark.mounts
@pytest.mark.parametrize("kind", sticks.KINDS)
def test_a_bundle_arrives_whole_on_every_kind_of_stick(bundle, tmp_path, kind):
    with sticks.stick(tmp_path, kind) as point:
        outcome = copied(bundle, point, WITH_PROBE)
        assert outcome.place == point / "test"
        assert outcome.read_back.read_bytes >= outcome.written_bytes > 0
        assert outcome.mended == ()
        if kind == "fat":  # fusefat reads an image, so no device of the system is below it
            assert not outcome.device_was_read()
            assert "no device" in doubts(outcome.read_back, outcome.ground)[0]
        else:
            assert outcome.device_was_read()
            assert len(proofs(outcome.read_back)) == 3
        again = copied(bundle, point)
        assert (again.state, again.written_bytes) == ("unchanged", 0)
        assert again.device_was_read() == (kind != "fat")


def test_a_second_time_nothing_is_written(bundle, target):
    first = copied(bundle, target)
    total = sum(file.size_bytes for file in cargo_of(bundle).manifest.files)
    assert first.written_bytes == total
    assert not (first.place / UNFINISHED_NAME).exists()
    before = {path: path.stat() for path in first.place.rglob("*")}
    again = copied(bundle, target)
    assert (again.state, again.written_bytes, again.survey.kept_bytes) == ("unchanged", 0, total)
    assert {path: path.stat().st_mtime_ns for path in before} == {
        path: info.st_mtime_ns for path, info in before.items()
    }


def test_only_the_segment_that_differs_is_written(bundle, target):
    place = copied(bundle, target).place
    overwrite(place / LARGE, 5 * SEGMENT_BYTES + 3, 2)
    again = copied(bundle, target)
    assert again.written_bytes == SEGMENT_BYTES
    (place / LARGE).write_bytes((place / LARGE).read_bytes() + b"more")
    assert copied(bundle, target).written_bytes == 0
    (place / "start").unlink()
    assert copied(bundle, target).written_bytes == len(some_files()["start"])


def test_a_lost_manifest_comes_back_and_a_lost_mode_too(bundle, target):
    place = copied(bundle, target).place
    (place / "manifest.json").unlink()
    assert copied(bundle, target).written_bytes == 0
    (place / "start").chmod(0o644)
    copied(bundle, target)
    assert (place / "start").stat().st_mode & 0o111


def test_the_folder_of_the_bundle_itself_may_be_named(bundle, target):
    place = copied(bundle, target).place
    overwrite(place / "start", 3, 1)
    assert copied(bundle, place).place == place


def test_a_dry_run_tells_and_writes_nothing(bundle, target):
    done = command(bundle, target, "--unsigned", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"would write {LARGE}" in done.stdout
    assert list(target.iterdir()) == []


def test_the_table_and_the_json_say_what_was_done(bundle, target):
    done = command(bundle, target, "--unsigned", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    (one,) = found["targets"]
    assert (found["bundle"], one["state"], one["exit_code"]) == ("test", "copied", 0)
    assert one["written_bytes"] == one["to_write_bytes"] > 0
    assert one["read_back"]["read_bytes"] >= one["written_bytes"]
    words = command(bundle, target, "--unsigned")
    assert "is there, whole" in words.stdout
    assert "disk that the system itself is on" in words.stderr


# -- what is refused before the first byte --------------------------------------------------------------


@pytest.mark.mounts
@pytest.mark.fault("C2")
def test_a_stick_that_is_too_small_is_refused_with_figures(bundle, tmp_path):
    with sticks.memory(tmp_path / "small", "2m") as point:
        error = refused(bundle, point)
        assert isinstance(error, DoesNotFit)
        assert "too little" in error.problems[0].message


@pytest.mark.mounts
def test_all_problems_are_said_at_once(bundle, tmp_path):
    with sticks.memory(tmp_path / "small", "1m") as point:
        (point / "test").mkdir()
        (point / "test/models").symlink_to(tmp_path)
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        error = refused(bundle, point)
        said = "\n".join(map(str, error.problems))
        assert "read-only" in said
        assert "models: is in the way" in said
        assert error.exit_code == 8


def ground(**what) -> Ground:
    return Ground(**{
        "target": Path("/media/stick"), "kind": "vfat", "mount_point": "/media/stick",
        "device": "8:17", "source": "/dev/sdb1", "free_bytes": 1 << 40, "total_bytes": 1 << 40,
        "cluster_bytes": 4096, "free_files": None, "read_only": False, "writable": True, "removable": True, "with_system": False, **what,
    })  # fmt: skip


def manifest_with(**sizes):
    files = tuple(
        BundleFile(path=path, size_bytes=size, sha256="0" * 64)
        for path, size in sorted(sizes.items())
    )
    from bundler.layout import Layout

    return empty_manifest(Layout()).model_copy(update={"files": files})


@pytest.mark.fault("C3")
def test_fat_is_refused_for_files_of_4_gib_with_advice_for_each_kind():
    manifest = manifest_with(**{"m/a.gguf": 2**32, "c/b.zim": 9 << 30, "c/fits.zim": 2**32 - 1})
    found = list(checks.too_large_files(ground(), manifest, None))
    assert [error.problems[0].message.split()[0] for error in found] == ["c/b.zim", "m/a.gguf"]
    hints = [error.problems[0].hint for error in found]
    assert "only a smaller one" in hints[0]
    assert 'the line filesystem = "fat32" below [bundle] in the recipe' in hints[1]
    for hint in hints:
        assert "mkfs.exfat -n BUNDLE /dev/sdb1" in hint
        assert "diskutil" in hint
        assert "/FS:exFAT" in hint
    assert list(checks.too_large_files(ground(kind="exfat"), manifest, None)) == []


@pytest.mark.fault("C3")
def test_a_limit_on_file_sizes_is_seen_before_anything_is_written(bundle, target):
    line, how = bundler(bundle, target, "--unsigned")
    done = subprocess.run(["sh", "-c", 'ulimit -f 1000; exec "$@"', "sh", *line],
                          capture_output=True, **how)  # fmt: skip
    assert done.returncode == 4
    assert LARGE in done.stderr
    assert "ulimit" in done.stderr
    assert list(target.iterdir()) == []


def test_a_size_that_the_filesystem_cannot_have_is_found_by_trying(tmp_path):
    assert refused_size(tmp_path, 5 << 30) == ""
    code = (
        "import resource, sys; from pathlib import Path; from bundler.deploy.probes import "
        "refused_size; resource.setrlimit(resource.RLIMIT_FSIZE, (2**32 - 1,) * 2); "
        "print(refused_size(Path(sys.argv[1]), 5 << 30))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert done.stdout.strip() == "File too large"


def test_what_is_no_stick_is_refused(bundle, target, tmp_path):
    gone = onto(bundle, tmp_path / "gone").errors[0]
    assert isinstance(gone, RecipeError)
    assert "is the stick mounted there?" in str(gone)
    (tmp_path / "file").touch()
    assert isinstance(onto(bundle, tmp_path / "file").errors[0], RecipeError)
    with pytest.raises(RecipeError, match="named twice"):
        deploy(cargo_of(bundle), [target, target / "."], PLAIN)
    named = bundle.parent / "test"
    with pytest.raises(RecipeError, match="where it is itself"):
        deploy(cargo_of(bundle), [bundle], PLAIN)
    shutil.copytree(bundle, named)
    with pytest.raises(RecipeError, match="where it is itself"):
        deploy(cargo_of(named), [bundle.parent], PLAIN)
    shutil.rmtree(named)


def test_two_copies_to_one_stick_do_not_meet(bundle, target):
    descriptor = os.open(target, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    assert isinstance(refused(bundle, target), BusyError)
    os.close(descriptor)
    copied(bundle, target)


# -- what lies there already ----------------------------------------------------------------------------


def test_foreign_files_are_never_touched(bundle, target):
    (target / "photos").mkdir()
    (target / "photos/a.jpg").write_bytes(b"mine")
    (target / "test/app").mkdir(parents=True)
    (target / "test/app/mine.txt").write_bytes(b"mine too")
    said = []
    outcome = onto(bundle, target, CLEAN, said.append)
    assert outcome.state == "copied"
    assert outcome.survey.foreign == ("app/mine.txt",)
    assert any("app/mine.txt" in getattr(note, "message", "") for note in said)
    assert (target / "photos/a.jpg").read_bytes() == b"mine"
    assert (target / "test/app/mine.txt").read_bytes() == b"mine too"


@pytest.mark.parametrize("path", ["start", LARGE, "manifest.json", "SHA256SUMS"])
def test_a_file_of_yours_where_the_bundle_has_one_is_not_overwritten(bundle, target, path):
    """A folder that happens to have the bundle's name is not one of its older versions."""
    mine = target / "test" / path
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b'{"name": "my own"}' * 100_000)
    error = refused(bundle, target)
    assert isinstance(error, UnsafeInput)
    assert f"{path}: would be overwritten" in str(error)


def test_a_file_of_yours_where_a_newer_version_has_one_is_not_overwritten(bundle, newer, target):
    place = copied(bundle, target).place
    (place / "app/new.html").write_bytes(b"mine")
    assert "app/new.html: would be overwritten" in str(refused(newer, target, CLEAN))


def test_a_copy_and_an_update_or_repair_of_one_bundle_do_not_meet(bundle, target):
    place = copied(bundle, target).place
    overwrite(place / "start", 3, 1)
    descriptor = os.open(place, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    error = refused(bundle, target)
    assert isinstance(error, BusyError)
    assert "update or repair" in str(error)
    os.close(descriptor)
    copied(bundle, target)


def test_a_cut_off_update_is_finished_or_given_up_first(bundle, target):
    place = copied(bundle, target).place
    (place / UPDATE_NAME).mkdir()
    (place / UPDATE_NAME / "switch").touch()
    overwrite(place / "start", 3, 1)
    error = refused(bundle, target)
    assert "not finished" in str(error)
    shutil.rmtree(place / UPDATE_NAME)
    copied(bundle, target)


@pytest.fixture(scope="module")
def newer(tmp_path_factory):
    """A later version: two segments of a large file differ, it is longer, other files are gone."""
    files = some_files()
    large = bytearray(files[LARGE])
    large[SEGMENT_BYTES * 3] ^= 1
    large[SEGMENT_BYTES * 20] ^= 1
    files[LARGE] = bytes(large) + b"a little more"
    del files["app/page00.html"], files["licenses/a.txt"], files["licenses/b.txt"]
    files["app/new.html"] = b"new"
    return sealed(tmp_path_factory.mktemp("newer"), files)


def test_what_an_older_version_left_is_deleted_only_with_consent(bundle, newer, target):
    place = copied(bundle, target).place
    (place / "app/page00.html.bak").write_bytes(b"mine")
    error = refused(newer, target)
    assert isinstance(error, UnsafeInput)
    assert "3 files" in str(error)
    assert "licenses/a.txt" in str(error)
    outcome = onto(newer, target, CLEAN)
    assert outcome.errors == []
    assert outcome.deleted == ("app/page00.html", "licenses/a.txt", "licenses/b.txt")
    assert not (place / "licenses").exists()
    assert (place / "app/page00.html.bak").read_bytes() == b"mine"
    assert [f.path for f in verify_bundle(place).findings] == ["app/page00.html.bak"]


def test_a_file_that_somebody_changed_is_not_taken_for_a_leftover(bundle, newer, target):
    place = copied(bundle, target).place
    (place / "licenses/a.txt").write_bytes(b"my own text..")
    outcome = onto(newer, target, CLEAN)
    assert outcome.deleted == ("app/page00.html", "licenses/b.txt")
    assert (place / "licenses/a.txt").read_bytes() == b"my own text.."


def test_a_large_file_that_somebody_changed_far_inside_is_not_deleted(bundle, target, tmp_path):
    files = some_files()
    del files[LARGE]
    without = sealed(tmp_path / "without", files)
    place = copied(bundle, target).place
    overwrite(place / LARGE, SEGMENT_BYTES * 7 + 3, 1)
    outcome = onto(without, target, CLEAN)
    assert outcome.deleted == ()
    assert outcome.survey.foreign == (LARGE,)
    assert (place / LARGE).exists()


def test_of_a_newer_version_only_other_segments_are_written(bundle, newer, target):
    copied(bundle, target)
    outcome = copied(newer, target, CLEAN)
    task = next(task for task in outcome.survey.tasks if task.file.path == LARGE)
    assert task.base == "taken"
    assert [piece.index for piece in task.wrong] == [3, 20, 40]
    assert outcome.written_bytes < sum(f.size_bytes for f in cargo_of(newer).manifest.files) / 3


@pytest.mark.mounts
def test_a_newer_version_needs_no_second_room(bundle, newer, tmp_path):
    total = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    with sticks.memory(tmp_path / "full", f"{total // 1024 + 1400}k") as point:
        copied(bundle, point)
        assert shutil.disk_usage(point).free < (bundle / LARGE).stat().st_size
        copied(newer, point, CLEAN)


def test_a_file_with_a_second_name_is_not_written_through(bundle, newer, target, tmp_path):
    place = copied(bundle, target).place
    os.link(place / LARGE, tmp_path / "other name")
    before = (tmp_path / "other name").read_bytes()
    copied(newer, target, CLEAN)
    assert (tmp_path / "other name").read_bytes() == before


def test_a_link_in_the_place_of_the_folder_of_the_second_manifest_leads_nowhere(tmp_path, target):
    made = sealed(tmp_path, {"a": b"a"}, percent=0)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "manifest.json").write_bytes(b"mine")
    (target / "test").mkdir()
    (target / "test/parity").symlink_to(outside)
    assert onto(made, target).errors[0].exit_code == 8
    assert (outside / "manifest.json").read_bytes() == b"mine"


def test_a_bundle_with_files_in_our_working_folder_is_refused(tmp_path, target):
    made = sealed(tmp_path, {".Bundler-deploy/a": b"a"})
    with pytest.raises(UnsafeInput, match="unfinished copies"):
        cargo_of(made)


def test_who_may_not_write_and_what_has_no_room_for_names_is_told():
    survey = Survey(
        (Task(BundleFile(path="a", size_bytes=1, sha256="0" * 64), "nothing", ()),),
        (), False, False, (), (), (),
    )  # fmt: skip
    found = list(checks.objections(
        ground(writable=False, free_files=3), manifest_with(a=1), survey, {}
    ))  # fmt: skip
    assert [error.exit_code for error in found] == [1, 4]
    assert "uid=" in found[0].problems[0].hint
    assert "17 files" in str(found[1])


@pytest.mark.parametrize("link", ["models", LARGE, "start", UNFINISHED_NAME, "."])
def test_a_link_on_the_stick_leads_nowhere(bundle, target, tmp_path, link):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "treasure").write_bytes(b"mine")
    place = target / "test" / link
    place.parent.mkdir(parents=True, exist_ok=True)
    if link == ".":
        place = target / "test"
        place.rmdir() if place.exists() else None
    place.symlink_to(outside)
    outcome = onto(bundle, target)
    assert outcome.errors[0].exit_code == 8
    assert "in the way" in str(outcome.errors[0])
    assert digests(outside) == {"treasure": digests(outside)["treasure"]}


@pytest.mark.mounts
def test_names_that_a_stick_does_not_tell_apart_are_in_the_way(bundle, tmp_path):
    with sticks.stick(tmp_path, "exfat") as point:
        assert folds_case(point)
        (point / "test/MODELS").mkdir(parents=True)
        (point / "test/Start").write_bytes(b"mine")
        error = refused(bundle, point)
        said = str(error)
        assert isinstance(error, UnsafeInput)
        assert "'MODELS' is in the way" in said
        assert "'Start' is in the way" in said
        assert (point / "test/Start").read_bytes() == b"mine"
        assert refused_names(point, ["a" * 256, "fine", "漢字.txt"]) == ["a" * 256]
    assert not folds_case(tmp_path)


# -- the bundle itself -----------------------------------------------------------------------------------


def test_a_damaged_source_is_never_copied_and_the_rest_is(tmp_path, target):
    source = tmp_path / "source"
    shutil.copytree(sealed(tmp_path / "made"), source)
    for path in source.rglob("*"):
        path.chmod(0o755)
    whole = digests(source)
    overwrite(source / LARGE, 7 * SEGMENT_BYTES, 5)
    overwrite(source / "runtime/lib.so", 9, 1)
    outcome = onto(source, target)
    error = failure([outcome])
    assert isinstance(error, DamagedError)
    assert {p.where for p in error.problems} == {
        str(source / LARGE), str(source / "runtime/lib.so"),
    }  # fmt: skip
    assert all("bundler repair" in p.hint for p in error.problems)
    assert not (outcome.place / LARGE).exists()
    with pytest.raises(DamagedError, match="incomplete"):
        verify_bundle(outcome.place)
    assert (outcome.place / "corpora/b.zim").exists()
    subprocess.run([sys.executable, "-m", "bundler", "repair", source], check=True, cwd=ROOT,
                   capture_output=True)  # fmt: skip
    assert digests(source) == whole
    again = copied(source, target)
    assert again.written_bytes == 33 * SEGMENT_BYTES + 777 + 30_000  # from the damaged one on


@pytest.mark.parametrize(
    "name", ["manifest.json", "SHA256SUMS", "parity/head.par2", "start", LARGE]
)
def test_a_source_that_verify_refuses_at_a_glance_is_refused(bundle, target, tmp_path, name):
    source = tmp_path / "source"
    shutil.copytree(bundle, source)
    (source / name).chmod(0o644)
    (source / name).write_bytes((source / name).read_bytes()[:-7])
    with pytest.raises(DamagedError) as error:
        deploy(cargo_of(source), [target], PLAIN)
    assert "bundler repair" in error.value.problems[0].hint
    assert list(target.iterdir()) == []


def test_an_unsigned_or_unknown_source_is_refused(tmp_path, bundle, target):
    mine, theirs = tmp_path / "mine", tmp_path / "theirs"
    assert command(bundle, target, "--keys", mine).returncode == 7
    maker = keys.new_key(theirs, "", "them")
    ring = keys.read_ring(theirs)
    secret = keys.open_secret_key(theirs, lambda: "")
    signed = tmp_path / "signed"

    def beside(data):
        from bundler.manifest import Manifest

        return keys.side_files(Manifest.model_validate_json(data), data, secret, ring)

    made = sealed(signed, beside=beside)
    done = command(made, target, "--keys", mine)
    assert (done.returncode, list(target.iterdir())) == (7, [])
    assert maker.key_id in done.stderr
    assert command(made, target, "--keys", theirs).returncode == 0
    assert digests(target / "test") == digests(made)


# -- cut off ---------------------------------------------------------------------------------------------


def written_before(trace: Path) -> int:
    """Return how many bytes a traced process had put into files of the stick."""
    return sum(int(n) for n in re.findall(r"pwrite64\(.*= (\d+)$", trace.read_text(), re.MULTILINE))


@needs_strace
@pytest.mark.fault("C1")
@pytest.mark.parametrize("sixteenth", [*range(1, 16)])
def test_killed_at_any_sixteenth_it_goes_on_and_copies_one_segment_again_at_most(
    bundle, target, tmp_path, sixteenth
):
    killed_and_gone_on_with(bundle, target, tmp_path, sixteenth)


@needs_strace
@pytest.mark.mounts
@pytest.mark.fault("C1")
@pytest.mark.parametrize("kind", ["exfat"])  # fusefat loses bytes of files it opens again
def test_killed_on_a_stick_of_another_kind_it_goes_on_too(bundle, tmp_path, kind):
    with sticks.stick(tmp_path, kind) as point:
        killed_and_gone_on_with(bundle, point, tmp_path, 9)


def killed_and_gone_on_with(bundle, target, tmp_path, sixteenth):
    # Each of the 50 segments of the two large files is one write; 90 in all with parity and pages.
    when = 90 * sixteenth // 16
    line, how = bundler(bundle, target, "--unsigned")
    trace = tmp_path / "trace"
    killed = subprocess.run(
        ["strace", "-f", "-o", trace, "-e", "trace=pwrite64",
         "-e", f"inject=pwrite64:signal=KILL:when={when}", *line],
        capture_output=True, **how,
    )  # fmt: skip
    assert killed.returncode == -signal.SIGKILL
    with pytest.raises(DamagedError, match="incomplete") as error:
        verify_bundle(target / "test")
    assert error.value.exit_code == 6
    total = sum(file.size_bytes for file in cargo_of(bundle).manifest.files)
    again = copied(bundle, target)
    assert written_before(trace) + again.written_bytes - total <= SEGMENT_BYTES


def test_what_is_not_finished_is_not_repaired_by_an_older_manifest(bundle, target):
    place = copied(bundle, target).place
    (place / UNFINISHED_NAME).mkdir()
    overwrite(place / "start", 3, 1)
    before = digests(place)
    with pytest.raises(DamagedError, match="incomplete"):
        repair_bundle(place)
    assert digests(place) == before
    copied(bundle, target)


@needs_strace
@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [
        ("pwrite64:error=EIO:when=30", 1, "pulled out, or is broken"),
        ("fdatasync:error=EIO:when=20", 1, "pulled out, or is broken"),
        ("fsync:error=ENODEV:when=9", 1, "pulled out, or is broken"),
        ("rename:error=EIO:when=6", 1, "pulled out, or is broken"),
        ("pwrite64:error=EROFS:when=12", 1, "became read-only"),
        ("pwrite64:error=ENOSPC:when=50", 4, "is full"),
        ("pwrite64:error=EFBIG:when=30", 4, "does not allow a file as large"),
    ],
)
def test_a_stick_that_fails_is_said_to_and_gone_on_with(bundle, target, fault, code, said):
    line, how = bundler(bundle, target, "--unsigned")
    call = fault.partition(":")[0]
    done = subprocess.run(
        ["strace", "-f", "-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={fault}", *line],
        capture_output=True, **how,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    copied(bundle, target)


@pytest.mark.mounts
@pytest.mark.fault("C1")
def test_what_was_pulled_out_is_not_copied_to_the_folder_below(bundle, tmp_path):
    image = sticks.image(tmp_path / "image", "ext4", 32)
    point = tmp_path / "point"

    def pull_out(event):
        if (
            isinstance(event, Progress)
            and event.step.startswith("copy")
            and event.done > event.total / 3
        ):
            subprocess.run(["umount", "-l", point], capture_output=True)

    with contextlib.suppress(AssertionError), sticks.mounted(image, "ext4", point):
        outcome = onto(bundle, point, PLAIN, pull_out)
    assert "pulled out" in str(outcome.errors[0])
    assert list(point.iterdir()) == []
    with sticks.mounted(image, "ext4", point):
        with pytest.raises(DamagedError, match="incomplete"):
            verify_bundle(point / "test")
        again = copied(bundle, point)
        assert again.survey.kept_bytes > 0


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_stopped_by_hand_it_goes_on(tmp_path, target, sent):
    made = sealed(tmp_path, {"a.bin": noise("a", 48 << 20)}, percent=0, segment_bytes=1 << 20)
    line, how = bundler(made, target, "--unsigned", "--progress", "json")
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **how)
    for event in process.stdout:
        if '"event": "Progress"' in event and "copy" in event:
            process.send_signal(sent)
            break
    _, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + sent
    again = copied(made, target)
    assert again.survey.kept_bytes > 0
    assert again.written_bytes < 48 << 20


_POWER = """
import os, sys, threading
from pathlib import Path
from bundler.deploy import outcome, steps, stick
from bundler.deploy.cargo import cargo_of
steps.REPORT_SECONDS = 0
account = os.open(sys.argv[3], os.O_WRONLY | os.O_CREAT)

def report(event):
    if type(event).__name__ == "Progress" and event.step.startswith("copy"):
        os.pwrite(account, int(event.done).to_bytes(8, "little"), 0)

cargo = cargo_of(Path(sys.argv[1]))
print("ready", flush=True)
done = stick.deploy_to(cargo, Path(sys.argv[2]), outcome.Wishes(probe=False), threading.Event(), report)
sys.exit(done.state != "copied")
"""


@pytest.mark.mounts
@pytest.mark.fault("C1")
@pytest.mark.parametrize(
    "seed", [1, *(pytest.param(seed, marks=pytest.mark.slow_sweep) for seed in (2, 3, 4))]
)
def test_when_the_power_goes_the_stick_says_so_and_is_gone_on_with(tmp_path, seed, cases_tried):
    """At random instants the stick's bytes are copied, as they would be after a power cut."""
    made = sealed(tmp_path / "made", {"big.bin": noise("big", 40 << 20), "start": b"#!/bin/sh\n"},
                  percent=0, segment_bytes=1 << 20)  # fmt: skip
    image = sticks.image(tmp_path / "image", "ext4", 96)
    account, point = tmp_path / "account", tmp_path / "point"
    instants = random.Random(20261122 + seed)
    cuts = []
    with sticks.mounted(image, "ext4", point):
        words = [sys.executable, "-c", _POWER, made, point, account]
        with subprocess.Popen(words, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout.readline() == b"ready\n"
            while process.poll() is None and len(cuts) < 8:
                time.sleep(instants.uniform(0.005, 0.12))
                process.send_signal(signal.SIGSTOP)
                done = int.from_bytes(account.read_bytes(), "little") if account.exists() else 0
                cut = tmp_path / f"cut{len(cuts)}"
                subprocess.run(["cp", "--sparse=always", image, cut], check=True)
                cuts.append((cut, done))
                process.send_signal(signal.SIGCONT)
            assert process.wait(120) == 0
    total = sum(file.size_bytes for file in cargo_of(made).manifest.files)
    assert any(0 < done < total for _, done in cuts)
    cases_tried(len(cuts))
    for cut, done in cuts:
        with sticks.mounted(cut, "ext4", tmp_path / "after", must=True):
            there = tmp_path / "after/test"
            if done < total and (there / UNFINISHED_NAME).exists():
                with pytest.raises(DamagedError, match="incomplete"):
                    verify_bundle(there)
            elif done < total:
                assert not (there / "manifest.json").exists()
            again = copied(made, tmp_path / "after")
            assert done + again.written_bytes - total <= 1 << 20
        cut.unlink()


# -- what the stick keeps --------------------------------------------------------------------------------


def spoiling(step: str, path: Path):
    """Return a report that changes a byte of a file on the stick when a step begins."""

    def report(event):
        if isinstance(event, StepStarted) and event.step.startswith(step):
            overwrite(path, 6 * SEGMENT_BYTES + 1, 1, seed=event.step)
            seen.append(event.step)

    seen: list[str] = []
    return report, seen


def test_what_comes_back_wrong_is_written_once_more(bundle, target):
    steps = []
    report, seen = spoiling(f"read back {target}", target / "test" / LARGE)

    def both(event):
        report(event)
        steps.append(event)

    outcome = copied(bundle, target, report=both)
    assert seen
    assert outcome.mended == (LARGE,)
    total = outcome.survey.write_bytes
    assert outcome.written_bytes == total + SEGMENT_BYTES


def test_a_stick_that_never_keeps_it_is_refused(bundle, target):
    report, seen = spoiling("read back", target / "test" / LARGE)
    outcome = onto(bundle, target, report=report)
    assert len(seen) == 2
    assert isinstance(outcome.errors[0], DamagedError)
    assert "does not keep what is written to it" in str(outcome.errors[0])
    with pytest.raises(DamagedError, match="incomplete"):
        verify_bundle(target / "test")


@pytest.mark.mounts
def test_a_probe_of_free_room_leaves_nothing_and_says_how_far_it_went(tmp_path):
    with sticks.stick(tmp_path, "ext4", 128) as point:
        free = look_at(point).free_bytes
        probe = probe_capacity(look_at(point), threading.Event())
        assert probe.spots == 32
        assert probe.spread_bytes > free * 0.9
        assert probe.evidence.read_bytes == 32 * 64 << 10
        assert [path.name for path in point.iterdir()] == ["lost+found"]


@pytest.mark.mounts
def test_a_stick_that_claims_more_than_it_has_is_found_before_anything_is_copied(bundle, tmp_path):
    # Of 256 MiB only the first 64 are there: what is written behind them is lost.
    with sticks.memory(tmp_path / "real", "80m") as real:
        with (real / "image").open("wb") as stream:
            os.posix_fallocate(stream.fileno(), 0, 64 << 20)
        image = sticks.image(real / "image", "ext4", 256, fresh=False)
        (real / "rest").write_bytes(bytes(shutil.disk_usage(real).free))
        with sticks.mounted(image, "ext4", tmp_path / "fake") as fake:
            outcome = onto(bundle, fake, WITH_PROBE)
            assert outcome.errors
            assert outcome.errors[0].exit_code in (1, 6)
            assert outcome.written_bytes == 0
            assert not (fake / "test").exists()


# -- what proves that a device was read ----------------------------------------------------------------


def test_mincore_tells_whether_pages_are_in_memory(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    with path.open("rb") as stream:
        os.fsync(stream.fileno())
        stream.read()
        assert pages_in_memory(stream.fileno(), 1 << 20) == 256
        assert forget_pages(stream.fileno())
        assert pages_in_memory(stream.fileno(), 1 << 20) == 0


def test_a_proof_is_claimed_only_where_it_held():
    whole = Evidence(100, 100, 100, 4096)
    assert len(proofs(whole)) == 3
    assert doubts(whole, ground()) == []
    assert "only 50%" in doubts(Evidence(100, 100, 100, 50), ground())[0]
    assert "does not count" in doubts(Evidence(100, 100, 0, None), ground())[0]
    assert "let go" in doubts(Evidence(100, 50, 99, 100), ground())[0]
    assert "no device" in doubts(whole, ground(kind="tmpfs"))[0]
    assert "no device" in doubts(whole, ground(device=""))[0]
    assert proofs(Evidence()) == []


@pytest.mark.mounts
def test_memory_proves_nothing(bundle, tmp_path):
    with sticks.memory(tmp_path / "memory", "32m") as point:
        outcome = copied(bundle, point)
        assert not outcome.device_was_read()


MOUNTINFO = r"""
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 8:17 / /media/my\040stick rw,nosuid - vfat /dev/sdb1 rw,fmask=0022
41 40 0:50 / /media/my\040stick/sub ro - tmpfs none rw
42 22 0:51 / /mnt/b\303\244r rw - fuse.fusefat fusefat rw
a line that means nothing
"""


def test_the_mount_that_holds_a_folder_is_found(tmp_path):
    found = mounts.parse_mountinfo(MOUNTINFO)
    assert [mount.point for mount in found] == [
        "/", "/media/my stick", "/media/my stick/sub", "/mnt/bär",
    ]  # fmt: skip
    assert "ro" in found[2].options
    (tmp_path / "proc/self").mkdir(parents=True)
    text = (
        f"1 1 8:1 / {tmp_path} rw - ext4 /dev/sda1 rw\n2 1 8:2 / {tmp_path} rw - vfat /dev/sdb rw\n"
    )
    (tmp_path / "proc/self/mountinfo").write_text(text)
    assert mounts.mount_of(tmp_path, tmp_path).kind == "vfat"
    assert mounts.mount_of(tmp_path, tmp_path / "nothing") is None


def test_what_can_be_pulled_out_and_what_it_delivered_is_read_from_sysfs(tmp_path):
    disk = tmp_path / "sys/devices/usb1/sdb"
    (disk / "sdb1").mkdir(parents=True)
    (disk / "removable").write_text("1\n")
    (disk / "sdb1/stat").write_text("  7 0 2048 1 0 0 0 0 0 0 0\n")
    (tmp_path / "sys/dev/block").mkdir(parents=True)
    (tmp_path / "sys/dev/block/8:17").symlink_to(disk / "sdb1")
    assert mounts.is_removable("8:17", tmp_path) is True
    assert mounts.bytes_read_from("8:17", tmp_path) == 2048 * 512
    assert mounts.bytes_read_from("8:18", tmp_path) is None
    assert mounts.is_removable("", tmp_path) is None


# -- several sticks --------------------------------------------------------------------------------------


@pytest.mark.mounts
def test_a_stick_that_fails_stops_no_other(bundle, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    with sticks.memory(tmp_path / "small", "1m") as small:
        targets = [tmp_path / "a", small, tmp_path / "gone", tmp_path / "b"]
        outcomes = deploy(cargo_of(bundle), targets, PLAIN)
    assert [outcome.state for outcome in outcomes] == ["copied", "failed", "failed", "copied"]
    assert worst(outcomes) == 4
    assert failure(outcomes).exit_code == 4
    assert len(failure(outcomes).problems) == 2
    for name in ("a", "b"):
        assert digests(tmp_path / name / "test") == digests(bundle)


def test_plain_lines_say_how_fast_it_goes_and_for_how_long_yet():
    assert pace(0, 100, 5, "bytes") == ""
    assert pace(20_000_000, 1_200_000_000, 2, "bytes") == ", 10.0 MB/s, 2 min 0 s left"
    assert pace(30, 0, 3, "files") == ", 10 files/s"


def test_progress_never_goes_back_and_reaches_its_end(bundle, tmp_path):
    targets = [tmp_path / name for name in "abc"]
    for each in targets:
        each.mkdir()
    steps: dict[str, list[Progress]] = {}

    def report(event):
        if isinstance(event, Progress):
            steps.setdefault(event.step, []).append(event)

    deploy(cargo_of(bundle), targets, PLAIN, report)
    copies = {name: events for name, events in steps.items() if name.startswith("copy")}
    assert len(copies) == 3
    for events in steps.values():
        done = [event.done for event in events]
        assert done == sorted(done)
        assert events[-1].done == events[-1].total


# -- in which order --------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 5000), st.integers(0, 5)), max_size=40)
)
def test_batches_hold_each_file_once_and_no_more_than_a_segment(sizes):
    segment = 1600
    tasks = []
    for number, (size, there, content) in enumerate(sizes):
        file = BundleFile(path=f"f{number}", size_bytes=size, sha256=f"{content:064x}")
        base = "taken" if there > 2500 else "nothing"
        piece = Piece(file.path, None, 0, size, file.sha256)
        tasks.append(Task(file, base, (piece,), there if base == "taken" else 0))
    made = list(batches(tasks, segment))
    assert sorted(t.file.path for batch in made for t in batch) == sorted(
        t.file.path for t in tasks
    )
    for batch in made:
        assert len(batch) == 1 or sum(t.write_bytes for t in batch) <= segment
        assert len({t.file.sha256 for t in batch}) == len(batch)  # they would grow in one place
    shrinking = [
        t.file.size_bytes < t.there_bytes for batch in made for t in batch if t.base == "taken"
    ]
    assert shrinking == sorted(shrinking, reverse=True)


def test_what_goes_away_counts_as_room_only_with_consent():
    file = BundleFile(path="a", size_bytes=10_000, sha256="0" * 64)
    task = Task(file, "nothing", (Piece("a", None, 0, 10_000),))
    old = Task(file.model_copy(update={"path": "b"}), "taken", (), 50_000)
    left = mock_left(40_000)
    lonely = Survey((task,), (), False, False, (left,), (), ())
    with_old = Survey((task, old), (), False, False, (left,), (), ())
    need = [checks.room_needed(lonely, {}, 4096, deleting=d) for d in (False, True)]
    assert need[0] >= 12_288
    assert need[1] == max(0, need[0] - 40_960)
    assert checks.room_needed(with_old, {}, 4096) < need[0]


def mock_left(size):
    from bundler.deploy.place import There

    return There("old", True, False, size, 1, False)


def test_the_beside_files_are_all_there_is_beside(bundle):
    assert set(cargo_of(bundle).beside) <= set(BESIDE)
