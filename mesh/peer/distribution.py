"""Files that are to be on many peers by a certain time: the order, and how far it is.

a person (DISTRIBUTE)  →  the files below a path  →  WANT to each peer: swarms do the rest
a person (SHOW_ALL)    →  SHOW to each peer       →  what it has, from whom, how fast
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from mesh.blocks import FileVersion
from mesh.errors import MeshError, NotFound
from mesh.peer.care import Handler
from mesh.peer.catalog import Catalog
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.swarms import Swarms
from mesh.wire.swarm import (
    DISTRIBUTE,
    SHOW,
    SHOW_ALL,
    WANT,
    DistributeReply,
    DistributeRequest,
    ShowAllReply,
    Shown,
    ShowRequest,
    WantRequest,
)

FILES_MAX = 10_000
ASK_TIMEOUT_S = 2.0
"""A stopped peer is asked too; who ordered it does not wait for it longer than this."""
ASKED_AT_ONCE = 32


class Distribution:
    """What people order of all peers."""

    def __init__(self, catalog: Catalog, neighbors: RingNeighbors, swarms: Swarms) -> None:
        self._catalog = catalog
        self._neighbors = neighbors
        self._swarms = swarms
        self._asking = asyncio.Semaphore(ASKED_AT_ONCE)

    def handlers(self) -> list[Handler]:
        return [(DISTRIBUTE, self.distribute, True), (SHOW_ALL, self.show_all, True)]

    async def distribute(self, request: DistributeRequest) -> DistributeReply:
        """Have peers bring a file, or all files of a directory; they go on by themselves.

        Raises `NotFound` for a path that is nothing, a peer that is none, and too many files.
        """
        here = [member.name for member in self._neighbors.view.here]
        for name in request.peers:
            if name not in here:
                raise NotFound(
                    f"{name}: no such peer, or it is away; the peers are: {', '.join(here)}"
                )
        peers = request.peers or tuple(here)
        files = [file async for file in self._files(request.path)]
        if request.is_plan:
            return DistributeReply(tuple(files), peers)
        answers = await asyncio.gather(*(self._want(peer, files) for peer in peers))
        return DistributeReply(tuple(files), peers, tuple(filter(None, answers)))

    async def _files(self, path: str) -> AsyncIterator[FileVersion]:
        count, left = 0, [path]
        while left:
            path = left.pop()
            found = await self._catalog.stat(path)
            if found.file is not None:
                count += 1
                if count > FILES_MAX:
                    raise NotFound(f"{path}: more than {FILES_MAX} files; name fewer")
                yield found.file
                continue
            async for page in self._catalog.scan(path):
                left += [f"{path}/{entry.name}".lstrip("/") for entry in page]

    async def _want(self, peer: str, files: list[FileVersion]) -> str:
        """Return why a peer was not told; "" if it was."""
        request = WantRequest(tuple(files))
        try:
            if self._neighbors.is_me(peer):
                await self._swarms.want(request)
            else:
                async with self._asking:
                    await self._neighbors.ask(peer, WANT, request, timeout_s=ASK_TIMEOUT_S)
        except MeshError as error:
            return f"{peer}: {error}"
        return ""

    async def show_all(self, request: ShowRequest) -> ShowAllReply:
        """Ask all peers that are there what they have of files, and from whom."""
        names = [member.name for member in self._neighbors.view.here]
        return ShowAllReply(tuple(await asyncio.gather(*(self._show(n, request) for n in names))))

    async def _show(self, peer: str, request: ShowRequest) -> Shown:
        try:
            if self._neighbors.is_me(peer):
                return Shown(peer, await self._swarms.show(request))
            async with self._asking:
                reply = await self._neighbors.ask(peer, SHOW, request, timeout_s=ASK_TIMEOUT_S)
            return Shown(peer, reply)
        except MeshError as error:
            return Shown(peer, reason=str(error))
