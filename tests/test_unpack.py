"""Archives are unpacked strictly: only plain files come out, and only inside the folder."""

import gzip
import io
import stat
import tarfile
import zipfile

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.runtimes.unpack import Bounds, unpack
from bundler.errors import UnsafeInput


def zip_of(folder, *entries, name="a.whl"):
    """Write a ZIP of (name or ZipInfo, bytes) and return its path."""
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, data in entries:
            archive.writestr(entry, data)
    return path


def member(name, data=b"", *, kind=tarfile.REGTYPE, link="", mode=0o644):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, mode
    info.size = len(data) if kind == tarfile.REGTYPE else 0
    return info, data


def tar_of(folder, *members, name="a.tar.gz"):
    """Write a tar of members and return its path."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    data = plain.getvalue()
    path = folder / name
    path.write_bytes(
        zstandard.compress(data) if name.endswith(".zst") else gzip.compress(data, mtime=0)
    )
    return path


def special(name, mode):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, mode << 16
    return info


EVIL = ("../evil", "/evil", "a/../../evil", "a\\..\\evil", "C:/evil", "a//b", "con", "a/nul.txt",
        "x.", "x ", "a/\x07", "x" * 300)  # fmt: skip


@pytest.mark.parametrize("name", EVIL)
@pytest.mark.fault("E9")
def test_a_name_that_leaves_the_folder_or_fits_no_stick_is_refused(tmp_path, name):
    for archive in (
        zip_of(tmp_path, (special(name, stat.S_IFREG | 0o644), b"x")),
        tar_of(tmp_path, member(name, b"x")),
        tar_of(tmp_path, member(name, b"x"), name="a.tar.zst"),
    ):
        with pytest.raises(UnsafeInput):
            unpack(archive, tmp_path / "out" / "inner")
    assert not list(tmp_path.rglob("evil"))


def test_what_is_not_selected_is_not_looked_at(tmp_path):
    archive = tar_of(
        tmp_path, member("../evil", b"x"), member("good", b"y"), member("dev", kind=tarfile.CHRTYPE)
    )
    select = {"good": "place/good"}.get
    assert unpack(archive, tmp_path / "out", select=select) == ["place/good"]
    assert (tmp_path / "out" / "place" / "good").read_bytes() == b"y"


@pytest.mark.parametrize("suffix", ["tar.gz", "tar.zst"])
def test_links_inside_come_out_as_copies(tmp_path, suffix):
    archive = tar_of(
        tmp_path,
        member("bin/python3", kind=tarfile.SYMTYPE, link="python3.11"),
        member("bin/python", kind=tarfile.SYMTYPE, link="python3"),
        member("bin/python3.11", b"program", mode=0o755),
        member("lib/same", kind=tarfile.LNKTYPE, link="bin/python3.11"),
        name=f"a.{suffix}",
    )
    unpack(archive, tmp_path / "out")
    for path in ("bin/python", "bin/python3", "bin/python3.11", "lib/same"):
        file = tmp_path / "out" / path
        assert file.read_bytes() == b"program"
        assert not file.is_symlink()
        assert file.stat().st_mode & 0o100
        assert file.stat().st_nlink == 1


@pytest.mark.parametrize(
    "link", ["../../etc/passwd", "/etc/passwd", "nowhere", ".", "a", "b/../../../x"]
)
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
@pytest.mark.fault("E9")
def test_a_link_to_the_outside_to_nothing_or_to_itself_is_refused(tmp_path, link, kind):
    archive = tar_of(tmp_path, member("a", kind=kind, link=link))
    with pytest.raises(UnsafeInput):
        unpack(archive, tmp_path / "out")


@pytest.mark.fault("E9")
def test_writing_through_a_link_is_not_possible(tmp_path):
    (tmp_path / "outside").mkdir()
    archive = tar_of(
        tmp_path, member("d", kind=tarfile.SYMTYPE, link="../outside"), member("d/x", b"evil")
    )
    with pytest.raises(UnsafeInput):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
@pytest.mark.fault("E9")
def test_devices_are_refused(tmp_path, kind):
    with pytest.raises(UnsafeInput, match="not a plain file"):
        unpack(tar_of(tmp_path, member("x", kind=kind)), tmp_path / "out")


@pytest.mark.parametrize("mode", [0o4755, 0o2755])
def test_programs_with_somebody_elses_rights_are_refused(tmp_path, mode):
    with pytest.raises(UnsafeInput):
        unpack(tar_of(tmp_path, member("x", b"x", mode=mode)), tmp_path / "out")
    archive = zip_of(tmp_path, (special("x", stat.S_IFREG | mode), b"x"))
    with pytest.raises(UnsafeInput):
        unpack(archive, tmp_path / "out2")


@pytest.mark.fault("E9")
def test_a_link_in_a_zip_is_refused(tmp_path):
    archive = zip_of(tmp_path, (special("x", stat.S_IFLNK | 0o777), b"/etc/passwd"))
    with pytest.raises(UnsafeInput, match="not a plain file"):
        unpack(archive, tmp_path / "out")


@pytest.mark.parametrize(
    "names",
    [("a", "A"), ("a/b", "A/c"), ("a", "a/b"), ("a/b", "a"), ("straße", "STRASSE"), ("a", "a")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.fault("E9")
def test_names_that_are_one_on_some_filesystem_are_refused(tmp_path, names):
    for archive in (
        zip_of(tmp_path, *((name, b"x") for name in names)),
        tar_of(tmp_path, *(member(name, b"x") for name in names)),
    ):
        with pytest.raises(UnsafeInput):
            unpack(archive, tmp_path / "out" / archive.name)


@pytest.mark.parametrize("make", [zip_of, tar_of])
@pytest.mark.fault("E9")
def test_a_bomb_is_refused_by_what_comes_out_of_it(tmp_path, make):
    data = bytes(4 << 20)
    archive = make(tmp_path, ("x", data) if make is zip_of else member("x", data))
    assert archive.stat().st_size < 20_000
    with pytest.raises(UnsafeInput, match="more than"):
        unpack(archive, tmp_path / "out", bounds=Bounds(files=10, total_bytes=1 << 20))


def test_bytes_of_dropped_members_count_too(tmp_path):
    archive = tar_of(tmp_path, member("dropped", bytes(8 << 20)), member("x", b"x"))
    with pytest.raises(UnsafeInput, match="more than"):
        unpack(
            archive, tmp_path / "out", select={"x": "x"}.get, bounds=Bounds(10, total_bytes=1 << 20)
        )


@pytest.mark.fault("E9")
def test_too_many_files_are_refused(tmp_path):
    archive = zip_of(tmp_path, *((f"f{n}", b"") for n in range(11)))
    with pytest.raises(UnsafeInput, match="more than 10 files"):
        unpack(archive, tmp_path / "out", bounds=Bounds(files=10))


def test_a_size_that_lies_is_noticed(tmp_path):
    archive = zip_of(tmp_path, ("x", b"y" * 1000))
    data = archive.read_bytes()
    archive.write_bytes(data.replace((1000).to_bytes(4, "little"), (10).to_bytes(4, "little")))
    with pytest.raises(UnsafeInput):
        unpack(archive, tmp_path / "out")


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(["a.whl", "a.tar.gz", "a.tar.zst"]), st.data())
@pytest.mark.fault("E9")
def test_damaged_archives_are_refused_or_give_plain_files_inside(tmp_path_factory, name, data):
    folder = tmp_path_factory.mktemp("damaged")
    if name == "a.whl":
        archive = zip_of(folder, ("a/b", b"hello" * 50), ("c", b"x"))
    else:
        archive = tar_of(
            folder, member("a/b", b"hello" * 50), member("l", kind=tarfile.SYMTYPE, link="a/b"),
            name=name,
        )  # fmt: skip
    whole = bytearray(archive.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    archive.write_bytes(whole[: data.draw(st.integers(1, len(whole)))])
    try:
        written = unpack(archive, folder / "out")
    except UnsafeInput:
        written = []
    for path in written:
        assert (folder / "out" / path).is_file()
    assert {path.name for path in folder.iterdir()} <= {name, "out"}
