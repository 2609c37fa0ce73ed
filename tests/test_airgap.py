"""A bundle starts on a machine where nothing is: no shell, no libraries, no network."""

import dataclasses
import json
import shutil
import subprocess
import sys
import textwrap
import time
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bundler.builtin.runtimes.portable_python import building_interpreter, make_portable_python
from bundler.errors import StepFailed
from bundler.starters import start_files
from tests.airgap import EmptyRoot, beyond_loopback, needs_empty_root, staged_runtime

pytestmark = [pytest.mark.root, needs_empty_root, pytest.mark.timeout(300)]

# What a station does, in the small: serves pages, starts children with the bundle's own Python.
_STATION = """
import http.server, json, subprocess, sys

class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        import libzim.reader, starlette, xllamacpp
        child = [sys.executable, "-c", "import sys, ssl, sqlite3; print(sys.executable)"]
        answer = {
            "python": sys.executable, "path": sys.path, "isolated": sys.flags.isolated,
            "child": subprocess.run(child, capture_output=True, text=True, check=True).stdout,
            "libraries": sorted({line.rstrip().partition("/")[2] for line in open("/proc/self/maps")
                                 if "/" in line and ".so" in line}),
        }
        body = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *words):
        pass

def main(words):
    print(json.dumps(words), flush=True)
    http.server.ThreadingHTTPServer(("127.0.0.1", 8000), Page).serve_forever()
"""


@pytest.fixture(scope="module")
def small_bundle(tmp_path_factory):
    """A bundle with the real runtime and start files, and a station of twenty lines."""
    folder = tmp_path_factory.mktemp("small") / "bundle"
    shutil.copytree(staged_runtime(), folder / "runtime" / "linux-x86_64")
    for path, data in start_files(["linux-x86_64"], "small", "A small one").items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    station = folder / "app" / "bundler" / "station"
    station.mkdir(parents=True)
    (folder / "app" / "bundler" / "__init__.py").touch()
    (station / "__init__.py").touch()
    (station / "__main__.py").write_text(textwrap.dedent(_STATION))
    return folder


PLACES = ("/media/stick", "/media/Ein Stick für Notfälle — 応急 ⛑")


@pytest.mark.parametrize("place", PLACES)
def test_a_station_starts_in_an_empty_root_and_reaches_for_nothing(small_bundle, tmp_path, place):
    root = EmptyRoot(tmp_path / "root")
    bundle = root.place(small_bundle, place)
    with root.start(f"{bundle}/runtime/linux-x86_64/station", "--port", "8000") as running:
        seconds = running.wait_for("http://127.0.0.1:8000/")
        status, body = running.get("http://127.0.0.1:8000/")
        answer = json.loads(body)
        assert status == 200
        assert answer["python"] == f"{bundle}/runtime/linux-x86_64/python/bin/python3"
        assert answer["child"].strip() == answer["python"]
        assert answer["isolated"] == 1
        assert [path for path in answer["path"] if not path.startswith(bundle)] == []
        strangers = [lib for lib in answer["libraries"] if not f"/{lib}".startswith(f"{bundle}/")]
        assert strangers == []
        assert json.loads(running.log_text()) == ["--bundle", bundle, "--port", "8000"]
        assert running.reached() == ()
        assert seconds < 30


def test_nothing_of_the_environment_gets_into_the_python(small_bundle, tmp_path):
    root = EmptyRoot(tmp_path / "root")
    bundle = root.place(small_bundle, "/stick")
    strange = {
        "PYTHONPATH": "/evil", "PYTHONHOME": "/evil", "PYTHONSTARTUP": "/evil",
        "LD_PRELOAD": "/evil.so", "LD_LIBRARY_PATH": "/evil", "LC_ALL": "xx_YY",
    }  # fmt: skip
    script = "import sys, os; print(sys.path, 'é', sorted(k for k in os.environ if k[:3] == 'LD_'))"
    python = f"{bundle}/runtime/linux-x86_64/python/bin/python3"
    # Given inside the root only: `env` of this machine would otherwise obey LD_PRELOAD itself.
    inner = f"import os; os.execve({python!r}, [{python!r}, '-c', {script!r}], {strange!r})"
    done = root.run(python, "-c", inner)
    assert done.returncode == 0, done.stderr
    assert "evil" not in done.stdout
    assert done.stdout.endswith("é []\n")


