"""`/v1`: the OpenAI-compatible API for other programs, passed on to the model server beside us.

Nothing is interpreted beyond what keeps the promise: the model's name must be one of the bundle's,
a request takes its place in the same line as the page's questions, and a caller that goes away
frees it. Errors have OpenAI's form.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from bundler.station.fleet import Fleet
from bundler.station.models import ModelServer
from bundler.station.problems import ModelUnavailable
from bundler.station.relay import Reply, ask
from bundler.station.streams import EventStream, until_gone

_ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

_EMBEDDING = ("embed",)
_WRITING = ("chat", "code", "draft")


class ApiError(Exception):
    """A request that cannot be passed on; becomes an answer in OpenAI's form."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def response(self) -> JSONResponse:
        """Return the answer that tells it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        headers = {"Retry-After": "10"} if self.status == 503 else None
        return JSONResponse({"error": error}, self.status, headers)


@dataclass(frozen=True)
class OpenAiApi:
    """The routes under `/v1`."""

    fleet: Fleet

    def routes(self) -> list[Route]:
        """Return the routes to mount."""
        return [
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/v1/models/{name:path}", self.model, methods=["GET"]),
            *(Route(path, self.relay, methods=["POST"]) for path in _ROUTES),
        ]

    async def models(self, request: Request) -> Response:
        """List the bundle's models."""
        data = [_described(server) for server in self.fleet.servers.values()]
        return JSONResponse({"object": "list", "data": data})

    async def model(self, request: Request) -> Response:
        """Describe one model."""
        try:
            return JSONResponse(_described(self._server(request.path_params["name"])))
        except ApiError as error:
            return error.response()

    async def relay(self, request: Request) -> Response:
        """Pass a request on and its answer back."""
        try:
            body = await _body(request)
            server = self._server(body.get("model"))
            self._check_does(server, request.url.path)
            if body.get("stream"):
                return EventStream(self._stream(server, request.url.path, body))
            return await until_gone(request, self._whole(server, request.url.path, body))
        except ApiError as error:
            return error.response()
        except ModelUnavailable as error:
            return ApiError(503, str(error), code="model_unavailable").response()
        except ClientDisconnect:
            return Response(status_code=499)

    def _server(self, name: Any) -> ModelServer:
        if not isinstance(name, str) or not name:
            raise ApiError(400, "you must provide a model parameter", param="model")
        if name not in self.fleet.servers:
            known = ", ".join(self.fleet.servers) or "none"
            text = f"The model '{name[:100]}' does not exist in this bundle. There are: {known}."
            raise ApiError(404, text, param="model", code="model_not_found")
        return self.fleet.servers[name]

    def _check_does(self, server: ModelServer, path: str) -> None:
        """Refuse what a model is not for: its server would fail in words that help nobody."""
        roles = _EMBEDDING if path.endswith("/embeddings") else _WRITING
        if server.entry.role in roles:
            return
        able = [name for name, one in self.fleet.servers.items() if one.entry.role in roles]
        does = "makes no embeddings" if roles is _EMBEDDING else "does not write"
        text = (
            f"The model '{server.entry.name}' {does}: its role in this bundle is "
            f"{server.entry.role}. Models that do: {', '.join(able) or 'none'}."
        )
        raise ApiError(400, text, param="model", code="wrong_role")

    async def _whole(self, server: ModelServer, path: str, body: dict[str, Any]) -> Response:
        async with server.turn() as ticket:
            async for _ in ticket.positions():
                pass  # Waiting in line; a client that goes away cancels this task.
            endpoint = await self.fleet.ready(server)
            async with ask(endpoint, "POST", path, body) as reply:
                data = await reply.whole()
                if reply.status >= 400:
                    raise _upstream_error(reply.status, data)
                return Response(
                    _with_model(data, server.entry.name),
                    reply.status,
                    media_type="application/json",
                )

    async def _stream(
        self, server: ModelServer, path: str, body: dict[str, Any]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the model server's own events; while waiting, comments with the place in line."""
        try:
            async with AsyncExitStack() as stack:
                ticket = await stack.enter_async_context(server.turn())
                async for position in ticket.positions():
                    yield f": position {position}\n\n".encode()
                endpoint = await self.fleet.ready(server)
                reply = await stack.enter_async_context(ask(endpoint, "POST", path, body))
                async for line in _lines(reply):
                    yield _with_event_model(line, server.entry.name)
        except ModelUnavailable as error:
            yield _event(ApiError(503, str(error), code="model_unavailable"))
        except ApiError as error:
            yield _event(error)


async def _lines(reply: Reply) -> AsyncIterator[bytes]:
    """Yield a stream's lines, each with its end; raise ApiError when it was refused."""
    if reply.status >= 400:
        raise _upstream_error(reply.status, await reply.whole())
    pending = b""
    async for chunk in reply.chunks():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line + b"\n"
    if pending:
        yield pending


def _with_event_model(line: bytes, name: str) -> bytes:
    if not line.startswith(b"data: {"):
        return line
    return b"data: " + _with_model(line[6:], name) + b"\n"


def _with_model(data: bytes, name: str) -> bytes:
    """Return an answer that names the model as the bundle does, not by its file's path."""
    try:
        value = json.loads(data)
    except ValueError:
        return data
    if isinstance(value, dict) and "model" in value:
        value["model"] = name
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = await asyncio.to_thread(json.loads, await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"The body is not JSON: {str(error)[:200]}") from error
    if not isinstance(body, dict):
        raise ApiError(400, "The body must be a JSON object.")
    return body


def _described(server: ModelServer) -> dict[str, Any]:
    return {"id": server.entry.name, "object": "model", "created": 0, "owned_by": "bundle"}


def _event(error: ApiError) -> bytes:
    return b"data: " + bytes(error.response().body) + b"\n\n"


def _upstream_error(status: int, data: bytes) -> ApiError:
    """Return a model server's refusal as one of ours; its key troubles are not the caller's."""
    try:
        error = json.loads(data).get("error", {})
        message = (
            str(error.get("message") or error)[:1000] if isinstance(error, dict) else str(error)
        )
    except (ValueError, AttributeError):
        message = data[:300].decode("utf-8", "replace")
    if status in (401, 403) or status >= 500:
        return ApiError(502, f"The model server failed: {message}", code="model_error")
    return ApiError(status, message, code="model_error")
