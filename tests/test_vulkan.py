"""llama.cpp's own server for cards: how it is compiled, started, watched; what the page then says.

Compiling the real one takes a quarter of an hour; `make test-vulkan` does, and runs it on Mesa's
software device. Here the same code compiles a source of twenty lines.
"""

import asyncio
import importlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from bundler.builtin.runtimes import native_build, serve_llama_server
from bundler.builtin.runtimes.llama_server import DESCRIPTION, LlamaServerRuntime
from bundler.builtin.runtimes.pinned import LLAMA_SOURCE_SHA256, LLAMA_SOURCE_VERSION, llama_source
from bundler.builtin.runtimes.pypi import WheelAddress
from bundler.builtin.runtimes.serve_llama_server import Loading, cards
from bundler.builtin.runtimes.serve_xllamacpp import parse
from bundler.errors import LockError, StepFailed
from bundler.hookspecs import Task
from bundler.planning.tiers import _may_drive
from bundler.station.configuration import Bundle, ModelEntry, this_platform
from bundler.station.models import ModelServer
from bundler.store import Store
from bundler.world import World

READING = importlib.import_module("bundler.builtin.runtimes.serve_xllamacpp")
KEY = "a-key-that-only-the-station-knows"
WISH = ["--model", "m.gguf", "--port", "0", "--context-tokens", "512"]

# -- compiling -------------------------------------------------------------------------------------

CMAKE = """cmake_minimum_required(VERSION 3.16)
project(tiny C)
set(CMAKE_LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_library(ggml-base SHARED base.c)
set_target_properties(ggml-base PROPERTIES SOVERSION 0)
add_library(ggml-vulkan MODULE base.c)
add_library(ggml-cpu-x64 MODULE base.c)
add_executable(llama-server main.c)
target_link_libraries(llama-server ggml-base)
add_dependencies(llama-server ggml-vulkan ggml-cpu-x64)
"""
TYPED = native_build._BEFORE + "    };\n" + native_build._AFTER


