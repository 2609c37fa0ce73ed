"""A fair queue in front of a model: so many answers at once, the rest wait and know their place."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from bundler.station.problems import ModelUnavailable

LONGEST_QUEUE = 500
"""Beyond this a newcomer is told to come back; 200 waiting clients are within it."""


class Ticket:
    """A place in line; `position` is how many are ahead or at the model's door, 0 when it is one's turn."""

    def __init__(self) -> None:
        self.position = 0
        self._moved = asyncio.Event()

    def move(self, position: int) -> None:
        """Tell the holder the new place."""
        if position != self.position:
            self.position = position
            self._moved.set()

    async def positions(self) -> AsyncIterator[int]:
        """Yield the place in line whenever it changes, until it is one's turn."""
        while self.position:
            self._moved.clear()
            yield self.position
            if self.position:
                await self._moved.wait()


class Slots:
    """`count` places; everybody else stands in one line, first come first served."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._inside: set[Ticket] = set()
        self._line: deque[Ticket] = deque()
        self._left = asyncio.Event()

    @property
    def busy(self) -> int:
        return len(self._inside)

    @property
    def waiting(self) -> int:
        return len(self._line)

    @asynccontextmanager
    async def ticket(self) -> AsyncIterator[Ticket]:
        """Stand in line; leaving the block gives up the place in line or at the model.

        Raises ModelUnavailable when the line is too long.
        """
        if len(self._line) >= LONGEST_QUEUE:
            raise ModelUnavailable("Too many questions at once. Try again in a minute.")
        ticket = Ticket()
        self._line.append(ticket)
        self._advance()
        try:
            yield ticket
        finally:
            self._inside.discard(ticket)
            if ticket in self._line:
                self._line.remove(ticket)
            self._advance()

    async def idle(self) -> None:
        """Return when nobody is at the model."""
        while self._inside:
            self._left.clear()
            await self._left.wait()

    def _advance(self) -> None:
        self._left.set()
        while self._line and len(self._inside) < self.count:
            ticket = self._line.popleft()
            self._inside.add(ticket)
            ticket.move(0)
        for position, ticket in enumerate(self._line, 1):
            ticket.move(position)
