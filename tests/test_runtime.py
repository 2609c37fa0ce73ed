"""What a bundle runs on: the portable Python, its packages, the model server, the start scripts."""

import ast
import hashlib
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bundler
from bundler.builtin.runtimes import elf, pinned, serve_xllamacpp
from bundler.builtin.runtimes.installed import (
    InstalledFile,
    InstalledPackage,
    copy_packages,
    installed_packages,
    requirements,
)  # fmt: skip
from bundler.builtin.runtimes.launcher import compile_launcher
from bundler.builtin.runtimes.packages import PACKAGES, PLATFORM_PACKAGES, STATION_PACKAGES
from bundler.builtin.runtimes.portable_python import building_interpreter
from bundler.builtin.runtimes.xllamacpp import XllamacppRuntime, host_platform, stage_installed
from bundler.errors import DamagedError, LockError, RecipeError, SourceError, StepFailed
from bundler.hookspecs import Task
from bundler.plugins import load_plugins
from bundler.starters import start_files
from bundler.store import Store
from bundler.value import check_relative_path
from bundler.weights.gguf_writer import field
from bundler.world import World
from tests.airgap import needs_empty_root, staged_runtime
from tests.models import Shape, llama_fields, llama_weights, tiny_gguf, write_gguf

KEY = "a-key-that-only-the-station-knows"


def world(tmp_path, **environment):
    return World(store=Store(tmp_path / "store"), environment=environment)


