"""Hostile texts in every place they can come from, in a real browser: all inert.

Model output, questions, article text, titles, snippets, section names, search terms, imported
conversations. Inert means: no dialog, no script, and no request but to the station itself.
"""

from __future__ import annotations

import json
import time

import httpx2
import pytest

from bundler.station.configuration import this_platform
from bundler.testing.station_bundle import make_bundle, make_zim
from bundler.testing.station_process import running_station
from tests.xss_vectors import VECTORS, vectors

pytestmark = pytest.mark.browser


def hostile_bundle(root, port):
    """A corpus whose titles, sections, paragraphs and raw pages are all vectors."""
    hostile = vectors(port)
    articles = {
        f"{n:03} water {vector}"[:230]: {
            "": [f"water {vector}"],
            f"{vector}"[:100]: [f"boil {vector} water"],
        }
        for n, vector in enumerate(hostile)
    }
    raw = {
        f"raw/{n}.html": (
            f"raw {n}",
            "text/html",
            f"<html><head>{vector}</head><body><p>x</p>{vector}</body></html>",
        )
        for n, vector in enumerate(hostile)
    }
    raw |= {
        "raw/svg": ("svg", "image/svg+xml", "<svg xmlns='http://www.w3.org/2000/svg'><script>window.XSS=1</script></svg>"),
        "raw/x.xhtml": ("xhtml", "application/xhtml+xml", "<html xmlns='http://www.w3.org/1999/xhtml'><script>window.XSS=1</script></html>"),
        "raw/x.js": ("js", "text/javascript", "window.XSS=1"),
    }  # fmt: skip
    numbered = {f"{n:03}": article for n, article in enumerate(articles.values())}
    path = make_zim(root / "corpora" / "bad.zim", numbered, raw=raw | titled(articles))
    return make_bundle(root, platform=this_platform(), corpora={"bad": path}, delay_ms=0)


def titled(articles):
    """The same texts once more under hostile titles, at plain paths."""
    from bundler.testing.station_bundle import article_html

    return {
        f"titled/{n}.html": (title, "text/html", article_html(title, article))
        for n, (title, article) in enumerate(articles.items())
    }


