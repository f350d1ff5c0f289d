"""Files that are safe on the disks of peers before the under-store has them.

    writer   draft  →  stable bytes told to a holder while it is written (HOLD)
             close  →  the rest; fsync and journal, here and there  →  announced as staged
    holder   pulls what it was told of from the writer (PULL)  →  fsync, journal

What both have journaled survives the death of either. `uploads` brings it into the
under-store, and then it is a block like any other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from pathlib import Path

import structlog
from crc32c import crc32c

from mesh.blocks import (
    MIB,
    PIECE_BYTES,
    FileVersion,
    identity_of,
    is_staged,
    piece_range,
    token_of,
    under_store_tag,
)
from mesh.clock import Clock, monotonic_s
from mesh.errors import BlockCorrupt, Exists, MeshError, NotFound, StoreFull, Unavailable
from mesh.membership.view import State
from mesh.metrics import Metrics
from mesh.paths import Spot, spot_of
from mesh.peer.announcer import Announcer
from mesh.peer.content import digested
from mesh.peer.holder import Holder
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.once import quietly
from mesh.peer.overlay import FORMERS_MAX
from mesh.peer.turns import Turns
from mesh.store.drafts import Digests, Drafts, digested_file, new_token, read_part
from mesh.store.staging import Staging
from mesh.store.store import BlockStore
from mesh.understore.table import MountTable
from mesh.wire.messages import Piece, StatReply
from mesh.wire.staged import (
    HOLD,
    RETARGET,
    HaveReply,
    HaveRequest,
    HoldRequest,
    PullRequest,
    RetargetRequest,
    StagedFile,
    decode_staged,
    encode_staged,
)
from mesh.wire.writes import GrowRequest, PublishRequest

log = structlog.get_logger()

PULLED_BYTES = 32 * MIB
"""What a holder is told of at once."""

HOLD_TIMEOUT_S = 600.0
LET_GO_TIMEOUT_S = 5.0
LET_GO_MAX = 10_000
REMOVED_AGAIN_S = 1.0
HOLDERS_TRIED = 3
OUTGOING_MAX = 256

FILES_MAX = 10_000
"""Each is claimed again and again: see `uploads.CLAIMS_PER_S`."""


@dataclass(slots=True)
class _Outgoing:
    """A draft of this host on its way to a holder."""

    holder: str
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    told_bytes: int = 0
    stable_bytes: int = 0
    is_telling: bool = False


class Stager:
    """What this node has on disk and the under-store has not."""

    def __init__(
        self,
        store: BlockStore,
        staging: Staging,
        drafts: Drafts,
        neighbors: RingNeighbors,
        table: MountTable,
        announcer: Announcer,
        turns: Turns,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        directory: Path,
        limit_bytes: int,
        clock: Clock = monotonic_s,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Keep at most *limit_bytes*; more goes through."""
        self.files: dict[str, StagedFile] = {}
        self.staged_bytes = 0
        self.added = asyncio.Event()
        self._pending: set[str] = set()
        """Tokens of files whose owners are about to hear of them."""

        self._store = store
        self._staging = staging
        self._drafts = drafts
        self._neighbors = neighbors
        self._table = table
        self._announcer = announcer
        self._turns = turns
        self._tasks = tasks
        self._metrics = metrics
        self._directory = directory
        self._limit_bytes = limit_bytes
        self._clock = clock
        self._wall_clock = wall_clock
        self._outgoing: dict[str, _Outgoing] = {}
        self._let_go: dict[str, tuple[bytes, ...]] = {}
        """By token of what was staged here lately: `StagedFile.formers` of what replaces it."""

        self.holder = Holder(
            self, store, drafts, neighbors, table, directory=directory, clock=clock
        )

    async def load(self) -> None:
        """Take up what was staged before this peer was started."""
        for token, record in (await self._staging.load()).items():
            file = decode_staged(record)
            try:
                await self._take_up(file)
            except MeshError as error:
                # The record stays: a person may put the mount back into the table.
                log.error("staged file left", token=token, path=file.path, reason=str(error))

    async def _take_up(self, file: StagedFile) -> None:
        version = self.version(file)
        self._store.held.add(version.id)
        if version.block_count and not await self._store.holds(version, 0):
            path = self._staging.path(file.token)
            digests = await asyncio.to_thread(
                digested_file, path, file.size_bytes, version.block_bytes
            )
            await self._adopt(file, path, digests)
        self.note(file)
        log.info("staged before", path=file.path, size_bytes=file.size_bytes)

    def has_room(self, more_bytes: int) -> bool:
        """Whether so much more may wait here."""
        return (
            self.staged_bytes + self.holder.incoming_bytes + more_bytes <= self._limit_bytes
            and len(self.files) < FILES_MAX
        )

    def version(self, file: StagedFile) -> FileVersion:
        return self._table.place(file.path).version(file.attributes)

    # The writer's side

    async def grow(self, request: GrowRequest) -> None:
        """Tell a holder what is stable of a draft; nobody waits for that."""
        out = self._outgoing.get(request.draft)
        if out is None:
            holder = next(self._candidates(request.draft), None)
            if holder is None or len(self._outgoing) >= OUTGOING_MAX:
                return
            out = self._outgoing[request.draft] = _Outgoing(holder)
        out.stable_bytes = max(out.stable_bytes, request.stable_bytes)
        if not out.is_telling:
            out.is_telling = True
            work = quietly(self._tell(request, out))
            self._tasks.create_task(work, name=f"hold {request.path}")

    async def _tell(self, request: GrowRequest, out: _Outgoing) -> None:
        try:
            async with out.turn:
                while out.stable_bytes - out.told_bytes >= PULLED_BYTES:
                    goal_bytes = out.told_bytes + PULLED_BYTES
                    file = StagedFile("", request.path, 0, "", 0, 0, (), 0.0)
                    hold = HoldRequest(file, self._neighbors.me, goal_bytes, request.draft)
                    await self._ask(out.holder, hold)
                    out.told_bytes = goal_bytes
        finally:
            out.is_telling = False

    async def publish(self, request: PublishRequest, *, copies: int) -> StatReply | None:
        """Have a draft safe on so many peers, and seen by everybody; None where that can't be."""
        spot = spot_of(self._table, request.path)
        path = self._drafts.path(request.draft)
        now_s = self._wall_clock()
        file = StagedFile(
            token=new_token(),
            path=request.path,
            size_bytes=request.size_bytes,
            over=_replaced(request.over),
            mode=request.mode,
            mtime_ns=int(now_s * 1e9),
            holders=(self._neighbors.me,),
            queued_s=now_s,
            formers=self._formers(request.over),
        )
        self._pending.add(file.token)
        try:
            return await self._publish(request, file, path, spot, copies)
        finally:
            self._pending.discard(file.token)

    def _formers(self, tag: str) -> tuple[bytes, ...]:
        """Return what the under-store may have where a file was staged before: that one, under
        whatever tag, when those who knew that it was persisted have died."""
        token = token_of(tag)
        before = self.files.get(token)
        if before is not None:
            return _formers_after(before)
        return self._let_go.get(token, ())

    async def _publish(
        self, request: PublishRequest, file: StagedFile, path: Path, spot: Spot, copies: int
    ) -> StatReply | None:
        block_bytes = spot.place.settings.block_bytes
        digested = asyncio.create_task(
            asyncio.to_thread(digested_file, path, request.size_bytes, block_bytes),
            name=f"digest {file.path}",
        )
        try:
            if copies > 1:
                held = await self._held(request, file)
                if held is None:
                    return None
                file = held
            digests = await digested
            file = replace(file, digest=digests.summary())
        finally:
            digested.cancel()
        try:
            await self.keep(file, path, digests)
        except StoreFull as error:
            log.warning("not staged", path=file.path, reason=str(error))
            await self._take_back(file)
            return None
        is_told = False
        try:
            async with self._turns.of(file.path):
                if request.is_exclusive:
                    await self._check_new(file, is_again=request.is_again)
                is_told = True
                await self._announcer.announce_staged(file)
        except MeshError:
            if is_told:
                self.note(file)  # an owner may know of it, and have ended what it replaces
            else:
                await self._take_back(file)
            raise
        self.note(file)  # now it may be claimed, and uploaded
        reply = spot.reply(file.attributes, known_s=0.0, fresh_s=spot.place.settings.max_age_s)
        self.added.set()
        return reply

    async def _check_new(self, file: StagedFile, *, is_again: bool) -> None:
        """Raise `Exists` if there is another file, but for one of a first try whose answer was
        lost."""
        there = await self._announcer.there(file.path)
        if there is None:
            return
        if is_again and there.size_bytes == file.size_bytes:
            mine = self.files.get(token_of(there.tag))
            if mine is not None and mine.digest == file.digest:
                return
            if not is_staged(there.tag):
                found = replace(there, tag=under_store_tag(there.tag))
                if (await digested(self._table, file.path, found)).summary() == file.digest:
                    return
        raise Exists(f"{file.path}: somebody else has made it")

    async def have(self, request: HaveRequest) -> HaveReply:
        """Say which files are here, for holders who wonder."""
        return HaveReply(
            tuple(token for token in request.tokens if token in self.files),
            tuple(token for token in request.tokens if token in self._pending),
        )

    async def _take_back(self, file: StagedFile) -> None:
        """Let go of what nobody was told of."""
        self.note(file)
        await quietly(self.forget(file.token))
        over = RetargetRequest(file.token, is_over=True)
        for holder in file.holders:
            if holder != self._neighbors.me:
                call = self._neighbors.ask(holder, RETARGET, over, timeout_s=LET_GO_TIMEOUT_S)
                await quietly(call)

    async def _held(self, request: PublishRequest, file: StagedFile) -> StagedFile | None:
        """Have another peer hold all of a draft; return the file with who does."""
        out = self._outgoing.pop(request.draft, None)
        names = [] if out is None else [out.holder]
        names += [n for n in self._candidates(request.draft) if n not in names]
        for holder in names[:HOLDERS_TRIED]:
            held = replace(file, holders=(self._neighbors.me, holder))
            hold = HoldRequest(
                held,
                self._neighbors.me,
                request.size_bytes,
                request.draft,
                is_final=True,
                is_anew=request.is_rewritten,
            )
            try:
                if out is not None:
                    async with out.turn:
                        await self._ask(holder, hold)
                else:
                    await self._ask(holder, hold)
            except (Unavailable, StoreFull, NotFound, BlockCorrupt) as error:
                log.warning("not held", path=file.path, peer=holder, reason=str(error))
                continue
            return held
        return None

    def _candidates(self, draft: str) -> Iterator[str]:
        """Yield who may hold a draft, those of other zones first."""
        view = self._neighbors.view
        me = view.find(self._neighbors.me)
        key = blake2b(draft.encode(), digest_size=16).digest()
        names = self._neighbors.ring.owners(key, copies=8)
        members = [view.find(name) for name in names if name != self._neighbors.me]
        well = [
            m
            for m in members
            if m is not None and m.state is State.ACTIVE and not self._neighbors.is_broken(m.name)
        ]
        zone = "" if me is None else me.zone
        yield from (m.name for m in sorted(well, key=lambda m: m.zone == zone))

    async def _ask(self, holder: str, request: HoldRequest) -> None:
        await self._neighbors.ask(holder, HOLD, request, timeout_s=HOLD_TIMEOUT_S)

    async def pull(self, request: PullRequest) -> AsyncGenerator[Piece, None]:
        """Yield pieces of a draft of this host, from one on."""
        path = self._drafts.path(request.draft)
        number = request.first_piece
        while number * PIECE_BYTES < request.stop_bytes:
            start_bytes, size_bytes = piece_range(number, length_bytes=request.stop_bytes)
            data = await asyncio.to_thread(read_part, path, start_bytes, size_bytes)
            yield Piece(number, crc32c(data), data)
            number += 1

    def gave_up(self, draft: str) -> None:
        """Note that a draft is written no more."""
        self._outgoing.pop(draft, None)

    # What is kept here

    async def keep(self, file: StagedFile, path: Path, digests: Digests) -> None:
        """Have a file durable here, and readable as blocks; `StoreFull` if the disk is full."""
        version = self.version(file)
        self._store.held.add(version.id)
        try:
            await self._staging.put(file.token, encode_staged(file), path)
        except BaseException:
            self._store.held.discard(version.id)
            raise
        await self._adopt(file, path, digests)

    async def _adopt(self, file: StagedFile, path: Path, digests: Digests) -> None:
        version = self.version(file)
        await self._drafts.adopt(
            path,
            version,
            digests,
            lambda index: self._neighbors.rank(version.key(index)),
            is_promised=True,
        )

    def note(self, file: StagedFile) -> None:
        """Know of a file that is kept: from now on it is claimed, and uploaded."""
        before = self.files.get(file.token)
        self.staged_bytes += file.size_bytes - (0 if before is None else before.size_bytes)
        self.files[file.token] = file
        self._tell_size()

    def _tell_size(self) -> None:
        self._metrics.staged_bytes.set(self.staged_bytes)
        self._metrics.staged_files.set(len(self.files))

    async def change(self, file: StagedFile) -> None:
        """Keep another path, or another thing to replace, of a file that is here."""
        self.note(file)
        await self._staging.change(file.token, encode_staged(file))

    async def forget(self, token: str) -> None:
        """Let a file go: the under-store has it, or nobody wants it any more.

        Whoever asked for it may be cancelled meanwhile; it is done to its end.
        """
        file = self.files.pop(token, None)
        if file is None:
            return
        self.staged_bytes -= file.size_bytes
        self._tell_size()
        self._let_go[token] = _formers_after(file)
        while len(self._let_go) > LET_GO_MAX:
            del self._let_go[next(iter(self._let_go))]
        work = quietly(self._forget(file))
        forgetting = self._tasks.create_task(work, name=f"forget {file.path}")
        await asyncio.wait({forgetting}, timeout=REMOVED_AGAIN_S)  # a full disk takes longer

    async def _forget(self, file: StagedFile) -> None:
        while True:
            try:
                await self._staging.remove(file.token)
                break
            except (StoreFull, OSError) as error:
                log.warning("staged file not removed", token=file.token, reason=str(error))
            await asyncio.sleep(REMOVED_AGAIN_S)
        self._store.held.discard(self.version(file).id)


def _formers_after(file: StagedFile) -> tuple[bytes, ...]:
    return (*file.formers, file.digest)[-FORMERS_MAX:] if file.digest else file.formers


def _replaced(tag: str) -> str:
    """Return what names the content that is replaced: the under-store's tag, or what it will
    be told by, "mesh-TOKEN", while the under-store does not have that."""
    return identity_of(tag) if is_staged(tag) else under_store_tag(tag)
