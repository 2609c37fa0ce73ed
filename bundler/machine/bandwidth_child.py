"""Reads main memory as fast as it can and prints how fast that was. Runs as a script of its own.

Arguments: bytes to read in each pass, threads, passes. Each thread looks with `memchr` for a byte
that is not there: the C library reads with the widest registers the processor has, and weights
are read the same way, once and in order. Prints a JSON list of bytes per second, one for a pass.
"""

from __future__ import annotations

import ctypes
import json
import sys
import threading
import time

_FILL, _ABSENT = 1, 2


def main() -> None:
    """Measure as the command line says."""
    size, threads, passes = (int(word) for word in sys.argv[1:4])
    library = ctypes.CDLL("msvcrt" if sys.platform == "win32" else None)
    search = library.memchr
    search.restype = ctypes.c_void_p
    search.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    slice_bytes = size // threads
    # One buffer for each thread, written by it: pages then lie near the processor that reads them.
    buffers = [ctypes.create_string_buffer(slice_bytes) for _ in range(threads)]
    everyone(lambda n: ctypes.memset(buffers[n], _FILL, slice_bytes), threads)
    found = []
    for _ in range(passes + 1):
        seconds = everyone(lambda n: search(buffers[n], _ABSENT, slice_bytes), threads)
        found.append(round(slice_bytes * threads / seconds))
    sys.stdout.write(json.dumps(found[1:]))  # the first pass also warms up


def everyone(work: object, threads: int) -> float:
    """Let all threads do `work(number)` at once; return the seconds until the last is ready."""
    ready = threading.Barrier(threads + 1)
    done = threading.Barrier(threads + 1)

    def run(number: int) -> None:
        ready.wait()
        work(number)  # type: ignore[operator]
        done.wait()

    crew = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for member in crew:
        member.start()
    ready.wait()
    started = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - started
    for member in crew:
        member.join()
    return seconds


if __name__ == "__main__":
    main()
