"""HTTP as all our sources speak it: bounded, never decoded, and careful whom it tells what.

* Redirects are followed by hand: at most 10, never from https to http, and a token is sent to the
  host it belongs to and to no other.
* Bodies are asked for and taken as they are (`identity`), so nothing can unfold to more bytes
  than were sent.
* What may pass (`PassingFault`) is told from what will not (`SourceError`).
"""

from __future__ import annotations

import contextlib
import functools
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit
from urllib.request import proxy_bypass_environment  # type: ignore[attr-defined]

from bundler import __version__
from bundler.builtin.sources.mirrors import mirrored
from bundler.errors import PassingFault, SourceError
from bundler.hookspecs import ByteStream

if TYPE_CHECKING:
    import httpx2

STALL_SECONDS = 30.0
"""A connection on which nothing comes for so long is given up (and tried again by the core)."""
MOST_REDIRECTS = 10
# Some mirrors (Wikimedia's) answer 403 to a client that does not say who it is.
USER_AGENT = f"bundler/{__version__} (offline bundle builder)"

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)")


@dataclass(frozen=True)
class Client:
    """How to connect: settings of the environment, and a token with the one origin it is for."""

    environment: Mapping[str, str]
    stall_seconds: float = STALL_SECONDS
    token: str | None = None
    token_origin: str = ""

    @contextlib.contextmanager
    def request(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, validator: str = ""
    ) -> Iterator[httpx2.Response]:
        """Send a request, follow redirects, and give the answer with its body unread.

        `validator` (see `validator_of`) becomes `If-Range` at the host which it came from.

        Raises:
            PassingFault: the network failed, or the server says that it is busy.
            SourceError: anything else that is not a success (`Refused` tells the status).
        """
        url = mirrored(url, self.environment)
        for _ in range(MOST_REDIRECTS + 1):
            sent = {**self._headers(url, validator), **(headers or {})}
            with self._answer(method, url, sent) as answer:
                if not answer.is_redirect:
                    _check_status(answer, url)
                    yield answer
                    return
                url = redirected(url, answer.headers.get("location", ""))
        raise SourceError(f"was redirected more than {MOST_REDIRECTS} times", where=url)

    def read(self, url: str, limit_bytes: int) -> bytes:
        """Return the whole body at `url`.

        Raises SourceError when it is longer than `limit_bytes`, and as `request` does.
        """
        with self.request("GET", url) as answer:
            taken = bytearray()
            for chunk in body(answer, url):
                taken += chunk
                if len(taken) > limit_bytes:
                    raise SourceError(f"is longer than the {limit_bytes} bytes allowed", where=url)
            return bytes(taken)

    @contextlib.contextmanager
    def stream(
        self, url: str, *, start: int, end: int | None, validator: str | None
    ) -> Iterator[ByteStream]:
        """Open `url` at a byte, as `hookspecs.Source.open` wants it."""
        with contextlib.ExitStack() as stack:
            answer = None
            if start or end is not None:
                wanted = {"Range": f"bytes={start}-{'' if end is None else end - 1}"}
                answer = self._ranged(stack, url, wanted, validator or "")
            if answer is None:
                answer = stack.enter_context(self.request("GET", url))
            begins, total = placed(answer)
            yield ByteStream(begins, total, validator_of(answer), body(answer, url))

    def trust(self) -> ssl.SSLContext:
        """Return the TLS settings: the usual authorities, or those the environment names."""
        environment = self.environment
        return _trust(environment.get("SSL_CERT_FILE", ""), environment.get("SSL_CERT_DIR", ""))

    def _ranged(
        self, stack: contextlib.ExitStack, url: str, wanted: Mapping[str, str], validator: str
    ) -> httpx2.Response | None:
        """Ask for a range; None when the answer to it cannot be used."""
        attempt = contextlib.ExitStack()
        try:
            answer = attempt.enter_context(self.request("GET", url, wanted, validator))
        except RangeNotSatisfiable:
            return None
        if (
            answer.status_code == 206
            and _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "")) is None
        ):
            attempt.close()
            return None
        stack.push(attempt)
        return answer

    def _headers(self, url: str, validator: str) -> dict[str, str]:
        headers = {"User-Agent": USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity"}
        if self.token and origin(url) == self.token_origin:
            headers["Authorization"] = f"Bearer {self.token}"
        host, _, condition = validator.partition(" ")
        if condition and host == origin(url):
            headers["If-Range"] = condition
        return headers

    @contextlib.contextmanager
    def _answer(
        self, method: str, url: str, headers: Mapping[str, str]
    ) -> Iterator[httpx2.Response]:
        import httpx2

        try:
            with (
                self._transport(url) as client,
                client.stream(method, url, headers=dict(headers)) as answer,
            ):
                yield answer
        except (httpx2.InvalidURL, httpx2.UnsupportedProtocol) as error:
            raise SourceError(
                f"is not an address that can be opened: {error}", where=url
            ) from error
        except httpx2.TransportError as error:
            raise _translated(error, url) from error

    def _transport(self, url: str) -> httpx2.Client:
        import httpx2

        return httpx2.Client(
            verify=self.trust(),
            timeout=httpx2.Timeout(self.stall_seconds),
            proxy=proxy_for(url, self.environment),
            trust_env=False,
            follow_redirects=False,
        )


class RangeNotSatisfiable(SourceError):
    """The server has no such range of this file (416)."""


class Refused(SourceError):
    """The server answered with an error that trying again will not cure."""

    def __init__(self, message: str, *, where: str, status: int, code: str) -> None:
        super().__init__(message, where=where)
        self.status = status
        self.code = code
        """The Hub's own word for it: see `error_code`."""


def error_code(answer: httpx2.Response) -> str:
    """Return the Hub's own word for an error: `GatedRepo`, `RepoNotFound`, `BadToken`… or nothing."""
    if "invalid credentials" in answer.headers.get("x-error-message", "").lower():
        return "BadToken"
    code = answer.headers.get("x-error-code", "")
    return code if re.fullmatch(r"[A-Za-z]{1,40}", code) else ""


def origin(url: str) -> str:
    """Return scheme, host and port: what a token belongs to.

    >>> origin("https://Hub.Example/a?b"), origin("http://localhost:81/")
    ('https://hub.example:443', 'http://localhost:81')
    """
    try:
        split = urlsplit(url)
        port = split.port or {"http": 80, "https": 443}.get(split.scheme, 0)
    except ValueError as error:
        raise SourceError("is not an address", where=url) from error
    return f"{split.scheme}://{(split.hostname or '').lower()}:{port}"


def redirected(url: str, location: str) -> str:
    """Return where a redirect leads.

    Raises:
        SourceError: nowhere, to another kind of address, or from https to http.
    """
    if not location:
        raise SourceError("redirects without saying where to", where=url)
    target = urljoin(url, location)
    scheme = urlsplit(target).scheme
    if scheme not in ("http", "https") or (url.startswith("https:") and scheme != "https"):
        raise SourceError(
            f"redirects from {urlsplit(url).scheme} to {scheme}, which is not followed",
            where=url,
            hint="the network may want a login first, or the server is set up wrongly",
        )
    return target


def placed(answer: httpx2.Response) -> tuple[int, int | None]:
    """Return at which byte the body of an answer begins, and how long the whole file is."""
    if answer.status_code == 206:
        match = _CONTENT_RANGE.fullmatch(answer.headers["content-range"])
        if match is None:
            raise SourceError("answered a range that nobody can place", where=str(answer.url))
        return int(match[1]), None if match[3] == "*" else int(match[3])
    length = answer.headers.get("content-length", "")
    return 0, int(length) if re.fullmatch(r"\d{1,18}", length) else None


def validator_of(answer: httpx2.Response) -> str | None:
    """Return `"<origin> <strong ETag or date>"`, or None when nothing names this version.

    The origin is part of it since mirrors behind one address have ETags of their own.
    """
    etag = answer.headers.get("etag", "")
    if not re.fullmatch(r'"[\x21\x23-\x7e]*"', etag):
        etag = answer.headers.get("last-modified", "")
    return (
        f"{origin(str(answer.url))} {etag}"
        if etag.isascii() and etag.isprintable() and etag
        else None
    )


def body(answer: httpx2.Response, url: str) -> Iterator[bytes]:
    """Give the bytes of an answer as they were sent.

    Raises:
        PassingFault: the connection broke, or they are encoded although that was declined.
    """
    import httpx2

    if answer.headers.get("content-encoding", "identity").lower() != "identity":
        raise PassingFault("sends compressed bytes although plain ones were asked for", where=url)
    try:
        yield from answer.iter_raw()
    except httpx2.TransportError as error:
        raise _translated(error, url) from error


def retry_after_seconds(text: str, now: datetime | None = None) -> float | None:
    """Read a Retry-After header: seconds or an HTTP date; None when there is none that counts.

    >>> retry_after_seconds("120"), retry_after_seconds("soon")
    (120.0, None)
    """
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - (now or datetime.now(UTC))).total_seconds())


