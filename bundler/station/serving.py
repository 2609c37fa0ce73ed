"""Sockets, start and end: two listeners (page and content) and the model servers, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from anyio.to_thread import run_sync
from uvicorn.protocols.http.h11_impl import H11Protocol

from bundler.station.answering import Answerer
from bundler.station.checking import Checks
from bundler.station.configuration import Bundle
from bundler.station.content import ContentApplication
from bundler.station.fleet import Fleet
from bundler.station.guard import Guard, Origins
from bundler.station.library import Library, open_corpus
from bundler.station.page import Page
from bundler.station.problems import StationError
from bundler.station.shelf import Shelf
from bundler.station.status import CHAT_ROLES, StatusLine
from bundler.station.tiers import Picked

HEAD_SECONDS = 10.0
"""A client that has not sent its request's head by then is hung up on (slow loris)."""
LARGEST_HEAD_BYTES = 32 * 1024
MOST_CONNECTIONS = 1000
GRACE_SECONDS = 2
"""Answers in the making get this long to end when the station is ended."""


@dataclass(frozen=True)
class Listen:
    """Where to listen and under which conditions."""

    address: str = "127.0.0.1"
    port: int = 8765
    token: str = ""

    @property
    def beyond_this_machine(self) -> bool:
        return self.address != "127.0.0.1"


@dataclass(frozen=True)
class Station:
    """A station ready to serve: its applications and what they share."""

    origins: Origins
    page: Guard
    content: ContentApplication
    fleet: Fleet
    library: Library
    checks: Checks


def assemble(
    bundle: Bundle, origins: Origins, platform: str, token: str = "", picked: Picked | None = None
) -> Station:
    """Open the corpora and put the applications together; starts nothing."""
    library = Library(open_corpus(bundle.root, entry) for entry in bundle.corpora)
    fleet = Fleet(bundle, platform)
    shelf = Shelf()
    content = ContentApplication(library, shelf, origins)
    answerer = Answerer(library, fleet, fleet.first(CHAT_ROLES))
    status = StatusLine(bundle, library, fleet, picked)
    checks = Checks(bundle, fleet)
    page = Page(bundle, library, fleet, answerer, content, shelf, status, checks, token)
    guard = Guard(page.application(), origins, token)
    return Station(origins, guard, content, fleet, library, checks)


class PatientlessProtocol(H11Protocol):
    """uvicorn's HTTP/1.1 with a limit on how long a request's head may take to arrive."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing() and self._head_timer is None:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)


class _Server(uvicorn.Server):
    """A uvicorn server that leaves signals to us: there are two of them in one loop."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def listening_socket(address: str, port: int) -> socket.socket:
    """Return a socket bound to `address`; on port 0, or when `port` is taken, to a free one.

    Raises StationError when the address is not one of this machine.
    """
    for candidate in dict.fromkeys((port, 0)):
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if sys.platform != "win32":
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            one.bind((address, candidate))
            return one
        except OSError as error:
            one.close()
            if candidate == 0:
                raise StationError(
                    f"cannot listen on {address}: {error.strerror or error}",
                    hint="--listen takes an IPv4 address of this computer.",
                ) from error
    raise AssertionError("port 0 was tried")


def already_running(port: int, instance: str) -> dict[str, Any] | None:
    """Return the status of a station of the same bundle in the same place, if one is on `port`."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1.0)
    try:
        connection.request("GET", "/api/status")
        answer = json.loads(connection.getresponse().read(2**20))
        same = isinstance(answer, dict) and answer.get("instance") == instance
        return answer if same else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()


async def serve(
    bundle: Bundle, listen: Listen, platform: str, announce: Callable[[str, Station], None],
    picked: Picked | None = None,
) -> None:  # fmt: skip
    """Serve until SIGINT or SIGTERM (or until cancelled); children are gone when this returns.

    `announce` is called once with the page's address when it can be opened.
    """
    sockets = [listening_socket(listen.address, port) for port in (listen.port, 0)]
    ports = [one.getsockname()[1] for one in sockets]
    origins = Origins(ports[0], ports[1], any_address=listen.beyond_this_machine)
    station = assemble(bundle, origins, platform, listen.token, picked)
    servers = [_server(app) for app in (station.page, station.content)]
    station.fleet.start()
    checking = asyncio.create_task(_check(station.library))
    with _ended_by_signals(servers):
        try:
            running = [
                asyncio.create_task(server.serve(sockets=[one]))
                for server, one in zip(servers, sockets, strict=True)
            ]
            while not all(server.started for server in servers):
                await asyncio.sleep(0.01)
            announce(f"http://{_shown(listen.address)}:{ports[0]}/", station)
            await asyncio.gather(*running)
        finally:
            checking.cancel()
            await station.checks.cancel()
            await station.fleet.stop()
            for one in sockets:
                one.close()


def _server(app: Any) -> _Server:
    return _Server(
        uvicorn.Config(
            app, http=PatientlessProtocol, ws="none", lifespan="off", loop="asyncio",
            log_config=None, log_level="error", access_log=False, server_header=False,
            proxy_headers=False, h11_max_incomplete_event_size=LARGEST_HEAD_BYTES,
            limit_concurrency=MOST_CONNECTIONS, timeout_keep_alive=8,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )  # fmt: skip


def _shown(address: str) -> str:
    return "127.0.0.1" if address == "0.0.0.0" else address  # noqa: S104 - compared, not bound


async def _check(library: Library) -> None:
    for corpus in library.available:
        await run_sync(corpus.check, abandon_on_cancel=True)


@contextlib.contextmanager
def _ended_by_signals(servers: list[_Server]) -> Iterator[None]:
    """End the servers on SIGINT and SIGTERM; a second signal does not wait for answers."""
    loop = asyncio.get_running_loop()

    def end() -> None:
        for server in servers:
            server.force_exit = server.should_exit
            server.should_exit = True

    def received(number: int, frame: object) -> None:
        loop.call_soon_threadsafe(end)

    wanted = [signal.SIGINT, signal.SIGTERM]
    try:
        before = [(number, signal.signal(number, received)) for number in wanted]
    except ValueError:
        before = []  # Not the main thread (a test): then whoever runs us cancels the task.
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
