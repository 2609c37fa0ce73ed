"""The station's pages in a real browser: used by mouse, by keyboard, on a phone, and looked at."""

from __future__ import annotations

import json
import re
import time

import httpx2
import pytest

from bundler.station.configuration import this_platform
from bundler.testing.station_bundle import make_bundle
from bundler.testing.station_process import running_station
from tests.browser.conftest import Watched

pytestmark = pytest.mark.browser
BOIL = "How do I boil water to make it safe?"
DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "is_mobile": True,
    "has_touch": True,
    "device_scale_factor": 2,
}


@pytest.fixture(scope="module")
def station(tmp_path_factory):
    root = make_bundle(tmp_path_factory.mktemp("pages"), platform=this_platform(), delay_ms=15)
    with running_station(root) as running:
        running.content_port = content_port(running.url)
        deadline = time.monotonic() + 15
        while httpx2.get(running.url + "api/status").json()["chat"] != "ready":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield running


def content_port(url):
    return httpx2.URL(
        httpx2.get(url + "api/open?corpus=handbook&path=boiling.html").json()["src"]
    ).port


@pytest.fixture
def one(watched, station):
    page: Watched = watched(**DESKTOP)
    page.page.goto(station.url)
    yield page
    assert page.errors == []
    assert page.dialogs == []
    assert page.beyond(station.port, station.content_port) == []


def ask(page, text=BOIL):
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#stop:not([hidden])", state="attached")


def finished(page):
    page.wait_for_selector("#send:not([hidden])")
    page.wait_for_selector(".answer:last-of-type .actions button")


def test_a_question_is_answered_with_a_citation_that_opens_the_article_at_the_passage(one):
    page = one.page
    ask(page)
    finished(page)
    assert "Heat the water until large bubbles" in page.inner_text(".answer .body")
    assert page.inner_text(".answer .sources h3") == "Source"
    page.click(".answer a.cite")
    frame = page.wait_for_selector("#reader iframe").content_frame()
    frame.wait_for_selector(".bundler-passage")
    marked = frame.locator(".bundler-passage")
    assert marked.count() == 2
    assert marked.first.inner_text().startswith("Heat the water")
    assert page.get_attribute("#reader iframe", "sandbox") == "allow-popups"
    page.keyboard.press("Escape")
    assert page.is_hidden("#reader")


def test_what_was_read_is_open_beneath_an_answer_that_names_no_source(one):
    page = one.page
    ask(page, "boil SAY(Keep it bubbling.)")
    finished(page)
    assert page.locator(".answer a.cite").count() == 0
    assert page.inner_text(".answer summary").startswith("The answer names no source.")
    assert page.locator(".answer a.source").first.is_visible()


def test_an_answer_can_be_stopped_and_asked_again(one, station):
    page = one.page
    ask(page, "boil SLOW")
    page.wait_for_selector(".answer .tail")
    page.click("#stop")
    finished(page)
    assert page.inner_text(".answer .progress") == "Stopped."
    assert "word3" in page.inner_text(".answer .body")
    began = time.monotonic()
    while httpx2.get(station.url + "api/status").json()["models"][0]["busy"]:
        assert time.monotonic() - began < 1
    page.click("text=Ask again")
    page.wait_for_selector("#stop:not([hidden])")
    page.keyboard.press("Escape")
    finished(page)
    assert page.locator(".answer").count() == 1


def test_a_question_can_be_edited_and_what_followed_is_dropped(one):
    page = one.page
    ask(page, "boil first")
    finished(page)
    ask(page, "boil second")
    finished(page)
    page.hover(".user >> nth=0")
    page.click(".user >> nth=0 >> text=Edit")
    page.fill("textarea.edit", "boil third")
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelectorAll('.answer').length === 1")
    finished(page)
    assert page.locator(".said").all_inner_texts() == ["boil third"]


def test_conversations_are_kept_found_renamed_saved_and_deleted(one, station, tmp_path):
    page = one.page
    ask(page, "boil water one")
    finished(page)
    page.click("#new")
    ask(page, "tourniquet two")
    finished(page)
    page.reload()
    page.wait_for_selector(".answer .actions button")
    assert "tourniquet two" in page.inner_text(".said")
    assert page.locator(".answer a.cite").count() == 1, "rendered again by the station"
    assert page.locator("#list .open").all_inner_texts() == ["tourniquet two", "boil water one"]
    page.fill("#find", "boil")
    assert page.locator("#list .open").all_inner_texts() == ["boil water one"]
    page.fill("#find", "")
    page.click("#list li >> nth=1 >> summary")
    page.click("#list li >> nth=1 >> text=Rename")
    page.fill("input.rename", "Kettle <b>")
    page.keyboard.press("Enter")
    assert page.locator("#list .open").first.inner_text() == "Kettle <b>"
    with page.expect_download() as saved:
        page.click("#export-all")
    path = tmp_path / "all.json"
    saved.value.save_as(path)
    assert len(json.loads(path.read_text())["conversations"]) == 2
    page.click("#list li >> nth=0 >> summary")
    with page.expect_download() as text:
        page.click("#list li >> nth=0 >> text=Save as text")
    text.value.save_as(tmp_path / "one.md")
    assert (tmp_path / "one.md").read_text().startswith("# Kettle <b>\n\n## boil water one\n\n")
    page.click("#list li >> nth=0 >> text=Delete")
    page.click("#list li >> nth=0 >> text=Really delete?")
    assert page.locator("#list .open").count() == 1
    page.set_input_files("#import-file", path)
    page.wait_for_function("() => document.querySelectorAll('#list .open').length === 3")


