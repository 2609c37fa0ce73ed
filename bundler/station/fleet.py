"""All model servers of a bundle: resident ones run from the start, on-demand ones take turns."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from bundler.station.configuration import Bundle
from bundler.station.models import ModelServer
from bundler.station.relay import Endpoint


class Fleet:
    """The model servers by name."""

    def __init__(self, bundle: Bundle, platform: str) -> None:
        self.servers = {entry.name: ModelServer(entry, bundle, platform) for entry in bundle.models}
        self._turn = asyncio.Lock()

    def first(self, roles: Iterable[str]) -> ModelServer | None:
        """Return the first model with one of `roles`, in the order the roles are given."""
        for role in roles:
            for server in self.servers.values():
                if server.entry.role == role:
                    return server
        return None

    def start(self) -> None:
        """Start every resident model; returns at once."""
        for server in self.servers.values():
            if server.entry.residency == "resident":
                server.start()

    async def ready(self, server: ModelServer) -> Endpoint:
        """Return where a model listens; an on-demand one takes the place of the one before it.

        Raises ModelUnavailable when it does not come up.
        """
        if server.entry.residency == "on-demand":
            async with self._turn:
                if server.state in ("waiting", "stopped"):
                    await self._make_room(server)
                    server.start()
        return await server.ready()

    async def stop(self) -> None:
        """End all servers; their processes are gone when this returns."""
        await asyncio.gather(*(server.stop() for server in self.servers.values()))

    async def _make_room(self, wanted: ModelServer) -> None:
        for other in self.servers.values():
            if other is wanted or other.entry.residency != "on-demand":
                continue
            if other.state in ("starting", "ready"):
                await other.slots.idle()
                await other.stop()
