"""An empty root in a network namespace of its own: the machine nobody prepared.

`EmptyRoot` holds what is placed in it and nothing else: no shell, no libraries, no /etc. Programs
run in it see only a fresh /proc, a /dev of five entries, and a loopback device. Every attempt to
reach further is recorded by strace, whether or not the kernel would have let it through.

Needs root, `unshare`, `chroot`, `ip`, `mount` and (for traces) `strace`.
"""

import atexit
import contextlib
import ctypes
import functools
import ipaddress
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

TOOLS = ("unshare", "chroot", "ip", "mount", "strace")
_CLONE_NEWNET = 0x40000000  # linux/sched.h
_SCRIPT = """
set -eu
root=$1; read_only=$2; trace=$3; shift 3
ip link set lo up
mount --make-rprivate /
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount -t tmpfs tmpfs "$root/dev"
mkdir "$root/dev/shm"
for device in null zero urandom random; do
    : > "$root/dev/$device"
    mount --bind "/dev/$device" "$root/dev/$device"
done
if [ "$read_only" = yes ]; then mount -o remount,ro,bind "$root"; fi
if [ -n "$trace" ]; then
    exec strace -f --seccomp-bpf -qq -s 0 -o "$trace" \
        -e trace=connect,sendto,sendmsg,sendmmsg chroot "$root" "$@"
fi
exec chroot "$root" "$@"
"""
_ADDRESS = re.compile(
    r"sin_port=htons\((\d+)\), sin_addr=inet_addr\(\"([^\"]+)\"\)"
    r"|sin6_port=htons\((\d+)\)[^}]*?inet_pton\(AF_INET6, \"([^\"]+)\""
)


def why_not() -> str:
    """Say why an empty root cannot be made here; an empty text when it can."""
    if os.name != "posix" or os.geteuid() != 0:
        return "needs root for namespaces and chroot"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    tried = subprocess.run(["unshare", "-n", "-m", "-p", "-f", "true"], capture_output=True)
    return "" if tried.returncode == 0 else "no namespaces may be made here"


needs_empty_root = pytest.mark.skipif(bool(why_not()), reason=why_not() or "possible here")
"""Mark of tests that use `EmptyRoot`; put `pytest.mark.root` beside it."""


@dataclass(frozen=True)
class Finished:
    """What a program in the empty root left."""

    returncode: int
    stdout: str
    stderr: str
    reached: tuple[str, ...]
    """Addresses beyond loopback it tried to reach, `address:port`."""


@dataclass
class Running:
    """A program in the empty root that goes on, such as a server."""

    process: subprocess.Popen
    trace: Path
    log: Path
    _namespace: int = field(repr=False, default=-1)

    def inside(self, function, *arguments):
        """Return `function(*arguments)`, called in a thread that sees only the root's network."""
        return _in_network(self._namespace, function, arguments)

    def get(self, url, headers=None, data=None, seconds=30):
        """Return (status, bytes) of a request made from inside the root's network."""
        return self.inside(_request, url, headers or {}, data, seconds)

    def wait_for(self, url, seconds=60):
        """Wait until `url` answers (with any status); return the seconds it took."""
        started = time.monotonic()
        while time.monotonic() - started < seconds:
            if self.process.poll() is not None:
                raise AssertionError(f"ended with {self.process.returncode}: {self.log_text()}")
            try:
                self.get(url, seconds=5)
            except OSError:
                time.sleep(0.05)
            else:
                return time.monotonic() - started
        raise AssertionError(f"{url} did not answer in {seconds} s: {self.log_text()}")

    def log_text(self):
        """Return all the program has said."""
        return self.log.read_text(errors="replace")

    def reached(self):
        """Return the addresses beyond loopback it has tried to reach so far."""
        return beyond_loopback(self.trace.read_text(errors="replace"))

    def wrapper(self, program, folder):
        """Return a script that runs `program` of this machine inside the root's network only.

        For a browser: it keeps its own files, and can reach nothing but the station.
        """
        script = Path(folder) / f"{Path(program).name}-in-the-gap"
        namespace = f"/proc/{os.getpid()}/fd/{self._namespace}"
        script.write_text(f'#!/bin/sh\nexec nsenter --net={namespace} -- "{program}" "$@"\n')
        script.chmod(0o755)
        return script


