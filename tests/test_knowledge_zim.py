"""A ready ZIM is taken as it is, or refused; whatever it holds, the build lives on."""

from __future__ import annotations

import hashlib
import os
import random
import struct
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.knowledge.limited_child import ChildFailed, LimitedChild
from bundler.builtin.knowledge.zim import ZimCorpus
from bundler.builtin.knowledge.zim_check import sample
from bundler.builtin.knowledge.zim_layout import (
    check_header,
    find_uncompressed,
    mapped,
    read_header,
)
from bundler.errors import BundlerError, DamagedError, UnsafeInput
from bundler.proof import Coverage
from tests.knowledge_made import build, make_task, pdf, png, write_files

CHECKER = "bundler.builtin.knowledge.zim_check"


@pytest.fixture(scope="module")
def zim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    files: dict[str, str | bytes] = {
        f"part{number % 3}/page{number}.md": f"# Page {number}\n\nwater {'well ' * number}deep\n"
        for number in range(30)
    }
    files |= {"a.pdf": pdf([["water"]]), "pictures/b.png": png(20)}
    return build(tmp_path_factory.mktemp("zim"), files)[0]


def run(place: Path, path: Path, name: str = "corpus.zim", progress=lambda *_: None) -> Coverage:
    facts = ZimCorpus().run(make_task(place, {name: path}, progress))
    return Coverage.model_validate(facts)


def other_zim(path: Path, *, indexed: bool) -> Path:
    """Write a ZIM the way strangers do, without our writer."""
    from libzim.writer import Creator, Hint, Item, StringProvider

    class Page(Item):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def get_path(self) -> str:
            return f"Page_{self.number}"

        def get_title(self) -> str:
            return f"Page {self.number}"

        def get_mimetype(self) -> str:
            return "text/html"

        def get_contentprovider(self) -> StringProvider:
            return StringProvider(f"<p>page {self.number} of water</p>")

        def get_hints(self) -> dict[Hint, int]:
            return {Hint.FRONT_ARTICLE: True}

    with Creator(path).config_indexing(indexed, "eng") as creator:
        for number in range(10):
            creator.add_item(Page(number))
        creator.add_redirection("Old", "Old page", "Page_1", {Hint.FRONT_ARTICLE: False})
        creator.add_metadata("Title", "Strangers' pages")
        creator.add_metadata("Language", "deu")
    return path


# -- taken ----------------------------------------------------------------------------------------


def test_a_whole_zim_is_taken_without_a_copy(tmp_path, zim) -> None:
    coverage = run(tmp_path, zim)
    taken = tmp_path / "output" / "corpus.zim"
    assert taken.read_bytes() == zim.read_bytes()
    shared = taken.stat().st_ino == zim.stat().st_ino
    assert shared or _is_reflink(zim, taken)
    assert coverage.full_text
    assert coverage.articles_found == coverage.articles_indexed == 31
    assert coverage.skipped == ()
    assert any("libzim's own" in note for note in coverage.notes)


def _is_reflink(one: Path, other: Path) -> bool:
    from bundler.store import share_or_copy

    target = other.with_name("again")
    how = share_or_copy(one, target, link=False)
    target.unlink()
    return how == "reflink"


def test_a_strangers_zim_is_described_in_its_own_words(tmp_path) -> None:
    path = other_zim(tmp_path / "x.zim", indexed=True)
    place = tmp_path / "step"
    task = make_task(place, {"x.zim": path}, name="pages", title="pages")
    coverage = Coverage.model_validate(ZimCorpus().run(task))
    assert (coverage.title, coverage.language) == ("Strangers' pages", "deu")
    assert coverage.articles_found == 10
    assert coverage.redirects == 1
    assert "has no main page" in coverage.notes


def test_a_zim_without_a_full_text_index_says_that_only_titles_can_be_searched(tmp_path) -> None:
    path = other_zim(tmp_path / "x.zim", indexed=False)
    coverage = run(tmp_path / "step", path)
    assert not coverage.full_text
    assert coverage.articles_indexed == 0
    assert "has no full-text index: only titles can be searched" in coverage.notes


def test_progress_is_told_in_bytes_and_ends_at_the_size(tmp_path, zim) -> None:
    seen: list[tuple[float, float, str]] = []
    run(tmp_path, zim, progress=lambda *given: seen.append(given))
    size = zim.stat().st_size
    assert seen[0] == (0, size, "bytes")
    assert seen[-1] == (size, size, "bytes")
    assert [one[0] for one in seen] == sorted(one[0] for one in seen)


# -- refused --------------------------------------------------------------------------------------


