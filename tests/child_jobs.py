"""Jobs that misbehave in every way a native library can; run in a child by test_child."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from bundler.errors import UnsafeInput


def echo(arguments, report):
    return arguments


def progress(arguments, report):
    for done in (1, 5, 3, 10):
        report(done, 10, "tokens")
        time.sleep(0.06)


def refuse(arguments, report):
    raise UnsafeInput("is odd", where="a.gguf", hint="fetch it again")


def stumble(arguments, report):
    raise ZeroDivisionError("by nought")


def print_everywhere(arguments, report):
    os.write(1, b"a native print\n")
    ctypes.CDLL(None).puts(b"another one")
    print("and Python's")
    return "clean"


def die(arguments, report):
    sys.stderr.write("GGML_ASSERT(n > 0) failed\n")
    sys.stderr.flush()
    os.kill(os.getpid(), getattr(signal, arguments["signal"]))


def crash(arguments, report):
    ctypes.string_at(0)


def leave(arguments, report):
    os._exit(3)


def chatter(arguments, report):
    os.write(2, b"x" * (8 << 20))
    os._exit(4)


def run_out(arguments, report):
    return len(bytearray(arguments["bytes"]))


def folder(arguments, report):
    import colorsys  # a module of the standard library that nothing has imported yet

    return colorsys.__file__


def leave_a_grandchild(arguments, report):
    subprocess.Popen(["sleep", "20"])
    os._exit(5)


def talk(arguments, report):
    for number in range(600):
        report(number, 600, "tokens")
        time.sleep(0.06)


def sleep(arguments, report):
    if "pid_file" in arguments:
        Path(arguments["pid_file"]).write_text(str(os.getpid()))
    report(1, None, "tokens")
    time.sleep(60)


def quantize_all(arguments, report):
    """Make every scheme in one child; return its facts or the error it gave."""
    from bundler.builtin.llamacpp.quantize import quantize_job

    made = {}
    for quant in arguments["quants"]:
        output = str(Path(arguments["folder"]) / f"{quant}.gguf")
        made[quant] = quantize_job(
            {**arguments["common"], "quant": quant, "output": output}, report
        )
    return made


def tokens(arguments, report):
    """Cut a text into windows as calibration and evaluation do."""
    from bundler.builtin.llamacpp.session import open_model
    from bundler.builtin.llamacpp.texts import windows

    with open_model(Path(arguments["model"]), gpu=False) as model:
        return windows(
            model,
            {"t": Path(arguments["text"])},
            window_tokens=arguments["window_tokens"],
            most=arguments["most"],
        )


def calibrate_and_stop(arguments, report):
    """Calibrate, keep the sums after every window, and break down after some."""
    from bundler.builtin.llamacpp import calibration_state
    from bundler.builtin.llamacpp.calibrate import calibrate_job

    calibration_state._EVERY_SECONDS = -1.0
    windows = 0

    def stopping(done, total, unit):
        nonlocal windows
        windows += 1
        if windows == arguments["stop_after"]:
            raise RuntimeError("cut off")

    return calibrate_job(arguments, stopping)
