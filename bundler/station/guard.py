"""Who may ask, and how much: the first thing every request of the page origin meets.

* Host: only names of this machine. A page elsewhere that points its own name at 127.0.0.1 (DNS
  rebinding) is told 421.
* Origin and Sec-Fetch-Site: whatever changes something, and the whole of `/api` and `/v1`, only for
  our own page or for programs that are no browsers (they send neither header).
* Bodies: JSON only, of limited size, within limited time.
* With a token (only when listening beyond this machine): on every request.

No answer ever carries `Access-Control-Allow-Origin`.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import secrets
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LARGEST_BODY_BYTES = 4 * 2**20
"""A million tokens of English are about 4 MB; nothing a model here could take is larger."""
BODY_SECONDS = 30.0
DRAIN_SECONDS = 2.0
MOST_DRAINED_BYTES = 32 * 2**20
COOKIE = "station"
_LOOPBACK = ("127.0.0.1", "localhost")


@dataclass(frozen=True)
class Origins:
    """The addresses under which page and content are reached."""

    page_port: int
    content_port: int
    any_address: bool = False
    """Whether other machines may come (then a token is asked for, and any IP address is a Host)."""

    def is_page_host(self, host: str) -> bool:
        return self._is_host(host, self.page_port)

    def is_content_host(self, host: str) -> bool:
        return self._is_host(host, self.content_port)

    def page_origins(self, host: str) -> list[str]:
        """Return the page origins that may frame content asked for under `host`."""
        names = dict.fromkeys((_name(host), *_LOOPBACK)) if host else _LOOPBACK
        return [f"http://{name}:{self.page_port}" for name in names if self._is_name(name)]

    def content_origin(self, host: str) -> str:
        """Return the content origin that belongs to a page reached under `host`."""
        return f"http://{_name(host)}:{self.content_port}"

    def _is_host(self, host: str, port: int) -> bool:
        name, _, given = host.rpartition(":")
        return given == str(port) and self._is_name(name)

    def _is_name(self, name: str) -> bool:
        if name in _LOOPBACK:
            return True
        if not self.any_address:
            return False
        # An address cannot be rebound to another machine; a name can, so names stay refused.
        try:
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
        except ValueError:
            return False
        return True


def _name(host: str) -> str:
    return host.rpartition(":")[0]


def plain_answer(
    status: int, text: str, headers: Mapping[str, str] | None = None, path: str = ""
) -> Response:
    """Return a refusal: in OpenAI's form on `/v1`, as JSON on `/api`, else as text."""
    if path.startswith("/v1"):
        kind = "invalid_request_error" if status < 500 else "server_error"
        error = {"message": text, "type": kind, "param": None, "code": None}
        return JSONResponse({"error": error}, status, headers)
    if path.startswith("/api"):
        return JSONResponse({"error": text}, status, headers)
    return Response(text + "\n", status, headers, media_type="text/plain; charset=utf-8")


class BodyTooLarge(Exception):
    """A body grew beyond the limit while it was read."""


class BodyTooSlow(Exception):
    """A body did not arrive in time."""


