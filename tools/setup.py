"""Sets up `.venv` from nothing but Python, a C/C++ compiler and the network. Standard library only.

Everything is pinned by name, version and digest (`requirements/*.lock`). Only llama-cpp-python is
compiled, once, since it comes as source; the wheel is kept in `.cache/wheels`. Where the Python
that runs this has a llama-cpp-python already (built for CUDA or Metal, say), that one is used.

    python3 tools/setup.py            what the program needs
    python3 tools/setup.py --test     and what its tests need
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
PIP_WHEEL = ROOT / "tools/bootstrap/pip-26.3-py3-none-any.whl"
LOCKS = {"runtime": ROOT / "requirements/runtime.lock", "test": ROOT / "requirements/test.lock"}
LLAMA_ABOUT = "llama_cpp_python-*.dist-info"
# Vision, server, tools and tests of llama.cpp are not used by the build side: leaving them out
# saves a third of the compile.
CMAKE_ARGS = (
    "-DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF "
    "-DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_APP=OFF "
    "-DLLAMA_OPENSSL=OFF"
)


def main() -> int:
    """Set up what is not set up yet; return an exit code."""
    wanted = ["runtime", "test"] if "--test" in sys.argv[1:] else ["runtime"]
    problem = what_is_missing()
    if problem:
        say(f"error: {problem}")
        return 2
    try:
        make_venv()
        own_llama = user_llama_cpp()
        for name in wanted:
            install_lock(name, own_llama)
        install_ourselves()
    except subprocess.CalledProcessError as error:
        command = " ".join(map(str, error.cmd))
        say(f"error: this failed with code {error.returncode}: {command}")
        say("hint: its own words are above; run the same command again once that is mended")
        return 1
    return 0


def say(text: str) -> None:
    """Write one line to stderr at once."""
    print(text, file=sys.stderr, flush=True)


def what_is_missing() -> str:
    """Return what this machine lacks and how to get it, or an empty string."""
    if sys.version_info < (3, 11):
        return f"Python 3.11 or newer is needed; this is {sys.version.split()[0]}"
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
    if compiler is None and user_llama_cpp() is None and not kept_wheel().exists():
        return "a C++ compiler is needed once, to compile llama.cpp: apt install build-essential"
    return ""


def run(*command: str | Path, **options: object) -> None:
    """Run a command; its output goes to stderr."""
    subprocess.run([*map(str, command)], check=True, stdout=sys.stderr, **options)  # type: ignore[call-overload]


def pip(*words: str | Path) -> None:
    """Run the pip that came with this checkout on the virtual environment."""
    run(sys.executable, PIP_WHEEL / "pip", "--python", PYTHON, "--quiet",
        "--disable-pip-version-check", *words)  # fmt: skip


def make_venv() -> None:
    """Make `.venv` without pip (Debian's python3 has no ensurepip), or anew when Python changed."""
    stamp = VENV / "made-by"
    made_by = f"{sys.executable} {sys.version}"
    if stamp.exists() and stamp.read_text() == made_by and PYTHON.exists():
        return
    shutil.rmtree(VENV, ignore_errors=True)
    say("setting up .venv")
    run(sys.executable, "-m", "venv", "--without-pip", VENV)
    stamp.write_text(made_by)


def user_llama_cpp() -> str | None:
    """Return the folder of a llama-cpp-python that the user's own Python has, None without one."""
    code = (
        "import llama_cpp, pathlib; print(llama_cpp.__version__); "
        "print(pathlib.Path(llama_cpp.__file__).parent)"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=False
    )
    if found.returncode:
        return None
    version, folder = found.stdout.splitlines()[-2:]
    if not list(Path(folder).parent.glob(LLAMA_ABOUT)):
        say(f"your own llama-cpp-python ({folder}) was not installed by pip: not used")
        return None
    wanted = re.search(r"^llama-cpp-python==(\S+)", LOCKS["runtime"].read_text(), re.MULTILINE)
    if wanted is None or version != wanted[1]:
        say(f"your own llama-cpp-python is {version}, {wanted and wanted[1]} is needed: not used")
        return None
    return folder


def done_stamp(name: str) -> Path:
    """Return the file that says that a lock is installed."""
    return VENV / f"installed-{name}"


def install_lock(name: str, own_llama: str | None) -> None:
    """Install a lock's packages, unless just that was done already."""
    lock = LOCKS[name]
    wanted = hashlib.sha256(lock.read_bytes() + (own_llama or "").encode()).hexdigest()
    stamp = done_stamp(name)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    say(f"installing the pinned packages of {lock.relative_to(ROOT)}")
    text = lock.read_text()
    llama, rest = split_requirement(text, "llama-cpp-python")
    trimmed = VENV / f"{name}.txt"
    trimmed.write_text(rest)
    pip("install", "--no-deps", "--require-hashes", "--only-binary=:all:", "-r", trimmed)
    if name == "runtime":
        forget_llama_cpp()
        if own_llama is not None:
            say(f"using the llama-cpp-python of your own Python ({own_llama})")
            link_llama_cpp(Path(own_llama))
        else:
            pip("install", "--no-deps", compiled_llama_cpp(llama))
    stamp.write_text(wanted)


def site_packages() -> Path:
    """Return where `.venv` keeps its packages."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, check=True)
    return Path(done.stdout.strip())


def forget_llama_cpp() -> None:
    """Take llama-cpp-python out of `.venv`, without touching the files that a link leads to.

    Not by pip: it would delete through the link what belongs to the user's own Python.
    """
    linked = site_packages() / "llama_cpp"
    if linked.is_symlink():
        linked.unlink()
        for about in site_packages().glob(LLAMA_ABOUT):
            shutil.rmtree(about)
    elif list(site_packages().glob(LLAMA_ABOUT)):
        pip("uninstall", "--yes", "llama-cpp-python")


def link_llama_cpp(own: Path) -> None:
    """Lend `.venv` the user's own llama-cpp-python: a link to it, a copy of what it says of itself."""
    for about in own.parent.glob(LLAMA_ABOUT):
        # Without its list of files, which are not ours to remove.
        shutil.copytree(
            about, site_packages() / about.name, ignore=shutil.ignore_patterns("RECORD")
        )
    (site_packages() / "llama_cpp").symlink_to(own, target_is_directory=True)


def split_requirement(text: str, name: str) -> tuple[str, str]:
    """Return one requirement with its digests, and the text without it."""
    match = re.search(rf"^{re.escape(name)}==[^\n]*(?:\n    [^\n]*)*\n?", text, re.MULTILINE)
    if match is None:
        return "", text
    return match.group(), text[: match.start()] + text[match.end() :]


def kept_wheel() -> Path:
    """Return where the compiled llama-cpp-python is kept; another name for another machine."""
    requirement, _ = split_requirement(LOCKS["runtime"].read_text(), "llama-cpp-python")
    cpu = re.search(r"^flags\s*:.*$", read("/proc/cpuinfo"), re.MULTILINE)
    parts = [requirement, CMAKE_ARGS, os.environ.get("CMAKE_ARGS", ""), sys.version,
             cpu.group() if cpu else ""]  # fmt: skip
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return ROOT / ".cache/wheels" / key / "done"


def read(path: str) -> str:
    """Return a text file, or nothing where there is none (not Linux)."""
    return Path(path).read_text() if Path(path).exists() else ""


def compiled_llama_cpp(requirement: str) -> Path:
    """Return the wheel of llama-cpp-python, compiling it when it is not kept from an earlier time."""
    done = kept_wheel()
    if not done.exists():
        folder = done.parent
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "requirement.txt").write_text(requirement)
        compile_llama_cpp(folder)
        done.touch()
    return next(done.parent.glob("llama_cpp_python-*.whl"))


