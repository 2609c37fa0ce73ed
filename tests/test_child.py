"""A child process may end in any way; the parent always gets an answer or a sentence."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bundler.builtin.llamacpp.child import LINE_BYTES, run_child
from bundler.errors import DoesNotFit, StepFailed, UnsafeInput

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE)}


def run(job, arguments=None, **options):
    return run_child(f"child_jobs:{job}", arguments, environment=ENVIRONMENT, **options)


def gone(pid: int, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = Path(f"/proc/{pid}/stat")
        try:
            if state.read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False


def test_an_answer_comes_back_as_it_was():
    given = {"text": "Wärme\n", "numbers": [1, 2.5, None, True]}
    assert run("echo", given) == given


def test_progress_is_passed_on_and_never_goes_back():
    seen = []
    run("progress", progress=lambda *told: seen.append(told))
    assert seen[-1] == (10, 10, "tokens")
    assert [done for done, _, _ in seen] == sorted({done for done, _, _ in seen})


def test_an_error_of_ours_keeps_its_kind_place_and_hint():
    with pytest.raises(UnsafeInput) as caught:
        run("refuse")
    assert caught.value.problems[0].where == "a.gguf"
    assert caught.value.problems[0].hint == "fetch it again"


def test_a_strangers_error_is_shown_with_the_end_of_the_log():
    with pytest.raises(StepFailed, match="ZeroDivisionError: by nought") as caught:
        run("stumble")
    assert "last lines of its log" in str(caught.value)


def test_prints_of_native_code_do_not_disturb_the_answer():
    assert run("print_everywhere") == "clean"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM"])
def test_death_by_a_signal_names_it_and_what_was_said_last(name):
    with pytest.raises(StepFailed, match=name) as caught:
        run("die", {"signal": name})
    assert "GGML_ASSERT(n > 0) failed" in str(caught.value)


def test_a_real_segmentation_fault_does_not_reach_the_parent():
    with pytest.raises(StepFailed, match="SIGSEGV"):
        run("crash")


def test_an_exit_without_an_answer_is_an_error():
    with pytest.raises(StepFailed, match="exit code 3 and no answer"):
        run("leave")


def test_a_grandchild_that_holds_the_pipes_does_not_hold_us():
    begun = time.monotonic()
    with pytest.raises(StepFailed, match=r"exit code 5|longer than"):
        run("leave_a_grandchild", timeout_seconds=5)
    assert time.monotonic() - begun < 15


def test_an_endless_log_line_is_cut():
    with pytest.raises(StepFailed, match="exit code 4") as caught:
        run("chatter")
    assert len(str(caught.value)) < 20 * LINE_BYTES


@pytest.mark.fault("A7")
def test_a_memory_limit_gives_does_not_fit_with_the_limit():
    with pytest.raises(DoesNotFit, match=r"out of memory|limit"):
        run("run_out", {"bytes": 1 << 40}, memory_limit_bytes=1 << 30)


@pytest.mark.parametrize("job", ["sleep", "talk"])
def test_a_job_that_takes_too_long_is_ended(job):
    begun = time.monotonic()
    with pytest.raises(StepFailed, match="longer than 1 s"):
        run(job, {}, timeout_seconds=1)
    assert time.monotonic() - begun < 5


@pytest.mark.fault("A3")
def test_interrupting_ends_the_child_within_two_seconds(tmp_path):
    file = tmp_path / "pid"

    def interrupt(*_told):
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run("sleep", {"pid_file": str(file)}, progress=interrupt)
    assert time.monotonic() - begun < 3
    assert gone(int(file.read_text()), 0.1)


def test_the_parents_death_ends_the_child(tmp_path):
    file = tmp_path / "pid"
    code = (
        "import os\nfrom bundler.builtin.llamacpp.child import run_child\n"
        f"run_child('child_jobs:sleep', {{'pid_file': {str(file)!r}}}, environment=os.environ)"
    )
    path = f"{HERE.parent}{os.pathsep}{HERE}"
    parent = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path})
    while not (file.exists() and file.read_text()):
        assert parent.poll() is None
        time.sleep(0.02)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone(int(file.read_text()))


def test_a_module_in_the_current_folder_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "colorsys.py").write_text("raise SystemExit('hijacked')")
    monkeypatch.chdir(tmp_path)
    assert not run("folder").startswith(str(tmp_path))
