"""The page origin: which address does what. Pages by template, `/api` for the page's own script."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from anyio.to_thread import run_sync
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route, Router
from starlette.types import Receive, Scope, Send

from bundler.station.answering import Answerer, Question
from bundler.station.checking import KINDS, Checks, Refused
from bundler.station.configuration import Bundle
from bundler.station.content import ContentApplication
from bundler.station.fleet import Fleet
from bundler.station.guard import COOKIE, cookie_value, plain_answer
from bundler.station.library import Library, encodable
from bundler.station.markup import Source, read_address, render_answer
from bundler.station.openai import OpenAiApi
from bundler.station.problems import CorpusUnreadable
from bundler.station.prompt import Turn
from bundler.station.searching import search
from bundler.station.shelf import Shelf
from bundler.station.status import StatusLine
from bundler.station.streams import EventStream, server_event

LONGEST_QUESTION_CHARACTERS = 100_000
LONGEST_QUERY_CHARACTERS = 300
MOST_HISTORY_TURNS = 200
MOST_RENDERED_MESSAGES = 200
_PASSAGE = re.compile(r"(\d{1,6})-(\d{1,6})")


class BadRequest(Exception):
    """What the page's script sent is not what it should send."""


@dataclass(frozen=True)
class Page:
    """Everything the page origin answers."""

    bundle: Bundle
    library: Library
    fleet: Fleet
    answerer: Answerer
    content: ContentApplication
    shelf: Shelf
    status: StatusLine
    checks: Checks
    token: str = ""

    def application(self) -> Router:
        """Return the router of the page origin."""
        return Router(
            [
                Route("/", self.ask, methods=["GET"]),
                Route("/search", self.search, methods=["GET"]),
                Route("/library", self.shelves, methods=["GET"]),
                Route("/read/{corpus}/{path:path}", self.read, methods=["GET"]),
                Route("/static/{name}", self.static, methods=["GET"]),
                Route("/sign-in", self.sign_in_page, methods=["GET"]),
                Route("/sign-in", self.sign_in, methods=["POST"]),
                Route("/api/status", self.api_status, methods=["GET"]),
                Route("/api/suggest", self.api_suggest, methods=["GET"]),
                Route("/api/open", self.api_open, methods=["GET"]),
                Route("/api/chat", self.api_chat, methods=["POST"]),
                Route("/api/render", self.api_render, methods=["POST"]),
                Route("/api/check", self.api_check, methods=["GET"]),
                Route("/api/check", self.api_check_start, methods=["POST"]),
                Route("/api/check/stop", self.api_check_stop, methods=["POST"]),
                *OpenAiApi(self.fleet).routes(),
            ],
            redirect_slashes=False,
            default=self.not_found,
        )

    # -- pages ------------------------------------------------------------------------------------

    async def ask(self, request: Request) -> Response:
        """The chat page."""
        examples = await run_sync(self.status.examples)
        return self._html("ask.html", request, here="ask", examples=examples)

    async def search(self, request: Request) -> Response:
        """The search page, with results when there is a query."""
        query = request.query_params.get("q", "")[:LONGEST_QUERY_CHARACTERS].strip()
        corpus = request.query_params.get("corpus", "")
        number = request.query_params.get("page", "1")
        page = min(max(int(number), 1), 100) if number.isdigit() and len(number) < 6 else 1
        found = await run_sync(search, self.library, query, corpus, page) if query else None
        return self._html(
            "search.html", request, here="search", query=query, corpus=corpus, found=found
        )

    async def shelves(self, request: Request) -> Response:
        """What is in the bundle, and what state it is in."""
        return self._html("library.html", request, here="library")

    async def read(self, request: Request) -> Response:
        """An article on a page of its own, in the sandboxed frame."""
        opened = await run_sync(
            self._opened,
            request.path_params["corpus"],
            request.path_params["path"],
            request.query_params.get("passage", ""),
            request.headers["host"],
        )
        status = 200 if "src" in opened else 404
        return self._html("read.html", request, status=status, here="read", opened=opened)

    async def static(self, request: Request) -> Response:
        """A file of the page."""
        file = self.shelf.static.get(request.path_params["name"])
        if file is None:
            return await self._no_such_page(request)
        headers = {"ETag": file.etag, "Cache-Control": "no-cache"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        return Response(file.data, headers={**headers, "Content-Type": file.media_type})

    async def not_found(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer for every address that there is none of."""
        response = await self._no_such_page(Request(scope, receive))
        await response(scope, receive, send)

    async def _no_such_page(self, request: Request) -> Response:
        path = request.url.path
        if path.startswith(("/api", "/v1", "/static")) or request.method not in ("GET", "HEAD"):
            return plain_answer(404, "There is nothing at this address.", path=path)
        return self._html("missing.html", request, status=404, here="")

    def _html(self, template: str, request: Request, status: int = 200, **values: Any) -> Response:
        html = self.shelf.render(
            template, bundle=self.bundle, library=self.library, status=self.status.now(),
            read_address=read_address, host=request.headers["host"], **values,
        )  # fmt: skip
        return Response(html, status, media_type="text/html; charset=utf-8")

    # -- sign-in, only with a token ---------------------------------------------------------------

    async def sign_in_page(self, request: Request) -> Response:
        """Ask for the token."""
        if not self.token:
            return RedirectResponse("/", 303)
        return self._html("sign-in.html", request, here="")

    async def sign_in(self, request: Request) -> Response:
        """Check the token and remember it in a cookie that no script can read."""
        try:
            body = await _json(request)
        except BadRequest as error:
            return plain_answer(400, str(error), path="/api")
        given = body.get("token", "")
        if not self.token or not isinstance(given, str):
            return plain_answer(400, "There is nothing to sign in to.", path="/api")
        if not secrets.compare_digest(given.strip().encode(), self.token.encode()):
            return plain_answer(403, "This token is not right.", path="/api")
        response = JSONResponse({"ok": True})
        value = cookie_value(self.token)
        response.set_cookie(COOKIE, value, httponly=True, samesite="strict", path="/")
        return response

    # -- what the page's script asks --------------------------------------------------------------

    async def api_status(self, request: Request) -> Response:
        """Say what runs and what does not."""
        return JSONResponse(self.status.now().as_json())

    async def api_suggest(self, request: Request) -> Response:
        """Suggest articles by title while a person types."""
        text = request.query_params.get("q", "").strip()[:LONGEST_QUERY_CHARACTERS]
        corpus = request.query_params.get("corpus", "")
        hits = await run_sync(self.library.suggest, text, 8, corpus) if text else []
        titles = {name: one.entry.title for name, one in self.library.corpora.items()}
        return JSONResponse(
            [
                {"title": h.title, "corpus_title": titles[h.corpus],
                 "corpus": h.corpus, "path": h.path, "href": read_address(h.corpus, h.path)}
                for h in hits
            ]
        )  # fmt: skip

    async def api_open(self, request: Request) -> Response:
        """Say where the reader's frame finds an article."""
        query = request.query_params
        opened = await run_sync(
            self._opened, query.get("corpus", ""), query.get("path", ""),
            query.get("passage", ""), request.headers["host"],
        )  # fmt: skip
        return JSONResponse(opened, 200 if "src" in opened else 404)

    def _opened(self, corpus: str, path: str, passage: str, host: str) -> dict[str, str]:
        one = self.library.corpora.get(corpus)
        if one is None:
            return {"problem": "This bundle holds no such collection."}
        if one.archive is None:
            return {"problem": f"{one.entry.title} is unavailable: {one.reason}."}
        try:
            content = one.read(path or one.main_path)
        except CorpusUnreadable as error:
            return {"problem": f"{error}."}
        if content is None:
            return {"problem": f"“{path[:200]}” is not in {one.entry.title}."}
        found = _PASSAGE.fullmatch(passage)
        place = (int(found[1]), int(found[2])) if found else None
        address = self.content.address(corpus, content.path, place)
        return {
            "src": self.content.origins.content_origin(host) + address,
            "title": content.title or content.path,
            "corpus_title": one.entry.title,
            "href": read_address(corpus, content.path, *(place or ())),
        }

    async def api_check(self, request: Request) -> Response:
        """Say how far a check, a repair or a selftest is, or what it found."""
        return JSONResponse(self.checks.now())

    async def api_check_start(self, request: Request) -> Response:
        """Begin one."""
        try:
            body = await _json(request)
            if body.get("what") not in KINDS:
                raise BadRequest(f"what: expected one of {', '.join(KINDS)}.")
            await self.checks.start(body["what"], confirmed=body.get("confirmed") is True)
        except BadRequest as error:
            return plain_answer(400, str(error), path="/api")
        except Refused as error:
            return plain_answer(409, str(error), path="/api")
        return JSONResponse(self.checks.now(), 202)

    async def api_check_stop(self, request: Request) -> Response:
        """Stop what runs."""
        await self.checks.cancel()
        return JSONResponse(self.checks.now())

    async def api_chat(self, request: Request) -> Response:
        """Answer a question as a stream of events."""
        try:
            question = _question(await _json(request))
        except BadRequest as error:
            return plain_answer(400, str(error), path="/api")
        return EventStream(self._chat_events(question))

    async def _chat_events(self, question: Question) -> AsyncGenerator[bytes, None]:
        async with aclosing(self.answerer.answer(question)) as events:
            async for event in events:
                yield server_event(event)

    async def api_render(self, request: Request) -> Response:
        """Render messages that the browser kept, just as they were rendered when they came."""
        try:
            messages = _messages(await _json(request))
        except BadRequest as error:
            return plain_answer(400, str(error), path="/api")
        rendered = await run_sync(lambda: [render_answer(*message) for message in messages])
        return JSONResponse({"html": rendered})


async def _json(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise BadRequest("The body is not JSON.") from error
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return body


def _question(body: dict[str, Any]) -> Question:
    text = body.get("question")
    if not isinstance(text, str) or not text.strip():
        raise BadRequest("There is no question.")
    if len(text) > LONGEST_QUESTION_CHARACTERS:
        raise BadRequest(f"The question is longer than {LONGEST_QUESTION_CHARACTERS:,} characters.")
    history = body.get("history", [])
    if not isinstance(history, list):
        raise BadRequest("history: expected a list.")
    corpus = body.get("corpus", "")
    return Question(
        text=encodable(text.strip()),
        history=tuple(_turn(item) for item in history[-MOST_HISTORY_TURNS:]),
        use_library=body.get("library", True) is not False,
        corpus=corpus if isinstance(corpus, str) else "",
        answer_unsourced=body.get("unsourced", False) is True,
    )


def _turn(item: Any) -> Turn:
    role, content = (item.get("role"), item.get("content")) if isinstance(item, dict) else (0, 0)
    if role not in ("user", "assistant") or not isinstance(content, str):
        raise BadRequest("history: expected objects with role (user, assistant) and content.")
    return Turn(str(role), encodable(content))


def _messages(body: dict[str, Any]) -> list[tuple[str, list[Source]]]:
    messages = body.get("messages")
    if not isinstance(messages, list) or len(messages) > MOST_RENDERED_MESSAGES:
        raise BadRequest(f"messages: expected a list of at most {MOST_RENDERED_MESSAGES}.")
    return [_message(item) for item in messages]


def _message(item: Any) -> tuple[str, list[Source]]:
    text = item.get("content") if isinstance(item, dict) else None
    sources = item.get("sources", []) if isinstance(item, dict) else None
    if not isinstance(text, str) or not isinstance(sources, list):
        raise BadRequest("messages: expected objects with content and sources.")
    return encodable(text), [_source(source) for source in sources[:100]]


def _source(item: Any) -> Source:
    """Return a source as the browser kept it; every part is checked, none is trusted."""
    if not isinstance(item, dict):
        raise BadRequest("sources: expected objects.")
    parts = [item.get(key) for key in ("corpus", "path", "title")]
    place = item.get("passage")
    if not all(isinstance(part, str) and len(part) < 4096 for part in parts):
        raise BadRequest("sources: expected corpus, path and title.")
    if not (isinstance(place, list) and len(place) == 2 and all(type(n) is int for n in place)):
        raise BadRequest("sources: expected a passage.")
    corpus, path, title = (encodable(str(part)) for part in parts)
    return Source(corpus, path, title, "", place[0], place[1])