def tree_of(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- the tree of this machine ------------------------------------------------------------------------


def test_everything_is_a_regular_file_under_a_portable_name():
    folded = set()
    for path in staged_runtime().rglob("*"):
        name = path.relative_to(staged_runtime()).as_posix()
        assert check_relative_path(name) == name
        assert not path.is_symlink()
        assert path.is_file() or path.is_dir()
        assert name.casefold() not in folded
        folded.add(name.casefold())


def test_putting_it_together_again_gives_the_same_bytes(tmp_path):
    stage_installed(building_interpreter(), tmp_path / "again")
    again, first = tree_of(tmp_path / "again"), tree_of(staged_runtime())
    assert {path: first.get(path) for path in again} == again


def test_the_copied_python_does_not_know_where_it_was_made():
    python = staged_runtime() / "python" / "bin" / "python3"
    script = "import sys; print([p for p in (*sys.path, sys.prefix, sys.executable)])"
    done = subprocess.run([python, "-c", script], env={}, capture_output=True, text=True)
    paths = ast.literal_eval(done.stdout)
    assert all(path.startswith(str(staged_runtime())) for path in paths)


def test_every_component_has_a_version_a_licence_and_its_text():
    components = XllamacppRuntimeFacts.components()
    assert {"python", "libc6", "xllamacpp", "libzim"} <= {part["name"] for part in components}
    for part in components:
        assert part["version"] not in ("", "unknown"), part["name"]
        assert part["licence"] != "unknown", part["name"]
        assert part["licence_files"], part["name"]
        for text in part["licence_files"]:
            assert (staged_runtime() / "licenses" / text).stat().st_size > 100
        for file in part["files"]:
            assert (staged_runtime() / file).is_file(), file


def test_every_library_and_module_belongs_to_a_component():
    owned = {file for part in XllamacppRuntimeFacts.components() for file in part["files"]}
    loose = [
        path
        for path in tree_of(staged_runtime())
        if path not in owned and not path.endswith(".pyc") and not path.startswith("licenses/")
    ]
    assert loose == ["serve_xllamacpp.py", "station", "xllamacpp.json"]


class XllamacppRuntimeFacts:
    """The facts of the staged runtime, without staging it again."""

    @staticmethod
    def components():
        return json.loads(staged_runtime().with_name("facts.json").read_text())["components"]


def test_what_must_be_executable_is_said():
    facts = json.loads(staged_runtime().with_name("facts.json").read_text())
    assert "python/bin/python3" in facts["executables"]
    assert "station" in facts["executables"]
    for path in facts["executables"]:
        assert os.access(staged_runtime() / path, os.X_OK)


def test_a_lock_of_other_packages_is_refused(tmp_path):
    runtime = XllamacppRuntime()
    parameters = {"platform": host_platform(), "revision": "0" * 64}
    task = Task("stage", {}, parameters, tmp_path, lambda *_: None, world(tmp_path))
    with pytest.raises(LockError, match="not those of the lock") as caught:
        runtime.run(task)
    assert "bundler lock" in caught.value.problems[0].hint


def test_a_lock_made_by_copying_another_kind_of_machine_is_refused(tmp_path):
    parameters = {"platform": "macos-arm64", "revision": "0" * 64}
    task = Task("stage", {}, parameters, tmp_path, lambda *_: None, world(tmp_path))
    with pytest.raises(LockError, match="macos-arm64"):
        XllamacppRuntime().run(task)


def test_the_runtime_and_its_source_come_through_the_doors():
    plugins = load_plugins(installed=False)
    assert "xllamacpp" in plugins.runtimes
    assert "pypi" in plugins.sources
    assert plugins.runtimes["xllamacpp"].formats == {"gguf"}


def test_an_unknown_way_of_getting_a_python_is_named(tmp_path):
    with pytest.raises(RecipeError, match="'borrowed'"):
        XllamacppRuntime().needs(
            host_platform(), world(tmp_path, BUNDLER_PORTABLE_PYTHON="borrowed")
        )


# -- packages ----------------------------------------------------------------------------------------


def test_the_station_imports_nothing_but_what_is_carried():
    carried = {package.name for package in installed_packages(STATION_PACKAGES)}
    owners = metadata.packages_distributions()
    for path in (Path(bundler.__file__).parent / "station").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in (name.partition(".")[0] for name in names):
                if name in sys.stdlib_module_names or name == "bundler":
                    continue
                needed = {owner.lower().replace("_", "-") for owner in owners[name]}
                assert needed & carried, f"{path.name} imports {name}"


def test_a_package_that_was_changed_after_it_was_installed_is_named(tmp_path):
    good, bad = tmp_path / "good.py", tmp_path / "bad.py"
    good.write_text("x = 1\n")
    bad.write_text("x = 2\n")
    digest = hashlib.sha256(b"x = 1\n").hexdigest()
    files = (InstalledFile("p/good.py", good, digest), InstalledFile("p/bad.py", bad, digest))
    with pytest.raises(DamagedError) as caught:
        copy_packages([InstalledPackage("p", "1", "MIT", files)], tmp_path / "site")
    assert [problem.where for problem in caught.value.problems] == ["p/bad.py"]


def test_all_packages_that_are_not_installed_are_named():
    with pytest.raises(StepFailed) as caught:
        installed_packages(["starlette", "surely-not-there", "nor-this-one"])
    assert sorted(problem.message.split()[0] for problem in caught.value.problems) == [
        "nor-this-one", "surely-not-there",
    ]  # fmt: skip


def test_requirements_follow_the_markers_of_the_far_machine():
    lines = ["a>=1", "b; sys_platform == 'win32'", "c; extra == 'test'", "d; os_name == 'posix'"]
    assert requirements(lines, {"sys_platform": "win32", "os_name": "nt"}) == ["a", "b"]
    assert requirements(lines, {"sys_platform": "linux", "os_name": "posix"}) == ["a", "d"]


def test_no_trace_of_who_installed_a_package_is_carried():
    names = {path.rpartition("/")[2] for path in tree_of(staged_runtime() / "site")}
    assert not names & {"direct_url.json", "INSTALLER", "REQUESTED", "RECORD"}
    assert "METADATA" in names


# -- programs ----------------------------------------------------------------------------------------


def compiled_library(folder, *flags):
    path = folder / "lib.so"
    source = b"int answer(void) { return 42; }"
    subprocess.run(
        ["cc", "-shared", "-fPIC", *flags, "-x", "c", "-", "-o", path], input=source, check=True
    )
    return path


def test_a_search_path_of_the_building_machine_is_emptied_and_the_library_still_loads(tmp_path):
    path = compiled_library(tmp_path, "-Wl,--disable-new-dtags,-rpath,/opt/evil:$ORIGIN/x")
    assert elf.forget_absolute_search_paths(path) == ["/opt/evil:$ORIGIN/x"]
    assert elf.forget_absolute_search_paths(path) == []
    said = subprocess.run(["readelf", "-d", path], capture_output=True, text=True).stdout
    assert "evil" not in said
    load = f"import ctypes; print(ctypes.CDLL({str(path)!r}).answer())"
    done = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True)
    assert done.stdout == "42\n"


