"""The content origin: entries of the corpora, on a port of their own, for a sandboxed frame.

It answers GET and HEAD only, keeps no state and sets no cookie. Every address begins with a key
drawn at start and told to nobody but our own page: another page of the same browser can neither
guess what corpora there are nor read them, and a network listener needs no second sign-in.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from urllib.parse import quote

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from bundler.station.article import PASSAGE_ANCHOR, Place, prepare, sent_on_to
from bundler.station.guard import Origins, plain_answer
from bundler.station.library import Content, Corpus, Library
from bundler.station.problems import CorpusUnreadable
from bundler.station.shelf import Shelf

CHUNK_BYTES = 256 * 1024
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_PASSAGE = re.compile(r"(\d{1,6})-(\d{1,6})")


@dataclass
class ContentApplication:
    """Serves `/<key>/<corpus>/<entry path>`; an ASGI application."""

    library: Library
    shelf: Shelf
    origins: Origins
    key: str = field(default_factory=lambda: secrets.token_urlsafe(18))

    @property
    def base(self) -> str:
        return f"/{self.key}"

    def address(self, corpus: str, path: str, passage: tuple[int, int] | None = None) -> str:
        """Return the path (with query and fragment) that shows an entry, at a passage if given."""
        address = f"{self.base}/{quote(corpus, safe='')}/{quote(path, safe='/')}"
        if passage is None:
            return address
        return f"{address}?passage={passage[0]}-{passage[1]}#{PASSAGE_ANCHOR}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        response = await self._answer(request)
        for name, value in self._headers(request, response.media_type or "").items():
            response.headers[name] = value
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        host = request.headers.get("host", "")
        if not self.origins.is_content_host(host):
            return plain_answer(421, "This address is not served here.")
        if request.method not in ("GET", "HEAD"):
            return plain_answer(405, "Articles can only be read.", {"Allow": "GET, HEAD"})
        key, _, rest = request.scope["path"].removeprefix("/").partition("/")
        if not secrets.compare_digest(key.encode("utf-8", "replace"), self.key.encode()):
            return self._page(404, "Nothing here", "Open articles from the station's own page.")
        name, _, path = rest.partition("/")
        if name == "-":
            return self._own(path, request)
        return await self._entry(request, name, path)

    async def _entry(self, request: Request, name: str, path: str) -> Response:
        corpus = self.library.corpora.get(name)
        if corpus is None:
            return self._page(404, "No such collection", "This bundle does not hold it.")
        try:
            content = await run_sync(corpus.read, path or corpus.main_path)
        except CorpusUnreadable as error:
            return self._page(503, "This article cannot be read", str(error))
        if content is None:
            return self._page(
                404, "No such article", f"“{path[:200]}” is not in {corpus.entry.title}."
            )
        if content.path != path:
            # Relative links of the article count from its real path.
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse(self.address(name, content.path) + query, status_code=302)
        if content.media_type.partition(";")[0] == "text/html":
            return await run_sync(self._html, request, corpus, content)
        return ranged(request, content.data, content.media_type)

    def _html(self, request: Request, corpus: Corpus, content: Content) -> Response:
        data = bytes(content.data)
        onward = sent_on_to(data)
        if onward is not None:
            return RedirectResponse(onward, status_code=302)
        place = Place(self.base, corpus.entry.name, corpus.entry.title, content.title)
        found = _PASSAGE.fullmatch(request.query_params.get("passage", ""))
        passage = (int(found[1]), int(found[2])) if found else None
        return Response(prepare(data, place, passage), media_type="text/html; charset=utf-8")

    def _own(self, path: str, request: Request) -> Response:
        if path == "reader.css":
            return Response(
                self.shelf.static["reader.css"].data, media_type="text/css; charset=utf-8"
            )
        if path == "outside":
            address = request.query_params.get("to", "")[:2000]
            return self._page(
                200, "This link leads to the internet",
                "It is not part of this bundle. When you have a connection you will find it at:",
                address,
            )  # fmt: skip
        return self._page(404, "Nothing here", "Open articles from the station's own page.")

    def _page(self, status: int, title: str, text: str, address: str = "") -> Response:
        html = self.shelf.render(
            "content.html", title=title, text=text, address=address, base=self.base
        )
        return Response(html, status_code=status, media_type="text/html; charset=utf-8")

    def _headers(self, request: Request, media_type: str) -> dict[str, str]:
        ancestors = " ".join(self.origins.page_origins(request.headers.get("host", ""))) or "'none'"
        policy = (
            "default-src 'none'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; "
            "media-src 'self'; font-src 'self'; base-uri 'none'; form-action 'none'; "
            f"frame-ancestors {ancestors}"
        )
        # Browsers refuse to show a PDF in a sandbox; it has no scripts of ours to reach anyway.
        if not media_type.startswith("application/pdf"):
            policy += "; sandbox allow-popups"
        return {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "X-DNS-Prefetch-Control": "off",
            # The sandboxed frame's origin is opaque: same-origin would forbid its own pictures.
            "Cross-Origin-Resource-Policy": "cross-origin",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=(), interest-cohort=()",
            "Cache-Control": "private, max-age=600",
        }


def ranged(request: Request, data: memoryview, media_type: str) -> Response:
    """Answer with an entry's bytes, or the one range that was asked for (videos seek this way)."""
    size = len(data)
    headers = {"Accept-Ranges": "bytes"}
    wanted = _range(request.headers.get("range", ""), size)
    status = 200
    if wanted is not None:
        start, end = wanted
        if start >= end:
            return Response(status_code=416, headers={"Content-Range": f"bytes */{size}"})
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        data, status = data[start:end], 206
    headers["Content-Length"] = str(len(data))
    return StreamingResponse(_chunks(data), status, headers, media_type)


def _range(header: str, size: int) -> tuple[int, int] | None:
    """Return start and end of a single byte range, (0, 0) for one that cannot be had, else None."""
    found = _RANGE.fullmatch(header.strip())
    if not found or not (found[1] or found[2]) or len(header) > 60:
        return None
    if not found[1]:
        length = int(found[2])
        return (max(0, size - length), size) if length else (0, 0)
    start = int(found[1])
    end = min(size, int(found[2]) + 1) if found[2] else size
    return (start, end) if start < end else (0, 0)


async def _chunks(data: memoryview) -> AsyncIterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(data[start : start + CHUNK_BYTES])
