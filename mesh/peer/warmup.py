"""A job: files found, brought where they belong, and the peers asked what they hold.

    warm     walk -> compare -> bring, copy -> verify  (again, if peers came or went)
    check    walk -> compare
    walk     walk
    evict    drop

What a job says of its end comes from `verify`, which asks the peers for every file after
the last byte was brought; never from a count of what was tried. The plan is on disk, so
ten million files take no more memory than ten.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import structlog

from mesh.blocks import FileVersion
from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, NotFound, Unavailable
from mesh.peer import masks
from mesh.peer.crew import Crew
from mesh.peer.delivery import PAUSE_MAX_S, PAUSE_S, RETRY_FOR_S, Delivery, Patience
from mesh.peer.pins import places
from mesh.peer.spool import PlannedFile, Spool, planned
from mesh.peer.walk import Tree, Walk, Walked
from mesh.understore.table import MountTable
from mesh.wire.care import DROP, DropRequest, Job, Tally

log = structlog.get_logger()

WARM, CHECK, WALK, EVICT = "warm", "check", "walk", "evict"
KINDS = (WARM, CHECK, WALK, EVICT)

ALL = "all"
"""In the place of the names of peers: every one."""

FAILURES_NAMED = 100
REASONS_KEPT = 10_000
ROUNDS = 3
CHANGES_FOLLOWED = 3
"""A file that changes while it is brought is brought anew so often."""

BUSY_PASSES = 4
BUSY_PAUSE_S = 0.5
"""A block that was just read is leased for a moment, and can't be dropped."""

STATED_AT_ONCE = 32
STATED_MAX = 10_000
"""Of so many missing files one looks what became of them; the others are just missing."""

LOST = "no peer has all of it: evicted, or lost with its peer"


