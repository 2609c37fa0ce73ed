"""The content origin: articles, inert and on their own, by GET and HEAD only."""

from __future__ import annotations

import socket
import string
from urllib.parse import quote

import httpx2
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from selectolax.lexbor import LexborHTMLParser

from bundler.station.article import Place, outside_address, prepare, sent_on_to
from bundler.station.configuration import this_platform
from bundler.testing.station_bundle import HANDBOOK, make_bundle, make_zim
from bundler.testing.station_process import running_station
from tests.xss_vectors import vectors

CLIENT = httpx2.Client(limits=httpx2.Limits(max_keepalive_connections=0), trust_env=False)
VIDEO = bytes(range(256)) * 4000
FOREIGN = (
    "<html><head><title>F</title><base href='http://evil/'><meta http-equiv=refresh content='9;url=http://evil/'>"
    "<link rel=dns-prefetch href=//evil><link rel=stylesheet href=style.css><script>alert(1)</script></head>"
    "<body onload=alert(1)><p>first water</p><p>second water</p><a href='http://evil/x' target=_top ping=//evil>out</a>"
    "<a href='boiling.html#p2' target=_blank>in</a><a href='/boiling.html'>root</a>"
    "<a href=' java\nscript:alert(1)'>js</a><a href='\\\\evil/'>slash</a><iframe src=//evil></iframe></body></html>"
)
RAW = {
    "foreign.html": ("Foreign", "text/html", FOREIGN),
    "film.mp4": ("Film", "video/mp4", VIDEO),
    "style.css": ("", "text/css", "p{color:red}"),
    "odd": ("Odd", "text/html\r\nX-Evil: 1", "<p>odd</p>"),
    "old.html": ("Old", "text/html", "<meta http-equiv='refresh' content='0;URL=boiling.html#p1'>"),
    "dir/a b?c#d%41.html": ("Strange name", "text/html", "<p>strange</p>"),
    "paper.pdf": ("Paper", "application/pdf", b"%PDF-1.4"),
}


@pytest.fixture(scope="module")
def station(tmp_path_factory):
    root = tmp_path_factory.mktemp("content")
    path = make_zim(
        root / "corpora" / "handbook.zim", raw=RAW, redirects={"boil.html": "boiling.html"}
    )
    make_bundle(root, platform=this_platform(), corpora={"handbook": path}, model=False)
    with running_station(root) as running:
        opened = CLIENT.get(running.url + "api/open?corpus=handbook&path=boiling.html").json()
        running.base = opened["src"].removesuffix("/handbook/boiling.html")
        running.content_port = httpx2.URL(opened["src"]).port
        yield running


