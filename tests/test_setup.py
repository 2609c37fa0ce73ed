"""How `.venv` is set up: a llama-cpp-python of the user's own is lent, and never harmed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
VERSION = "import llama_cpp, importlib.metadata as m; print(llama_cpp.device, m.version('llama-cpp-python'))"


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """Return `tools/setup.py` as a module that works on a virtual environment of the test's own."""
    spec = importlib.util.spec_from_file_location("setup_tool", ROOT / "tools/setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "PYTHON", venv / "bin/python")
    return module


def own_llama_cpp(folder, device="cuda"):
    """Write what pip leaves of an installed llama-cpp-python, and return the package's folder."""
    about = folder / "llama_cpp_python-9.9.9.dist-info"
    (folder / "llama_cpp").mkdir(parents=True)
    about.mkdir()
    (folder / "llama_cpp/__init__.py").write_text(f"__version__ = '9.9.9'\ndevice = {device!r}\n")
    (about / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: llama_cpp_python\nVersion: 9.9.9\n"
    )
    (about / "RECORD").write_text(
        "".join(
            f"{path.relative_to(folder)},,\n"
            for path in [*folder.rglob("*.py"), about / "METADATA", about / "RECORD"]
        )
    )
    return folder / "llama_cpp"


def tree(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in folder.rglob("*.*")
        if path.is_file()
    }


def test_a_llama_cpp_of_the_users_own_is_found_by_import_and_by_name(setup, tmp_path):
    setup.link_llama_cpp(own_llama_cpp(tmp_path / "own"))
    done = subprocess.run([setup.PYTHON, "-c", VERSION], capture_output=True, text=True, check=True)
    assert done.stdout == "cuda 9.9.9\n"


def test_what_is_the_users_own_stays_when_it_is_used_no_more(setup, tmp_path):
    own = own_llama_cpp(tmp_path / "own")
    before = tree(own.parent)
    setup.link_llama_cpp(own)
    setup.forget_llama_cpp()
    setup.forget_llama_cpp()  # nothing there is nothing to do
    assert tree(own.parent) == before
    assert not any("llama" in path.name for path in setup.site_packages().iterdir())


def test_one_that_bundler_compiled_makes_room_for_the_users_own(setup, tmp_path):
    compiled = own_llama_cpp(setup.site_packages(), device="compiled")
    setup.forget_llama_cpp()
    assert not compiled.exists()
    setup.link_llama_cpp(own_llama_cpp(tmp_path / "own"))
    done = subprocess.run([setup.PYTHON, "-c", VERSION], capture_output=True, text=True, check=True)
    assert done.stdout == "cuda 9.9.9\n"