def compile_llama_cpp(folder: Path) -> None:
    """Compile the wheel into `folder`, with a line that says how far it is."""
    log = folder / "compile.log"
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(os.cpu_count() or 1)
    environment = {
        **os.environ,
        "CMAKE_ARGS": f"{CMAKE_ARGS} {os.environ.get('CMAKE_ARGS', '')}",
        "CMAKE_BUILD_PARALLEL_LEVEL": jobs,
        "PATH": f"{PYTHON.parent}{os.pathsep}{os.environ['PATH']}",
    }
    say(f"compiling llama.cpp, once: some minutes (log: {log})")
    command = [sys.executable, PIP_WHEEL / "pip", "--python", PYTHON, "wheel", "-v", "--no-deps",
               "--no-build-isolation", "--disable-pip-version-check", "--no-cache-dir",
               "--require-hashes",
               "--wheel-dir", folder, "-r", folder / "requirement.txt"]  # fmt: skip
    started = time.monotonic()
    with log.open("w") as sink, subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        errors="replace", env=environment,
    ) as process:  # fmt: skip
        ticker = Ticker(started)
        assert process.stdout is not None
        for line in process.stdout:
            sink.write(line)
            ticker.see(line)
        ticker.end()
    if process.returncode:
        say("".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:]))
        raise subprocess.CalledProcessError(process.returncode, command)
    say(f"compiled llama.cpp in {time.monotonic() - started:.0f} s")


class Ticker:
    """Shows ninja's `[34/140]` as one moving line on a terminal, as a line now and then elsewhere."""

    def __init__(self, started: float) -> None:
        self.started, self.last, self.lock = started, 0.0, threading.Lock()
        self.tty = sys.stderr.isatty()

    def see(self, line: str) -> None:
        """Look at one line of the compiler's output."""
        match = re.match(r"\s*\[(\d+)/(\d+)\]", line)
        if match is None:
            return
        done, total = int(match[1]), int(match[2])
        now = time.monotonic()
        if now - self.last < (0.2 if self.tty else 15):
            return
        self.last = now
        spent = now - self.started
        left = spent / done * (total - done)
        text = f"compiling llama.cpp: {done} of {total}, {spent:.0f} s, about {left:.0f} s left"
        print(f"\r{text}\033[K" if self.tty else text, end="" if self.tty else "\n",
              file=sys.stderr, flush=True)  # fmt: skip

    def end(self) -> None:
        """Put the moving line away."""
        if self.tty:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def install_ourselves() -> None:
    """Install this checkout, editable, so that the `bundler` program and its metadata are there."""
    stamp = done_stamp("bundler")
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    pip("install", "--no-deps", "--no-build-isolation", "--editable", ROOT)
    stamp.write_text(wanted)


if __name__ == "__main__":
    raise SystemExit(main())