class Warmup:
    """One run of one job."""

    def __init__(
        self,
        job: Job,
        tree: Tree,
        table: MountTable,
        crew: Crew,
        *,
        spools: Path,
        clock: Clock = monotonic_s,
    ) -> None:
        """Keep plans in files in *spools*."""
        self.job = job
        self.tally = Tally()
        self.stage = ""
        self.failures: dict[str, str] = {}
        """The first files and directories that are not as they should be, and why."""

        self._tree = tree
        self._table = table
        self._crew = crew
        self._spools = spools
        self._clock = clock
        self._patience = Patience(clock)
        self._reasons: dict[bytes, str] = {}
        self._unwalked: dict[str, str] = {}
        self._unwalked_count = 0
        self._is_blind = False  # the under-store does not say what became of files

    async def run(self, roots: Spool[bytes]) -> bool:
        """Do it all; return whether everything is as it should be."""
        if self.job.kind == EVICT:
            await self._evict(roots)
            return not self.failures
        with ExitStack() as spools:
            plan = None
            if self.job.kind != WALK:
                plan = spools.enter_context(self._spool())
            await self._walk(roots, plan)
            if plan is not None:
                await self._compare(plan)
            if plan is not None and self.job.kind == WARM:
                await self._warm(plan)
        return not self.tally.failed

    def _spool(self) -> Spool[PlannedFile]:
        return Spool(self._spools, PlannedFile)

    # Finding

    async def _walk(self, roots: Spool[bytes], plan: Spool[PlannedFile] | None) -> None:
        self.stage = "walking"
        walked = Walked(self._patiently, self._note_unwalked)
        await Walk(self._tree, plan, self.tally, walked, spools=self._spools).go(roots)
        self._show_failures({}, 0)

    async def _patiently(self, call: Callable[[], Awaitable[None]]) -> None:
        """Do something, again and again while what it needs is away."""
        since_s = self._clock()
        pause_s = PAUSE_S
        while True:
            try:
                await call()
            except Unavailable:
                if self._clock() - since_s > RETRY_FOR_S:
                    raise
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, PAUSE_MAX_S)
            else:
                return

    def _note_unwalked(self, path: str, error: MeshError) -> None:
        self._unwalked_count += 1
        if len(self._unwalked) < FAILURES_NAMED:
            self._unwalked[path] = str(error)

    def _show_failures(self, missing: Mapping[str, str], count: int) -> None:
        named = [*self._unwalked.items(), *missing.items()][:FAILURES_NAMED]
        self.failures = dict(named)
        self.tally.failed = self._unwalked_count + count

    async def _compare(self, plan: Spool[PlannedFile]) -> None:
        """See how much is here before anything is brought."""
        self.stage = "comparing"
        tally = self.tally
        async for page in plan.frames():
            files = [one.version() for one in page]
            kept = await self._kept(files, is_strict=False)
            for file, mask in zip(files, kept, strict=True):
                tally.here_files += mask == masks.whole(file)
                tally.here_blocks += mask.bit_count()
                tally.here_bytes += masks.size_of(file, mask)
        tally.is_planned = True

    async def _kept(self, files: Sequence[FileVersion], *, is_strict: bool) -> list[int]:
        """Return which blocks of each file are kept by as many peers as are wanted."""
        wanted = self._wanted_peers()
        replies = await self._crew.holdings(files, copies=self.job.replicas, named=wanted)
        held = {peer: r.sure if is_strict else r.masks for peer, r in replies.items()}
        if wanted:
            found = [held.get(peer, (0,) * len(files)) for peer in wanted]
            copies = len(wanted)
        else:
            found = list(held.values())
            copies = min(self.job.replicas, max(1, len(self._crew.live())))
        return [masks.at_least((each[n] for each in found), copies) for n in range(len(files))]

    def _wanted_peers(self) -> list[str]:
        """Return who should have all blocks; nobody when the ring says who has which."""
        return self._crew.here() if ALL in self.job.peers else list(self.job.peers)

    # Bringing

    async def _warm(self, plan: Spool[PlannedFile]) -> None:
        tally = self.tally
        planned_blocks, planned_bytes = tally.blocks, tally.size_bytes
        todo = plan
        with ExitStack() as spools:
            for _ in range(ROUNDS):
                crew = (self._crew.census(), self._crew.unanswered)
                self._reasons.clear()
                for is_first in self._passes():
                    await self._bring(todo, is_first=is_first)
                tally.blocks, tally.size_bytes = planned_blocks, planned_bytes
                missing = spools.enter_context(self._spool())
                await self._verify(plan, missing)
                if not missing.count or crew == (self._crew.census(), self._crew.unanswered):
                    return
                log.info("warm-up goes on: peers came or went", missing=missing.count)
                todo = missing

    def _passes(self) -> tuple[bool, ...]:
        """Return whether each pass over the plan is the one for first copies."""
        return (True, False) if self.job.peers or self.job.replicas > 1 else (True,)

    async def _bring(self, todo: Spool[PlannedFile], *, is_first: bool) -> None:
        self.stage = "bringing" if is_first else "copying"
        job = replace(self.job, peers=tuple(self._wanted_peers()))
        copies = 1 if is_first else len(job.peers) or job.replicas
        self.tally.wanted_bytes, self.tally.seen_to_bytes = copies * self.tally.size_bytes, 0
        with ExitStack() as spools:
            for _ in range(CHANGES_FOLLOWED):
                delivery = Delivery(
                    self._crew,
                    job,
                    self.tally,
                    self._patience,
                    self._note,
                    is_first=is_first,
                    clock=self._clock,
                )
                changed = spools.enter_context(self._spool())
                await delivery.bring(todo, changed)
                if not changed.count:
                    return
                todo = spools.enter_context(self._spool())
                async for page in changed.frames():
                    await todo.append([one for one, _ in await self._stated(page) if one])

    def _note(self, one: PlannedFile, error: MeshError) -> None:
        if len(self._reasons) < REASONS_KEPT:
            self._reasons[one.path] = str(error)

    async def _stated(self, page: Sequence[PlannedFile]) -> list[tuple[PlannedFile | None, str]]:
        """Return what each file is now, and why it is nothing."""
        turns = asyncio.Semaphore(STATED_AT_ONCE)

        async def stated(one: PlannedFile) -> tuple[PlannedFile | None, str]:
            try:
                async with turns:
                    now = await self._tree.stat(one.shown, refresh=True)
            except NotFound:
                return None, "it was removed"
            except MeshError as error:
                self._is_blind = self._is_blind or isinstance(error, Unavailable)
                return one, str(error)
            if now.file is None:
                return None, "it is a directory now"
            return planned(one.shown, now.file), ""

        return list(await asyncio.gather(*map(stated, page)))

    # Verifying

    async def _verify(self, plan: Spool[PlannedFile], missing: Spool[PlannedFile]) -> None:
        """Ask the peers what they hold of the whole plan; put what lacks into *missing*."""
        self.stage = "verifying"
        tally = self.tally
        tally.kept_files = tally.kept_blocks = tally.kept_bytes = 0
        named: dict[str, str] = {}
        lacking_count = 0
        self._is_blind = False
        async for page in plan.frames():
            is_looked_at = lacking_count < STATED_MAX and not self._is_blind
            lacking = await self._lacking(page, is_looked_at=is_looked_at)
            for one, reason in lacking:
                if len(named) < FAILURES_NAMED:
                    named[one.shown] = reason
            await missing.append([one for one, _ in lacking])
            lacking_count += len(lacking)
        self._show_failures(named, lacking_count)
        tally.is_verified = True

    async def _lacking(
        self, page: Sequence[PlannedFile], *, is_looked_at: bool
    ) -> list[tuple[PlannedFile, str]]:
        """Count what is kept of a page; return what is not kept whole, and why."""
        files = [one.version() for one in page]
        kept = await self._kept(files, is_strict=True)
        doubtful = []
        for one, file, mask in zip(page, files, kept, strict=True):
            if mask == masks.whole(file):
                self._count_kept(file, mask)
            else:
                doubtful.append((one, mask))
        if not doubtful:
            return []
        # What was planned may not exist any more; then what is there now counts.
        lacking = []
        now: list[tuple[PlannedFile | None, str]] = [(one, "") for one, _ in doubtful]
        if is_looked_at:
            now = await self._stated([one for one, _ in doubtful])
        pairs = zip(doubtful, now, strict=True)
        versions = [(there or one).version() for (one, _), (there, _) in pairs]
        kept = await self._kept(versions, is_strict=True)
        for (one, _), (there, why), file, mask in zip(doubtful, now, versions, kept, strict=True):
            before = one.version()
            self.tally.blocks += file.block_count - before.block_count
            self.tally.size_bytes += file.size_bytes - before.size_bytes
            self._count_kept(file, mask)
            if there is None or mask != masks.whole(file):
                lacking.append((there or one, why or self._reasons.get(one.path, LOST)))
        return lacking

    def _count_kept(self, file: FileVersion, mask: int) -> None:
        tally = self.tally
        tally.kept_files += mask == masks.whole(file)
        tally.kept_blocks += mask.bit_count()
        tally.kept_bytes += masks.size_of(file, mask)

    # Evicting

    async def _evict(self, roots: Spool[bytes]) -> None:
        self.stage = "dropping"
        wanted = []
        async for paths in roots.frames():
            for path in paths:
                wanted += list(places(self._table, path.decode("utf-8", "surrogateescape")))
        for number in range(BUSY_PASSES):
            self.tally.pinned_files = self.tally.busy_blocks = 0
            self.failures = {}
            await asyncio.gather(*(self._drop(peer, wanted) for peer in self._crew.here()))
            if not self.tally.busy_blocks or number == BUSY_PASSES - 1:
                break
            await asyncio.sleep(BUSY_PAUSE_S)
        self.tally.failed = len(self.failures)

    async def _drop(self, peer: str, wanted: Sequence[tuple[str, str]]) -> None:
        tally = self.tally
        try:
            for source, path in wanted:
                after, is_last = b"", False
                while not is_last:
                    page = await self._crew.ask(peer, DROP, DropRequest(source, path, after))
                    tally.dropped_files += page.files
                    tally.dropped_blocks += page.blocks
                    tally.dropped_bytes += page.size_bytes
                    tally.pinned_files += page.pinned_files
                    tally.busy_blocks += page.busy_blocks
                    after, is_last = page.after, page.is_last
        except MeshError as error:
            self.failures[f"peer {peer}"] = f"it keeps what it has: {error}"