@dataclass(frozen=True)
class Guard:
    """Wraps the page application; an ASGI application itself."""

    app: ASGIApp
    origins: Origins
    token: str = ""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        sending = self._with_headers(send, headers)
        answer = self._refusal(scope, headers)
        if answer is None:
            answer = await self._let_in(scope, receive, sending)
        if answer is not None:
            if answer.status_code == 413:
                await _drain(receive)
            await answer(scope, receive, sending)

    async def _let_in(self, scope: Scope, receive: Receive, sending: _Sending) -> Response | None:
        """Run the application; return what to answer instead when it could not."""
        path = scope["path"]
        try:
            await self.app(scope, _Body(receive).receive, sending)
        except BodyTooLarge:
            return _too_large(path)
        except BodyTooSlow:
            return plain_answer(408, "The request took too long to arrive.", _CLOSE, path)
        except ClientDisconnect:
            return None  # Nobody is left to be told anything.
        except Exception:  # noqa: BLE001 - the last catcher: one broken answer must not be more
            traceback.print_exc()
            if not sending.started:
                text = "Something went wrong in the station. Other pages still work."
                return plain_answer(500, text, _CLOSE, path)
        return None

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        path, method = scope["path"], scope["method"]
        host = headers.getlist("host")
        if len(host) != 1 or not self.origins.is_page_host(host[0]):
            text = "This address is not served here. Open the one the station printed."
            return plain_answer(421, text, _CLOSE, path)
        if not self._same_site(path, method, headers, host[0]):
            return plain_answer(403, "Refused: this request comes from another site.", _CLOSE, path)
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length[:20]) > LARGEST_BODY_BYTES:
            return _too_large(path)
        if method == "POST" and not _is_json(headers):
            return plain_answer(415, "Send JSON (Content-Type: application/json).", _CLOSE, path)
        if self.token and not self._signed_in(headers) and not _is_open(path, method):
            return self._sign_in_needed(path)
        return None

    def _same_site(self, path: str, method: str, headers: Headers, host: str) -> bool:
        origin = headers.get("origin")
        if origin is not None and origin != f"http://{host}":
            return False
        site = headers.get("sec-fetch-site", "none")
        if site in ("none", "same-origin"):
            return True
        # A link from another page may open ours; nothing else of another site is answered.
        reads = method in ("GET", "HEAD") and not path.startswith(("/api", "/v1"))
        return reads and headers.get("sec-fetch-mode") == "navigate"

    def _signed_in(self, headers: Headers) -> bool:
        given = headers.get("authorization", "")
        if given.startswith("Bearer ") and _equal(given[7:], self.token):
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and _equal(cookie.value, cookie_value(self.token))

    def _sign_in_needed(self, path: str) -> Response:
        if path.startswith(("/api", "/v1")):
            return plain_answer(401, "A token is needed.", {"WWW-Authenticate": "Bearer"}, path)
        return Response(status_code=303, headers={"Location": "/sign-in"})

    def _with_headers(self, send: Send, headers: Headers) -> _Sending:
        host = headers.get("host", "")
        content = self.origins.content_origin(host) if self.origins.is_page_host(host) else "'none'"
        return _Sending(send, page_headers(content))


class _Sending:
    """Sends on, with the page origin's headers added to every answer."""

    def __init__(self, send: Send, headers: Mapping[str, str]) -> None:
        self._send, self._headers = send, headers
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            outgoing = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                outgoing[name] = value
            outgoing.setdefault("Cache-Control", "no-store")
        await self._send(message)


def page_headers(content_origin: str) -> dict[str, str]:
    """Return the headers that every answer of the page origin carries."""
    policy = (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
        f"connect-src 'self'; frame-src {content_origin}; base-uri 'none'; form-action 'self'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types station"
    )
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "X-DNS-Prefetch-Control": "off",
        "Permissions-Policy": (
            "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()"
        ),
    }


def cookie_value(token: str) -> str:
    """Return what the cookie holds: derived from the token, so that it need not hold the token."""
    return hashlib.sha256(f"station cookie {token}".encode()).hexdigest()


class _Body:
    """Counts and times the body while the application reads it."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0
        self._whole = False
        self._deadline = asyncio.get_running_loop().time() + BODY_SECONDS

    async def receive(self) -> Message:
        if self._whole:
            return await self._receive()  # Waits for the client to go: no limit on that.
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise BodyTooSlow from error
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > LARGEST_BODY_BYTES:
            raise BodyTooLarge
        return message


async def _drain(receive: Receive) -> None:
    """Throw away what a client is still sending, up to a limit, so that it can hear our answer.

    Closing with bytes unread resets the connection, and the answer is lost with it.
    """
    drained = 0
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            while drained < MOST_DRAINED_BYTES:
                message = await receive()
                drained += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return
    except TimeoutError:
        return


_CLOSE = {"Connection": "close"}


def _too_large(path: str) -> Response:
    text = f"Too large: at most {LARGEST_BODY_BYTES // 2**20} MiB are taken."
    return plain_answer(413, text, _CLOSE, path)


def _is_json(headers: Headers) -> bool:
    return headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json"


def _is_open(path: str, method: str) -> bool:
    """Whether a path is needed to sign in at all."""
    return path == "/sign-in" or (path.startswith("/static/") and method in ("GET", "HEAD"))


def _equal(one: str, other: str) -> bool:
    return secrets.compare_digest(one.encode(), other.encode())
