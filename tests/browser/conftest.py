"""A real Chromium, without network, for the station's pages."""

from __future__ import annotations

import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

CHROMIUM = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
FLAGS = [
    "--no-sandbox", "--disable-background-networking", "--disable-component-update", "--no-first-run",
    "--disable-sync", "--disable-default-apps", "--disable-domain-reliability", "--no-pings",
]  # fmt: skip


# Playwright's event loop runs in the thread of the tests until it is stopped: a browser that lived
# for the whole session would keep tests of other files from running loops of their own.
@pytest.fixture(scope="module")
def chromium():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory):
    """Where pictures go: the folder that BUNDLER_SCREENSHOTS names, else a temporary one."""
    named = os.environ.get("BUNDLER_SCREENSHOTS")
    folder = Path(named) if named else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class Trap(ThreadingHTTPServer):
    """A listener that nobody must ever ask; remembers who did."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Asked)

    @property
    def port(self) -> int:
        return self.server_address[1]


class _Asked(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.asked.append(f"{self.command} {self.path}")
        self.send_response(204)
        self.end_headers()

    do_POST = do_HEAD = do_OPTIONS = do_GET  # noqa: N815 - the base's names

    def log_message(self, format, *args):
        """Say nothing."""


@pytest.fixture
def trap():
    with Trap() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Watched:
    """A page, with everything it did that it should not have."""

    def __init__(self, browser, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.dialogs, self.errors, self.requests = [], [], []
        self.blocked: list[str] = []
        self.context.on("request", lambda request: self.requests.append(request.url))
        self.context.on("requestfailed", self._failed)
        self.page.on(
            "dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss())
        )
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.set_default_timeout(15_000)

    def _failed(self, request):
        if request.failure == "csp":
            self.blocked.append(request.url)

    def beyond(self, *ports):
        """Requests that went anywhere but to these ports of this machine.

        Those the page's policy stopped are seen here as requests too, but never left.
        """
        ours = (*(f"http://127.0.0.1:{port}/" for port in ports), "data:", "blob:")
        return [
            url for url in self.requests if not url.startswith(ours) and url not in self.blocked
        ]

    def scripted(self):
        """Addresses of frames in which a vector set its mark."""
        return [frame.url for frame in self.page.frames if frame.evaluate("window.XSS === 1")]


@pytest.fixture
def watched(chromium):
    opened = []

    def open_one(**options):
        one = Watched(chromium, **options)
        opened.append(one)
        return one

    yield open_one
    for one in opened:
        one.context.close()