def get(station, path, method="GET", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return CLIENT.request(method, f"{station.base}/{path}", headers=headers)


def test_an_article_comes_inert_with_its_policy(station):
    answer = get(station, "handbook/boiling.html")
    policy = answer.headers["content-security-policy"]
    for part in ("default-src 'none'", "img-src 'self' data:", "media-src 'self'", "font-src 'self'",
                 "base-uri 'none'", "form-action 'none'", "sandbox allow-popups",
                 f"frame-ancestors http://127.0.0.1:{station.port} http://localhost:{station.port}"):  # fmt: skip
        assert part in policy
    assert "script-src" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert "set-cookie" not in answer.headers
    assert not any(name.startswith("access-control-") for name in answer.headers)
    assert 'id="p1"' in answer.text
    assert "Field handbook</span> <b>Boiling</b>" in answer.text


def test_a_passage_is_marked_by_its_blocks(station):
    tree = LexborHTMLParser(get(station, "handbook/boiling.html?passage=4-5").text)
    marked = tree.css(".bundler-passage")
    assert [node.text()[:12] for node in marked] == ["Heat the wat", "Keep the rol"]
    assert marked[0].attributes["id"] == "bundler-passage"


def test_a_passage_of_a_foreign_article_without_ids_is_marked_too(station):
    marked = LexborHTMLParser(get(station, "handbook/foreign.html?passage=1-1").text).css(
        ".bundler-passage"
    )
    assert [node.text() for node in marked] == ["second water"]


def test_what_could_act_or_ask_elsewhere_is_taken_out_of_an_article(station):
    tree = LexborHTMLParser(get(station, "handbook/foreign.html").text)
    assert not tree.css("script, base, iframe, meta[http-equiv], [ping], [target]")
    assert [node.attributes["href"].rsplit("/", 1)[-1] for node in tree.css("link")] == [
        "reader.css",
        "style.css",
    ]
    links = {node.text(): node.attributes.get("href") for node in tree.css("a")}
    key = station.base.rsplit("/", 1)[-1]
    assert links == {
        "out": f"/{key}/-/outside?to=http%3A%2F%2Fevil%2Fx",
        "in": "boiling.html#p2",
        "root": f"/{key}/handbook/boiling.html",
        "js": None,
        "slash": f"/{key}/-/outside?to=%2F%2Fevil%2F",
    }


def test_a_link_to_the_internet_leads_to_a_page_that_says_so(station):
    answer = get(station, "-/outside?to=" + quote("http://evil/<script>alert(1)</script>"))
    assert "This link leads to the internet" in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "<script>" not in answer.text


def test_redirects_of_the_corpus_and_of_old_pages_are_followed(station):
    assert get(station, "handbook/boil.html").headers["location"].endswith("/handbook/boiling.html")
    assert get(station, "handbook/old.html").headers["location"] == "boiling.html#p1"
    assert get(station, "handbook/").headers["location"].endswith("/handbook/front.html")


def test_an_entry_with_a_strange_name_is_found(station):
    assert "strange" in get(station, "handbook/" + quote("dir/a b?c#d%41.html")).text


def test_a_media_type_cannot_smuggle_a_header(station):
    answer = get(station, "handbook/odd")
    assert "x-evil" not in answer.headers
    assert answer.headers["content-type"] == "application/octet-stream"


def test_a_pdf_is_not_sandboxed_since_browsers_would_not_show_it(station):
    assert "sandbox" not in get(station, "handbook/paper.pdf").headers["content-security-policy"]


@pytest.mark.parametrize(
    ("wanted", "status", "start", "end"),
    [("bytes=0-99", 206, 0, 100), ("bytes=100-", 206, 100, None), ("bytes=-100", 206, -100, None),
     ("bytes=0-99999999999", 206, 0, None), ("bytes=5-2", 416, 0, 0), ("bytes=99999999-", 416, 0, 0),
     ("bytes=-0", 416, 0, 0), ("bytes=0-1,5-6", 200, 0, None), ("lines=1-2", 200, 0, None), ("bytes=-", 200, 0, None)],
)  # fmt: skip
def test_videos_are_served_in_ranges(station, wanted, status, start, end):
    answer = get(station, "handbook/film.mp4", Range=wanted)
    assert answer.status_code == status
    assert answer.content == VIDEO[start:end]
    assert answer.headers["accept-ranges" if status != 416 else "content-range"]


def test_head_tells_without_a_body(station):
    answer = get(station, "handbook/film.mp4", "HEAD")
    assert answer.headers["content-length"] == str(len(VIDEO))
    assert answer.content == b""


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_articles_can_only_be_read(station, method):
    answer = get(station, "handbook/boiling.html", method)
    assert answer.status_code == 405
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1", "127.0.0.1:{page}", "evil.example:{port}", ""]
)
def test_a_foreign_host_is_refused(station, host):
    host = host.format(page=station.port, port=station.content_port)
    assert get(station, "handbook/boiling.html", Host=host).status_code == 421


@pytest.mark.parametrize("key", ["", "x", "%00", "-", "handbook"])
def test_without_the_key_there_is_nothing(station, key):
    root = station.base.rsplit("/", 1)[0]
    for path in ("handbook/boiling.html", "-/reader.css", ""):
        assert CLIENT.get(f"{root}/{key}/{path}").status_code == 404


def test_the_page_and_its_api_are_not_on_the_content_origin(station):
    root = station.base.rsplit("/", 1)[0]
    for path in ("", "api/status", "v1/models", "static/ask.js", "search?q=x"):
        assert CLIENT.get(f"{root}/{path}").status_code == 404


