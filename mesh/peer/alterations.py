"""What is done to names at once: remove, make a directory, rename, change the mode.

The under-store does it first, and then the owners of the directories know. So whoever is
told no has changed nothing, and whoever is told yes is believed everywhere. What only peers
have yet changes its name with them, and the under-store is not asked. While it is away a
writer waits, as long as for a file that is closed.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace

from mesh.blocks import (
    WRITTEN,
    Attributes,
    holders_of,
    identity_of,
    is_staged,
    token_of,
    under_store_tag,
    written_tag,
)
from mesh.clock import Clock, monotonic_s
from mesh.errors import (
    Elsewhere,
    Exists,
    IsADirectory,
    NotADirectory,
    NotEmpty,
    NotFound,
    Refused,
    Unavailable,
    UnderStoreUnavailable,
)
from mesh.paths import spot_of
from mesh.peer.announcer import Announcer
from mesh.peer.catalog import Catalog
from mesh.peer.overlay import FORMERS_MAX
from mesh.peer.turns import Turns
from mesh.peer.uploads import UNKNOWN, Uploads
from mesh.peer.writer import PAUSE_MAX_S, PAUSE_S, PUBLISH_S, writable_place
from mesh.understore.table import MountTable, Place, plain
from mesh.wire.messages import Kept, StatReply
from mesh.wire.staged import AssertReply, FlushRequest, RetargetRequest, StagedFile
from mesh.wire.writes import AlterReply, AlterRequest, Verb

FLUSH_S = 300.0


class Alterations:
    """The names that mounts of this host make, remove and change."""

    def __init__(
        self,
        table: MountTable,
        catalog: Catalog,
        announcer: Announcer,
        uploads: Uploads,
        turns: Turns,
        clock: Clock = monotonic_s,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._turns = turns
        self._uploads = uploads
        self._table = table
        self._catalog = catalog
        self._announcer = announcer
        self._verbs: dict[Verb, Callable[..., Awaitable[AlterReply]]] = {
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
        request = replace(request, path=path, target=target)
        deadline_s, pause_s, is_again = self._clock() + PUBLISH_S, PAUSE_S, request.is_again
        while True:
            try:
                return await self._verbs[request.verb](request, is_again=is_again)
            except UnderStoreUnavailable:
                if self._clock() + pause_s > deadline_s:
                    raise
            is_again = True  # the answer may have been lost, and not the question
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    async def _remove(self, request: AlterRequest, *, is_again: bool) -> AlterReply:
        path = request.path
        place = writable_place(self._table, path)
        async with self._turns.of(path):
            try:
                about = (await self._catalog.stat(path)).attributes
                if not is_staged(about.tag) or not await self._remove_staged(path, about):
                    await place.store.remove(place.path)
            except NotFound:
                if not is_again:
                    raise
            await self._announcer.announce(Kept(path, None, 0.0))
        return AlterReply()

    async def _remove_staged(self, path: str, about: Attributes) -> bool:
        """Have nobody persist a staged file any more; False when it is persisted already.

        First goes what it would have replaced, then the word of it: so that whatever ends in
        between, nobody sees that again.
        """
        claimed = await self._claimed(path, about)
        if claimed is None:
            return False
        await self._remove_below(path, claimed.over)
        await self._announcer.announce(Kept(path, None, 0.0))
        await self._let_go(path, about)
        return True

    async def _claimed(self, path: str, about: Attributes) -> AssertReply | None:
        """Return what owners know of a staged file; None once it is persisted.

        Raises `NotFound` when it went elsewhere.
        """
        reply = await self._announcer.claim(staged_file(path, about))
        if reply.path:
            raise NotFound(f"{path}: is {reply.path} now")
        return None if reply.is_ended else reply

    async def _let_go(self, path: str, about: Attributes) -> None:
        """Tell the holders of a file that is seen no more; those who don't hear it ask."""
        over = RetargetRequest(token_of(about.tag), is_over=True)
        held = await self._uploads.retarget(holders_of(about.tag), over, is_patient=False)
        if held == UNKNOWN:
            await self._remove_below(path, held)

    async def _remove_below(self, path: str, over: str) -> None:
        """Remove what a staged file was to replace; nothing if *over* is ""."""
        if over:
            place = self._table.place(path)
            with suppress(NotFound):
                await place.store.remove(place.path)

    async def _make_directory(self, request: AlterRequest, *, is_again: bool) -> AlterReply:
        place = writable_place(self._table, request.path)
        found = await self._found(request.path)
        if found is not None:
            if is_again and found.is_directory:
                return AlterReply(await self._now_there(request.path))
            raise Exists(f"{request.path}: exists")
        await place.store.make_directory(place.path, mode=request.mode or None)
        return AlterReply(await self._now_there(request.path))

    async def _remove_directory(self, request: AlterRequest, *, is_again: bool) -> AlterReply:
        place = writable_place(self._table, request.path)
        try:
            async for page in self._catalog.scan(request.path):
                if page:
                    raise NotEmpty(f"{request.path}: is not empty")
            await place.store.remove_directory(place.path)
        except NotFound:
            if not is_again:
                raise
        await self._announcer.announce(Kept(request.path, None, 0.0))
        await self._announcer.announce_tree(request.path)
        return AlterReply()

    async def _rename(self, request: AlterRequest, *, is_again: bool) -> AlterReply:
        if request.path == request.target:
            return AlterReply(await self._catalog.stat(request.path))
        async with self._turns.of(request.path, request.target):
            try:
                return await self._renamed(request, is_again=is_again)
            except NotFound:
                found = await self._done_before(request) if is_again else None
                if found is None:
                    raise
                return AlterReply(found)

    async def _done_before(self, request: AlterRequest) -> StatReply | None:
        """Return what is at the target of a rename if that is what was to be renamed.

        Nobody may have heard of it.
        """
        found = await self._found(request.target)
        if found is None or not _is_that(found, request):
            with suppress(NotFound):
                found = (await self._catalog.stat(request.target, refresh=True)).attributes
            if found is None or not _is_that(found, request):
                return None
        await self._announcer.announce(Kept(request.path, None, 0.0))
        return self._reply(request.target, found)

    async def _renamed(
        self, request: AlterRequest, *, is_again: bool, refresh: bool = False
    ) -> AlterReply:
        path, target = request.path, request.target
        place, there = (writable_place(self._table, each) for each in (path, target))
        if place.settings.url != there.settings.url:
            raise Elsewhere(f"{path} and {target} lie in different under-stores")
        about = (await self._catalog.stat(path, refresh=refresh)).attributes
        if f"{target}/".startswith(f"{path}/"):
            raise Refused(f"{target}: lies in {path}")
        replaced = await self._found(target)
        if replaced is not None:
            self._check_replaced(request, about, replaced)
            if replaced.is_directory:
                await there.store.remove_directory(there.path)
        if is_staged(about.tag):
            reply = await self._rename_staged(request, place, about, replaced)
            if reply is not None:
                return reply
            if refresh:
                raise Unavailable(f"{path}: is persisted this very moment")
            return await self._renamed(request, is_again=is_again, refresh=True)
        if about.is_directory:
            await self._flush(path)
        over = None if replaced is not None else ""
        moved = await self._move(place, there, about, over, is_again=is_again)
        if not about.is_directory:
            # The same content: what is cached of it stays.
            token = token_of(about.tag) or secrets.token_hex(12)
            moved = replace(moved, tag=written_tag(token, moved.tag))
        await self._announcer.announce(Kept(path, None, 0.0), Kept(target, moved, 0.0))
        if about.is_directory:
            await self._announcer.announce_tree(path, target)
        if replaced is not None and is_staged(replaced.tag):
            let_go = RetargetRequest(token_of(replaced.tag), is_over=True)
            await self._uploads.retarget(holders_of(replaced.tag), let_go, is_patient=False)
        return AlterReply(self._reply(target, moved))

    async def _move(
        self, place: Place, there: Place, about: Attributes, over: str | None, *, is_again: bool
    ) -> Attributes:
        try:
            return await place.store.move(place.path, there.path, over=over)
        except NotFound:
            if not is_again:
                raise
            found = await there.store.stat(there.path)
            if (found.is_directory, found.size_bytes) != (about.is_directory, about.size_bytes):
                raise
            return found

    async def _rename_staged(
        self,
        request: AlterRequest,
        place: Place,
        about: Attributes,
        replaced: Attributes | None,
    ) -> AlterReply | None:
        """Have a staged file go to another path: no byte of it has gone anywhere yet.

        None when it has by now.
        """
        path, target = request.path, request.target
        claimed = await self._claimed(path, about)
        if claimed is None:
            return None
        over = "" if replaced is None else under_store_tag(replaced.tag)
        formers: tuple[bytes, ...] = ()
        if replaced is not None and is_staged(replaced.tag):
            below = await self._claimed(target, replaced)
            if below is None:
                now = (await self._catalog.stat(target, refresh=True)).attributes
                over = under_store_tag(now.tag)
            else:
                over, formers = below.over, (*below.formers, below.digest)[-FORMERS_MAX:]
        await self._remove_below(path, claimed.over)
        named_s = self._wall_clock()
        if replaced is not None:  # by a clock that is ahead of this one
            named_s = max(named_s, replaced.mtime_ns / 1e9 + 1e-3)
        file = staged_file(target, about)
        new = replace(file, over=over, digest=claimed.digest, named_s=named_s, formers=formers)
        retarget = RetargetRequest(new.token, target, over, named_s=named_s, formers=formers)
        held = await self._uploads.retarget(holders_of(about.tag), retarget)
        if held is None:
            return None
        await self._announcer.announce_staged(new)  # what it replaces has ended now
        if held == UNKNOWN:
            await self._remove_below(path, held)
        await self._announcer.announce(Kept(path, None, 0.0), moved_to=target)
        if replaced is not None and is_staged(replaced.tag):
            let_go = RetargetRequest(token_of(replaced.tag), is_over=True)
            await self._uploads.retarget(holders_of(replaced.tag), let_go, is_patient=False)
        return AlterReply(self._reply(target, about))

    async def _flush(self, path: str) -> None:
        """Wait until nothing below a directory is staged: its holders know it by its path."""
        left = await self._uploads.flush(FlushRequest(path, FLUSH_S))
        if left.waiting:
            raise Unavailable(f"{path}: {left.waiting} files in it wait to be persisted")

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

    async def _set_mode(self, request: AlterRequest, *, is_again: bool) -> AlterReply:
        path = request.path
        place = writable_place(self._table, path)
        async with self._turns.of(path):
            about = (await self._catalog.stat(path)).attributes
            if is_staged(about.tag) and await self._set_mode_staged(request, about):
                return AlterReply()  # whether the under-store keeps it is seen when it has it
            if not await place.store.set_mode(place.path, request.mode):
                return AlterReply()
            if is_staged(about.tag):
                about = (await self._catalog.stat(path, refresh=True)).attributes
            now = replace(about, mode=request.mode)
            await self._announcer.announce(Kept(path, now, 0.0))
        return AlterReply(self._reply(path, now), is_mode_kept=True)

    async def _set_mode_staged(self, request: AlterRequest, about: Attributes) -> bool:
        """Have a file persisted with another mode; False when it is persisted already."""
        file = staged_file(request.path, about)
        claimed = await self._claimed(request.path, about)
        if claimed is None:
            return False
        new = replace(file, over=claimed.over, mode=request.mode, digest=claimed.digest)
        retarget = RetargetRequest(new.token, new.path, new.over, mode=new.mode)
        if await self._uploads.retarget(holders_of(about.tag), retarget) is None:
            return False
        await self._announcer.announce_staged(new)
        return True

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


def staged_file(path: str, about: Attributes) -> StagedFile:
    """Return what is known of a staged file to who sees its attributes."""
    return StagedFile(
        token=token_of(about.tag),
        path=path,
        size_bytes=about.size_bytes,
        over="",
        mode=about.mode,
        mtime_ns=about.mtime_ns,
        holders=tuple(holders_of(about.tag)),
        queued_s=about.mtime_ns / 1e9,
    )


def _is_that(found: Attributes, request: AlterRequest) -> bool:
    """Whether what is found is what was to be renamed, as its mount knew it."""
    if found.is_directory or not request.tag:
        return found.is_directory and not request.tag
    if request.tag.startswith(WRITTEN) and found.tag.startswith(WRITTEN):
        return identity_of(found.tag) == identity_of(request.tag)
    return found.size_bytes == request.size_bytes
