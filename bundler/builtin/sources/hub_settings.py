"""What the environment says about the Hub: the variables of huggingface_hub, from `World`.

Same names and meanings as there, so who has set up `hf` has set up bundler. Its accelerated
transfer (Xet) is never used, whatever `HF_HUB_DISABLE_XET` says: it cannot be held to the checks
that ours makes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bundler.builtin.sources.connection import STALL_SECONDS, Client, origin
from bundler.errors import SourceError

# The default of huggingface_hub.constants; its ENDPOINT is read from os.environ at import.
DEFAULT_ENDPOINT = "https://huggingface.co"
_TRUE = frozenset({"1", "on", "yes", "true"})  # as huggingface_hub.constants._is_true


@dataclass(frozen=True)
class HubSettings:
    """Where the Hub is, who we are there, and what is cached of it."""

    endpoint: str
    endpoint_is_set: bool
    offline: bool
    cache: Path | None
    client: Client
    """Sends the token to the endpoint's origin only."""


def hub_settings(environment: Mapping[str, str], stall_seconds: float | None) -> HubSettings:
    """Read the settings.

    Raises:
        SourceError: HF_ENDPOINT is not an http(s) address, or the token cannot be sent.
    """
    endpoint = environment.get("HF_ENDPOINT", "").rstrip("/")
    if endpoint and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", endpoint):
        raise SourceError(f"HF_ENDPOINT is not an http(s) address: {endpoint!r}")
    home = _home(environment)
    cache = _path(environment, "HF_HUB_CACHE", home and home / "hub")
    where = endpoint or DEFAULT_ENDPOINT
    return HubSettings(
        endpoint=where,
        endpoint_is_set=bool(endpoint),
        offline=_is_true(environment, "HF_HUB_OFFLINE")
        or _is_true(environment, "TRANSFORMERS_OFFLINE"),
        cache=cache,
        client=Client(
            environment,
            stall_seconds or _seconds(environment.get("HF_HUB_DOWNLOAD_TIMEOUT", "")),
            token=_token(environment, home),
            token_origin=origin(where),
        ),
    )


def _is_true(environment: Mapping[str, str], name: str) -> bool:
    return environment.get(name, "").lower() in _TRUE


def _seconds(text: str) -> float:
    return float(text) if re.fullmatch(r"[1-9]\d{0,5}", text) else STALL_SECONDS


def _home(environment: Mapping[str, str]) -> Path | None:
    caches = environment.get("XDG_CACHE_HOME") or (
        f"{environment['HOME']}/.cache" if environment.get("HOME") else ""
    )
    return _path(environment, "HF_HOME", Path(caches) / "huggingface" if caches else None)


def _path(environment: Mapping[str, str], name: str, default: Path | None) -> Path | None:
    text = environment.get(name, "")
    if text.startswith("~/") and environment.get("HOME"):
        text = environment["HOME"] + text[1:]
    return Path(text) if text else default


def _token(environment: Mapping[str, str], home: Path | None) -> str | None:
    """Return the token of HF_TOKEN or of the file that `hf auth login` writes; None without one."""
    if _is_true(environment, "HF_HUB_DISABLE_IMPLICIT_TOKEN"):
        return None
    text = environment.get("HF_TOKEN") or environment.get("HUGGING_FACE_HUB_TOKEN") or ""
    path = _path(environment, "HF_TOKEN_PATH", home and home / "token")
    if not text.strip() and path is not None:
        try:
            text = path.read_text("utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise SourceError(
                f"the Hub's token cannot be read: {error}", where=str(path)
            ) from error
    token = text.strip()
    if not re.fullmatch(r"[\x21-\x7e]{0,4096}", token):
        raise SourceError(
            "the Hub's token holds characters that no token has",  # and is never shown
            where="HF_TOKEN",
            hint="log in again: `hf auth login`",
        )
    return token or None
