"""The source `shipped`: two texts that come with bundler, for recipes that name none of their own.

`shipped:calibration` guides quantization, `shipped:heldout` is what models are scored on; they
share no text. Where they come from and on which terms: `bundler/texts/README.md`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files

from bundler.errors import SourceError
from bundler.hookspecs import ByteStream
from bundler.lock import LockedFile, Resolution
from bundler.recipe import SourceReference
from bundler.world import World

TEXTS = ("calibration", "heldout")


class ShippedSource:
    """Serves the texts in `bundler/texts`."""

    name = "shipped"
    is_local = True
    """A text that another version of bundler ships makes the lock stale."""

    def resolve(self, reference: SourceReference, world: World) -> Resolution:
        """Return one text as it is in this version of bundler.

        Raises:
            SourceError: there is no such text.
        """
        data = _text(reference.locator)
        sha256 = hashlib.sha256(data).hexdigest()
        file = LockedFile(
            path=f"{reference.locator}.txt",
            size_bytes=len(data),
            sha256=sha256,
            addresses=(reference.locator,),
        )
        return Resolution(
            source=self.name,
            reference=str(reference),
            revision=sha256[:16],
            files=(file,),
            licence="LicenseRef-WordNet-3.0",
        )

    @contextmanager
    def open(
        self, address: str, *, start: int, end: int | None, validator: str | None, world: World
    ) -> Iterator[ByteStream]:
        """Give a text's bytes from `start`."""
        data = _text(address)
        yield ByteStream(start, len(data), None, iter((data[start:end],)))


def _text(name: str) -> bytes:
    if name not in TEXTS:
        raise SourceError(
            f"bundler ships no text called {name!r}", hint=f"it ships: {', '.join(TEXTS)}"
        )
    return (files("bundler") / "texts" / f"{name}.txt").read_bytes()