@pytest.fixture
def hostile(trap, tmp_path):
    with running_station(hostile_bundle(tmp_path, trap.port)) as station:
        opened = httpx2.get(station.url + "api/open?corpus=bad&path=raw/0.html").json()
        station.content_port = httpx2.URL(opened["src"]).port
        station.content = opened["src"].removesuffix("raw/0.html")
        deadline = time.monotonic() + 15
        while httpx2.get(station.url + "api/status").json()["chat"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield station


def assert_clean(one, station, trap, what):
    assert one.dialogs == [], what
    assert one.errors == [], what
    assert one.scripted() == [], what
    assert one.beyond(station.port, station.content_port) == [], what
    assert trap.asked == [], what


def test_there_are_vectors_enough():
    assert len(set(VECTORS)) >= 60


def test_hostile_answers_and_questions_are_inert(watched, hostile, trap):
    one = watched(viewport={"width": 1200, "height": 900})
    page = one.page
    page.goto(hostile.url)
    for vector in vectors(trap.port):
        if "CRASH" in vector or "SLOW" in vector:
            continue
        page.fill("#question", f"water boil SAY(So [1] {vector} [2].)")
        page.keyboard.press("Enter")
        page.wait_for_selector("#send:not([hidden])")
        page.wait_for_function("() => !document.querySelector('.growing')")
        assert_clean(one, hostile, trap, vector)
    for cite in page.query_selector_all("a.cite"):
        assert cite.get_attribute("href").startswith("/read/bad/")
    assert page.locator(".answer a:not(.cite):not(.source)").count() == 0
    page.reload()
    page.wait_for_selector(".answer .actions button")
    page.wait_for_timeout(300)
    assert_clean(one, hostile, trap, "kept conversation shown again")


def test_hostile_titles_and_snippets_are_inert_in_search_and_suggestions(watched, hostile, trap):
    one = watched()
    page = one.page
    for number in range(1, 12):
        page.goto(hostile.url + f"search?q=water+boil&page={number}")
        assert_clean(one, hostile, trap, f"page {number}")
    page.goto(hostile.url + "search")
    for start in ("00", "01", "02", "03", "water"):
        page.fill("#q", start)
        page.wait_for_timeout(350)
        assert_clean(one, hostile, trap, start)


def test_hostile_search_terms_are_inert(watched, hostile, trap):
    one = watched()
    for vector in vectors(trap.port):
        one.page.goto(hostile.url + "search?" + str(httpx2.QueryParams({"q": vector})))
        assert_clean(one, hostile, trap, vector)


def test_hostile_articles_are_inert_in_the_reader(watched, hostile, trap):
    one = watched()
    for n, vector in enumerate(vectors(trap.port)):
        # Every vector as it is, and every fourth through the page's own title and headings too.
        for path in (f"raw/{n}.html", f"titled/{n}.html")[: 2 if n % 4 == 0 else 1]:
            one.page.goto(hostile.url + f"read/bad/{path}?passage=0-1")
            one.page.wait_for_selector("iframe")
            assert_clean(one, hostile, trap, vector)


def test_hostile_entries_opened_on_their_own_are_inert(watched, hostile, trap):
    one = watched()
    for path in (
        "raw/svg",
        "raw/x.xhtml",
        "raw/x.js",
        *(f"raw/{n}.html" for n in range(0, len(VECTORS), 3)),
    ):
        one.page.goto(hostile.content + path)
        one.page.wait_for_timeout(60)
        assert_clean(one, hostile, trap, path)


def test_a_hostile_conversation_file_is_inert(watched, hostile, trap, tmp_path):
    messages = []
    for vector in vectors(trap.port):
        source = {
            "number": 1, "corpus": vector, "corpus_title": vector, "path": vector, "title": vector,
            "snippet": vector, "passage": [0, 1], "href": "javascript:window.XSS=1",
        }  # fmt: skip
        messages += [
            {"role": "user", "content": vector},
            {
                "role": "assistant",
                "content": f"{vector} [1]",
                "html": vector,
                "sources": [source],
                "mark": vector,
            },
            {"role": vector, "content": vector},
        ]
    one = watched()
    page = one.page
    page.goto(hostile.url)
    conversation = {"id": "abc", "title": VECTORS[0], "messages": messages, "changed": 1}
    bad = [conversation, {"id": "<img>", "messages": []}, 7, {"id": "x", "messages": "y"}]
    path = tmp_path / "hostile.json"
    path.write_text(
        json.dumps({"format": "station-conversations", "version": 1, "conversations": bad})
    )
    page.set_input_files("#import-file", path)
    page.wait_for_selector("#list .open")
    page.click("#list .open")
    page.wait_for_selector(".answer .actions button")
    page.wait_for_timeout(500)
    assert page.locator(".answer").count() == len(VECTORS)
    assert_clean(one, hostile, trap, "conversation file")
    page.click(".source >> nth=0")
    page.wait_for_selector("#reader:not([hidden])")
    assert_clean(one, hostile, trap, "source of a conversation file")


def test_a_page_of_another_origin_can_neither_frame_nor_ask_the_station(watched, hostile):
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    body = f"""<!doctype html><iframe src="{hostile.url}"></iframe><iframe src="{hostile.content}raw/0.html"></iframe>
    <form id=f method=post action="{hostile.url}api/chat" enctype="text/plain" target=t><input name='{{"question":"boil","x":"' value='"}}'></form>
    <iframe name=t></iframe><script>
    window.got = []; const note = x => got.push(x);
    const tries = [
      fetch("{hostile.url}api/status").then(r => r.text()).then(note, () => 0),
      fetch("{hostile.url}v1/models").then(r => r.text()).then(note, () => 0),
      fetch("{hostile.content}raw/0.html").then(r => r.text()).then(note, () => 0),
      fetch("{hostile.url}api/chat", {{method: "POST", body: '{{"question":"boil"}}', mode: "no-cors"}}).then(r => note(r.status || undefined), () => 0),
    ];
    document.getElementById("f").submit();
    Promise.allSettled(tries).then(() => document.title = "done");
    </script>""".encode()

    class Evil(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format, *args):
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Evil) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        one = watched()
        statuses = []
        one.context.on("response", lambda r: statuses.append((r.request.method, r.url, r.status)))
        one.page.goto(f"http://127.0.0.1:{server.server_address[1]}/")
        one.page.wait_for_function("() => document.title === 'done'")
        one.page.wait_for_timeout(500)
        assert [x for x in one.page.evaluate("got") if x] == []
        assert all(status == 403 for method, url, status in statuses if method == "POST")
        framed = [frame for frame in one.page.frames if frame.url.startswith(hostile.url)]
        assert all(
            "chrome-error" in frame.url or not frame.query_selector("#question") for frame in framed
        )
        server.shutdown()
