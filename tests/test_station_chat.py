"""The chat of the station: streamed, stoppable, cited, fair, and alive when the model is not."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from bundler.manifest import SWITCH_NAME, UNFINISHED_NAME
from bundler.station.configuration import this_platform
from bundler.testing.station_bundle import make_bundle
from bundler.testing.station_process import running_station

# One client for all: making one costs 50 ms. It keeps no connection, so each request stands alone.
CLIENT = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), trust_env=False)
BOIL = "How do I boil water to make it safe?"


@pytest.fixture(scope="module")
def slow(tmp_path_factory):
    """A station whose model takes 20 ms a word."""
    root = make_bundle(tmp_path_factory.mktemp("slow"), platform=this_platform(), delay_ms=20)
    with running_station(root) as station:
        wait_until_ready(station.url)
        yield station


def wait_until_ready(url, seconds=20.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        status = CLIENT.get(url + "api/status").json()
        if status["chat"] == "ready":
            return status
        time.sleep(0.05)
    raise AssertionError(f"not ready: {status}")


def ask(url, question, **more):
    """All events of an answer."""
    events = []
    with CLIENT.stream(
        "POST", url + "api/chat", json={"question": question, **more}, timeout=30
    ) as reply:
        assert reply.status_code == 200
        for line in reply.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line[6:]))
    return events


def busy(url):
    model = CLIENT.get(url + "api/status").json()["models"][0]
    return model["busy"], model["waiting"]


def wait_until_idle(url, seconds):
    began = time.monotonic()
    while busy(url) != (0, 0):
        assert time.monotonic() - began < seconds, f"still busy: {busy(url)}"
        time.sleep(0.02)
    return time.monotonic() - began


def test_an_answer_is_streamed_and_cites_what_was_retrieved(slow):
    events = ask(slow.url, BOIL)
    kinds = [event["type"] for event in events]
    assert kinds[0] == "sources"
    assert kinds.count("text") > 5
    assert kinds[-1] == "done"
    sources, done = events[0]["items"], events[-1]
    assert sources[0]["title"] == "Boiling – How to boil water"
    assert done["cited"] == [1]
    assert f'href="{sources[0]["href"]}"' in done["html"]
    assert "".join(e["text"] for e in events if e["type"] == "text") == done["text"]


def test_the_model_gets_exactly_the_promised_prompt(tmp_path):
    log = tmp_path / "seen.json"
    script = tmp_path / "spy.py"
    script.write_text(
        "import json, sys, threading\n"
        "from bundler.testing import model_server as m\n"
        "class Spy(list):\n"
        "    def append(self, body):\n"
        f"        open({str(log)!r}, 'a').write(json.dumps(body) + chr(10))\n"
        "old = m.FakeModelServer.__init__\n"
        "def new(self, *a, **k):\n"
        "    old(self, *a, **k); self.requests = Spy()\n"
        "m.FakeModelServer.__init__ = new\n"
        "m.main()\n"
    )
    command = ["{python}", str(script), "--port", "{port}"]
    root = make_bundle(tmp_path / "b", platform=this_platform(), command=command)
    with running_station(root) as station:
        wait_until_ready(station.url)
        ask(station.url, BOIL)
    messages = next(b for b in map(json.loads, log.read_text().splitlines()) if "messages" in b)[
        "messages"
    ]
    assert messages[0] == {
        "role": "system",
        "content": "Answer from the numbered passages and cite them as [n]. If they do not say, say so.",
    }
    lines = messages[1]["content"].split("\n")
    assert lines[0].startswith("[1] Boiling – How to boil water: Heat the water until")
    assert lines[-2:] == ["", f"Question: {BOIL}"]
    assert all(line.startswith(f"[{n}] ") for n, line in enumerate(lines[:-2], 1))


def test_generation_stops_within_a_second_when_the_page_stops_it(slow):
    with CLIENT.stream("POST", slow.url + "api/chat", json={"question": "boil SLOW"}) as reply:
        for line in reply.iter_lines():
            if '"text"' in line:
                assert busy(slow.url) == (1, 0)
                break
    assert wait_until_idle(slow.url, 1.0) < 1.0


def test_fifty_cancelled_streams_leave_every_slot_free(slow):
    for n in range(50):
        with CLIENT.stream("POST", slow.url + "api/chat", json={"question": "boil SLOW"}) as reply:
            # Some are left at once, some after the first words.
            if n % 2:
                next(reply.iter_lines())
    wait_until_idle(slow.url, 3.0)
    assert ask(slow.url, BOIL)[-1]["type"] == "done"


def test_those_who_wait_are_told_their_place(slow):
    async def main():
        async with httpx2.AsyncClient(timeout=30) as client:
            first = asyncio.create_task(read_until(client, "boil SLOW", "text"))
            await asyncio.sleep(0.3)
            second = asyncio.create_task(read_until(client, "boil", "queue"))
            return await asyncio.gather(first, second)

    async def read_until(client, question, kind):
        async with client.stream(
            "POST", slow.url + "api/chat", json={"question": question}
        ) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: ") and json.loads(line[6:])["type"] == kind:
                    if kind == "text":
                        await asyncio.sleep(0.6)
                    return json.loads(line[6:])
        return None

    _, queued = asyncio.run(main())
    assert queued["position"] == 1
    wait_until_idle(slow.url, 2.0)


def test_two_hundred_clients_at_once_are_all_answered(tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), parallel=4)

    async def one(client, url):
        kinds = []
        async with client.stream("POST", url + "api/chat", json={"question": "boil"}) as reply:
            async for line in reply.aiter_lines():
                if line.startswith("data: "):
                    kinds.append(json.loads(line[6:])["type"])
        return reply.status_code, kinds

    async def everybody(url):
        limits = httpx2.Limits(max_connections=200)
        async with httpx2.AsyncClient(timeout=120, limits=limits) as client:
            return await asyncio.gather(*(one(client, url) for _ in range(200)))

    with running_station(root) as station:
        wait_until_ready(station.url)
        answers = asyncio.run(everybody(station.url))
        assert {status for status, _ in answers} == {200}
        assert all(kinds[-1] == "done" for _, kinds in answers)
        assert any("queue" in kinds for _, kinds in answers)
        wait_until_idle(station.url, 2.0)


def test_nothing_found_is_said_plainly_and_not_answered(slow):
    events = ask(slow.url, "zyxwv qqqqq")
    assert [event["type"] for event in events] == ["nothing", "done"]
    assert events[0]["text"] == "Nothing found in the corpora."


def test_an_answer_from_memory_has_no_sources_and_no_links(slow):
    events = ask(slow.url, "zyxwv SAY(So it is [1].)", unsourced=True)
    assert events[0]["type"] == "nothing"
    assert not any(event["type"] == "sources" for event in events)
    assert events[-1]["cited"] == []
    assert "<a" not in events[-1]["html"]


def test_without_the_library_the_question_goes_to_the_model_alone(slow):
    events = ask(slow.url, "boil water", library=False)
    assert events[-1]["text"] == "You said: boil water"


def test_citations_of_passages_that_were_not_retrieved_stay_text(slow):
    done = ask(slow.url, "boil water SAY(Yes [1] but [99] and [0].)")[-1]
    assert done["cited"] == [1]
    assert done["html"].count("<a ") == 1
    assert "[99]" in done["html"]
    assert "[0]" in done["html"]


def test_a_model_that_dies_is_started_again_and_search_goes_on(tmp_path):
    root = make_bundle(tmp_path, platform=this_platform())
    with running_station(root) as station:
        wait_until_ready(station.url)
        assert ask(station.url, "boil CRASH", library=False)[-1]["type"] == "error"
        assert CLIENT.get(station.url + "search", params={"q": "boil"}).status_code == 200
        wait_until_ready(station.url)
        assert ask(station.url, BOIL)[-1]["type"] == "done"


def test_a_model_that_cannot_start_is_reported_and_search_works(tmp_path):
    command = ["{python}", "-c", "import sys; sys.exit('error: this processor lacks avx2')"]
    root = make_bundle(tmp_path, platform=this_platform(), command=command)
    with running_station(root) as station:
        deadline = time.monotonic() + 10
        while (status := CLIENT.get(station.url + "api/status").json())["chat"] != "off":
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert "this processor lacks avx2" in status["chat_reason"]
        page = CLIENT.get(station.url).text
        assert "Chat is off." in page
        assert "this processor lacks avx2" in page
        assert "Boiling" in CLIENT.get(station.url + "search", params={"q": "boil"}).text
        assert "avx2" in ask(station.url, "boil")[-1]["text"]


def test_a_bundle_without_a_model_searches_and_reads(tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    with running_station(root) as station:
        status = CLIENT.get(station.url + "api/status").json()
        assert status["chat"] == "off"
        assert status["line"] == "No model: search and reading only · 5 articles · offline"
        assert "This bundle holds no model for chat." in CLIENT.get(station.url).text
        assert "Boiling" in CLIENT.get(station.url + "search", params={"q": "boil"}).text
        opened = CLIENT.get(station.url + "api/open?corpus=handbook&path=boiling.html").json()
        assert "rolling boil" in CLIENT.get(opened["src"]).text


def test_missing_and_damaged_corpora_are_named_and_the_others_work(tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    document = json.loads((root / "station.json").read_text())
    (root / "corpora" / "broken.zim").write_bytes(b"ZIM\x04" + bytes(200))
    for name in ("gone", "broken"):
        document["corpora"].append(
            {"name": name, "title": name.title(), "file": f"corpora/{name}.zim"}
        )
    (root / "station.json").write_text(json.dumps(document))
    with running_station(root) as station:
        warnings = CLIENT.get(station.url + "api/status").json()["warnings"]
        assert any(
            w.startswith("Gone is unavailable: corpora/gone.zim is missing") for w in warnings
        )
        assert any(
            w.startswith("Broken is unavailable: corpora/broken.zim cannot be opened")
            for w in warnings
        )
        assert "Boiling" in CLIENT.get(station.url + "search", params={"q": "boil"}).text
        assert CLIENT.get(station.url + "read/gone/x").status_code == 404
        assert (
            "Unavailable: corpora/gone.zim is missing" in CLIENT.get(station.url + "library").text
        )


def test_a_flipped_byte_in_a_corpus_is_noticed_and_nothing_dies(tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    path = root / "corpora" / "handbook.zim"
    data = bytearray(path.read_bytes())
    data[-200] ^= 0xFF
    path.write_bytes(data)
    with running_station(root) as station:
        deadline = time.monotonic() + 10
        while not CLIENT.get(station.url + "api/status").json()["warnings"]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert CLIENT.get(station.url + "search", params={"q": "boil"}).status_code == 200


@pytest.mark.parametrize(
    ("left", "said"), [(SWITCH_NAME, "parts of two versions"), (UNFINISHED_NAME, "was cut off")]
)
def test_what_was_cut_off_is_said_and_what_there_is_opens_all_the_same(tmp_path, left, said):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    if left == SWITCH_NAME:
        (root / left).parent.mkdir()
        (root / left).write_text("0" * 64)
    else:
        (root / left).mkdir()
    with running_station(root) as station:
        (warning,) = CLIENT.get(station.url + "api/status").json()["warnings"]
        assert said in warning
        assert "Boiling" in CLIENT.get(station.url + "search", params={"q": "boil"}).text


def test_a_drive_that_was_pulled_out_is_said_and_pages_still_come(tmp_path):
    root = make_bundle(tmp_path / "stick", platform=this_platform(), model=False)
    with running_station(root) as station:
        root.rename(tmp_path / "elsewhere")
        warnings = CLIENT.get(station.url + "api/status").json()["warnings"]
        assert warnings == [
            "The drive with this bundle cannot be read. Put it back in, then start again."
        ]
        for path in ("", "search?q=boil", "library", "static/ask.js"):
            assert CLIENT.get(station.url + path).status_code == 200


def children_of(pid):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True)
    return [int(one) for one in found.stdout.split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_child_outlives_the_station(tmp_path, number):
    root = make_bundle(tmp_path, platform=this_platform())
    with running_station(root) as station:
        wait_until_ready(station.url)
        children = [pid for pid in children_of(station.process.pid) if alive(pid)]
        assert children
        os.kill(station.process.pid, number)
        station.process.wait(10)
        deadline = time.monotonic() + 5
        while any(alive(pid) for pid in children):
            assert time.monotonic() < deadline
            time.sleep(0.02)
    if number != signal.SIGKILL:
        assert station.process.returncode == 0
        assert not any("Traceback" in line for line in station.output)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("how", ["its input closes", "it is told to end"])
def test_the_guardian_ends_its_child_when(how, tmp_path):
    from bundler.station import guardian

    marker = tmp_path / "pid"
    code = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, guardian.__file__, sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        env={**os.environ, "BUNDLER_GUARD_BY_PIPE": "1"},
    ) as guard:
        deadline = time.monotonic() + 10
        while not (marker.exists() and marker.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        child = int(marker.read_text())
        if how == "its input closes":
            guard.stdin.close()
        else:
            guard.terminate()
        guard.wait(10)
    assert not alive(child)


def test_a_taken_port_gives_way_to_a_free_one(tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with running_station(root, port=taken.getsockname()[1]) as station:
            assert station.port != taken.getsockname()[1]
            assert CLIENT.get(station.url).status_code == 200


def test_a_second_start_finds_the_first(tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    with running_station(root) as station:
        second = subprocess.run(
            [sys.executable, "-m", "bundler.station", "--bundle", str(root), "--port", str(station.port), "--no-browser"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    assert second.returncode == 0
    assert second.stdout == f"Quickstart is already open at {station.url}\n"


def test_a_folder_that_is_no_bundle_is_a_clear_error(tmp_path):
    ended = subprocess.run(
        [sys.executable, "-m", "bundler.station", "--bundle", str(tmp_path)],
        capture_output=True, text=True, timeout=20,
    )  # fmt: skip
    assert ended.returncode == 2
    assert "station.json: cannot be read" in ended.stderr
    assert "hint: Is this the folder of a bundle?" in ended.stderr
    assert "Traceback" not in ended.stderr
