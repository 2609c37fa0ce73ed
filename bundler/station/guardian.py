"""Keeps a child process from outliving the station. Run as a script, standard library only.

    python guardian.py COMMAND...

On Linux the kernel ends the child when the station dies (PR_SET_PDEATHSIG, prctl(2)), so this
script arranges that and becomes the child. Elsewhere it stays, runs the child, and ends it when
its own standard input closes: the station holds the other end of that pipe as long as it lives.
"""

import os
import signal
import subprocess
import sys
import threading

_PR_SET_PDEATHSIG = 1
_SECONDS_TO_END = 5.0


def main(command: list[str]) -> int:
    """Run `command` guarded; return its exit status."""
    if sys.platform == "linux" and "BUNDLER_GUARD_BY_PIPE" not in os.environ:
        _die_with_parent()
        os.execvp(command[0], command)  # noqa: S606 - the command comes from the bundle's runtime
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_end_when_input_closes, args=(child,), daemon=True).start()
    return child.wait()


def _die_with_parent() -> None:
    import ctypes

    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(1)  # The station died between fork and prctl.


def _end_when_input_closes(child: "subprocess.Popen[bytes]") -> None:
    sys.stdin.buffer.read()
    child.terminate()
    try:
        child.wait(_SECONDS_TO_END)
    except subprocess.TimeoutExpired:
        child.kill()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
