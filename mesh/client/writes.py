"""Files that this host writes, and names that it makes, removes and changes."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog

from mesh.client.draft import Draft
from mesh.client.file import MeshFile
from mesh.clock import Clock
from mesh.errors import MeshError, PeerUnavailable, StoreFull
from mesh.store.drafts import make_draft, new_token
from mesh.wire.basics import Method
from mesh.wire.local import LocalChannel
from mesh.wire.messages import StatReply
from mesh.wire.writes import (
    ALTER,
    GROW,
    PUBLISH,
    RETIRE,
    AlterReply,
    AlterRequest,
    GrowRequest,
    PublishRequest,
    RetireRequest,
)

log = structlog.get_logger()

Q = TypeVar("Q")
A = TypeVar("A")

PUBLISH_TIMEOUT_S = 6 * 3600.0
"""Enough for 10 TB at 500 MB/s; a peer that stops shows much sooner."""

ALTER_TIMEOUT_S = 600.0
"""A directory of an object store is renamed by copying what is below it."""

CALL_TIMEOUT_S = 30.0
PEER_WAIT_S = 30.0
"""For so long a writer waits for the own peer to come back."""

PAUSE_S = 0.1


class Writes:
    """What this host changes in the mesh; it all goes through its own peer."""

    def __init__(
        self, own: LocalChannel, directory: Path, threads: ThreadPoolExecutor, clock: Clock
    ) -> None:
        """Make drafts under *directory*, the store of the own peer."""
        self.threads = threads
        self._own = own
        self._directory = directory
        self._clock = clock

    async def draft(
        self,
        path: str,
        *,
        over: str = "",
        base: MeshFile | None = None,
        mode: int = 0,
        is_exclusive: bool = False,
    ) -> Draft:
        """Begin to write *path*, over the content of the tag *over*.

        What *base* reads is what it holds, until it is written to. With *is_exclusive* it
        can't be published once somebody else has made the file.
        """
        token, fd = await self.make()
        return Draft(
            self, fd, token, path, over=over, base=base, mode=mode, is_exclusive=is_exclusive
        )

    async def make(self) -> tuple[str, int]:
        """Make a file for a draft; return its token and its descriptor."""
        token = new_token()
        try:
            loop = asyncio.get_running_loop()
            fd = await loop.run_in_executor(self.threads, make_draft, self._directory, token)
        except OSError as error:
            raise StoreFull(f"store.directory: {error.strerror}") from error
        return token, fd

    async def alter(self, request: AlterRequest) -> AlterReply:
        """Do something to a name; raises what the caller is to hear."""
        again = replace(request, is_again=True)
        return await self._call(ALTER, request, timeout_s=ALTER_TIMEOUT_S, again=again)

    async def grow(self, request: GrowRequest) -> None:
        await self._own.call(GROW, request, timeout_s=CALL_TIMEOUT_S)

    async def publish(self, request: PublishRequest) -> StatReply:
        again = replace(request, is_again=True)
        return await self._call(PUBLISH, request, timeout_s=PUBLISH_TIMEOUT_S, again=again)

    async def retire(self, token: str, *, is_published: bool) -> None:
        """Let a draft go; one that can't be told to the own peer is swept up by it."""
        try:
            request = RetireRequest(token, is_published)
            await self._own.call(RETIRE, request, timeout_s=CALL_TIMEOUT_S)
        except MeshError as error:
            log.info("draft left behind", draft=token, reason=str(error))

    async def _call(
        self,
        method: Method[Q, A],
        request: Q,
        *,
        timeout_s: float,
        again: Q,
    ) -> A:
        """Ask the own peer, and wait for it if it is away, but not for ever.

        It is asked *again* with that.
        """
        deadline_s = self._clock() + PEER_WAIT_S
        is_told = False
        while True:
            asked_s = self._clock()
            try:
                return await self._own.call(method, request, timeout_s=timeout_s)
            except PeerUnavailable as error:
                if asked_s > deadline_s:
                    raise
                if not is_told:
                    log.warning("write waits", method=method.name, reason=str(error))
                    is_told = True
            request = again
            await asyncio.sleep(PAUSE_S)
