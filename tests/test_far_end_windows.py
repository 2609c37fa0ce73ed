"""A bundle on Windows, as far as Wine is Windows: check, selftest, repair, the station, its end.

What Wine cannot show: SmartScreen, a double click, drivers, and how Windows itself locks files.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from bundler.builtin.runtimes.pinned import PYTHON_VERSION
from tests.demo import CACHE, ROOT, bundler
from tests.windows_machine import Wine, installed_wine, release_archive, served

pytestmark = [pytest.mark.wine, pytest.mark.timeout(1500)]
PROGRAMS = "runtime/windows-x86_64"


@pytest.fixture(scope="module")
def wine(tmp_path_factory):
    if ".".join(map(str, sys.version_info[:2])) != PYTHON_VERSION.rpartition(".")[0]:
        pytest.skip(
            f"the standard library for it is this machine's, which is not {PYTHON_VERSION}'s"
        )
    machine = installed_wine(tmp_path_factory.mktemp("wine") / "prefix")
    yield machine
    subprocess.run(["wineserver", "-k"], env=machine.environment, check=False)


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("keys") / "keys"


@pytest.fixture(scope="module")
def made(wine: Wine, keys: Path, tmp_path_factory) -> Path:
    """The embedded example for Windows, built and signed by the command line."""
    folder = tmp_path_factory.mktemp("windows")
    release = release_archive().parents[1]
    for name in ("recipes", "examples"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.lock"))
    recipe = folder / "recipes" / "quickstart.toml"
    text = recipe.read_text()
    assert '["linux-x86_64"]' in text
    recipe.write_text(text.replace('["linux-x86_64"]', '["windows-x86_64"]'))
    signing = {"BUNDLER_KEYS": str(keys)}
    done = bundler("key", "new", "--no-password", **signing)
    assert done.returncode == 0, done.stderr
    with served(release) as address:
        done = bundler(
            "build", recipe, "--output", folder / "made", "--store", CACHE / "store",
            **signing, BUNDLER_PYTHON_RELEASES=address,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "made"


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "stick", copy_function=shutil.copy))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        there = stream.read(16)
        stream.seek(offset)
        stream.write(bytes(255 - byte for byte in there))


def differing(left: Path, right: Path) -> list[str]:
    names = {
        path.relative_to(root).as_posix()
        for root in (left, right)
        for path in root.rglob("*")
        if path.is_file()
    }
    same, _, _ = filecmp.cmpfiles(left, right, names, shallow=False)
    return sorted(names - set(same))


def test_a_whole_bundle_says_so_and_does_what_it_did_when_it_was_made(wine, bundle):
    code, said = wine.start("check", folder=bundle)
    assert code == 0, said
    assert "whole. All" in said
    code, said = wine.start("selftest", folder=bundle)
    assert code == 0, said
    assert "everything works here" in said
    assert "Traceback" not in said


def test_damage_is_named_and_repaired_also_in_programs_that_run(wine, bundle, made):
    (model,) = (bundle / "models").rglob("*.gguf")
    flip(model, 3_000_000)
    flip(bundle / PROGRAMS / "python/DLLs/_decimal.pyd", 5000)  # not loaded
    library = bundle / PROGRAMS / "python/python311.dll"  # loaded; its last bytes are never read
    flip(library, library.stat().st_size - 100)
    flip(bundle / "manifest.json", 100)
    flip(bundle / "parity/0001.par2", 2000)
    (bundle / "README.html").write_text("x")
    (bundle / "start.command").unlink()
    wrong = differing(bundle, made)
    assert len(wrong) == 7
    code, said = wine.start("check", folder=bundle)
    assert code == 6, said
    assert all(name in said for name in wrong)
    assert r".\start.cmd repair" in said
    code, said = wine.start("repair", folder=bundle)
    assert code == 0, said
    # A library that runs can only be moved aside; the next repair, with the new one, removes it.
    assert all("-old" in name for name in differing(bundle, made))
    code, said = wine.start("repair", folder=bundle)
    assert code == 0, said
    assert differing(bundle, made) == []


def test_who_made_it_is_told_by_the_keys_of_this_computer(wine, bundle, keys, tmp_path):
    code, said = wine.start("check", "--quick", "--keys", str(keys), folder=bundle)
    assert code == 0, said
    assert "Signed with key" in said
    assert "is trusted on this computer" in said
    code, said = wine.start("check", "--quick", "--keys", str(tmp_path / "none"), folder=bundle)
    assert code == 0, said
    assert "Who made it cannot be told on this computer, which knows no keys" in said
    (bundle / "manifest.json.minisig").unlink()
    (bundle / "parity" / "head.par2").unlink()
    code, said = wine.start("check", "--quick", "--keys", str(keys), folder=bundle)
    assert code == 7, said


def test_two_repairs_at_once_are_one_too_many(wine, bundle):
    holder = (
        "import sys, time; sys.path.insert(0, 'app'); from pathlib import Path\n"
        "sys.path.insert(0, 'runtime/windows-x86_64/site')\n"
        "from bundler.descriptors import open_locked_folder\n"
        "open_locked_folder(Path('.').resolve()); print('held', flush=True); time.sleep(60)\n"
    )
    words = ["wine", f"{PROGRAMS}/python/python.exe", "-I", "-B", "-c", holder]
    with subprocess.Popen(
        words, cwd=bundle, env=wine.environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    ) as other:  # fmt: skip
        assert other.stdout.readline().strip() == b"held"
        code, said = wine.start("repair", folder=bundle)
        other.kill()
    assert code == 10, said
    assert "another repair of this bundle is running" in said
    code, said = wine.start("repair", folder=bundle)
    assert code == 0, said


def programs_of(bundle: Path) -> dict[int, str]:
    """Return the Windows programs of a bundle that run, by number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if "python.exe" in words and str(bundle).replace("/", "\\") in words:
            found[int(folder.name)] = words
    return found


def test_the_station_answers_and_takes_its_models_with_it_when_it_is_killed(wine, bundle):
    with subprocess.Popen(
        ["wine", "cmd", "/c", ".\\start.cmd", "--port", "0", "--no-browser"],
        cwd=bundle, env=wine.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    ) as shell:  # fmt: skip
        try:
            url = next(line for line in shell.stdout if " is open at " in line)
            url = url.partition(" is open at ")[2].split()[0].rstrip("/")
            said = answer(url)
            assert said["usage"]["completion_tokens"] > 0
            status = httpx2.get(f"{url}/api/status", timeout=60).json()
            assert [corpus["available"] for corpus in status["corpora"]] == [True]
            running = programs_of(bundle)
            assert len(running) >= 3, running  # the station, the guardian, the model's server
            (station,) = (pid for pid, words in running.items() if "main.py" in words)
            os.kill(station, signal.SIGKILL)
            deadline = time.monotonic() + 60
            while programs_of(bundle):
                assert time.monotonic() < deadline, programs_of(bundle)
                time.sleep(0.2)
        finally:
            for pid in programs_of(bundle):
                os.kill(pid, signal.SIGKILL)
            shell.kill()


def answer(url: str) -> dict:
    """Ask the model, as soon as it is there."""
    body = {
        "model": "chat",
        "max_tokens": 16,
        "messages": [{"role": "user", "content": "What is fire?"}],
    }
    deadline = time.monotonic() + 120
    while True:
        got = httpx2.post(f"{url}/v1/chat/completions", json=body, timeout=120)
        if got.status_code == 200:
            return got.json()
        assert time.monotonic() < deadline, got.text
        time.sleep(0.5)
