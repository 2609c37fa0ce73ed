"""The wire side of the test hub: requests, ranges, and what goes wrong with them."""

from __future__ import annotations

import contextlib
import gzip
import http.server
import re
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

from bundler.testing.hub_content import Bytes, Content, blocks
from bundler.testing.hub_faults import Fault

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_PAGE = b"<!doctype html><title>Login</title><p>Accept the conditions of this network to go on.</p>"
_UNREAD_SECONDS = 0.05  # A reset throws away what the other side has not read yet: let it read.


@dataclass
class Request:
    """One request, as the log keeps it. The token itself is never kept."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]
    """All but Authorization, with lower-case names."""
    origin: str
    """Which of the hub's origins it reached."""
    authorized: bool
    """Whether it had an Authorization header."""
    status: int = 0
    bytes_sent: int = 0
    """Bytes of the body that were given to the network."""
    fault: str = "none"
    _authorization: str = field(default="", repr=False)

    @property
    def range(self) -> str:
        """The Range header, or nothing."""
        return self.headers.get("range", "")

    @property
    def start(self) -> int:
        """Where the range that was asked for begins; 0 without one."""
        match = _RANGE.match(self.range)
        return int(match[1]) if match else 0

    def token_is(self, token: str) -> bool:
        """Tell whether the request carries this token."""
        return self._authorization == f"Bearer {token}"


@dataclass(frozen=True)
class Served:
    """An answer with a body."""

    content: Content
    etag: str
    headers: Mapping[str, str] = field(default_factory=dict)
    status: int = 200
    content_type: str = "application/octet-stream"


@dataclass(frozen=True)
class Redirect:
    """An answer that leads elsewhere."""

    location: str
    headers: Mapping[str, str] = field(default_factory=dict)


Answer = Served | Redirect


