"""What is done to names at once: remove, make a directory, rename, change the mode.

The under-store does it first, and then the owners of the directories know. So whoever is
told no has changed nothing, and whoever is told yes is believed everywhere.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace

from mesh.blocks import (
    Attributes,
    token_of,
    written_tag,
)
from mesh.errors import (
    Elsewhere,
    Exists,
    IsADirectory,
    NotADirectory,
    NotFound,
    Refused,
)
from mesh.paths import spot_of
from mesh.peer.announcer import Announcer
from mesh.peer.catalog import Catalog
from mesh.peer.turns import Turns
from mesh.peer.writer import writable_place
from mesh.understore.table import MountTable, plain
from mesh.wire.messages import Kept, StatReply
from mesh.wire.writes import (
    AlterReply,
    AlterRequest,
    Verb,
)


class Alterations:
    """The names that mounts of this host make, remove and change."""

    def __init__(
        self,
        table: MountTable,
        catalog: Catalog,
        announcer: Announcer,
        turns: Turns,
    ) -> None:
        self._turns = turns
        self._table = table
        self._catalog = catalog
        self._announcer = announcer
        self._verbs: dict[Verb, Callable[[AlterRequest], Awaitable[AlterReply]]] = {
            Verb.REMOVE: self._remove,
            Verb.MAKE_DIRECTORY: self._make_directory,
            Verb.REMOVE_DIRECTORY: self._remove_directory,
            Verb.RENAME: self._rename,
            Verb.SET_MODE: self._set_mode,
        }

    async def alter(self, request: AlterRequest) -> AlterReply:
        """Do it; raises what a POSIX caller is to hear, with everything as it was."""
        path, target = plain(request.path), plain(request.target)
        for each in (path, target):
            if self._table.names_below(each) and each:
                raise Refused(f"{each}: a mount lies below it")
        return await self._verbs[request.verb](replace(request, path=path, target=target))

    async def _remove(self, request: AlterRequest) -> AlterReply:
        place = writable_place(self._table, request.path)
        async with self._turns.of(request.path):
            await place.store.remove(place.path)
            await self._announcer.announce(Kept(request.path, None, 0.0))
        return AlterReply()

    async def _make_directory(self, request: AlterRequest) -> AlterReply:
        place = writable_place(self._table, request.path)
        if await self._found(request.path) is not None:
            raise Exists(f"{request.path}: exists")
        await place.store.make_directory(place.path, mode=request.mode or None)
        return AlterReply(await self._now_there(request.path))

    async def _remove_directory(self, request: AlterRequest) -> AlterReply:
        place = writable_place(self._table, request.path)
        await place.store.remove_directory(place.path)
        await self._announcer.announce(Kept(request.path, None, 0.0))
        await self._announcer.announce_tree(request.path)
        return AlterReply()

    async def _rename(self, request: AlterRequest) -> AlterReply:
        if request.path == request.target:
            return AlterReply(await self._catalog.stat(request.path))
        async with self._turns.of(request.path, request.target):
            return await self._renamed(request)

    async def _renamed(self, request: AlterRequest) -> AlterReply:
        path, target = request.path, request.target
        place, there = (writable_place(self._table, each) for each in (path, target))
        if place.settings.url != there.settings.url:
            raise Elsewhere(f"{path} and {target} lie in different under-stores")
        about = (await self._catalog.stat(path)).attributes
        if f"{target}/".startswith(f"{path}/"):
            raise Refused(f"{target}: lies in {path}")
        replaced = await self._found(target)
        if replaced is not None:
            self._check_replaced(request, about, replaced)
            if replaced.is_directory:
                await there.store.remove_directory(there.path)
        over = None if replaced is not None else ""
        moved = await place.store.move(place.path, there.path, over=over)
        if about.is_directory:
            await self._announcer.announce(Kept(path, None, 0.0), Kept(target, moved, 0.0))
            await self._announcer.announce_tree(path, target)
        else:
            # The same content: what is cached of it stays.
            token = token_of(about.tag) or secrets.token_hex(12)
            moved = replace(moved, tag=written_tag(token, moved.tag))
            await self._announcer.announce(Kept(path, None, 0.0), Kept(target, moved, 0.0))
        return AlterReply(self._reply(target, moved))

    def _check_replaced(
        self, request: AlterRequest, about: Attributes, replaced: Attributes
    ) -> None:
        target = request.target
        if request.is_exclusive:
            raise Exists(f"{target}: exists")
        if replaced.is_directory and not about.is_directory:
            raise IsADirectory(f"{target}: is a directory")
        if about.is_directory and not replaced.is_directory:
            raise NotADirectory(f"{target}: is no directory")

    async def _set_mode(self, request: AlterRequest) -> AlterReply:
        place = writable_place(self._table, request.path)
        if not await place.store.set_mode(place.path, request.mode):
            return AlterReply()
        about = (await self._catalog.stat(request.path)).attributes
        now = replace(about, mode=request.mode)
        await self._announcer.announce(Kept(request.path, now, 0.0))
        return AlterReply(self._reply(request.path, now), is_mode_kept=True)

    async def _found(self, path: str) -> Attributes | None:
        try:
            return (await self._catalog.stat(path)).attributes
        except NotFound:
            return None

    async def _now_there(self, path: str) -> StatReply:
        place = self._table.place(path)
        about = await place.store.stat(place.path)
        await self._announcer.announce(Kept(path, about, 0.0))
        return self._reply(path, about)

    def _reply(self, path: str, about: Attributes) -> StatReply:
        spot = spot_of(self._table, path)
        return spot.reply(about, known_s=0.0, fresh_s=spot.place.settings.max_age_s)
