"""The write path: a draft of this host goes into the under-store, and everybody sees it.

    mount writes   draft (this node)  →  what is stable of it  →  the under-store, in parts
    mount closes   the rest  →  published over what the writer saw  →  announced to the owners
    last close     the draft becomes blocks of the version that was published

Until it is published nobody sees it; then everybody sees all of it. What was changed behind
the mesh's back since the writer looked is not replaced: the draft goes beside it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

import structlog

from mesh.blocks import (
    MIB,
    PIECE_BYTES,
    WRITTEN,
    Attributes,
    FileVersion,
    under_store_tag,
    written_tag,
)
from mesh.clock import Clock, monotonic_s
from mesh.errors import (
    Exists,
    IsADirectory,
    MeshError,
    NotFound,
    ReadOnly,
    Refused,
    Stale,
    StoreFull,
    UnderStoreUnavailable,
)
from mesh.metrics import Metrics
from mesh.paths import spot_of
from mesh.peer.announcer import Announcer
from mesh.peer.catalog import Catalog
from mesh.peer.content import digested
from mesh.peer.once import quietly
from mesh.peer.stager import Stager
from mesh.peer.turns import Turns
from mesh.store.drafts import PIECES_MAX, Digests, Drafts
from mesh.store.eviction import Rank
from mesh.understore.table import MountTable, Place, plain
from mesh.understore.writable import Upload
from mesh.wire.messages import Kept, Nothing, StatReply
from mesh.wire.staged import StagedFile
from mesh.wire.writes import GrowRequest, PublishRequest, RetireRequest

log = structlog.get_logger()

RUN_BYTES = 8 * MIB
"""What is read from a draft at once."""

EARLY_MAX = 8
"""Drafts that go into the under-store while they are written; others go when they are closed.
Each has up to 48 MiB of parts in memory."""

DRAFTS_MAX = 4096
PUBLISH_S = 60.0
"""For so long a writer waits for an under-store that does not answer."""

SWEEP_EVERY_S = 60.0
PAUSE_S, PAUSE_MAX_S = 0.2, 5.0
MET_MAX = 16
"""Times that a writer may meet something else at its path before it gives up."""


T = TypeVar("T")
Show = Callable[[Attributes], Awaitable[T]]
"""Has all know of what the under-store has now."""


STAGED_FILE_BYTES_MAX = PIECES_MAX * PIECE_BYTES
"""Of more there are no blocks that others could read before the under-store has it."""

COPIES = {"through": 0, "local": 1, "copies": 2}
"""Disks that have a file before it is shown, by durability; 0: the under-store has it."""


async def _as_before(over: str) -> str:
    return over


@dataclass(slots=True)
class _Outgoing:
    """A draft on its way."""

    path: str
    read: Callable[[int, int], Awaitable[bytes]]
    may_replace: Callable[[Attributes], Awaitable[bool]]
    block_bytes: int
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    upload: Upload | None = None
    goes_to: str = ""
    """Where the upload goes, below the under-store's root."""

    digests: Digests = field(default_factory=Digests)
    stable_bytes: int = 0
    mode: int = 0
    is_advancing: bool = False
    is_wanted: Callable[[str], Awaitable[str]] = _as_before
    """Called with the turn at its path, before the under-store may show it: says what it may
    replace by now, or raises."""

    file: FileVersion | None = None
    """The version that was published last."""

    def begin(self) -> None:
        """Take checksums from the beginning."""
        self.digests = Digests(self.block_bytes)