def test_everything_is_reached_by_keyboard_alone(one):
    page = one.page
    page.keyboard.press("Tab")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "question"
    page.keyboard.type(BOIL)
    page.keyboard.press("Enter")
    finished(page)
    assert page.evaluate("document.activeElement.id") == "question"
    page.focus(".answer a.cite")
    page.keyboard.press("Enter")
    page.wait_for_selector("#reader iframe")
    assert page.evaluate("document.activeElement.id") == "reader-close"
    page.keyboard.press("Enter")
    assert page.is_hidden("#reader")
    assert page.evaluate("document.activeElement.classList.contains('cite')")
    page.keyboard.press("Alt+n")
    assert page.is_visible("#empty")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("?")
    assert page.is_visible("#keys-dialog")
    page.keyboard.press("Escape")
    assert page.is_hidden("#keys-dialog")


def test_every_control_has_a_name_and_targets_are_large_enough(one):
    page = one.page
    ask(page)
    finished(page)
    nameless = page.evaluate(
        """[...document.querySelectorAll('button, a, input, select, textarea, summary')]
        .filter(e => e.checkVisibility() && !(e.getAttribute('aria-label') || e.innerText || e.labels?.length || e.title))
        .map(e => e.outerHTML)"""
    )
    assert nameless == []
    small = page.evaluate(
        """[...document.querySelectorAll('button, .source, summary, .main-nav a')]
        .filter(e => e.checkVisibility() && e.getBoundingClientRect().height < 35).map(e => e.outerHTML)"""
    )
    assert small == []


