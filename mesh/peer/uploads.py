"""Staged files on their way into the under-store, first in first out.

The writer uploads what it has staged; when it is gone, or has lost it, the next holder that is
there does. Until then only the writer speaks of it: nobody else knows whether it was announced.
Before each try the owner of the directory is asked whether it is still wanted, and what it
replaces is looked at when it is published: so two that upload the same thing, or one that
comes back after a newer file was written, undo nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import structlog

from mesh.blocks import Attributes, FileVersion, is_staged
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, NotFound, Stale, Unavailable, UnderStoreUnavailable
from mesh.membership.view import State, View
from mesh.metrics import Metrics
from mesh.peer.announcer import Announcer
from mesh.peer.catalog import Catalog
from mesh.peer.content import digested
from mesh.peer.doubts import Doubts
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.once import quietly
from mesh.peer.stager import Stager
from mesh.peer.throttle import Throttle
from mesh.peer.writer import Writer
from mesh.store.staging import Staging
from mesh.understore.table import MountTable, plain
from mesh.wire.messages import Kept, Nothing
from mesh.wire.staged import (
    RETARGET,
    UPLOADS,
    FlushReply,
    FlushRequest,
    RetargetReply,
    RetargetRequest,
    StagedFile,
    UploadsReply,
    Waiting,
)

log = structlog.get_logger()

AT_ONCE = 4
CLAIMS_AT_ONCE = 16
CLAIM_EVERY_S = 5.0
CLAIMS_PER_S = 200
"""Of many files each is claimed more rarely, in time for `overlay.BELIEVED_S`."""

LOOK_EVERY_S = 0.5
IDLE_RATIO = 9
"""So many times as long as a look took the next one waits."""

STALLED_S = 2.0
AGAIN_S = 0.2
"""However a try ends, the next one is not at once."""

PUT_MAX = 10_000
MOVES_MAX = 16
UNKNOWN = "?"
"""For a tag: there may be something, under whatever tag."""

PAUSE_S, PAUSE_MAX_S = 0.5, 30.0
AWAY_PAUSE_MAX_S = 5.0
"""While an under-store is away one file asks for it, so that the order is kept."""

TAKEOVER_S = 3.0
"""For so long a writer must have been gone before somebody else uploads for it."""

CALL_TIMEOUT_S = 60.0
POLL_S = 0.1


@dataclass(slots=True)
class _Job:
    """What is known of one staged file's upload."""

    sent_bytes: int = 0
    began_s: float = 0.0
    tries: int = 0
    reason: str = ""
    next_s: float = 0.0
    claimed_s: float = 0.0
    is_shown: bool = False
    """Whether the under-store may have it at any moment, so that it can't be given up."""

    is_kept: bool = False
    """Whether it is about to go elsewhere, and nothing may begin."""

    is_uploading: bool = False
    task: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Away:
    """An under-store that does not answer."""

    until_s: float = 0.0
    tries: int = 0


Work = Callable[[StagedFile, _Job], Coroutine[Any, Any, object]]


class _Ended(MeshError):
    """Nobody wants a staged file any more."""