HOSTILE = [
    "..%2f..%2fetc%2fpasswd", "%2e%2e/%2e%2e/etc/passwd", "....//....//etc/passwd", "%00", "boiling.html%00.png",
    "%c0%ae%c0%ae/", "%ff%fe", "x" * 20_000, "BOILING.HTML", "boiling.html/", "/boiling.html", "\\..\\..\\x",
    "A/../boiling.html", "%0d%0aX-Evil:1", "C:/boiling.html", "%u002e", "boiling.html;x=1",
]  # fmt: skip


def raw_status(port, target):
    head = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one:
        one.sendall(head.encode("utf-8", "replace"))
        received = b""
        while part := one.recv(65536):
            received += part
    head, _, body = received.partition(b"\r\n\r\n")
    assert b"x-evil" not in head.lower()
    return int(head.split(b" ")[1]), body


@pytest.mark.parametrize("path", HOSTILE)
def test_hostile_paths_are_not_found(station, path):
    key = station.base.rsplit("/", 1)[-1]
    assert raw_status(station.content_port, f"/{key}/handbook/{path}")[0] in (404, 400)
    for prefix in ("/static/", "/read/handbook/", "/read/"):
        status, body = raw_status(station.port, prefix + path)
        assert status in (404, 400, 200)
        if status == 200:
            assert prefix == "/read/handbook/"
        assert b"root:" not in body


targets = st.lists(
    st.sampled_from(["..", ".", "%2e%2e", "%2f", "%5c", "%00", "handbook", "boiling.html", "-", "reader.css", "%"])
    | st.text(string.ascii_letters + string.digits + "%/.?=&;:@", max_size=8),
    max_size=6,
)  # fmt: skip


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts=targets, on_page=st.booleans())
def test_no_path_at_all_reaches_a_file_or_breaks_the_server(station, parts, on_page):
    key = station.base.rsplit("/", 1)[-1]
    port, prefix = (station.port, "") if on_page else (station.content_port, f"/{key}")
    status, body = raw_status(port, prefix + "/" + "/".join(parts))
    assert status < 500
    assert b"root:" not in body
    assert b"station.json" not in body


@pytest.mark.parametrize("vector", vectors(1))
def test_no_vector_in_an_article_survives_as_something_that_acts_by_itself(vector):
    page = prepare(
        f"<html><body><p>x</p>{vector}</body></html>".encode(),
        Place("/k", "c", vector, vector),
        (0, 0),
    )
    tree = LexborHTMLParser(page.decode())
    assert not tree.css(
        "script, base, iframe, object, embed, meta[http-equiv], link[rel=prefetch], link[rel=preconnect]"
    )
    for node in tree.css("a[href]"):
        assert outside_address(node.attributes["href"]) is None
    bar = tree.css_first("nav.bundler-bar")
    assert [child.tag for child in bar.css("*")] == ["nav", "span", "b"]


@settings(deadline=None)
@given(st.text(max_size=60))
def test_an_address_is_inside_only_if_a_browser_would_stay(href):
    if outside_address(href) is None:
        plain = "".join(c for c in href if c > " ")
        assert not plain.replace("\\", "/").startswith("//")
        assert not plain.lower().startswith(("javascript:", "http:", "https:", "data:", "file:"))


@pytest.mark.parametrize(
    ("html", "target"),
    [("<meta http-equiv=refresh content='0;url=a.html'>", "a.html"), ("<meta http-equiv=refresh content='0;url=//evil'>", None),
     ("<meta http-equiv=refresh content='0;url=http://evil'>", None), ("<meta http-equiv=refresh content='5'>", None),
     ("<p>text</p>", None), ("<meta http-equiv=refresh content='0;url=a\r\nX: y'>", None)],
)  # fmt: skip
def test_only_relative_refreshes_send_the_reader_on(html, target):
    assert sent_on_to(html.encode()) == target


def test_the_handbook_used_here_is_what_was_built(station):
    assert all(
        get(station, f"handbook/{name.lower().replace(' ', '-')}.html").status_code == 200
        for name in HANDBOOK
    )