def contrast(page, selector):
    """WCAG contrast of an element's text with the colour behind it."""
    return page.evaluate(
        """selector => {
          const parse = c => c.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map(v => v / 255).map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
            .reduce((sum, v, n) => sum + v * [.2126, .7152, .0722][n], 0);
          let node = document.querySelector(selector);
          const ink = light(parse(getComputedStyle(node).color));
          while (node && (parse(getComputedStyle(node).backgroundColor)[3] ?? 1) === 0) node = node.parentElement;
          const paper = light(parse(node ? getComputedStyle(node).backgroundColor : 'rgb(255,255,255)'));
          return (Math.max(ink, paper) + .05) / (Math.min(ink, paper) + .05);
        }""",
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(watched, station, scheme):
    page = watched(**DESKTOP, color_scheme=scheme).page
    page.goto(station.url)
    page.wait_for_selector("#list .hint")
    for selector in (
        ".lead",
        "#list .hint",
        ".status",
        ".main-nav a:not([aria-current])",
        ".options",
        ".chip",
    ):
        assert contrast(page, selector) >= 4.5, selector
    ask(page)
    finished(page)
    for selector in (
        ".body p",
        ".cite",
        ".source .snippet",
        ".source .corpus",
        ".said",
        ".actions .quiet",
    ):
        assert contrast(page, selector) >= 4.5, selector
    page.goto(station.url + "search?q=water")
    for selector in (".result .snippet", ".result mark", ".where", ".count", ".result a"):
        assert contrast(page, selector) >= 4.5, selector


def test_light_and_dark_can_be_chosen_and_are_kept(one):
    page = one.page
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("#theme")
    after = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert after != before
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == after


def test_on_a_phone_nothing_is_cut_off_and_the_article_fills_the_screen(watched, station):
    page = watched(**PHONE).page
    page.goto(station.url)
    ask(page)
    finished(page)
    for address in ("", "search?q=water", "library", "read/handbook/boiling.html"):
        if address:
            page.goto(station.url + address)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, address
    page.goto(station.url)
    page.tap("#open-conversations")
    page.wait_for_function(
        "() => document.querySelector('#conversations').getBoundingClientRect().left === 0"
    )
    page.tap("#list .open")
    page.wait_for_selector(".answer a.cite")
    page.tap(".answer a.cite")
    page.wait_for_selector("#reader iframe")
    box = page.locator("#reader").bounding_box()
    assert (box["x"], box["y"], box["width"], box["height"]) == (0, 0, 390, 844)


def test_motion_stops_for_those_who_ask_for_it(watched, station):
    page = watched(**DESKTOP, reduced_motion="reduce").page
    page.goto(station.url)
    moving = page.evaluate(
        "[...document.querySelectorAll('*')].filter(e => getComputedStyle(e).animationName !== 'none').length"
    )
    assert moving == 0


def test_search_suggests_finds_and_opens_with_and_without_script(watched, station):
    for script in (True, False):
        page = watched(**DESKTOP, java_script_enabled=script).page
        page.goto(station.url + "search")
        page.fill("#q", "boil")
        if script:
            page.wait_for_selector("#suggestions li")
            assert "Boiling" in page.inner_text("#suggestions")
            page.keyboard.press("Escape")
        page.press("#q", "Enter")
        page.click(".result a")
        frame = page.wait_for_selector("main iframe").content_frame()
        frame.wait_for_selector(".bundler-passage")


def test_links_inside_an_article_stay_in_the_frame(watched, tmp_path):
    from bundler.testing.station_bundle import make_zim

    raw = {
        "a.html": (
            "A",
            "text/html",
            "<p>to <a href='b.html'>b</a> and <a href='http://example.org/x'>out</a></p>",
        ),
        "b.html": ("B", "text/html", "<p>here is b <img src=pic.svg alt=pic></p>"),
        "pic.svg": (
            "",
            "image/svg+xml",
            "<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        ),
    }
    path = make_zim(tmp_path / "corpora" / "x.zim", {}, raw=raw)
    make_bundle(tmp_path, platform=this_platform(), corpora={"x": path}, model=False)
    with running_station(tmp_path) as station:
        one = watched(**DESKTOP)
        one.page.goto(station.url + "read/x/a.html")
        frame = one.page.wait_for_selector("main iframe").content_frame()
        frame.click("text=b")
        frame.wait_for_selector("text=here is b")
        frame.wait_for_function("() => document.images[0].complete")
        assert frame.evaluate("document.images[0].naturalWidth") == 9, "its pictures are shown"
        one.page.evaluate("history.back()")
        frame.wait_for_selector("text=out")
        frame.click("text=out")
        frame.wait_for_selector("text=This link leads to the internet")
        assert not [url for url in one.requests if "example.org" in url.split("outside")[0]]


def test_chat_off_is_said_and_the_page_offers_search(watched, tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    with running_station(root) as station:
        page = watched(**DESKTOP).page
        page.goto(station.url)
        assert "Chat is off. This bundle holds no model for chat." in page.inner_text("#empty")
        assert page.is_hidden("#composer")
        page.fill("#empty input", "water")
        page.keyboard.press("Enter")
        page.wait_for_selector(".result")


def test_a_closed_station_is_said_on_the_page(watched, tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    with running_station(root) as station:
        page = watched(**DESKTOP).page
        page.goto(station.url)
        station.process.terminate()
        station.process.wait(10)
        page.wait_for_selector("text=The station was closed.")


def test_signing_in_from_another_computer(watched, tmp_path):
    root = make_bundle(tmp_path, platform=this_platform(), model=False)
    with running_station(
        root, "--listen", "0.0.0.0", "--token", "correct-horse-battery"
    ) as station:
        page = watched(**DESKTOP).page
        page.goto(station.url)
        assert page.url.endswith("/sign-in")
        page.fill("#token", "wrong-token-here")
        page.keyboard.press("Enter")
        page.wait_for_selector("text=This token is not right.")
        page.goto("about:blank")
        page.goto(station.url + "sign-in#token=correct-horse-battery")
        page.wait_for_selector("#empty")
        page.goto(station.url + "read/handbook/boiling.html")
        frame = page.wait_for_selector("main iframe").content_frame()
        frame.wait_for_selector("text=rolling boil")


@pytest.mark.parametrize(
    ("name", "options"),
    [("desktop", DESKTOP), ("dark", {**DESKTOP, "color_scheme": "dark"}), ("phone", PHONE),
     ("night", {**PHONE, "color_scheme": "dark"})],
)  # fmt: skip
def test_pictures_of_the_pages_are_taken(watched, station, screenshots, name, options):
    """Look at them: BUNDLER_SCREENSHOTS=build/screenshots names a folder that stays."""
    page = watched(**options).page

    def picture(what):
        page.wait_for_timeout(250)
        page.screenshot(path=screenshots / f"station-{name}-{what}.png")

    page.goto(station.url)
    page.wait_for_selector("#status[data-chat=ready]")
    picture("empty")
    ask(page, "boil SLOW")
    page.wait_for_selector(".answer .body p")
    picture("streaming")
    page.click("#stop")
    finished(page)
    page.goto(station.url + "#x")
    page.reload()
    ask(page)
    finished(page)
    picture("answer")
    page.click(".answer a.cite")
    page.wait_for_selector("#reader iframe")
    picture("reader")
    page.goto(station.url + "search?q=water+boil")
    picture("search")
    page.goto(station.url + "library")
    picture("library")
    assert len(list(screenshots.glob(f"station-{name}-*.png"))) == 6


def test_the_pages_scripts_are_small_and_ask_nobody_else():
    from bundler.station.shelf import Shelf

    static = Shelf().static
    assert sum(len(file.data) for name, file in static.items() if name.endswith(".js")) < 60_000
    for name, file in static.items():
        text = file.data.decode()
        addresses = set(re.findall(r"https?://[^\"' )]+", text)) - {"http://www.w3.org/2000/svg"}
        assert addresses == set(), name
        assert "eval(" not in text
        assert text.count("innerHTML") == (1 if name == "dom.js" else 0)