@functools.cache
def staged_runtime() -> Path:
    """Return the real runtime for this machine, put together once for all tests of a process.

    What `run` said about it is beside it, in `facts.json`.
    """
    from bundler.builtin.runtimes.xllamacpp import XllamacppRuntime, host_platform
    from bundler.hookspecs import Task
    from bundler.store import Store
    from bundler.world import World

    folder = Path(tempfile.mkdtemp(prefix="bundler-test-runtime-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    world = World(store=Store(folder / "store"))
    runtime = XllamacppRuntime()
    parameters = {
        "platform": host_platform(),
        "revision": runtime.needs(host_platform(), world).revision,
    }
    output = folder / "tree"
    output.mkdir()
    facts = runtime.run(Task("stage", {}, parameters, output, lambda *_: None, world))
    (folder / "facts.json").write_text(json.dumps(facts))
    return output


class EmptyRoot:
    """A folder that becomes the root of a machine with nothing on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("proc", "dev"):
            (folder / name).mkdir(parents=True)

    def place(self, source: Path, where: str) -> str:
        """Copy a folder to `where` (an absolute path in the root) and return `where`.

        Raises AssertionError for anything but plain files and folders: a stick holds no links.
        """
        odd = [p for p in source.rglob("*") if p.is_symlink() or not (p.is_file() or p.is_dir())]
        assert not odd, f"not plain files: {odd[:5]}"
        shutil.copytree(source, self.folder / where.lstrip("/"))
        return where

    def run(self, *command, environment=None, read_only=True, seconds=120) -> Finished:
        """Run a program of the root to its end."""
        trace = self.folder.with_name(f"{self.folder.name}.trace")
        done = subprocess.run(
            self._words(command, read_only, trace), env=_environment(environment),
            capture_output=True, text=True, errors="replace", timeout=seconds,
        )  # fmt: skip
        reached = beyond_loopback(trace.read_text(errors="replace"))
        return Finished(done.returncode, done.stdout, done.stderr, reached)

    @contextlib.contextmanager
    def start(self, *command, environment=None, read_only=True):
        """Run a program of the root while the block lasts; all it started ends with it."""
        trace = self.folder.with_name(f"{self.folder.name}.trace")
        log = self.folder.with_name(f"{self.folder.name}.log")
        trace.touch()
        with log.open("wb") as stream:
            process = subprocess.Popen(
                self._words(command, read_only, trace), env=_environment(environment),
                stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            )  # fmt: skip
        try:
            namespace = _namespace_of(process)
            try:
                yield Running(process, trace, log, namespace)
            finally:
                os.close(namespace)
        finally:
            process.kill()  # --kill-child: the first process of the namespace, and so all, end too
            process.wait(30)

    def _words(self, command, read_only, trace):
        words = ["unshare", "-n", "-m", "-p", "-f", "--kill-child", "/bin/sh", "-c", _SCRIPT, "sh"]
        return [*words, str(self.folder), "yes" if read_only else "no", str(trace), *command]


def beyond_loopback(trace: str) -> tuple[str, ...]:
    """Return every Internet address in a strace of network calls that is not loopback."""
    found = []
    for line in trace.splitlines():
        for match in _ADDRESS.finditer(line):
            port, address = (match[1], match[2]) if match[2] else (match[3], match[4])
            if not ipaddress.ip_address(address).is_loopback:
                found.append(f"{address}:{port}")
    return tuple(found)


def _environment(extra):
    """Return an environment with nothing in it but what finds the tools around the root."""
    return {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **(extra or {})}


def _namespace_of(process, seconds=10):
    """Return a descriptor of a process's network namespace once it has left ours."""
    ours = Path("/proc/self/ns/net").readlink()
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            if Path(f"/proc/{process.pid}/ns/net").readlink() != ours:
                return os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        time.sleep(0.01)
    raise AssertionError("the namespace was not made")


def _in_network(namespace, function, arguments):
    answer = {}

    def work():
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.setns(namespace, _CLONE_NEWNET):  # of this thread only
                raise OSError(ctypes.get_errno(), "setns")
            answer["value"] = function(*arguments)
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread below
            answer["error"] = error

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if "error" in answer:
        raise answer["error"]
    return answer["value"]


def _request(url, headers, data, seconds):
    request = urllib.request.Request(url, data=data, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=seconds) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()
