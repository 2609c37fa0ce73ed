"""Serves one model at the far end: llama.cpp's own `llama-server`, on a card or on the processor.

Started by the station as a child with the options of `serve_xllamacpp.py`, which lies beside it and
reads them. It watches what the server says while it loads:

- with layers for a card, the server runs on the machine's own C library, because the drivers that
  are loaded into it were made for that one; every layer asked for must go to the card, or this
  ends with an error, so that the station can try without and say so;
- without, it runs on the bundle's C library and never sees the part that drives cards.

    python serve_llama_server.py --list-devices

prints the cards it can use as one line of JSON: kind, name, free_bytes, total_bytes, shared.

Exit codes: 2 wrong use, 3 no card here can be used, 4 the model cannot be served as it was wished.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

HERE = Path(__file__).resolve().parent
NATIVE = HERE / "native"
WRONG_USE, NO_CARD, WRONG_MODEL = 2, 3, 4
LIST_SECONDS = 45
MIB = 1 << 20
BECOME = "--become"
# llama.cpp's levels of talk: 4 has what went where, 5 what a card is like.
LAYERS_ARE_TOLD, CARDS_ARE_TOLD = "4", "5"
LIBRARY_FOLDERS = (
    "/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib64", "/usr/lib64", "/usr/lib",
)  # fmt: skip
"""Where distributions keep their libraries; Vulkan's loader is the machine's where it has one."""
_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_DEVICE = re.compile(r"  (Vulkan\d+): (.+) \((\d+) MiB, (\d+) MiB free\)")
_NATURE = re.compile(r"ggml_vulkan: (\d+) = .* \| uma: ([01]) \|")
_USED = re.compile(r"using device (Vulkan\d+) \(([^()]*(?:\([^()]*\)[^()]*)*)\)")


@dataclass
class Loading:
    """What the server said so far."""

    wanted_layers: int
    """-1 for all."""
    offloaded: int = 0
    layers: int = 0
    draft_layers_elsewhere: int = 0
    device: str = ""

    def see(self, line: str) -> None:
        """Take in one line of its log."""
        if found := _OFFLOADED.search(line):
            if self.layers:  # a model is loaded before its draft
                self.draft_layers_elsewhere = int(found[2]) - int(found[1])
            else:
                self.offloaded, self.layers = int(found[1]), int(found[2])
        elif used := _USED.search(line):
            self.device = f"{used[2]} (Vulkan)"

    @property
    def as_wished(self) -> bool:
        """Whether as many layers went to the card as were planned for it."""
        wanted = self.layers if self.wanted_layers < 0 else min(self.wanted_layers, self.layers)
        return self.layers > 0 and self.offloaded >= wanted and not self.draft_layers_elsewhere

    def words(self) -> str:
        """Say what it runs on."""
        if not self.wanted_layers:
            return "the processor"
        part = (
            "" if self.offloaded == self.layers else f", {self.offloaded} of {self.layers} layers"
        )
        return f"{self.device or 'Vulkan'}{part}"


def main(words: Sequence[str] | None = None) -> NoReturn:
    """Check the wish, then serve until the parent is gone or the server ends."""
    given = sys.argv[1:] if words is None else list(words)
    if given == ["--list-devices"]:
        list_devices()
    if given[:1] == [BECOME]:
        become(given[1:])
    reading = beside("serve_xllamacpp")
    wish = reading.parse(given)
    key = os.environ.pop(reading.KEY, "")
    if len(key) < 16:
        reading.fail(WRONG_USE, f"{reading.KEY} holds no key of 16 characters or more",
                     "the station sets it")  # fmt: skip
    for file in reading.files(wish):
        if not Path(file).is_file():
            reading.fail(WRONG_MODEL, f"{file}: not there", "verify the bundle: a file is missing")
    if any("," in file or ":" in file for _, file in wish.adapter):
        reading.fail(WRONG_USE, "the server takes ',' and ':' in an adapter's path for separators",
                     "rename the folder and start again")  # fmt: skip
    serve(wish, key, reading)


def beside(name: str) -> Any:
    """Load the module `name` that lies beside this file: Python runs isolated here."""
    found = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def serve(wish: Any, key: str, reading: Any) -> NoReturn:
    """Run the server, pass on what it says, and end with it."""
    on_card = wish.gpu_layers != 0
    command = [*program(on_card), *arguments(wish, reading)]
    variables = {**environment(on_card), "LLAMA_API_KEY": key}
    # In the folder of the processor's modules: that is where the server looks for them when it was
    # started by the bundle's loader. By way of this file, so that it ends when this process does.
    process = subprocess.Popen(
        [sys.executable, "-I", "-S", str(Path(__file__).resolve()), BECOME, *command],
        cwd=NATIVE, env=variables, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    reading.watch_parent(os.getppid())
    loading = Loading(wish.gpu_layers)
    assert process.stdout is not None
    for raw in process.stdout:
        line = raw.decode("utf-8", "replace").rstrip()
        loading.see(line)
        sys.stdout.write(f"{line[:500]}\n")
        if "listening on" in line or loading.layers:
            check(loading, process, on_card, reading)
        if "listening on" in line:
            sys.stdout.write(f"device: {loading.words()}\n")
        sys.stdout.flush()
    raise SystemExit(WRONG_MODEL if process.wait() else 0)


def check(loading: Loading, process: subprocess.Popen[bytes], on_card: bool, reading: Any) -> None:
    """End everything when a card was planned and not all that was planned for it is there."""
    if on_card and not loading.as_wished:
        process.kill()
        process.wait()
        reading.fail(
            NO_CARD,
            f"{loading.draft_layers_elsewhere} layers of the draft did not go to a card"
            if loading.draft_layers_elsewhere
            else f"only {loading.offloaded} of {loading.layers} layers went to a card"
            if loading.layers
            else "no card could be used",
            "look whether the card's Vulkan driver is installed; without it the processor is used",
        )


def become(command: Sequence[str]) -> NoReturn:
    """Become the server; the kernel ends it when its parent ends, however that comes (prctl(2))."""
    import ctypes
    import signal

    parent = os.getppid()
    ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        raise SystemExit(0)
    try:
        os.execv(command[0], list(command))  # noqa: S606 - the command is this file's own
    except OSError as error:
        raise SystemExit(
            f"error: {command[0]} cannot be started: {error.strerror}; a card is driven with this "
            "system's own C library, which must be GNU's at /lib64"
        ) from error


# -- how it is started -----------------------------------------------------------------------------


def program(on_card: bool) -> list[str]:
    """Return the words that start the server: by the machine's C library, or by the bundle's."""
    server = str(NATIVE / "llama-server")
    if on_card:
        return [server]
    glibc, processor = HERE / "python" / "glibc", platform.machine().replace("_", "-")
    loader = next(iter(sorted(glibc.glob("ld-linux*"))), None)
    if loader is None:
        raise SystemExit(f"error: {glibc}: holds no loader for {processor}")
    return [str(loader), "--inhibit-cache", "--library-path", f"{glibc}:{NATIVE}", server]


def environment(on_card: bool) -> dict[str, str]:
    """Return the server's environment; llama.cpp's own variables (`LLAMA_ARG_…`) get no say."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LLAMA_", "LD_", "MTMD_", "HF_")) and name != "GGML_BACKEND_PATH"
    }
    if not on_card:
        return kept
    kept["GGML_BACKEND_PATH"] = str(NATIVE / "vulkan" / "libggml-vulkan.so")
    if not any(Path(folder, "libvulkan.so.1").exists() for folder in LIBRARY_FOLDERS):
        kept["LD_LIBRARY_PATH"] = str(NATIVE / "loader")
    return kept