def proxy_for(url: str, environment: Mapping[str, str]) -> str | None:
    """Return the proxy which the environment names for `url`, None to connect directly."""
    lower = {k.lower(): v for k, v in sorted(environment.items()) if v}
    split = urlsplit(url)
    if proxy_bypass_environment(split.netloc.rpartition("@")[2], {"no": lower.get("no_proxy", "")}):
        return None
    return lower.get(f"{split.scheme}_proxy") or lower.get("all_proxy")


@functools.lru_cache(maxsize=8)
def _trust(file: str, folder: str) -> ssl.SSLContext:
    """Make the TLS settings once: reading the certificates takes 20 ms."""
    if file or folder:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)


def _check_status(answer: httpx2.Response, url: str) -> None:
    status = answer.status_code
    if 200 <= status < 300:
        return
    if status == 416:
        raise RangeNotSatisfiable("has no such range", where=url)
    message = f"the server answered {status} {answer.reason_phrase}".rstrip()
    if status in PASSING_STATUS:
        wait = retry_after_seconds(answer.headers.get("retry-after", ""))
        raise PassingFault(message, where=url, retry_after_seconds=wait)
    raise Refused(message, where=url, status=status, code=error_code(answer))


def _translated(error: httpx2.TransportError, url: str) -> SourceError:
    import httpx2

    if "CERTIFICATE_VERIFY_FAILED" in str(error):
        return SourceError(
            f"the server's certificate is not trusted: {error}",
            where=url,
            hint="behind a company's proxy, set SSL_CERT_FILE to its certificate",
        )
    if isinstance(error, httpx2.TimeoutException):
        return PassingFault("nothing came for too long", where=url)
    return connection_failed(error, url)


def connection_failed(error: BaseException, url: str) -> PassingFault:
    """Say that no connection came about, in plain words when the host's name was not found."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            host = urlsplit(url).hostname or url
            return PassingFault(
                f"no address is known for {host} ({cause.strerror})",
                where=url,
                hint="is this computer connected to a network?",
                unknown_host=True,
            )
        cause = cause.__cause__ or cause.__context__
    return PassingFault(f"the connection failed: {error or type(error).__name__}", where=url)
