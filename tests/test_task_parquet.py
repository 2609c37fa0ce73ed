"""Questions as Parquet, as they lie on the Hub: what is read, and what does no harm."""

import importlib.util
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundler.builtin.sources import HubSource
from bundler.errors import RecipeError, SourceError, UnsafeInput
from bundler.recipe import SourceReference
from bundler.store import Store
from bundler.tasks import parquet, parquet_child
from bundler.tasks.reading import read_choices
from bundler.tasks.reading_code import read_code
from bundler.testing.hub import TestHub
from bundler.transfer import read_range
from bundler.world import World

duckdb = pytest.importorskip("duckdb", reason="needs the extra `parquet`")


def table(folder, select, options=""):
    path = folder / "made.parquet"
    path.unlink(missing_ok=True)
    with duckdb.connect() as connection:
        connection.execute(f"COPY ({select}) TO '{path}' (FORMAT parquet{options})")
    return path.read_bytes()


MMLU = (
    "SELECT 'Two, and two?' AS question, 'sums' AS subject, ['3', '4', '5', '6'] AS choices, "
    "1::BIGINT AS answer UNION ALL SELECT 'Bones?', 'body', ['1', '206', '9', '12'], 1"
)


@pytest.fixture(scope="module")
def mmlu(tmp_path_factory):
    return table(tmp_path_factory.mktemp("mmlu"), MMLU)


def test_mmlu_as_it_lies_on_the_hub_is_read(mmlu):
    first, second = read_choices(mmlu, "test-00000-of-00001.parquet")
    assert (first.row, first.question, first.choices, first.answer) == (
        1, "Two, and two?", ("3", "4", "5", "6"), 1,
    )  # fmt: skip
    assert (second.row, second.question) == (2, "Bones?")


def test_programs_are_read_from_parquet_too(tmp_path):
    data = table(
        tmp_path,
        "SELECT 'H/0' AS task_id, 'def f(x):\n    \"\"\"d\"\"\"\n' AS prompt, 'f' AS entry_point, "
        "'def check(c):\n    assert c(1) == 1\n' AS test, '    return x\n' AS canonical_solution",
    )
    (item,) = read_code(data, "x.parquet")
    assert item.solution.endswith("return x\n")


@pytest.mark.parametrize(
    ("select", "said"),
    [
        ("SELECT 'x' AS prompt, 1 AS reply", "has wrong columns: prompt, reply; missing: question, "
         "choices, answer"),
        (MMLU.replace("1::BIGINT", "9::BIGINT"), "x.parquet:1: its answer 9 is outside the choices"),
        (MMLU.replace("'Two, and two?' AS", "NULL AS"), "x.parquet:1: has no question"),
        ("SELECT 1 AS question, 2 AS choices, now() AS answer", "x.parquet:1: has no question"),
        (f"SELECT * FROM ({MMLU}) WHERE false", "x.parquet: holds no questions"),
    ],
)  # fmt: skip
def test_each_fault_has_its_own_words(tmp_path, select, said):
    with pytest.raises(RecipeError) as caught:
        read_choices(table(tmp_path, select), "x.parquet")
    assert said in str(caught.value)


def test_a_small_file_that_unpacks_to_a_large_one_is_refused(tmp_path):
    data = table(
        tmp_path, "SELECT repeat('x', 1000) AS question, ['a', 'b'] AS choices, 0 AS answer "
        "FROM range(100000)", ", COMPRESSION zstd",
    )  # fmt: skip
    assert len(data) < 1 << 20
    with pytest.raises(UnsafeInput, match="unpacks to more than 64 MiB"):
        read_choices(data, "x.parquet")


def test_one_value_of_two_hundred_megabytes_is_refused(tmp_path):
    data = table(
        tmp_path, "SELECT repeat('x', 200000000) AS question, ['a', 'b'] AS choices, 0 AS answer",
        ", COMPRESSION zstd",
    )  # fmt: skip
    assert len(data) < 1 << 20
    with pytest.raises(UnsafeInput, match="takes more memory to unpack"):
        read_choices(data, "x.parquet")


@settings(deadline=None, max_examples=20)
@given(at=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_damaged_file_is_read_or_refused(mmlu, at, byte):
    data = bytearray(mmlu)
    data[at % len(data)] = byte
    try:
        read_choices(bytes(data), "x.parquet")
    except (RecipeError, UnsafeInput):
        return


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", b"x" * 1000])
def test_what_is_no_parquet_is_said_to_be_none(data):
    with pytest.raises(RecipeError, match=r"x\.parquet: is no Parquet that can be read"):
        read_choices(data, "x.parquet")


def test_a_reader_that_breaks_is_not_said_to_want_memory(monkeypatch, tmp_path, mmlu):
    """Its child is a Python program: one that ends at once, with a word and a code of its own."""
    broken = tmp_path / "parquet.py"
    broken.with_name("parquet_child.py").write_text("import sys\nsys.exit('no such luck')\n")
    monkeypatch.setattr(parquet, "__file__", str(broken))
    with pytest.raises(UnsafeInput, match="its reader ended with code 1: no such luck"):
        read_choices(mmlu, "mmlu.parquet")


def test_without_the_reader_the_extra_is_named(monkeypatch, mmlu):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match="its reader is not installed") as caught:
        read_choices(mmlu, "x.parquet")
    assert "bundler[parquet]" in caught.value.problems[0].hint


def test_the_reader_reads_the_one_file_only_and_that_cannot_be_undone(tmp_path, mmlu):
    file, secret = tmp_path / "it's.parquet", tmp_path / "secret.csv"
    file.write_bytes(mmlu)
    secret.write_text("a\n1\n")
    table = parquet_child.connected(str(file))
    assert table.execute("SELECT count(*) FROM read_parquet(?)", [str(file)]).fetchone() == (2,)
    for asked in (
        f"SELECT * FROM read_csv('{secret}')",
        f"COPY (SELECT 1) TO '{tmp_path / 'new'}'",
        "SET enable_external_access = true",
        "INSTALL httpfs",
    ):
        with pytest.raises(duckdb.Error):
            table.execute(asked)


# -- data sets of the Hub --------------------------------------------------------------------------------


def test_a_data_set_of_the_hub_is_a_source_of_questions(tmp_path, mmlu):
    with TestHub() as hub:
        hub.add_repository("datasets/owner/quiz", {
            "README.md": b"# quiz", "medicine/test-0.parquet": mmlu, "all/test-0.parquet": b"x",
        })  # fmt: skip
        world = World(Store(tmp_path / "store"), {**os.environ, "HF_ENDPOINT": hub.url})
        source = HubSource(stall_seconds=5)
        reference = SourceReference(
            source="hf", locator="datasets/owner/quiz", include=("medicine/*.parquet",)
        )
        found = source.resolve(reference, world)
        (file,) = found.files
        data = read_range(source, file, 0, file.size_bytes, world)
    assert file.path == "medicine/test-0.parquet"
    assert [item.question for item in read_choices(data, file.path)] == ["Two, and two?", "Bones?"]
    assert "/api/datasets/owner/quiz" in {request.path for request in hub.log}
    assert json.dumps(found.revision)


def test_a_data_set_that_is_not_there_is_said(tmp_path):
    with TestHub() as hub:
        world = World(Store(tmp_path / "store"), {**os.environ, "HF_ENDPOINT": hub.url})
        with pytest.raises(SourceError, match="datasets/owner/none"):
            HubSource(stall_seconds=5).resolve(
                SourceReference(source="hf", locator="datasets/owner/none"), world
            )
