import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bundler.value import (
    canonical_json,
    check_name,
    check_relative_path,
    digest,
    format_bytes,
    parse_bytes,
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_canonical_json_reads_back_as_the_same_value(value):
    assert json.loads(canonical_json(value)) == value


@given(st.dictionaries(st.text(), st.integers(), min_size=2))
def test_the_order_of_keys_does_not_change_a_digest(value):
    assert digest(value) == digest(dict(reversed(list(value.items()))))


@pytest.mark.parametrize(
    ("text", "count"),
    [("24 GB", 24 * 10**9), ("23.5GiB", 25_232_932_864), ("512MiB", 2**29), ("0", 0), (7, 7)],
)
def test_sizes_are_read_as_people_write_them(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "many", "24 GX", "-1", "1e9", -1, True])
def test_what_is_no_size_is_refused(text):
    with pytest.raises(ValueError):
        parse_bytes(text)


@given(st.integers(min_value=0, max_value=10**15))
def test_a_written_size_is_within_one_percent_of_the_count(count):
    assert parse_bytes(format_bytes(count)) == pytest.approx(count, rel=0.01)


HOSTILE_PATHS = [
    "", "/etc/passwd", "../x", "a/../b", "a//b", "a/", "./a", "a\\b", "C:/x", "a\x00b", "a\nb",
    "a/b ", "a.", "nul", "x/CON.txt", "x/" + "y" * 256, "a\ud800", 'a"b', "a<b", "a|b", "a?b",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_a_path_that_could_do_harm_is_refused(path):
    with pytest.raises(ValueError):
        check_relative_path(path)


@pytest.mark.parametrize("path", ["a", "a/b.txt", "Ärzte/ß.md", "a b/c d", "console/x"])
def test_an_ordinary_path_is_left_alone(path):
    assert check_relative_path(path) == path


@given(st.text())
def test_a_checked_path_never_leaves_its_folder(text):
    try:
        path = check_relative_path(text)
    except ValueError:
        return
    assert not path.startswith("/")
    assert ".." not in path.split("/")


@pytest.mark.parametrize("name", ["Chat", "a b", "../x", "-a", "a.", "con", "a..b", "x" * 65, ""])
def test_a_name_that_cannot_be_a_file_name_is_refused(name):
    with pytest.raises(ValueError):
        check_name(name)