def test_an_attempt_to_reach_out_is_recorded_although_it_fails(small_bundle, tmp_path):
    root = EmptyRoot(tmp_path / "root")
    bundle = root.place(small_bundle, "/stick")
    script = """
import socket
for family, address in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
    try:
        socket.socket(family, socket.SOCK_STREAM).connect((address, 80))
    except OSError as error:
        print(error.errno)
socket.socket(socket.AF_INET, socket.SOCK_DGRAM).connect(("127.0.0.1", 9))
try:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("192.0.2.53", 53))
except OSError as error:
    print(error.errno)
"""
    done = root.run(f"{bundle}/runtime/linux-x86_64/python/bin/python3", "-c", script)
    assert done.reached == ("192.0.2.1:80", "2001:db8::1:80", "192.0.2.53:53")
    assert len(done.stdout.split()) == 3, "the kernel let something through"


def test_the_python_starts_where_not_even_proc_is_mounted(small_bundle, tmp_path):
    shutil.copytree(small_bundle, tmp_path / "root")
    python = "/runtime/linux-x86_64/python/bin/python3"
    script = "import sys, os; print(sys.executable, os.path.exists('/proc'))"
    done = subprocess.run(
        ["chroot", tmp_path / "root", python, "-c", script], capture_output=True, text=True
    )
    assert done.stdout == f"{python} False\n", done.stderr


def test_a_python_that_does_not_use_the_gnu_c_library_is_not_copied(small_bundle, tmp_path):
    static = small_bundle / "runtime" / "linux-x86_64" / "station"
    interpreter = dataclasses.replace(
        building_interpreter(), executable=static, extensions=tmp_path
    )
    with pytest.raises(StepFailed, match="GNU C library"):
        make_portable_python(interpreter, tmp_path / "out")


