"""HTTP to the model server beside us: one request, its answer as it arrives, gone when cancelled.

Written on h11, which uvicorn brings along anyway: a full client would add six packages to every
bundle for requests that never leave 127.0.0.1. Closing the connection is how a model server learns
that nobody listens any more; leaving the `async with` closes it, whatever the reason.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import h11

from bundler.station.problems import ModelUnavailable

CONNECT_SECONDS = 5.0
READ_BYTES = 64 * 1024
LARGEST_REPLY_BYTES = 64 * 2**20
"""Of a reply that is read whole: thousands of embeddings fit."""
_BROKEN_OFF = "The model stopped answering"


@dataclass(frozen=True)
class Endpoint:
    """Where a model server listens, and the key it wants."""

    port: int
    key: str = field(repr=False)
    host: str = "127.0.0.1"


@dataclass
class Reply:
    """A model server's answer: status and headers are there, the body comes."""

    status: int
    media_type: str
    _events: AsyncIterator[bytes]

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield the body as it arrives."""
        async for chunk in self._events:
            yield chunk

    async def whole(self) -> bytes:
        """Return the whole body.

        Raises ModelUnavailable when it is larger than any reply we asked for can be.
        """
        data = bytearray()
        async for chunk in self._events:
            data += chunk
            if len(data) > LARGEST_REPLY_BYTES:
                raise ModelUnavailable("The model's reply is larger than 64 MiB.")
        return bytes(data)


@asynccontextmanager
async def ask(
    endpoint: Endpoint, method: str, path: str, body: Any = None, seconds: float | None = None
) -> AsyncIterator[Reply]:
    """Send one request (`body` as JSON) and yield the reply once its headers are there.

    Without `seconds` the reply may take as long as it takes: generation on an old CPU is slow.

    Raises ModelUnavailable when the server cannot be reached, breaks off or talks nonsense.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(seconds):
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
            connection = h11.Connection(h11.CLIENT)
            writer.write(_request(connection, endpoint, method, path, body))
            await writer.drain()
            head = await _next(connection, reader)
            while isinstance(head, h11.InformationalResponse):
                head = await _next(connection, reader)
            if not isinstance(head, h11.Response):
                raise ModelUnavailable(_BROKEN_OFF)
            yield Reply(head.status_code, _media_type(head.headers), _body(connection, reader))
    except (OSError, h11.ProtocolError) as error:
        raise ModelUnavailable(f"{_BROKEN_OFF} ({error or type(error).__name__}).") from error
    finally:
        if writer is not None:
            # Not a polite close: bytes still unread must not keep the model at work.
            writer.transport.abort()


async def ask_json(
    endpoint: Endpoint, method: str, path: str, body: Any = None, seconds: float = 10.0
) -> tuple[int, Any]:
    """Return status and parsed JSON (None if it is not JSON) of one short request."""
    async with ask(endpoint, method, path, body, seconds) as reply:
        data = await reply.whole()
        try:
            return reply.status, json.loads(data)
        except ValueError:
            return reply.status, None


async def server_sent(reply: Reply) -> AsyncIterator[Mapping[str, Any]]:
    """Yield the JSON objects of a server-sent event stream until `[DONE]`.

    Raises ModelUnavailable for an event that is no JSON object.
    """
    pending = b""
    async for chunk in reply.chunks():
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield _object(data)


def _object(data: bytes) -> Mapping[str, Any]:
    try:
        value = json.loads(data)
    except ValueError as error:
        raise ModelUnavailable("The model's reply cannot be understood.") from error
    if not isinstance(value, dict):
        raise ModelUnavailable("The model's reply cannot be understood.")
    return value


def _request(
    connection: h11.Connection, endpoint: Endpoint, method: str, path: str, body: Any
) -> bytes:
    data = b"" if body is None else json.dumps(body).encode()
    headers = [
        ("Host", f"{endpoint.host}:{endpoint.port}"),
        ("Authorization", f"Bearer {endpoint.key}"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(data))),
        ("Connection", "close"),
    ]
    request = connection.send(h11.Request(method=method, target=path, headers=headers)) or b""
    payload = connection.send(h11.Data(data=data)) or b""
    return request + payload + (connection.send(h11.EndOfMessage()) or b"")


async def _next(connection: h11.Connection, reader: asyncio.StreamReader) -> Any:
    while True:
        event = connection.next_event()
        if event is not h11.NEED_DATA:
            return event
        connection.receive_data(await reader.read(READ_BYTES))


async def _body(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        event = await _next(connection, reader)
        if isinstance(event, h11.Data):
            yield bytes(event.data)
        elif isinstance(event, h11.EndOfMessage):
            return
        else:
            raise ModelUnavailable(_BROKEN_OFF + ".")


def _media_type(headers: Any) -> str:
    for name, value in headers:
        if name == b"content-type":
            return str(value.decode("latin-1"))
    return "application/octet-stream"