def test_several_files_or_parts_of_a_split_zim_are_refused_with_a_way_out(tmp_path, zim) -> None:
    inputs = write_files(tmp_path, {"w.zimaa": b"1", "w.zimab": b"2"})
    with pytest.raises(UnsafeInput) as caught:
        ZimCorpus().run(make_task(tmp_path / "a", inputs))
    assert "2 parts" in str(caught.value)
    assert caught.value.problems[0].hint == "join them first: cat w.zim?? > w.zim"
    with pytest.raises(UnsafeInput, match="exactly one"):
        ZimCorpus().run(make_task(tmp_path / "b", {"a.zim": zim, "b.zim": zim}))
    with pytest.raises(UnsafeInput, match="exactly one"):
        ZimCorpus().run(make_task(tmp_path / "c", {}))


@pytest.mark.parametrize("keep", [0, 1, 79, 80, 200, 0.5, 0.9, -17, -16, -1])
@pytest.mark.fault("E7")
def test_a_zim_cut_short_is_refused_by_name(tmp_path, zim, keep) -> None:
    data = zim.read_bytes()
    length = int(len(data) * keep) if isinstance(keep, float) else keep
    cut = tmp_path / "cut"
    cut.write_bytes(data[:length])
    with pytest.raises(DamagedError, match=r"^wiki\.zim: ") as caught:
        run(tmp_path / "step", cut, "wiki.zim")
    assert "no ZIM" in str(caught.value) or "cut short" in str(caught.value)
    assert list((tmp_path / "step" / "output").iterdir()) == []


def test_bytes_after_the_end_are_refused(tmp_path, zim) -> None:
    longer = tmp_path / "longer"
    longer.write_bytes(zim.read_bytes() + b"\0")
    with pytest.raises(DamagedError, match="cut short"):
        run(tmp_path / "step", longer)


def refused(child: LimitedChild, path: Path) -> bool:
    """Tell whether the two checks of the corpus kind `zim` refuse a file."""
    try:
        check_header(path)
        child.ask({"path": str(path)}, seconds=60)
    except (DamagedError, ChildFailed):
        return True
    return False


@pytest.mark.fault("E7")
def test_each_of_200_flipped_bits_is_noticed(tmp_path, zim) -> None:
    data = bytearray(zim.read_bytes())
    dice = random.Random(20261122)
    places = [*range(0, 80, 2), *range(len(data) - 16, len(data), 4)]
    places += [dice.randrange(len(data)) for _ in range(200 - len(places))]
    path = tmp_path / "flipped.zim"
    with LimitedChild(CHECKER, memory_bytes=1 << 30) as child:
        path.write_bytes(data)
        assert not refused(child, path)
        for place in places:
            bit = 1 << dice.randrange(8)
            data[place] ^= bit
            path.write_bytes(data)
            assert refused(child, path), f"bit {bit} of byte {place}"
            data[place] ^= bit


def with_checksum(data: bytearray) -> bytes:
    """Make a forged file's checksum right, as an attacker would."""
    data[-16:] = hashlib.md5(data[:-16], usedforsecurity=False).digest()
    return bytes(data)


@pytest.mark.parametrize(
    ("place", "form", "value"),
    [
        (4, "<H", 99),
        (24, "<I", 0xFFFFFFFF),
        (24, "<I", 10**6),
        (28, "<I", 0xFFFFFFFF),
        (32, "<Q", 1 << 63),
        (32, "<Q", 0),
        (40, "<Q", 1 << 40),
        (48, "<Q", (1 << 64) - 8),
        (56, "<Q", 1 << 50),
        (56, "<Q", 72),
        (64, "<I", 0xFFFFFFFE),
        (72, "<Q", 0),
        (72, "<Q", (1 << 64) - 1),
    ],
)
@pytest.mark.fault("E7")
def test_lying_headers_are_refused_before_libzim_sees_them(
    tmp_path, zim, place, form, value
) -> None:
    data = bytearray(zim.read_bytes())
    struct.pack_into(form, data, place, value)
    path = tmp_path / "forged.zim"
    path.write_bytes(with_checksum(data))
    with pytest.raises(DamagedError, match=r"forged\.zim"):
        check_header(path)


@pytest.mark.fault("E7")
def test_forged_files_with_right_checksums_never_harm_the_build(tmp_path, zim) -> None:
    original = zim.read_bytes()
    dice = random.Random(7)
    path = tmp_path / "forged.zim"
    outcomes = set()
    with LimitedChild(CHECKER, memory_bytes=1 << 30) as child:
        for _ in range(150):
            data = bytearray(original)
            for _ in range(dice.choice([1, 1, 2, 8])):
                place = dice.randrange(80, len(data) - 16)
                data[place] = dice.randrange(256)
            path.write_bytes(with_checksum(data))
            outcomes.add(refused(child, path))
    assert True in outcomes, "a forged structure must be noticed at least sometimes"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120), st.booleans())
