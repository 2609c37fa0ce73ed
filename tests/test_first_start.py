"""A new bundle that does not start is not handed over."""

import os
import shutil

import pytest

from bundler.errors import StepFailed
from bundler.events import Note, StepFinished
from bundler.first_start import start_once
from bundler.station.configuration import this_platform
from bundler.store import Store
from bundler.world import World


@pytest.fixture
def copy(demo, tmp_path):
    """A copy of the example's bundle; what a test changes is its own."""
    root = tmp_path / "bundle"
    shutil.copytree(demo, root, copy_function=os.link)
    return root


def started(root, tmp_path):
    said = []
    start_once(root, World(Store(tmp_path / "store"), report=said.append))
    return said


def test_the_examples_bundle_starts_and_nothing_is_left_in_it(copy, tmp_path):
    before = sorted(copy.rglob("*"))
    said = started(copy, tmp_path)
    assert [e.outcome for e in said if isinstance(e, StepFinished)] == ["done"]
    assert sorted(copy.rglob("*")) == before


def test_programs_that_do_not_understand_their_configuration_are_found(copy, tmp_path):
    place = copy / "app/bundler/station/fields.py"
    text = place.read_text()
    place.unlink()
    place.write_text(text.replace("class Reader", "class NotReader"))
    with pytest.raises(StepFailed, match=r"(?s)does not start.*Reader") as caught:
        started(copy, tmp_path)
    assert caught.value.exit_code == 1


def test_a_configuration_that_its_programs_refuse_is_found(copy, tmp_path):
    (copy / "station.json").unlink()
    (copy / "station.json").write_text("{}")
    with pytest.raises(StepFailed, match=r"station\.json"):
        started(copy, tmp_path)


def test_a_bundle_without_programs_for_this_system_is_not_started(copy, tmp_path):
    (copy / "runtime" / this_platform()).rename(copy / "runtime/another-system")
    assert started(copy, tmp_path) == []


def test_where_programs_may_not_run_that_is_said(copy, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    (note,) = started(copy, tmp_path)
    assert isinstance(note, Note)
    assert "not tried" in note.message