def test_a_search_path_beside_the_library_is_kept(tmp_path):
    path = compiled_library(tmp_path, "-Wl,-rpath,$ORIGIN/x")
    before = path.read_bytes()
    assert elf.forget_absolute_search_paths(path) == []
    assert path.read_bytes() == before


def test_a_library_that_is_not_there_is_named(tmp_path):
    compiled_library(tmp_path, "-Wl,-soname,libnowhere.so.7")
    needy = tmp_path / "needy.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wl,--no-as-needed", "-x", "c", "-", "-o", needy,
         "-x", "none", tmp_path / "lib.so"], input=b"int x;", check=True,
    )  # fmt: skip
    assert "libnowhere.so.7" in elf.needed_libraries(needy)
    with pytest.raises(StepFailed, match=r"libnowhere\.so\.7 \(for .*needy\.so\)"):
        elf.libraries_of([needy])


def test_the_launcher_is_static_and_the_same_each_time(tmp_path):
    for name in ("a", "b"):
        compile_launcher(tmp_path / name, loader="ld.so", program="python3")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert elf.needed_libraries(tmp_path / "a") == []


def test_a_folder_whose_name_the_loader_cannot_take_is_explained(tmp_path):
    folder = tmp_path / "a:b" / "bin"
    folder.mkdir(parents=True)
    compile_launcher(folder / "python3", loader="ld.so", program="python3")
    done = subprocess.run([folder / "python3"], capture_output=True, text=True)
    assert done.returncode == 127
    assert "rename the folder" in done.stderr


# -- the model server --------------------------------------------------------------------------------