def arguments(wish: Any, reading: Any) -> list[str]:
    """Translate the wish into the server's words; the reasons are those in serve_xllamacpp.py."""
    layers = reading.ALL_LAYERS if wish.gpu_layers < 0 else wish.gpu_layers
    words = [
        "--model", wish.model, "--host", "127.0.0.1", "--port", str(wish.port), "--no-ui",
        "--no-slots", "--offline", "--fit", "off", "--verbosity", LAYERS_ARE_TOLD,
        "--log-colors", "off", "--cors-origins", "",
        "--ctx-size", str(wish.context_tokens * wish.parallel), "--parallel", str(wish.parallel),
        "--n-predict", str(wish.context_tokens), "--n-gpu-layers", str(layers),
        "--cache-ram", str(reading.PROMPT_CACHE_MIB), "--ctx-checkpoints", "0",
        "--cache-type-k", wish.kv_cache, "--cache-type-v", wish.kv_cache,
    ]  # fmt: skip
    if wish.gpu_layers == 0:
        words += ["--no-op-offload", "--no-kv-offload"]
    if wish.threads:
        words += ["--threads", str(wish.threads), "--threads-batch", str(wish.threads)]
    for scale, file in wish.adapter:
        words += ["--lora-scaled", f"{file}:{scale}"]
    if wish.projector:
        most = min(reading.MOST_IMAGE_TOKENS, wish.context_tokens // 2)
        words += ["--mmproj", wish.projector, "--image-max-tokens", str(most)]
        words += ["--no-mmproj-offload"] if wish.gpu_layers == 0 else []
    if wish.draft:
        own = 0 if wish.gpu_layers == 0 else wish.draft_gpu_layers
        words += [
            "--spec-type",
            "draft-simple",
            "--model-draft",
            wish.draft,
            "--spec-draft-n-max",
            str(reading.DRAFTED_TOKENS),
            "--n-gpu-layers-draft",
            str(reading.ALL_LAYERS if own < 0 else own),
            "--cache-type-k-draft",
            wish.draft_kv_cache,
            "--cache-type-v-draft",
            wish.draft_kv_cache,
        ]
    if wish.role in ("embed", "rerank"):
        batch = str(wish.context_tokens)
        words += ["--embedding", "--batch-size", batch, "--ubatch-size", batch]
    if wish.role == "rerank":
        words += ["--pooling", "rank"]
    return words


# -- what is here ----------------------------------------------------------------------------------


def list_devices() -> NoReturn:
    """Print the cards that the server can use here, and end; say why when it cannot be asked."""
    try:
        done = subprocess.run(
            [*program(on_card=True), "--verbosity", CARDS_ARE_TOLD, "--list-devices"],
            cwd=NATIVE, env=environment(on_card=True), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
            timeout=LIST_SECONDS, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SystemExit(f"error: llama-server cannot run on this system: {error}") from error
    if done.returncode:
        last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise SystemExit(f"error: llama-server cannot run on this system: {last[:300]}")
    sys.stdout.write(json.dumps(cards(done.stdout)) + "\n")
    sys.stdout.flush()
    raise SystemExit(0)


def cards(text: str) -> list[Mapping[str, Any]]:
    """Return the cards in what the server prints about devices.

    One whose nature it does not tell counts as sharing the main memory: then both are looked at.
    """
    shared = {f"Vulkan{number}": uma == "1" for number, uma in _NATURE.findall(text)}
    return [
        {
            "kind": "vulkan", "name": name[:200], "free_bytes": int(free) * MIB,
            "total_bytes": int(total) * MIB, "shared": shared.get(device, True),
        }
        for device, name, total, free in (found.groups() for found in map(_DEVICE.fullmatch, text.splitlines()) if found)
    ]  # fmt: skip


if __name__ == "__main__":
    main()
