"""Questions to this host's peer, over its Unix socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from mesh.cli.exits import one_line
from mesh.cli.settings import Settings
from mesh.wire.basics import Method
from mesh.wire.channels import CALL_TIMEOUT_S, Channels

Q = TypeVar("Q")
A = TypeVar("A")

LOOK_UP_TIMEOUT_S = 40.0
"""For what may ask the under-store, and that takes longer than a peer does."""


class HostPeer:
    """The peer on this host; made by `host_peer`."""

    def __init__(self, socket: Path, channels: Channels) -> None:
        self._address = f"unix:{socket}"
        self._channels = channels

    async def ask(
        self, method: Method[Q, A], request: Q, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> A:
        """Return the answer; raises what the peer raised, or `PeerUnavailable`."""
        return await self._channels.call(self._address, method, request, timeout_s=timeout_s)


@asynccontextmanager
async def host_peer(socket: Path) -> AsyncIterator[HostPeer]:
    """Talk to the peer behind *socket* for as long as the caller stays inside the block."""
    channels = Channels()
    try:
        yield HostPeer(socket, channels)
    finally:
        await channels.aclose()


def ask(settings: Settings, method: Method[Q, A], request: Q) -> A:
    """Return one answer of this host's peer; without one, print one line and exit with 1."""

    async def once() -> A:
        async with host_peer(settings.peer.socket) as peer:
            return await peer.ask(method, request)

    with one_line():
        return asyncio.run(once())