def test_garbage_is_refused_and_nothing_worse(data: bytes, with_magic: bool) -> None:
    if with_magic:
        data = struct.pack("<IHH", 0x044D495A, 6, 1) + data
    with pytest.raises(DamagedError):
        read_header(data, len(data), "garbage")


def test_garbage_of_any_size_is_refused_as_a_corpus(tmp_path) -> None:
    for number, data in enumerate([b"", b"ZIM\x04", os.urandom(100_000), b"<html>" * 1000]):
        file = tmp_path / f"{number}.zim"
        file.write_bytes(data)
        with pytest.raises(BundlerError) as caught:
            run(tmp_path / f"step{number}", file, f"{number}.zim")
        assert caught.value.exit_code == 6
        assert f"{number}.zim" in str(caught.value)


# -- the bounded reader of the layout -------------------------------------------------------------


def test_entries_are_found_where_libzim_finds_them(zim) -> None:
    from libzim.reader import Archive

    picture = bytes(Archive(zim).get_entry_by_path("pictures/b.png").get_item().content)
    with mapped(zim) as data:
        header = read_header(data, len(data), "x")
        span = find_uncompressed(data, header, "C/pictures/b.png")
        assert span is not None
        assert data[slice(*span)] == picture
        assert find_uncompressed(data, header, "C/nothing") is None
        with pytest.raises(DamagedError, match="compressed"):
            find_uncompressed(data, header, "C/_bundler/style.css")


@settings(max_examples=200, deadline=None)
@given(place=st.integers(80, 10**6), value=st.integers(0, 255))
def test_the_reader_of_the_layout_refuses_or_answers(tmp_path_factory, zim, place, value) -> None:
    data = bytearray(zim.read_bytes())
    data[80 + place % (len(data) - 96)] = value
    path = tmp_path_factory.mktemp("layout") / "x.zim"
    path.write_bytes(data)
    with mapped(path) as view:
        try:
            header = read_header(view, len(view), "x")
            span = find_uncompressed(view, header, "X/fulltext/xapian")
        except DamagedError:
            return
        assert span is None or 0 <= span[0] <= span[1] <= len(view)


@given(st.integers(0, 10**7), st.integers(2, 50))
def test_a_sample_is_spread_from_the_first_to_the_last(count: int, limit: int) -> None:
    numbers = list(sample(count, limit))
    assert len(numbers) == min(count, limit)
    assert numbers == sorted(set(numbers))
    if count:
        assert (numbers[0], numbers[-1]) == (0, count - 1)


# -- the child ------------------------------------------------------------------------------------

MISBEHAVING = """\
import ctypes, sys, time
from bundler.builtin.knowledge.limited_child import answer_requests
def handle(request):
    if request == "print":
        print("noise")
        return "heard"
    if request == "crash":
        ctypes.string_at(0)
    if request == "exit":
        sys.exit("gave up")
    if request == "hang":
        time.sleep(600)
    if request == "eat":
        return len(bytearray(2 << 30))
    return request
answer_requests(handle)
"""


@pytest.fixture
def misbehaving(tmp_path, monkeypatch) -> LimitedChild:
    (tmp_path / "misbehaving_child.py").write_text(MISBEHAVING)
    import bundler

    # The child imports from where `bundler` lies; give it a folder that has both.
    (tmp_path / "bundler").symlink_to(Path(bundler.__file__).parent)
    monkeypatch.setattr(bundler, "__file__", str(tmp_path / "bundler" / "__init__.py"))
    with LimitedChild("misbehaving_child", memory_bytes=512 << 20) as child:
        yield child


def test_a_child_that_misbehaves_is_replaced(misbehaving) -> None:
    assert misbehaving.ask({"a": [1, "é"]}, seconds=30) == {"a": [1, "é"]}
    assert misbehaving.ask("print", seconds=30) == "heard"
    for request, reason in {
        "crash": "stopped by SIGSEGV",
        "exit": "gave up",
        "eat": "needs more than 512 MiB",
    }.items():
        with pytest.raises(ChildFailed, match=reason):
            misbehaving.ask(request, seconds=30)
        assert misbehaving.ask("still there", seconds=30) == "still there"


def test_a_child_that_hangs_is_stopped_in_time(misbehaving) -> None:
    ticks: list[int] = []
    started = time.monotonic()
    with pytest.raises(ChildFailed, match="more than 2 s"):
        misbehaving.ask("hang", seconds=2, while_waiting=ticks.append)
    assert time.monotonic() - started < 10
    assert len(set(ticks)) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(ticks[0], 0)