class Uploads:
    """The staged files of this node, and when they go."""

    def __init__(
        self,
        stager: Stager,
        staging: Staging,
        writer: Writer,
        announcer: Announcer,
        catalog: Catalog,
        table: MountTable,
        neighbors: RingNeighbors,
        tasks: asyncio.TaskGroup,
        metrics: Metrics,
        *,
        bytes_per_s: float,
        clock: Clock = monotonic_s,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        """Send at most so much each second; 0: as much as the under-store takes."""
        self._stager = stager
        self._staging = staging
        self._writer = writer
        self._announcer = announcer
        self._catalog = catalog
        self._table = table
        self._neighbors = neighbors
        self._tasks = tasks
        self._metrics = metrics
        self._clock = clock
        self._wall_clock = wall_clock
        self._throttle = Throttle(bytes_per_s) if bytes_per_s else None
        self._view: View | None = None
        self._jobs: dict[str, _Job] = {}
        self._away: dict[str, _Away] = {}
        """By url of under-stores that did not answer the last time."""

        self._put: dict[str, str] = {}
        """By path: what the under-store calls what this peer has put there last."""

        self._gone_since_s: dict[str, float] = {}
        self.doubts = Doubts(stager, neighbors, clock)

    async def run(self) -> None:
        """Upload what is staged here, for as long as this peer runs."""
        while True:
            self._stager.added.clear()
            began_s = self._clock()
            self._look()
            await asyncio.sleep(IDLE_RATIO * (self._clock() - began_s))
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_EVERY_S):
                    await self._stager.added.wait()

    async def drain(self, *, for_s: float) -> None:
        """Upload what this peer has written, before it goes: as long as it gets on, but no
        longer than that. What is left is there when it comes back, or another holder sends it.
        """
        now_s = moved_s = self._clock()
        deadline_s, before = now_s + for_s, (0, 0)
        while (mine := self._mine()) and now_s < min(deadline_s, moved_s + STALLED_S):
            now = len(mine), sum(self._jobs[t].sent_bytes for t in mine if t in self._jobs)
            if now != before:
                before, moved_s = now, now_s
            await asyncio.sleep(min(POLL_S, max(0.0, deadline_s - now_s)))
            now_s = self._clock()
        if mine:
            log.warning("left with staged files", files=len(mine))

    def _mine(self) -> list[str]:
        me = self._neighbors.me
        return [token for token, f in self._stager.files.items() if f.holders[0] == me]

    def _look(self) -> None:
        """Begin what is due, oldest first."""
        files = sorted(self._stager.files.values(), key=lambda f: f.queued_s)
        for token in self._jobs.keys() - self._stager.files.keys():
            if self._jobs[token].task is None and not self._jobs[token].is_kept:
                del self._jobs[token]
        age_s = self._wall_clock() - files[0].queued_s if files else 0.0
        self._metrics.staged_age_s.set(max(0.0, age_s))
        if self._view is not self._neighbors.view:
            self._view = self._neighbors.view
            for job in self._jobs.values():
                job.claimed_s = -math.inf  # others may own its directory now
        running = [job for job in self._jobs.values() if job.task is not None]
        uploading = sum(job.is_uploading for job in running)
        claiming = len(running) - uploading
        now_s = self._clock()
        claim_every_s = max(CLAIM_EVERY_S, len(files) / CLAIMS_PER_S)
        mine = [file for file in files if file.holders[0] == self._neighbors.me]
        newest = {file.path: file.token for file in sorted(mine, key=lambda f: f.there_s)}
        for file in files:
            job = self._jobs.setdefault(file.token, _Job(claimed_s=now_s))
            if job.task is not None or job.is_kept or not self._is_mine(file):
                continue
            if newest.get(file.path, file.token) != file.token:
                self._begin(self._replaced, file, job, is_uploading=False)
            elif now_s < job.next_s:
                continue
            elif uploading < AT_ONCE and self._may_try(file, now_s):
                uploading += 1
                self._begin(self._upload, file, job, is_uploading=True)
            elif claiming < CLAIMS_AT_ONCE and now_s - job.claimed_s > claim_every_s:
                claiming += 1
                self._begin(self._claim, file, job, is_uploading=False)

    def _may_try(self, file: StagedFile, now_s: float) -> bool:
        """Whether the under-store of a file may be there; one file at a time finds that out."""
        source = self._table.place(file.path).settings.url
        away = self._away.get(source)
        if away is None:
            return True
        if now_s < away.until_s:
            return False
        away.until_s = now_s + AWAY_PAUSE_MAX_S  # for the others, until this one has ended
        return True

    def _begin(self, work: Work, file: StagedFile, job: _Job, *, is_uploading: bool) -> None:
        def end(task: asyncio.Task[None]) -> None:
            job.task = None
            if is_uploading:
                job.next_s = max(job.next_s, self._clock() + AGAIN_S)
            self._stager.added.set()

        job.is_uploading = is_uploading
        job.task = self._tasks.create_task(quietly(work(file, job)), name=f"upload {file.path}")
        job.task.add_done_callback(end)

    def _is_mine(self, file: StagedFile) -> bool:
        """Whether this peer is the first of a file's holders that is there."""
        for holder in file.holders:
            if holder == self._neighbors.me:
                return True
            if not self._is_gone(holder) and file.token not in self.doubts.lost:
                return False
        return False

    def _is_gone(self, peer: str) -> bool:
        member = self._neighbors.view.find(peer)
        is_there = member is not None and member.state in (State.ACTIVE, State.JOINING)
        if is_there and not self._neighbors.is_broken(peer):
            self._gone_since_s.pop(peer, None)
            return False
        since_s = self._gone_since_s.setdefault(peer, self._clock())
        return self._clock() - since_s > TAKEOVER_S

    async def _claim(self, file: StagedFile, job: _Job) -> StagedFile | None:
        """Ask whether a file is still wanted, and where; let it go if not."""
        now = file
        if file.moved_from:
            # Who has renamed it may have ended before he said so.
            gone = Kept(file.moved_from, None, 0.0)
            await self._announcer.announce(gone, moved_to=file.path, ended=file.token)
            now = replace(file, moved_from="")
        for _ in range(MOVES_MAX):
            reply = await self._announcer.claim(now, is_doubted=file.token in self.doubts.lost)
            if not reply.path:
                break
            now = replace(now, path=reply.path, over="", formers=())
        job.claimed_s = self._clock()
        if reply.is_ended:
            log.info("staged file ended", path=now.path)
            await self._end(file)
            return None
        now = replace(now, over=reply.over, formers=reply.formers)
        if now != file:
            await self._stager.change(now)
        return now

    async def _replaced(self, file: StagedFile, job: _Job) -> None:
        """Let go of what a newer file of this host has replaced, whatever owners remember."""
        await self._end(file)

    async def _upload(self, file: StagedFile, job: _Job) -> None:
        job.began_s, job.sent_bytes = self._clock(), 0
        try:
            wanted = await self._claim(file, job)
            if wanted is None:
                return
            file = wanted
            tag = await self._writer.persist(
                file,
                partial(self._read, file, job),
                lambda found: self._may_replace(file, found),
                lambda over: self._is_wanted(file, job),
            )
        except (_Ended, Stale) as error:
            if isinstance(error, Stale):
                log.error("conflict", path=file.path, reason=str(error))
                await self._announcer.announce_below(file)
            await self._end(file)
            return
        except MeshError as error:
            if isinstance(error, UnderStoreUnavailable):
                self._note_away(file)
            job.is_shown = False
            job.tries += 1
            job.reason = str(error)
            job.next_s = self._clock() + min(PAUSE_S * 2 ** min(job.tries, 10), PAUSE_MAX_S)
            self._metrics.upload_failures.inc()
            log.warning("not uploaded", path=file.path, tries=job.tries, reason=job.reason)
            return
        self._away.pop(self._table.place(file.path).settings.url, None)
        self._put[file.path] = tag
        while len(self._put) > PUT_MAX:
            del self._put[next(iter(self._put))]
        if file.holders[0] != self._neighbors.me:
            self._metrics.takeovers.inc()
            log.info("uploaded for another", path=file.path, writer=file.holders[0])
        await self._end(file)

    def _note_away(self, file: StagedFile) -> None:
        source = self._table.place(file.path).settings.url
        away = self._away.setdefault(source, _Away())
        away.tries += 1
        away.until_s = self._clock() + min(PAUSE_S * 2 ** min(away.tries, 10), AWAY_PAUSE_MAX_S)

    async def _read(self, file: StagedFile, job: _Job, offset_bytes: int, size_bytes: int) -> bytes:
        """Return bytes of a staged file, no faster than they may be sent."""
        data = await self._staging.read(file.token, offset_bytes, size_bytes)
        if self._throttle is not None:
            await asyncio.sleep(self._throttle.wait_s(len(data), self._clock()))
        job.sent_bytes = offset_bytes + len(data)
        if offset_bytes:  # it took what came before
            self._away.pop(self._table.place(file.path).settings.url, None)
        return data

    async def _is_wanted(self, file: StagedFile, job: _Job) -> str:
        """Return what a file is to replace, at the moment when it is about to be shown."""
        reply = await self._announcer.claim(file)
        if reply.is_ended:
            raise _Ended(file.path)
        job.is_shown = True
        if not file.may_be_there:  # whoever takes it up again is to know
            with suppress(MeshError):  # a full disk
                await self._stager.change(replace(file, may_be_there=True))
        return reply.over

    async def _may_replace(self, file: StagedFile, found: Attributes) -> bool:
        """Whether the mesh has put there what was met: another file that was staged before.

        What nobody heard of, because who put it there or whom he told died, is known by its
        content: all of it is read once.
        """
        reply = await self._announcer.claim(file)
        if reply.is_ended:
            raise _Ended(file.path)
        if found.tag in (reply.over, self._put.get(file.path)):
            return True
        known = await self._announcer.knows_all_of(file)
        if known.is_ended:
            raise _Ended(file.path)
        if found.tag in known.noted:
            return True
        formers = {*reply.formers, *known.formers}
        if not formers:
            return False
        return (await digested(self._table, file.path, found)).summary() in formers

    async def _end(self, file: StagedFile) -> None:
        """Let a file go, here and at its other holders."""
        await self._stager.forget(file.token)
        over = RetargetRequest(file.token, is_over=True)
        for holder in set(file.holders) - {self._neighbors.me}:
            # One who does not hear it asks the owner, and is told.
            await quietly(self._retarget_at(holder, over))

    # What is done to staged files

    async def retargeted(self, request: RetargetRequest) -> RetargetReply:
        """Let a staged file go, or have it go to another path; raises `NotFound` if it is
        not here."""
        job = self._jobs.setdefault(request.token, _Job(claimed_s=self._clock()))
        job.is_kept = True
        try:
            if job.task is not None:
                if not job.is_shown:
                    job.task.cancel()
                await asyncio.wait({job.task})
            file = self._stager.files.get(request.token)
            if file is None:
                raise NotFound(f"nothing is staged here as {request.token}")
            if request.is_over:
                await self._stager.forget(request.token)
            else:
                await self._stager.change(_retargeted(file, request))
            # What was about to be shown may be there, although nobody heard that it is.
            return RetargetReply(UNKNOWN if file.may_be_there else "")
        finally:
            job.is_kept = False
            self._stager.added.set()

    async def retarget(
        self, holders: list[str], request: RetargetRequest, *, is_patient: bool = True
    ) -> str | None:
        """Tell all holders of a file; return what it would have replaced, None if none is
        there any more, because it is persisted by now.

        Raises `Unavailable` if none answers, but if *is_patient* is false: then those who
        don't hear it ask an owner later.
        """
        over: str | None = None
        failure: MeshError | None = None
        for holder in holders:
            try:
                reply = await self._retarget_at(holder, request)
                over = max(over or "", reply.over)
            except NotFound:
                continue
            except Unavailable as error:
                failure = error
        if over is None and failure is not None and is_patient:
            raise failure
        return over

    async def _retarget_at(self, holder: str, request: RetargetRequest) -> RetargetReply:
        if holder == self._neighbors.me:
            return await self.retargeted(request)
        return await self._neighbors.ask(holder, RETARGET, request, timeout_s=CALL_TIMEOUT_S)

    # For people

    async def waiting(self, request: Nothing) -> UploadsReply:
        """Say what waits here."""
        found = []
        for file in sorted(self._stager.files.values(), key=lambda f: f.queued_s):
            job = self._jobs.get(file.token, _Job())
            took_s = self._clock() - job.began_s
            rate = job.sent_bytes / took_s if job.is_uploading and job.task and took_s > 0 else 0.0
            me = self._neighbors.me
            found.append(Waiting(file, me, job.sent_bytes, job.tries, job.reason, rate))
        return UploadsReply(tuple(found))

    async def all_waiting(self, request: Nothing) -> UploadsReply:
        """Say what waits anywhere, each file once; of peers that don't answer nothing."""
        names = [m.name for m in self._neighbors.view.members if m.name != self._neighbors.me]
        asked = [self._neighbors.ask(n, UPLOADS, request, timeout_s=CALL_TIMEOUT_S) for n in names]
        replies = await asyncio.gather(*asked, return_exceptions=True)
        found: dict[str, Waiting] = {}
        for reply in [await self.waiting(request), *replies]:
            if isinstance(reply, UploadsReply):
                for one in reply.waiting:
                    if one.file.token not in found or one.peer == one.file.holders[0]:
                        found[one.file.token] = one
        return UploadsReply(tuple(sorted(found.values(), key=lambda w: w.file.queued_s)))

    async def flush(self, request: FlushRequest) -> FlushReply:
        """Wait until nothing waits at or below a path, but not for longer than asked."""
        path = plain(request.path)
        deadline_s = self._clock() + request.timeout_s
        while True:
            waiting = (await self.all_waiting(Nothing())).waiting
            left = [one for one in waiting if _is_below(one.file.path, path)]
            if not left or self._clock() >= deadline_s:
                return FlushReply(len(left))
            await asyncio.sleep(POLL_S)

    async def persisted(self, file: FileVersion) -> FileVersion:
        """Return under which names the under-store has what was staged; `Stale` if it has not."""
        for path in self._table.paths_of(file.source, file.path):
            with suppress(NotFound):
                found = (await self._catalog.stat(path)).file
                if found is not None and found.id == file.id and is_staged(found.tag):
                    found = (await self._catalog.stat(path, refresh=True)).file
                if found is not None and found.id == file.id and not is_staged(found.tag):
                    return found
        raise Stale(f"{file.path}: its holders are gone")


def _is_below(path: str, above: str) -> bool:
    return not above or path == above or path.startswith(f"{above}/")


def _retargeted(file: StagedFile, request: RetargetRequest) -> StagedFile:
    file = replace(file, over=request.over, mode=request.mode or file.mode)
    if request.path == file.path:
        return file
    file = replace(file, moved_from=file.path, formers=request.formers, may_be_there=False)
    return replace(file, path=request.path, named_s=request.named_s)
