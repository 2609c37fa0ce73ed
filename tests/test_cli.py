"""The command line as a user or a script meets it: words in, text and an exit code out."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.demo import ROOT, bundler


def test_the_version_is_printed():
    assert bundler("--version").stdout.startswith("bundler 0.")


def test_a_bad_recipe_exits_with_two_and_no_traceback():
    done = bundler("plan", "tests/recipes/typos.toml")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("error:") >= 15
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("words", [("build",), ("frobnicate",), ("plan", "x.toml", "--nope")])
def test_wrong_words_exit_with_two(words):
    done = bundler(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_a_recipe_that_is_not_there_is_named():
    done = bundler("plan", "nowhere.toml")
    assert done.returncode == 2
    assert "nowhere.toml" in done.stderr


def test_a_directory_that_is_no_bundle_exits_with_two(tmp_path):
    done = bundler("verify", tmp_path)
    assert done.returncode == 2
    assert "not a bundle" in done.stderr


def test_errors_are_json_when_asked_for():
    done = bundler("plan", "tests/recipes/empty.toml", "--progress", "json")
    assert done.returncode == 2
    record = json.loads(done.stdout)
    assert record["exit_code"] == 2
    assert record["problems"][0]["where"].startswith("tests/recipes/empty.toml:")


def test_lists_are_json_when_asked_for():
    assert {"rtx-4090", "raspberry-pi-5-8gb"} <= {
        target["name"] for target in json.loads(bundler("targets", "--json").stdout)
    }
    kinds = {(row["kind"], row["name"]) for row in json.loads(bundler("plugins", "--json").stdout)}
    assert {("source", "hf"), ("engine", "llama.cpp"), ("runtime", "xllamacpp")} <= kinds
    assert json.loads(bundler("schema").stdout)["title"] == "bundler recipe"


def test_a_new_recipe_is_written_once(tmp_path):
    path = tmp_path / "clinic.toml"
    assert bundler("init", path, "--target", "rtx-4060").returncode == 0
    before = path.read_text()
    assert 'use = "rtx-4060"' in before
    assert bundler("init", path).returncode == 8
    assert path.read_text() == before
    assert bundler("init", tmp_path / "b.toml", "--target", "rtx-9999").returncode == 2


def test_the_command_line_does_not_import_what_is_heavy():
    code = (
        "import sys, bundler.cli\n"
        "heavy = {'llama_cpp', 'numpy', 'libzim', 'huggingface_hub', 'httpx2', 'gguf', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.fault("A3")
def test_a_stopped_build_ends_soon_with_its_own_code_and_leaves_no_child(
    tmp_path, number, code, demo
):
    """Stopped while a child process works; then nothing of the build's session is left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "bundler", "build", "recipes/quickstart.toml", "--frozen",
         "--store", tmp_path / "store", "--output", tmp_path / "dist", "--progress", "plain"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT,
        start_new_session=True,
    )  # fmt: skip
    said = []
    for line in process.stdout:
        said.append(line)
        if "models/chat/quantize" in line:
            break
    started = time.monotonic()
    process.send_signal(number)
    said += process.stdout.readlines()
    process.stdout.close()
    assert process.wait(30) == code, said
    assert time.monotonic() - started < 10
    assert "Traceback" not in "".join(said)
    assert not (tmp_path / "dist").exists()
    deadline = time.monotonic() + 10
    while _session_lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not _session_lives(process.pid)


def _session_lives(session: int) -> bool:
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True