def test_the_bundle_is_not_written_to(small_bundle, tmp_path):
    root = EmptyRoot(tmp_path / "root")
    bundle = root.place(small_bundle, "/stick")
    before = sorted(path for path in root.folder.rglob("*") if "/dev" not in str(path))
    script = "import asyncio, xmlrpc.client, json; open('/stick/x', 'w')"
    done = root.run(
        f"{bundle}/runtime/linux-x86_64/python/bin/python3", "-c", script, read_only=True
    )
    assert "Read-only file system" in done.stderr
    done = root.run(
        f"{bundle}/runtime/linux-x86_64/python/bin/python3", "-c", script.partition(";")[0],
        read_only=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert before == sorted(path for path in root.folder.rglob("*") if "/dev" not in str(path))


def test_a_program_of_this_machine_can_be_put_into_the_network_of_the_root(small_bundle, tmp_path):
    root = EmptyRoot(tmp_path / "root")
    bundle = root.place(small_bundle, "/stick")
    with root.start(f"{bundle}/runtime/linux-x86_64/station") as running:
        address = "http://127.0.0.1:8000/"
        running.wait_for(address)
        fetch = f"import urllib.request as u; print(u.urlopen({address!r}).status)"
        wrapper = running.wrapper(Path(sys.executable), tmp_path)
        inside = subprocess.run([wrapper, "-c", fetch], capture_output=True, text=True)
        assert inside.stdout == "200\n", inside.stderr
    with pytest.raises(OSError, match=r"refused|timed out"):
        urllib.request.urlopen(address, timeout=2)


# -- the real bundle -----------------------------------------------------------------------------------

QUESTION = "What is the fire triangle?"
SITE = "http://127.0.0.1:8765"


def started(root, bundle):
    """Start the demo's station in the root, by its own starter, at `SITE`."""
    station = f"{bundle}/runtime/linux-x86_64/station"
    return root.start(station, "--no-browser", "--port", SITE.rpartition(":")[2])


def wait_for_the_model(running):
    running.wait_for(f"{SITE}/")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        status = json.loads(running.get(f"{SITE}/api/status")[1])
        if status["chat"] == "ready":
            return
        assert status["chat"] == "starting", status["chat_reason"]
        time.sleep(0.1)
    raise AssertionError(running.log_text())


@pytest.mark.parametrize("place", PLACES)
def test_the_demo_answers_searches_and_shows_articles_in_an_empty_root(demo, tmp_path, place):
    root = EmptyRoot(tmp_path / "root")
    with started(root, root.place(demo, place)) as running:
        wait_for_the_model(running)
        models = json.loads(running.get(f"{SITE}/v1/models")[1])
        ask = {
            "model": models["data"][0]["id"], "max_tokens": 24, "temperature": 0,
            "messages": [{"role": "user", "content": QUESTION}],
        }  # fmt: skip
        kind = {"Content-Type": "application/json"}
        status, body = running.get(f"{SITE}/v1/chat/completions", kind, json.dumps(ask).encode())
        assert status == 200
        assert json.loads(body)["choices"][0]["message"]["content"]
        status, page = running.get(f"{SITE}/search?q=fire+triangle")
        assert status == 200
        assert "fuel" in page.decode().lower()
        stream = running.get(f"{SITE}/api/chat", kind, json.dumps({"question": QUESTION}).encode())
        assert b"fire" in stream[1].lower()
        assert b"error" not in stream[1].splitlines()[0]
        assert running.reached() == ()


@pytest.mark.browser
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Chromium")
def test_a_person_asks_the_demo_through_its_page_in_an_empty_root(demo, tmp_path):
    from playwright.sync_api import sync_playwright

    root = EmptyRoot(tmp_path / "root")
    bundle = root.place(demo, "/media/Ein Stick für Notfälle — 応急 ⛑")
    asked_for = set()
    with started(root, bundle) as running, sync_playwright() as play:
        wait_for_the_model(running)
        browser = play.chromium.launch(
            executable_path=running.wrapper(Path(shutil.which("chromium")), tmp_path),
            args=["--no-sandbox"],
        )
        page = browser.new_page()
        page.on("request", lambda request: asked_for.add(urlsplit(request.url).hostname))
        page.goto(f"{SITE}/")
        page.fill("#question", QUESTION)
        page.click("#send")
        # The model draws its words: whether it cites this passage, another or none is its luck, and
        # what it did not cite is folded away beneath what it did.
        page.locator("article.answer:not(.growing) a.source").first.wait_for(timeout=120_000)
        folded = page.locator("article.answer details:not([open]) summary")
        if folded.count():
            folded.click()
        source = page.locator('article.answer a.source[href*="fire-triangle"]').first
        assert page.locator("article.answer .body").inner_text().strip()
        source.click()
        page.locator("#reader-body iframe").wait_for(timeout=30_000)
        article = page.frame_locator("#reader-body iframe").locator("body")
        assert "oxygen" in article.inner_text(timeout=30_000).lower()
        page.goto(f"{SITE}/search?q=water")
        assert "water" in page.locator("main").inner_text().lower()
        browser.close()
        assert {host for host in asked_for if host not in ("127.0.0.1", "localhost")} <= {None}
        assert running.reached() == ()


def test_traces_are_read_as_strace_writes_them():
    trace = """
5 connect(3, {sa_family=AF_INET, sin_port=htons(443), sin_addr=inet_addr("192.0.2.7")}, 16) = -1
5 connect(3, {sa_family=AF_INET, sin_port=htons(80), sin_addr=inet_addr("127.1.2.3")}, 16) = 0
5 connect(3, {sa_family=AF_INET6, sin6_port=htons(53), sin6_flowinfo=htonl(0), \
inet_pton(AF_INET6, "2001:db8::2", &sin6_addr), sin6_scope_id=0}, 28) = -1
5 connect(3, {sa_family=AF_INET6, sin6_port=htons(53), sin6_flowinfo=htonl(0), \
inet_pton(AF_INET6, "::1", &sin6_addr), sin6_scope_id=0}, 28) = -1
5 connect(3, {sa_family=AF_UNIX, sun_path="/run/x"}, 110) = -1
5 sendto(3, ""..., 20, 0, {sa_family=AF_NETLINK, nl_pid=0, nl_groups=00000000}, 12) = 20
"""
    assert beyond_loopback(trace) == ("192.0.2.7:443", "2001:db8::2:53")