class Writer:
    """What mounts of this host have written, and where it goes."""

    def __init__(
        self,
        drafts: Drafts,
        table: MountTable,
        catalog: Catalog,
        announcer: Announcer,
        stager: Stager,
        turns: Turns,
        rank: Callable[[FileVersion, int], Rank],
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        name: str,
        clock: Clock = monotonic_s,
    ) -> None:
        """Name what can't replace what it should after the peer *name*."""
        self._drafts = drafts
        self._table = table
        self._catalog = catalog
        self._announcer = announcer
        self._stager = stager
        self._turns = turns
        self._rank = rank
        self._tasks = tasks
        self._metrics = metrics
        self._name = name
        self._clock = clock
        self._outgoing: dict[str, _Outgoing] = {}

    async def grow(self, request: GrowRequest) -> Nothing:
        """Begin to send what is stable of a draft; the mount does not wait for that."""
        place = writable_place(self._table, plain(request.path))
        if self._copies(place, request.stable_bytes):
            await self._stager.grow(request)
            return Nothing()
        out = self._of(request.draft, plain(request.path))
        out.mode = request.mode
        out.stable_bytes = max(out.stable_bytes, request.stable_bytes)
        early = sum(each.is_advancing for each in self._outgoing.values())
        if not out.is_advancing and early < EARLY_MAX:
            out.is_advancing = True
            work = quietly(self._advance(out))
            self._tasks.create_task(work, name=f"early {out.path}")
        return Nothing()

    async def publish(self, request: PublishRequest) -> StatReply:
        """Show a draft to everybody; return what its path is now.

        Raises `Stale` when somebody has changed the file behind the mesh's back: then what
        was written lies beside it.
        """
        path = plain(request.path)
        place = writable_place(self._table, path)
        copies = self._copies(place, request.size_bytes)
        if copies:
            staged = await self._stager.publish(replace(request, path=path), copies=copies)
            if staged is not None:
                self._drop(request.draft)
                return staged
            log.warning("written through", path=path, reason="it can't be staged")
        out = self._of(request.draft, path)
        out.mode = request.mode
        async with out.turn:
            is_elsewhere = out.upload is not None and out.goes_to != place.path
            is_longer = out.digests.size_bytes > request.size_bytes
            if request.is_rewritten or is_longer or is_elsewhere:
                await self._begin_anew(out)
            return await self._published(
                replace(request, path=path),
                place,
                out,
                lambda about: self._known(path, about, out),
                patience_s=PUBLISH_S,
            )

    async def retire(self, request: RetireRequest) -> Nothing:
        """Keep what a draft holds as blocks, if that is what was published, and remove it."""
        self._stager.gave_up(request.draft)
        out = self._outgoing.pop(request.draft, None)
        if out is not None:
            async with out.turn:
                file = out.file
                if request.is_published and file is not None:
                    rank = self._rank
                    await self._drafts.adopt(
                        self._drafts.path(request.draft),
                        file,
                        out.digests,
                        lambda index: rank(file, index),
                    )
                await self._abort(out)
        await self._drafts.remove(request.draft)
        return Nothing()

    async def sweep(self) -> None:
        """Remove what mounts leave behind when they die, for as long as this peer runs."""
        while True:
            if removed := await self._drafts.sweep():
                log.warning("drafts removed", count=len(removed), reason="their mount is gone")
            for draft in removed:
                self._drop(draft)
            await self._stager.holder.give_up_idle()
            await asyncio.sleep(SWEEP_EVERY_S)

    def _copies(self, place: Place, size_bytes: int) -> int:
        """Return on how many disks a file is to be before it is shown; 0: in the under-store."""
        is_small = size_bytes <= STAGED_FILE_BYTES_MAX and self._stager.has_room(size_bytes)
        return COPIES[place.durability] if is_small else 0

    def _drop(self, draft: str) -> None:
        """Forget a draft that went another way."""
        self._stager.gave_up(draft)
        out = self._outgoing.pop(draft, None)
        if out is not None:
            self._tasks.create_task(self._abort_after_all(out), name=f"abort {out.path}")

    async def _abort_after_all(self, out: _Outgoing) -> None:
        async with out.turn:
            await self._abort(out)

    def _of(self, draft: str, path: str) -> _Outgoing:
        self._drafts.path(draft)  # says so if there can be no such draft
        out = self._outgoing.get(draft)
        if out is None:
            if len(self._outgoing) >= DRAFTS_MAX:
                raise StoreFull(f"{DRAFTS_MAX} files are being written already")
            blocks = self._table.place(path).settings.block_bytes
            read = partial(self._drafts.read, draft)
            may_replace = partial(self._is_known, path)
            out = self._outgoing[draft] = _Outgoing(path, read, may_replace, blocks)
        out.path, out.may_replace = path, partial(self._is_known, path)
        return out

    # Into the under-store

    async def _advance(self, out: _Outgoing) -> None:
        """Send what is stable of a draft while it is still being written."""
        try:
            async with out.turn:
                place = writable_place(self._table, out.path)
                while out.stable_bytes - out.digests.size_bytes >= RUN_BYTES:
                    try:
                        await self._send(place, out, RUN_BYTES, size_bytes=None)
                    except MeshError:
                        await self._begin_anew(out)
                        raise
                    await asyncio.sleep(0)
        finally:
            out.is_advancing = False

    async def _send(
        self, place: Place, out: _Outgoing, run_bytes: int, *, size_bytes: int | None
    ) -> None:
        if out.upload is None:
            mode = out.mode or None
            out.upload = await place.store.upload(place.path, size_bytes=size_bytes, mode=mode)
            out.goes_to = place.path
        data = await out.read(out.digests.size_bytes, run_bytes)
        await asyncio.to_thread(out.digests.add, data)
        await out.upload.add(data)
        self._metrics.written_bytes.inc(len(data))

    async def _begin_anew(self, out: _Outgoing) -> None:
        await self._abort(out)
        out.begin()
        out.stable_bytes = 0

    async def _abort(self, out: _Outgoing) -> None:
        upload, out.upload = out.upload, None
        if upload is not None:
            await quietly(upload.abort())

    async def _published(
        self,
        request: PublishRequest,
        place: Place,
        out: _Outgoing,
        show: Show[T],
        *,
        patience_s: float,
    ) -> T:
        """Have the under-store show a draft, in spite of all that passes by itself within
        *patience_s*, and then everybody else by *show*."""
        deadline_s = self._clock() + patience_s
        pause_s, may_be_there = PAUSE_S, request.is_again
        over, met, has_turn = under_store_tag(request.over), 0, False
        async with AsyncExitStack() as turn:
            while met < MET_MAX:
                try:
                    upload = await self._send_rest(request, place, out)
                    if not has_turn:
                        await turn.enter_async_context(self._turns.of(request.path))
                        has_turn = True
                    wanted = await out.is_wanted(over)
                    over = over if met else wanted  # what was met is newer than what was told
                    about = await upload.publish(over=over)
                    out.upload = None
                    return await show(about)
                except UnderStoreUnavailable:
                    await turn.aclose()
                    may_be_there, has_turn = True, False
                    await self._begin_anew(out)
                    if self._clock() + pause_s > deadline_s:
                        raise
                    await asyncio.sleep(pause_s)
                    pause_s = min(2 * pause_s, PAUSE_MAX_S)
                except Stale:
                    met += 1
                    await self._abort(out)
                    found = await self._there(place)
                    if found and may_be_there and await self._is_ours(place, found, out):
                        return await show(found)
                    out.begin()
                    # The turn is kept, so that nobody of ours is there first again.
                    over = await self._over(request, found, out)
        raise Stale(f"{place.path}: others write it all the time")

    async def _send_rest(self, request: PublishRequest, place: Place, out: _Outgoing) -> Upload:
        size_bytes = request.size_bytes
        if out.upload is None:
            out.begin()
            mode = out.mode or None
            out.upload = await place.store.upload(place.path, size_bytes=size_bytes, mode=mode)
            out.goes_to = place.path
        while (rest_bytes := size_bytes - out.digests.size_bytes) > 0:
            run_bytes = min(RUN_BYTES, rest_bytes)
            await self._send(place, out, run_bytes, size_bytes=size_bytes)
        return out.upload

    async def _there(self, place: Place) -> Attributes | None:
        try:
            return await place.store.stat(place.path)
        except NotFound:
            return None

    async def _over(self, request: PublishRequest, found: Attributes | None, out: _Outgoing) -> str:
        """Return the tag of what a draft may replace after all, having met something else.

        What the mesh itself has put there: whoever closes last wins. What somebody else has
        put there it may not, and nothing is lost.
        """
        if found is None:
            return ""  # it was removed meanwhile, and is made again
        if found.is_directory:
            raise IsADirectory(f"{request.path}: is a directory now")
        if not await out.may_replace(found):
            await self._put_beside(request, out)
            raise Stale(f"{request.path}: was changed behind the mesh's back")
        if request.is_exclusive:
            raise Exists(f"{request.path}: somebody else has made it")
        return found.tag

    async def _is_known(self, path: str, found: Attributes) -> bool:
        """Whether what is at a path was written through the mesh."""
        known = await self._catalog.stat(path, refresh=True)
        return known.attributes.tag.startswith(WRITTEN)

    async def _put_beside(self, request: PublishRequest, source: _Outgoing) -> None:
        """Keep a draft that may not replace what is at its path."""
        stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        beside = f"{request.path}.conflict-{stamp}-{self._name}-{request.draft[:8]}"
        place = self._table.place(beside)
        source.file = None
        out = _Outgoing(
            beside, source.read, source.may_replace, source.block_bytes, mode=request.mode
        )
        upload = await self._send_rest(replace(request, path=beside, over=""), place, out)
        try:
            about = await upload.publish(over="")
        except Stale as error:
            found = await self._there(place)
            if found is None or not await self._is_ours(place, found, out):
                raise UnderStoreUnavailable(f"{beside}: can't be made") from error
            about = found  # put there before, and nobody heard of it
        await self._known(beside, about, out)
        self._metrics.conflicts.inc()
        log.warning("conflict", path=request.path, kept_as=beside)

    async def _is_ours(self, place: Place, found: Attributes, out: _Outgoing) -> bool:
        """Whether what is there is what was sent: an answer may have been lost on its way."""
        if found.is_directory or found.size_bytes != out.digests.size_bytes:
            return False
        return (await digested(self._table, out.path, found)).is_same(out.digests)

    async def persist(
        self,
        file: StagedFile,
        read: Callable[[int, int], Awaitable[bytes]],
        may_replace: Callable[[Attributes], Awaitable[bool]],
        is_wanted: Callable[[str], Awaitable[str]],
    ) -> str:
        """Have the under-store show a staged file, and all know that; raises as `publish` does.

        Returns what the under-store calls it.

        Asks *is_wanted* before it may be seen there: from then on it can't be given up.
        """
        place = writable_place(self._table, file.path)
        blocks = place.settings.block_bytes
        out = _Outgoing(file.path, read, may_replace, blocks, mode=file.mode, is_wanted=is_wanted)
        request = PublishRequest(
            file.token, file.path, file.size_bytes, file.over, mode=file.mode, is_again=True
        )

        async def show(about: Attributes) -> str:
            tagged = replace(about, tag=written_tag(file.token, about.tag))
            await self._announcer.announce_persisted(Kept(file.path, tagged, 0.0), file.there_s)
            return about.tag

        try:
            return await self._published(request, place, out, show, patience_s=0.0)
        finally:
            await self._abort(out)

    async def _known(self, path: str, about: Attributes, out: _Outgoing) -> StatReply:
        """Have everybody see what was published."""
        about = replace(about, tag=written_tag(secrets.token_hex(12), about.tag))
        await self._announcer.announce(Kept(path, about, 0.0))
        self._metrics.written_files.inc()
        spot = spot_of(self._table, path)
        reply = spot.reply(about, known_s=0.0, fresh_s=spot.place.settings.max_age_s)
        out.file = reply.file
        return reply


def writable_place(table: MountTable, path: str) -> Place:
    """Return where *path* is; `ReadOnly` where nothing can be written."""
    place = table.place(path)
    if place.settings.read_only:
        raise ReadOnly(f"{path}: the mount table says read_only")
    if not place.path:
        raise Refused(f"{path}: a mount lies there")
    return place