class Server:
    """The real server on a model, as the station starts it."""

    def __init__(self, model, *, role="chat", environment=None, shell=False, more=()):
        python = staged_runtime() / "python" / "bin" / "python3"
        described = json.loads((staged_runtime() / "xllamacpp.json").read_text())
        values = {
            "python": python, "runtime": staged_runtime(), "model": model, "port": 0,
            "context_tokens": 256, "parallel": 2, "kv_cache": "f16", "role": role,
            "gpu_layers": -1, "threads": 2,
        }  # fmt: skip
        command = [part.format_map(values) for part in described["command"]] + list(more)
        if shell:  # a parent between us and the server, to be killed
            hold = "import subprocess, sys; p = subprocess.Popen(sys.argv[1:]); p.wait()"
            command = [sys.executable, "-c", hold, *command]
        self.log = tempfile.TemporaryFile(mode="w+", errors="replace")  # noqa: SIM115
        self.process = subprocess.Popen(
            command, stdout=self.log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            env={described["api_key_environment"]: KEY} if environment is None else environment,
        )  # fmt: skip

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def __enter__(self):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(
                r"^serving http://127\.0\.0\.1:(\d+)$", self.said(), re.MULTILINE
            ):
                self.port = int(found[1])
                return self
            time.sleep(0.05)
        self.__exit__()
        raise AssertionError("the server did not start")

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(10)
        self.log.close()

    def end(self):
        """Return (exit code, all it said) of a server that cannot start."""
        code, said = self.process.wait(60), self.said()
        self.log.close()
        return code, said

    def ask(self, method, path, body=None, key=KEY, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers |= {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {key}"} if key else {}
        connection.request(method, path, json.dumps(body) if body else None, headers)
        response = connection.getresponse()
        answer = response.status, json.loads(response.read() or "null"), dict(response.headers)
        connection.close()
        return answer


CHAT = {"messages": [{"role": "user", "content": "water"}], "max_tokens": 4, "temperature": 0}


def test_a_model_answers_to_those_who_know_the_key_and_to_nobody_else():
    with Server(tiny_gguf()) as server:
        assert server.ask("GET", "/health", key="")[:2] == (200, {"status": "ok"})
        status, answer, headers = server.ask(
            "POST", "/v1/chat/completions", CHAT, Origin="http://stranger.example"
        )
        assert status == 200
        assert answer["usage"]["completion_tokens"] == 4
        assert headers.get("Access-Control-Allow-Origin", "") not in (
            "*",
            "http://stranger.example",
        )
        for key in ("", "wrong", KEY[:-1]):
            assert server.ask("POST", "/v1/chat/completions", CHAT, key=key)[0] == 401
        status, answer, _ = server.ask("GET", "/v1/models")
        assert answer["data"][0]["meta"]["n_ctx"] == 256, "each user has the whole context"


def test_an_embedder_gives_vectors(tmp_path):
    fields = {**llama_fields(Shape()), "llama.pooling_type": field("UINT32", 1)}
    write_gguf(tmp_path / "embed.gguf", fields, llama_weights(Shape()), "F16")
    with Server(tmp_path / "embed.gguf", role="embed") as server:
        status, answer, _ = server.ask("POST", "/v1/embeddings", {"input": ["water", "fire"]})
        assert status == 200
        assert [len(row["embedding"]) for row in answer["data"]] == [256, 256]


def test_the_server_ends_when_its_parent_does():
    with Server(tiny_gguf(), shell=True) as server:
        assert server.ask("GET", "/health")[0] == 200
        server.process.kill()
        server.process.wait(10)
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                server.ask("GET", "/health")
            except OSError:
                return
            time.sleep(0.1)
    raise AssertionError("the server outlived its parent")


def test_without_a_key_nothing_is_served():
    for environment in ({}, {"BUNDLER_MODEL_KEY": "short"}):
        code, said = Server(tiny_gguf(), environment=environment).end()
        assert code == serve_xllamacpp.WRONG_USE
        assert "BUNDLER_MODEL_KEY" in said


def test_a_model_that_cannot_be_served_is_an_exit_code_and_a_sentence(tmp_path):
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(tiny_gguf().read_bytes()[:100_000])
    for model in (damaged, tmp_path / "missing.gguf"):
        code, said = Server(model).end()
        assert code == serve_xllamacpp.WRONG_MODEL, said
        assert f"error: {model}" in said


def test_a_model_without_a_vocabulary_takes_only_the_child_with_it(tmp_path):
    fields = {k: v for k, v in llama_fields(Shape()).items() if not k.startswith("tokenizer.")}
    write_gguf(tmp_path / "mute.gguf", fields, llama_weights(Shape()), "F16")
    code, said = Server(tmp_path / "mute.gguf").end()
    assert code in (serve_xllamacpp.WRONG_MODEL, -signal.SIGABRT), said


def test_an_old_processor_is_told_before_it_meets_an_unknown_instruction():
    old = "processor : 0\nflags : fpu sse4_2 avx f16c\n"
    new = "processor : 0\nflags : fpu avx avx2 bmi1 bmi2 fma f16c\n"
    assert serve_xllamacpp.linux_missing(old) == ["avx2", "fma", "bmi2"]
    assert serve_xllamacpp.linux_missing(new) == []
    assert serve_xllamacpp.linux_missing("processor : 0\nFeatures : asimd\n") == []


def test_accelerators_are_listed_as_the_station_reads_them():
    from bundler.station.probe import Device, read_devices

    def device(name, sort, description=""):
        return {"name": name, "description": description, "memory_free": 5, "memory_total": 9,
                "type": f"GGML_BACKEND_DEVICE_TYPE_{sort}"}  # fmt: skip

    found = serve_xllamacpp.accelerators([
        device("CPU", "CPU"), device("BLAS", "ACCEL"), device("CUDA1", "GPU", "RTX 4090"),
        device("MTL0", "GPU", "Apple M2"), device("Vulkan0", "IGPU", "Intel Graphics"),
    ])  # fmt: skip
    assert read_devices(json.dumps(found)) == (
        Device("cuda", "RTX 4090", 5, 9), Device("metal", "Apple M2", 5, 9, shared=True),
        Device("vulkan", "Intel Graphics", 5, 9, shared=True),
    )  # fmt: skip


def test_the_server_lists_what_this_machine_has():
    from bundler.station.configuration import read_runtime
    from bundler.station.probe import list_devices

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "runtime").mkdir()
        (root / "runtime" / host_platform()).symlink_to(staged_runtime())
        runtime = read_runtime(root, host_platform(), "xllamacpp")
        found, notes = list_devices(runtime, root, host_platform())
    assert notes == ()
    assert found == ()  # the ready-made wheel for Linux drives no accelerator


def test_the_server_takes_what_was_planned_and_nothing_more():
    """Asked with the real wheel: no layer on a card means no buffer on a card."""
    program = (
        "import json, sys; sys.path[:0] = sys.argv[1:3]; import serve_xllamacpp as s, xllamacpp\n"
        "found = {}\n"
        "for layers in '0', '7', '-1':\n"
        "    words = ['--model', 'm', '--port', '0', '--context-tokens', '64',"
        " '--gpu-layers', layers]\n"
        "    p = s.parameters(xllamacpp, s.parse(words), 'k' * 16)\n"
        "    found[layers] = [p.n_gpu_layers, p.no_op_offload, p.no_kv_offload,"
        " p.n_ctx_checkpoints, p.cache_ram_mib]\n"
        "print(json.dumps(found))"
    )
    runtime = staged_runtime()
    done = subprocess.run(
        [runtime / "python/bin/python3", "-c", program, runtime, runtime / "site"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == {
        "0": [0, True, True, 0, 256], "7": [7, False, False, 0, 256],
        "-1": [9999, False, False, 0, 256],
    }  # fmt: skip


# -- start scripts -----------------------------------------------------------------------------------


@pytest.fixture
def bundle(tmp_path):
    """A bundle whose Python is a shell script that says how it was called."""
    folder = tmp_path / "a bundle (ü)"
    for path, data in start_files([host_platform()], "small", "Small").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    python = folder / "runtime" / host_platform() / "python" / "bin" / "python3"
    python.parent.mkdir(parents=True)
    python.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    return folder


def start(bundle, *words, script="start", **environment):
    environment = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(
        ["sh", bundle / script, *words], env=environment, capture_output=True, text=True,
        stdin=subprocess.DEVNULL,
    )  # fmt: skip


def test_start_runs_the_station_from_anywhere_with_its_words_unharmed(bundle):
    done = start(bundle, "--port", "0", "two words", "$HOME", "")
    words = done.stdout.split("\n")[:-1]
    assert done.returncode == 0, done.stderr
    assert words[:5] == ["-I", "-B", "-X", "utf8", str(bundle / "app" / "main.py")]
    assert words[5:] == ["--port", "0", "two words", "$HOME", ""]


@pytest.mark.fault("C5")
def test_start_gives_programs_back_the_right_to_run(bundle):
    python = bundle / "runtime" / host_platform() / "python" / "bin" / "python3"
    python.chmod(0o644)
    assert start(bundle).returncode == 0
    assert os.access(python, os.X_OK)


@pytest.mark.parametrize(
    ("system", "processor", "platforms", "starts"),
    [
        ("Linux", "x86_64", ["linux-x86_64"], True),
        ("Linux", "aarch64", ["linux-x86_64", "linux-aarch64"], True),
        ("Darwin", "arm64", ["macos-arm64"], True),
        ("Darwin", "x86_64", ["macos-arm64"], False),
        ("Linux", "riscv64", ["linux-x86_64"], False),
        ("FreeBSD", "amd64", ["linux-x86_64"], False),
    ],
)
def test_start_picks_the_runtime_of_the_machine(tmp_path, system, processor, platforms, starts):
    folder = tmp_path / "bundle"
    for path, data in start_files(platforms, "small", "Small").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    for platform in platforms:
        python = folder / "runtime" / platform / "python" / "bin" / "python3"
        python.parent.mkdir(parents=True)
        python.write_text(f"#!/bin/sh\necho {platform}\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "uname").write_text(f'#!/bin/sh\n[ "$1" = -s ] && echo {system} || echo {processor}\n')
    (tools / "uname").chmod(0o755)
    done = start(folder, PATH=f"{tools}:{os.environ['PATH']}")
    assert (done.returncode == 0) is starts
    if starts:
        assert processor in done.stdout
    else:
        assert f"no runtime for this machine ({system} {processor})" in done.stderr
        assert platforms[0] in done.stderr


def test_start_says_when_a_part_of_the_bundle_is_missing(bundle):
    shutil.rmtree(bundle / "runtime")
    done = start(bundle)
    assert done.returncode == 1
    assert "not there" in done.stderr
    assert "sha256sum -c" in done.stderr


@pytest.mark.root
@needs_empty_root
@pytest.mark.fault("C5")
def test_start_says_what_to_do_where_programs_may_not_run(bundle, tmp_path):
    place = tmp_path / "stick"
    place.mkdir()
    script = f"""
        mount -t tmpfs -o noexec tmpfs '{place}' && cp -r '{bundle}/.' '{place}' && sh '{place}/start'
    """
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "does not let programs run" in done.stderr
    assert "copy the whole folder to a disk" in done.stderr


def test_the_double_click_on_macos_starts_the_same_thing(bundle):
    done = start(bundle, "x", script="start.command")
    assert done.returncode == 0
    assert done.stdout.endswith("app/main.py\nx\n")


@pytest.mark.parametrize("script", ["start", "start.command"])
@pytest.mark.parametrize("shell", ["dash", "bash", "busybox", "shellcheck"])
def test_shells_accept_the_scripts(bundle, shell, script):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    check = {"shellcheck": ["shellcheck", "-s", "sh"], "busybox": ["busybox", "sh", "-n"]}
    command = check.get(shell, [shell, "-n"])
    done = subprocess.run([*command, bundle / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("platforms", [["windows-x86_64"], ["linux-x86_64"]])
def test_the_windows_script_reads_as_cmd_reads_it(platforms):
    script = start_files(platforms, "small", "Small")["start.cmd"]
    assert script.count(b"\n") == script.count(b"\r\n"), "cmd.exe loses labels with bare newlines"
    text = script.decode("ascii")
    lines = text.split("\r\n")
    assert lines[0] == "@echo off"
    labels = {line[1:] for line in lines if line.startswith(":")}
    assert {line.split()[-1] for line in lines if " goto " in line} <= labels
    # %~dp0 ends in a backslash and may hold spaces: it may stand only inside quotes.
    for line in lines:
        for match in re.finditer(r"%(~dp0|here|python)%?", line):
            assert line[: match.start()].count('"') % 2 == 1, line
    if platforms == ["windows-x86_64"]:
        assert r'"%here%app\main.py" %*' in text
    else:
        assert "has no runtime for Windows" in text


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
def test_no_title_can_become_a_command(title):
    for path, data in start_files(["linux-x86_64"], "small", title).items():
        plain = start_files(["linux-x86_64"], "small", "Small")[path].decode()
        lines = data.decode().replace("\r\n", "\n").split("\n")
        assert len(lines) == len(plain.replace("\r\n", "\n").split("\n"))
        for ours, theirs in zip(plain.replace("\r\n", "\n").split("\n"), lines, strict=True):
            assert ours == theirs or theirs.startswith("# Starts ")


# -- other platforms ---------------------------------------------------------------------------------


def test_the_wheels_of_every_platform_are_the_packages_a_bundle_needs():
    for platform in pinned.PIP_PLATFORMS:
        wheels = pinned.pinned_wheels(platform)
        assert {*PACKAGES, *PLATFORM_PACKAGES.get(platform, ())} <= {w.name for w in wheels}
        assert len({wheel.name for wheel in wheels}) == len(wheels)
        assert all(wheel.licence != "unknown" for wheel in wheels)
        for wheel in wheels:
            assert wheel.file.lower().replace("_", "-").startswith(wheel.name)


def test_the_table_of_wheels_names_no_place():
    assert not re.search(r"https?:|www\.|/simple", pinned.TABLE.read_text())


@pytest.fixture
def release(tmp_path):
    """A release of ready-made Pythons on a web server of our own."""
    folder = tmp_path / "releases" / pinned.PYTHON_RELEASE
    folder.mkdir(parents=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path / "releases"))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_lock_for_another_platform_names_every_file_by_digest(release, tmp_path):
    folder, address = release
    archive = folder / pinned.python_archive("windows-x86_64")
    archive.write_bytes(b"an archive")
    digest = hashlib.sha256(b"an archive").hexdigest()
    (folder / "SHA256SUMS").write_text(f"{digest}  {archive.name}\n{'0' * 64}  other.tar.gz\n")
    here = world(tmp_path, BUNDLER_PYTHON_RELEASES=address)
    resolution = XllamacppRuntime().needs("windows-x86_64", here)
    python, *wheels = resolution.files
    assert (python.path, python.sha256, python.size_bytes) == (archive.name, digest, 10)
    assert len(wheels) == len(pinned.pinned_wheels("windows-x86_64"))
    assert all(file.addresses[0].startswith("pypi:") for file in wheels)
    source = load_plugins(installed=False).sources[resolution.source]
    with source.open(python.addresses[0], start=3, end=None, validator=None, world=here) as stream:
        assert b"".join(stream.chunks)[3 - stream.start :] == b"archive"


def test_a_release_without_the_python_is_named(release, tmp_path):
    folder, address = release
    (folder / "SHA256SUMS").write_text("")
    with pytest.raises(SourceError, match=r"does not list cpython-.*aarch64-apple-darwin"):
        XllamacppRuntime().needs("macos-arm64", world(tmp_path, BUNDLER_PYTHON_RELEASES=address))