def archive(folder, vulkan=TYPED, main="int base(void); int main(void) { return base(); }"):
    files = {
        "CMakeLists.txt": CMAKE, "base.c": "int base(void) { return 42; }\n", "main.c": main + "\n",
        native_build.VULKAN_SOURCE: vulkan,
    }  # fmt: skip
    path = folder / "sdist.tar.gz"
    with tarfile.open(path, "w:gz") as target:
        for name, text in {
            **{f"vendor/llama.cpp/{k}": v for k, v in files.items()},
            "x": "",
        }.items():
            entry = tarfile.TarInfo(f"llama_cpp_python-9/{name}")
            entry.size = len(text.encode())
            target.addfile(entry, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def tiny(monkeypatch):
    """A source in C needs no C++ compiler, no shader compiler and no headers of Vulkan."""
    programs = {k: v for k, v in native_build.PROGRAMS.items() if k != "glslc"}
    monkeypatch.setattr(native_build, "PROGRAMS", programs)
    monkeypatch.setattr(native_build, "HEADERS", {})
    if missing := [name for name in programs if native_build.shutil.which(name) is None]:
        if os.environ.get("BUNDLER_REQUIRE_ORACLES"):
            pytest.fail(f"not here: {missing}")
        pytest.skip(f"not here: {missing}")


def test_a_source_is_compiled_once_and_runs_wherever_it_is_laid_out(tmp_path, tiny):
    store, seen = Store(tmp_path / "store"), []
    source = archive(tmp_path)
    made = native_build.compiled(source, "a" * 64, store, lambda *told: seen.append(told))
    assert seen
    assert seen[-1][0] == seen[-1][1]
    assert set(made.files) == {
        "llama-server", "libggml-base.so.0", "libggml-cpu-x64.so", "vulkan/libggml-vulkan.so",
    }  # fmt: skip
    place = tmp_path / "else where"
    native_build.lay_out(made, store, place)
    (place / "llama-server").chmod(0o755)
    assert subprocess.run([place / "llama-server"], env={}, check=False).returncode == 42
    assert re.fullmatch(r"2\.[1-9]\d*", native_build.c_library_floor(place))
    source.unlink()
    assert native_build.compiled(source, "a" * 64, store, seen.append).files == made.files


def test_nothing_that_was_compiled_names_the_folder_it_was_compiled_in(tmp_path, tiny):
    store = Store(tmp_path / "store")
    main = "#include <stdio.h>\nint main(void) { return puts(__FILE__) < 0; }"
    made = native_build.compiled(archive(tmp_path, main=main), "b" * 64, store, lambda *_: None)
    for sha256, _ in made.files.values():
        assert str(tmp_path).encode() not in store.object_path(sha256).read_bytes()


def test_what_the_compiler_says_is_told(tmp_path, tiny):
    source = archive(tmp_path, main="int main(void) { return nonsense; }")
    with pytest.raises(StepFailed, match="nonsense"):
        native_build.compiled(source, "c" * 64, Store(tmp_path / "store"), lambda *_: None)


def test_a_source_that_the_patch_was_not_made_for_is_refused(tmp_path, tiny):
    source = archive(tmp_path, vulkan="int other;\n")
    with pytest.raises(StepFailed, match="older Vulkan headers"):
        native_build.compiled(source, "d" * 64, Store(tmp_path / "store"), lambda *_: None)


def test_the_patch_leaves_what_newer_headers_compile(tmp_path):
    path = tmp_path / "source.cpp"
    path.write_text(TYPED)
    native_build.patch(path)
    kept = re.sub(r"#else\n(.*\n)*?#endif\n|#ifdef .*\n", "", path.read_text())
    assert kept == TYPED


def test_everything_that_is_missing_is_named_with_its_package():
    with pytest.raises(StepFailed) as caught:
        native_build.check_programs(lambda _: None, lambda _: False)
    said = caught.value.problems
    assert {p.where for p in said} >= {"cmake", "glslc", "/usr/include/vulkan/vulkan.hpp"}
    assert all("ninja-build" in p.hint and "libvulkan-dev" in p.hint for p in said)
    native_build.check_programs(lambda name: name, lambda _: True)


def test_another_source_or_another_flag_is_another_build(monkeypatch):
    key = native_build.build_key("a" * 64)
    assert native_build.build_key("b" * 64) != key
    monkeypatch.setattr(native_build, "FLAGS", {**native_build.FLAGS, "GGML_OPENMP": "ON"})
    assert native_build.build_key("a" * 64) != key


# -- the plugin ------------------------------------------------------------------------------------


def test_the_source_is_the_one_that_the_build_side_is_compiled_from():
    lock = Path(__file__).parent.parent / "requirements" / "runtime.lock"
    pinned = re.search(
        r"^llama-cpp-python==(\S+) \\\n\s+--hash=sha256:(\w+)", lock.read_text(), re.M
    )
    assert pinned is not None
    assert pinned.groups() == (LLAMA_SOURCE_VERSION, LLAMA_SOURCE_SHA256)
    address = WheelAddress.parse(llama_source().addresses[0])
    assert address.file == llama_source().path
    assert "--no-binary=:all:" in address.pip_arguments()


def test_a_platform_it_cannot_be_compiled_for_is_refused(tmp_path):
    with pytest.raises(LockError, match="linux-x86_64 only"):
        LlamaServerRuntime().needs("macos-arm64", World(store=Store(tmp_path / "store")))


def test_a_lock_without_the_source_is_refused(tmp_path):
    world = World(store=Store(tmp_path / "store"))
    task = Task("stage", {}, {"platform": "linux-x86_64", "revision": ""}, tmp_path,
                lambda *_: None, world)  # fmt: skip
    with pytest.raises(LockError):
        LlamaServerRuntime().run(task)


def test_until_somebody_has_seen_it_drive_a_card_plans_say_that_it_stays_unused():
    drives = [LlamaServerRuntime.accelerators]
    kinds = ("cuda", "rocm", "vulkan")
    assert not any(_may_drive(kind, "linux-x86_64", drives) for kind in kinds)


# -- starting --------------------------------------------------------------------------------------


def test_both_servers_understand_the_stations_words():
    words = [re.sub(r"\{\w+\}", "1", word) for word in DESCRIPTION["command"][2:]]
    words[words.index("--kv-cache") + 1] = "q8_0"
    words[words.index("--role") + 1] = "chat"
    words[words.index("--context-tokens") + 1] = "512"
    given = serve_llama_server.arguments(parse(words), READING)
    assert given[given.index("--n-gpu-layers") + 1] == "1"
    assert given[given.index("--cache-type-k") + 1] == "q8_0"


def test_what_is_planned_for_the_processor_keeps_off_cards():
    words = serve_llama_server.arguments(parse([*WISH, "--gpu-layers", "0"]), READING)
    assert {"--no-op-offload", "--no-kv-offload"} <= set(words)
    assert "--no-kv-offload" not in serve_llama_server.arguments(parse(WISH), READING)


def test_the_machines_own_wishes_for_llama_cpp_get_no_say(monkeypatch):
    for name in ("LLAMA_ARG_HOST", "LD_PRELOAD", "GGML_BACKEND_PATH", "HF_TOKEN"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("VK_ICD_FILENAMES", "kept")
    assert serve_llama_server.environment(False)["VK_ICD_FILENAMES"] == "kept"
    assert not {"LLAMA_ARG_HOST", "GGML_BACKEND_PATH"} & set(serve_llama_server.environment(False))
    on_card = serve_llama_server.environment(True)
    assert on_card["GGML_BACKEND_PATH"].endswith("native/vulkan/libggml-vulkan.so")
    assert "LD_PRELOAD" not in on_card


def test_vulkans_loader_is_the_machines_where_it_has_one(monkeypatch, tmp_path):
    monkeypatch.setattr(serve_llama_server, "LIBRARY_FOLDERS", (str(tmp_path),))
    assert serve_llama_server.environment(True)["LD_LIBRARY_PATH"].endswith("native/loader")
    (tmp_path / "libvulkan.so.1").touch()
    assert "LD_LIBRARY_PATH" not in serve_llama_server.environment(True)


def test_cards_are_read_with_their_memory_and_their_nature():
    said = (
        "ggml_vulkan: 0 = A Card (a driver) | uma: 0 | fp16: 1 | bf16: 0 | fp4: 0\n"
        "Available devices:\n"
        "  Vulkan0: A Card (RADV) (24576 MiB, 24000 MiB free)\n"
        "  Vulkan1: Unknown (16 MiB, 8 MiB free)\nVulkan2: not one (1 MiB, 1 MiB free)\n"
    )
    first, second = cards(said)
    assert first == {
        "kind": "vulkan", "name": "A Card (RADV)", "free_bytes": 24000 << 20,
        "total_bytes": 24576 << 20, "shared": False,
    }  # fmt: skip
    assert second["shared"]
    assert cards("Available devices:\n  (none)\n") == []


@pytest.mark.parametrize(
    ("wanted", "line", "as_wished"),
    [
        (-1, "load_tensors: offloaded 13/13 layers to GPU", True),
        (-1, "load_tensors: offloaded 12/13 layers to GPU", False),
        (4, "load_tensors: offloaded 4/13 layers to GPU", True),
        (4, "load_tensors: offloaded 3/13 layers to GPU", False),
        (99, "load_tensors: offloaded 13/13 layers to GPU", True),
        (-1, "nothing of the kind", False),
    ],
)
def test_full_offload_is_what_was_planned_and_no_less(wanted, line, as_wished):
    loading = Loading(wanted)
    loading.see("using device Vulkan0 (llvmpipe (LLVM 15.0.6, 256 bits)) (unknown id) - 9 MiB free")
    loading.see(line)
    assert loading.as_wished is as_wished
    assert loading.words().startswith("llvmpipe (LLVM 15.0.6, 256 bits) (Vulkan)")


def runtime_tree(folder, server):
    """Lay out the two scripts beside a stand-in for the server: it is watched, not computed with."""
    (folder / "native").mkdir(parents=True)
    for module in (serve_llama_server, READING):
        (folder / Path(module.__file__).name).write_bytes(Path(module.__file__).read_bytes())
    program = folder / "native" / "llama-server"
    program.write_text(f"#!{sys.executable}\n{server}")
    program.chmod(0o755)
    (folder / "m.gguf").touch()
    return [sys.executable, "-I", folder / "serve_llama_server.py", "--model", folder / "m.gguf",
            "--port", "1", "--context-tokens", "512"]  # fmt: skip


def variables():
    return {"PATH": os.environ["PATH"], "BUNDLER_MODEL_KEY": KEY}


def test_a_card_that_takes_only_a_part_is_an_error_and_no_quiet_slowness(tmp_path):
    server = "print('offloaded 1/5 layers to GPU', flush=True)\nimport time; time.sleep(60)\n"
    done = subprocess.run(
        runtime_tree(tmp_path / "r", server), env=variables(), capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "error: only 1 of 5 layers went to a card" in done.stderr


def test_a_server_that_never_speaks_of_a_card_is_not_taken_for_one_that_uses_it(tmp_path):
    server = "print('listening on x', flush=True)\nimport time; time.sleep(60)\n"
    done = subprocess.run(
        runtime_tree(tmp_path / "r", server), env=variables(), capture_output=True, text=True,
        timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 3
    assert "error: no card could be used" in done.stderr


def test_the_server_ends_with_whoever_started_it_even_when_that_is_killed(tmp_path):
    server = (
        "import os, time\nprint('offloaded 5/5 layers to GPU')\nprint('pid', os.getpid())\n"
        "print('key', os.environ['LLAMA_API_KEY'] == " + repr(KEY) + ")\n"
        "print('listening on x', flush=True)\ntime.sleep(60)\n"
    )
    process = subprocess.Popen(
        runtime_tree(tmp_path / "r", server), env=variables(), stdout=subprocess.PIPE, text=True
    )
    said = []
    assert process.stdout is not None
    for line in process.stdout:
        said.append(line.strip())
        if line.startswith("device:"):
            break
    assert "key True" in said
    assert said[-1] == "device: Vulkan"
    child = int(next(line for line in said if line.startswith("pid ")).split()[1])
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while _runs(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _runs(child)


def _runs(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- what the station says -------------------------------------------------------------------------

SERVING = """
import sys, http.server
card = sys.argv[2] != "0"
if card and not {works}:
    sys.exit("error: only 1 of 5 layers went to a card")
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"{{}}")
    def log_message(self, *_): pass
print("device: " + ("A Card (Vulkan)" if card else "the processor"), flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Answer).serve_forever()
"""


def served(folder, works):
    """Start a model whose program can, or cannot, use a card; return the server when it is ready."""
    runtime = folder / "runtime" / this_platform()
    runtime.mkdir(parents=True)
    (runtime / "serve.py").write_text(SERVING.format(works=works))
    command = ["{python}", "{runtime}/serve.py", "{port}", "{gpu_layers}"]
    (runtime / "llama-server.json").write_text(json.dumps({"command": command}))
    (folder / "m.gguf").touch()
    entry = ModelEntry(name="m", role="chat", file="m.gguf", context_tokens=512, parallel=1,
                       gpu_layers=-1)  # fmt: skip
    bundle = Bundle(root=folder, name="b", version="1", title="b", models=(entry,),
                    corpora=(), runtimes=("llama-server",), questions=(), tiers=())  # fmt: skip

    async def run():
        server = ModelServer(entry, bundle, this_platform())
        server.start()
        await asyncio.wait_for(server.ready(), 60)
        deadline = time.monotonic() + 20
        while not server.device and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        said = server.device, server.fallback
        await server.stop()
        return said

    return asyncio.run(run())


def test_the_station_names_the_card_a_model_runs_on(tmp_path):
    assert served(tmp_path, works=True) == ("A Card (Vulkan)", "")


def test_a_model_that_had_to_fall_back_to_the_processor_says_so_and_why(tmp_path):
    device, fallback = served(tmp_path, works=False)
    assert device == "the processor"
    assert "without a graphics card" in fallback
    assert "only 1 of 5 layers went to a card" in fallback
