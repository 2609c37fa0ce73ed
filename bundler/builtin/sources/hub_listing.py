"""Asks the Hub what a repository is: the one place where huggingface_hub is used.

The library gives names, sizes, digests and licences. It gets a client of ours for the while of
the question: bounded in time and size, with the token for the endpoint's origin alone.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bundler.builtin.sources.connection import (
    MOST_REDIRECTS,
    PASSING_STATUS,
    connection_failed,
    error_code,
    origin,
    proxy_for,
    retry_after_seconds,
)
from bundler.builtin.sources.hub_settings import HubSettings
from bundler.errors import PassingFault, SourceError, UnsafeInput

if TYPE_CHECKING:
    import httpx2
    from huggingface_hub import DatasetInfo, ModelInfo

DATASETS = "datasets/"
"""Before the name of a data set, as in its address."""
_LISTING_BYTES = 256 << 20
"""Real listings are some kilobytes; 100,000 entries with all their fields stay under this."""
_one_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Entry:
    """One file of a repository, as it is listed."""

    name: str
    size_bytes: int
    sha256: str | None
    """Known for what is stored by content (LFS), None for small files in git."""
    git_blob: str


@dataclass(frozen=True)
class Listing:
    """One commit of a repository."""

    commit: str
    entries: tuple[Entry, ...]
    card: dict[str, Any]
    """What the model's card says of itself: licence and the like."""


def list_repository(repository: str, revision: str, settings: HubSettings) -> Listing:
    """Return what a revision of a repository holds.

    Raises:
        PassingFault: the Hub cannot be reached, or is busy.
        SourceError: it does not exist, is closed to us, or the answer makes no sense.
        UnsafeInput: the listing could do harm.
    """
    import httpx2
    import huggingface_hub

    where = f"{settings.endpoint}/{repository}"
    try:
        with _our_client(settings):
            api = huggingface_hub.HfApi(
                endpoint=settings.endpoint,
                token=settings.client.token or False,
                library_name="bundler",
            )
            is_data = repository.startswith(DATASETS)
            ask = api.dataset_info if is_data else api.model_info
            info = ask(
                repository.removeprefix(DATASETS),
                revision=revision or None,
                files_metadata=True,
                timeout=settings.client.stall_seconds,
            )
    except (huggingface_hub.errors.HfHubHTTPError, httpx2.TransportError) as error:
        raise explained(error, repository, revision, settings) from error
    except (ConnectionError, httpx2.TooManyRedirects) as error:
        raise SourceError(f"could not be asked: {error}", where=where) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"answered something that is no listing: {error}", where=where) from error
    return _checked(info, where)


def explained(
    error: Exception, repository: str, revision: str, settings: HubSettings
) -> SourceError:
    """Say in plain words what the Hub's refusal means and what helps."""
    where = f"{settings.endpoint}/{repository}"
    response: httpx2.Response | None = getattr(error, "response", None)
    if response is None:
        return connection_failed(error, where)
    status, code = response.status_code, error_code(response)
    if status in PASSING_STATUS:
        wait = retry_after_seconds(response.headers.get("retry-after", ""))
        return PassingFault(f"the Hub answered {status}", where=where, retry_after_seconds=wait)
    return refusal(status, code, repository, revision, settings)


def refusal(
    status: int, code: str, repository: str, revision: str, settings: HubSettings
) -> SourceError:
    """Return the error for an answer of the Hub which trying again will not change."""
    where = f"{settings.endpoint}/{repository}"
    known = settings.client.token is not None
    if code == "GatedRepo":
        return SourceError(
            "is gated: its owner lets only people in who have accepted the conditions",
            where=where,
            hint=f"accept them on {where}, then "
            + ("check that the token may read gated repositories" if known else _LOG_IN),
        )
    if code == "BadToken":
        return SourceError(
            "does not accept the token: it has expired, was revoked or is mistyped",
            where=settings.endpoint,
            hint="log in again with `hf auth login`, or correct HF_TOKEN",
        )
    if code == "RevisionNotFound":
        return SourceError(
            f"has no revision {revision!r}",
            where=where,
            hint=f"see {where}/commits for those it has",
        )
    if code == "EntryNotFound":
        return SourceError("has no such file at this revision any more", where=where)
    if code == "RepoNotFound" or status in (401, 404):
        return SourceError(
            "does not exist, or is private and you may not see it",
            where=where,
            hint="check the spelling of owner/name; "
            + ("the token may not reach it" if known else f"for a private one: {_LOG_IN}"),
        )
    return SourceError(f"the Hub answered {status} {code}".rstrip(), where=where)


_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN to a token"


@contextlib.contextmanager
def _our_client(settings: HubSettings) -> Iterator[None]:
    """Let huggingface_hub use a client of ours; its factory is global, hence one at a time."""
    from huggingface_hub import set_client_factory
    from huggingface_hub.utils import _http

    with _one_at_a_time:
        set_client_factory(lambda: _client(settings))
        try:
            yield
        finally:
            set_client_factory(_http.default_client_factory)


def _client(settings: HubSettings) -> httpx2.Client:
    import httpx2

    class Guarded(httpx2.HTTPTransport):
        """Looks at every request and every answer on the way."""

        def handle_request(self, request: httpx2.Request) -> httpx2.Response:
            url = str(request.url)
            if settings.endpoint.startswith("https:") and request.url.scheme != "https":
                raise httpx2.UnsupportedProtocol("redirected from https to http, which is refused")
            if origin(url) != settings.client.token_origin:
                request.headers.pop("authorization", None)
            response = super().handle_request(request)
            response.stream = _bounded(response.stream)
            return response

    return httpx2.Client(
        transport=Guarded(
            verify=settings.client.trust(),
            proxy=proxy_for(settings.endpoint, settings.client.environment),
        ),
        timeout=settings.client.stall_seconds,
        follow_redirects=True,
        max_redirects=MOST_REDIRECTS,
        trust_env=False,
    )


def _bounded(stream: Any) -> Any:
    import httpx2

    class Bounded(httpx2.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            taken = 0
            for chunk in stream:
                taken += len(chunk)
                if taken > _LISTING_BYTES:
                    raise UnsafeInput(f"the listing is longer than {_LISTING_BYTES} bytes")
                yield chunk

        def close(self) -> None:
            stream.close()

    return Bounded()


def _checked(info: ModelInfo | DatasetInfo, where: str) -> Listing:
    """Take what we need out of the answer, believing none of it."""
    if not isinstance(info.sha, str) or not re.fullmatch(r"[0-9a-f]{40}", info.sha):
        raise SourceError("does not say which commit it is", where=where)
    entries = []
    for sibling in info.siblings or []:
        sha256 = sibling.lfs.sha256 if sibling.lfs else None
        if (
            not isinstance(sibling.rfilename, str)
            or type(sibling.size) is not int
            or not 0 <= sibling.size < 1 << 50
            or not (sha256 is None or re.fullmatch(r"[0-9a-f]{64}", str(sha256)))
        ):
            raise UnsafeInput(f"lists a file that cannot be: {str(sibling)[:200]!r}", where=where)
        entries.append(Entry(sibling.rfilename, sibling.size, sha256, str(sibling.blob_id or "")))
    card: dict[str, Any] = dict(vars(info.card_data)) if info.card_data is not None else {}
    return Listing(info.sha, tuple(entries), card)
