"""Keeps a child process from outliving the station. Run as a script, standard library only.

    python guardian.py COMMAND...

On Linux the kernel ends the child when the station dies (PR_SET_PDEATHSIG, prctl(2)), so this
script arranges that and becomes the child. Elsewhere it stays, runs the child, and ends it when
its own standard input closes (the station holds the other end of that pipe as long as it lives) or
when it is told to end. On Windows, where it may be ended without being told, both are of one job,
which takes all its processes with it (JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE).
"""

import ctypes
import os
import signal
import subprocess
import sys
import threading
from typing import Any

_PR_SET_PDEATHSIG = 1
_KILL_ON_JOB_CLOSE = 0x2000
_EXTENDED_LIMITS = 9
_SECONDS_TO_END = 5.0


def main(command: list[str]) -> int:
    """Run `command` guarded; return its exit status."""
    if sys.platform == "linux" and "BUNDLER_GUARD_BY_PIPE" not in os.environ:
        _die_with_parent()
        os.execvp(command[0], command)  # noqa: S606 - the command comes from the bundle's runtime
    if sys.platform == "win32":
        _die_together()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    threading.Thread(target=_end_when_input_closes, args=(child,), daemon=True).start()
    return child.wait()


def _die_with_parent() -> None:
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(1)  # The station died between fork and prctl.


class _BasicLimits(ctypes.Structure):
    """JOBOBJECT_BASIC_LIMIT_INFORMATION, winnt.h."""

    _fields_ = (
        ("per_process_time", ctypes.c_int64),
        ("per_job_time", ctypes.c_int64),
        ("flags", ctypes.c_uint32),
        ("minimum_working_set", ctypes.c_size_t),
        ("maximum_working_set", ctypes.c_size_t),
        ("active_processes", ctypes.c_uint32),
        ("affinity", ctypes.c_size_t),
        ("priority_class", ctypes.c_uint32),
        ("scheduling_class", ctypes.c_uint32),
    )


class _Limits(ctypes.Structure):
    """JOBOBJECT_EXTENDED_LIMIT_INFORMATION, winnt.h; `counters` is IO_COUNTERS."""

    _fields_ = (
        ("basic", _BasicLimits),
        ("counters", ctypes.c_uint64 * 6),
        ("memory", ctypes.c_size_t * 4),
    )


def _die_together() -> None:
    """Put this process, and so all that it starts, into a job that ends when this process does."""
    library: Any = getattr(ctypes, "WinDLL")  # noqa: B009 - exists on Windows only
    kernel = library("kernel32", use_last_error=True)
    kernel.CreateJobObjectW.restype = kernel.GetCurrentProcess.restype = ctypes.c_void_p
    job = ctypes.c_void_p(kernel.CreateJobObjectW(None, None))
    limits = _Limits(basic=_BasicLimits(flags=_KILL_ON_JOB_CLOSE))
    done = (
        job.value
        and kernel.SetInformationJobObject(
            job, _EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)
        )
        and kernel.AssignProcessToJobObject(job, ctypes.c_void_p(kernel.GetCurrentProcess()))
    )
    if not done:
        raise OSError("no job could be made that ends this program's children with it")


def _end_when_input_closes(child: "subprocess.Popen[bytes]") -> None:
    sys.stdin.buffer.read()
    child.terminate()
    try:
        child.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