class Server(http.server.ThreadingHTTPServer):
    """One origin on a free port of 127.0.0.1, running until it is closed."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(
        self,
        answer: Callable[[Request], Answer],
        fault: Callable[[str, str], Fault],
        log: list[Request],
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answer = answer
        self.fault = fault
        self.log = log
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.connections = 0
        self.failures: list[BaseException] = []
        self.closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._reset: set[socket.socket] = set()
        self._thread = threading.Thread(
            target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop, and break connections that are still open."""
        self.closing.set()
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):  # It may have gone by itself just now.
                connection.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Count the connection."""
        self.connections += 1
        self._open.add(request)
        super().process_request(request, client_address)

    def reset(self, connection: socket.socket) -> None:
        """Make the connection end with a RST when it is closed."""
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._reset.add(connection)

    def shutdown_request(self, request: Any) -> None:
        """Close a connection; one to be reset without the polite end that comes before."""
        self._open.discard(request)
        if request in self._reset:
            self._reset.discard(request)
            self.close_request(request)
        else:
            super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep failures of the hub itself; a client that went away is none."""
        error = sys.exception() if sys.version_info >= (3, 12) else sys.exc_info()[1]
        if error is not None and not isinstance(error, ConnectionError):
            self.failures.append(error)


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the log is for tests."""

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        authorization = headers.pop("authorization", "")
        request = Request(
            self.command, unquote(path), query, headers, self.server.url, bool(authorization),
            _authorization=authorization,
        )  # fmt: skip
        self.server.log.append(request)
        fault = self.server.fault(request.method, request.path)
        request.fault = fault.kind
        answer = self._with_fault(self.server.answer(request), fault)
        if isinstance(answer, Redirect):
            self._send(request, 302, {"Location": answer.location, **answer.headers}, 0, iter(()))
        else:
            self._send_content(request, answer, fault)

    def _with_fault(self, answer: Answer, fault: Fault) -> Answer:
        """Replace the answer by the one that a fault makes of it."""
        if fault.kind == "status":
            headers = {"Retry-After": fault.retry_after} if fault.retry_after else {}
            return Served(Bytes(b"busy"), "", headers, fault.status_code, "text/plain")
        if fault.kind == "captive_page":
            return Served(Bytes(_PAGE), "", content_type="text/html")
        if fault.kind == "redirect_loop":
            return Redirect(self.path)
        if fault.kind == "changed" and isinstance(answer, Served):
            other = Bytes(fault.other)
            return Served(other, f'"{other.sha256[:32]}"', answer.headers)
        return answer

    def _send_content(self, request: Request, answer: Served, fault: Fault) -> None:
        content = answer.content
        start, end, status = 0, content.size, answer.status
        headers = dict(answer.headers) | {"Content-Type": answer.content_type}
        if answer.etag:
            headers["ETag"] = answer.etag
        asked = self._range(request, answer, fault)
        if asked is not None:
            start, end = asked
            if start >= content.size:
                headers["Content-Range"] = f"bytes */{content.size}"
                self._send(request, 416, headers, 0, iter(()))
                return
            status = 206
            start = min(start + 512, end - 1) if fault.kind == "wrong_range" else start
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{content.size}"
        length: int | None = end - start
        body = blocks(content, start, end)
        if fault.kind == "gzip":
            packed = gzip.compress(content.read(start, end - start))
            headers["Content-Encoding"] = "gzip"
            length, body = len(packed), _pieces(packed)
        elif fault.kind == "lying_length":
            length = end - start + fault.after_bytes
        elif fault.kind == "endless":
            length = None
        self._send(request, status, headers, length, self._spoiled(body, start, fault))

    def _range(self, request: Request, answer: Served, fault: Fault) -> tuple[int, int] | None:
        match = _RANGE.fullmatch(request.range)
        if match is None or answer.status != 200 or fault.kind == "ignores_range":
            return None
        if request.headers.get("if-range", answer.etag) != answer.etag:
            return None
        last = int(match[2]) + 1 if match[2] else answer.content.size
        return int(match[1]), min(last, answer.content.size)

    def _spoiled(self, body: Iterator[bytes], start: int, fault: Fault) -> Iterator[bytes]:
        """Give the body as a fault makes it; faults of the connection happen here too."""
        cut = fault.kind in ("stall", "reset", "early_close")
        left = fault.after_bytes if cut else None
        for block in body:
            if fault.kind == "slow":
                self.server.closing.wait(fault.seconds)
            if fault.kind == "wrong_bytes":
                spoiled = bytearray(block)
                spoiled[-start % 4096 :: 4096] = bytes(
                    b ^ 1 for b in spoiled[-start % 4096 :: 4096]
                )
                block = bytes(spoiled)
                start += len(block)
            if left is not None:
                block = block[:left]
                left -= len(block)
            if block:
                yield block
            if left == 0:
                break
        while fault.kind == "endless" and not self.server.closing.is_set():
            yield bytes(64 << 10)
        if cut:
            self._break(fault)

    def _break(self, fault: Fault) -> None:
        self.close_connection = True
        self.wfile.flush()
        if fault.kind == "stall":
            self.server.closing.wait(fault.seconds)
        elif fault.kind == "reset":
            time.sleep(_UNREAD_SECONDS)
            self.server.reset(self.connection)

    def _send(
        self,
        request: Request,
        status: int,
        headers: Mapping[str, str],
        length: int | None,
        body: Iterator[bytes],
    ) -> None:
        request.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if length is None:
            self.close_connection = True
            self.send_header("Connection", "close")
        else:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        sent = 0
        if request.method != "HEAD":
            for block in body:
                # Counted before, so that a client which has all bytes finds them all in the log.
                sent += len(block)
                request.bytes_sent = sent
                self.wfile.write(block)
        if length is not None and sent != length:
            self.close_connection = True


def _pieces(data: bytes) -> Iterator[bytes]:
    """Cut a body into blocks, so that what was sent is counted as it goes."""
    for start in range(0, len(data), 64 << 10):
        yield data[start : start + (64 << 10)]
