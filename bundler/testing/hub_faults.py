"""The ways in which the test hub misbehaves, each as one value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal[
    "none", "stall", "reset", "early_close", "wrong_bytes", "changed", "ignores_range",
    "wrong_range", "status", "captive_page", "redirect_loop", "endless", "lying_length", "gzip",
    "slow",
]  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request. Make it with one of the functions of the class."""

    kind: Kind
    after_bytes: int = 0
    seconds: float = 0.0
    status_code: int = 500
    retry_after: str = ""
    other: bytes = b""

    @classmethod
    def none(cls) -> Fault:
        """Nothing goes wrong: to let requests pass before a fault."""
        return cls("none")

    @classmethod
    def stall(cls, after_bytes: int = 0, seconds: float = 3600.0) -> Fault:
        """Send so many bytes of the body, then nothing, and close after `seconds`."""
        return cls("stall", after_bytes=after_bytes, seconds=seconds)

    @classmethod
    def reset(cls, after_bytes: int = 0) -> Fault:
        """Send so many bytes of the body, then break the connection with a TCP RST."""
        return cls("reset", after_bytes=after_bytes)

    @classmethod
    def early_close(cls, after_bytes: int = 0) -> Fault:
        """Promise the whole body, send so many bytes of it and close the connection politely."""
        return cls("early_close", after_bytes=after_bytes)

    @classmethod
    def wrong_bytes(cls) -> Fault:
        """Send a body of the right size in which every 4096th byte is another one."""
        return cls("wrong_bytes")

    @classmethod
    def changed(cls, other: bytes) -> Fault:
        """Serve other content under another ETag, as after an upload in the meantime."""
        return cls("changed", other=other)

    @classmethod
    def ignores_range(cls) -> Fault:
        """Answer 200 with the whole body, whatever range was asked for."""
        return cls("ignores_range")

    @classmethod
    def wrong_range(cls) -> Fault:
        """Answer a range with 206 and bytes that begin 512 bytes later than asked for."""
        return cls("wrong_range")

    @classmethod
    def status(cls, code: int, retry_after: str = "") -> Fault:
        """Answer with an error, and with Retry-After (seconds or a date) when given."""
        return cls("status", status_code=code, retry_after=retry_after)

    @classmethod
    def captive_page(cls) -> Fault:
        """Answer 200 with a login page, as hotel and airport networks do."""
        return cls("captive_page")

    @classmethod
    def redirect_loop(cls) -> Fault:
        """Redirect to the same address."""
        return cls("redirect_loop")

    @classmethod
    def endless(cls) -> Fault:
        """Send the body without a length and go on with zeros for ever."""
        return cls("endless")

    @classmethod
    def lying_length(cls, other: int) -> Fault:
        """Claim a Content-Length that differs from the truth by `other` bytes."""
        return cls("lying_length", after_bytes=other)

    @classmethod
    def gzip(cls) -> Fault:
        """Send the body compressed although that was declined."""
        return cls("gzip")

    @classmethod
    def slow(cls, seconds: float) -> Fault:
        """Wait so long before each 64 KiB."""
        return cls("slow", seconds=seconds)
