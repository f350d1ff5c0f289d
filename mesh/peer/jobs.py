"""The jobs of this peer: ordered, run, cancelled, and taken up again after a restart.

    queued ──> running ──> done | failed | cancelled
                  └── the peer stops: running again after its next start, from the walk on

A job is kept with its result. Its paths may be many: they are in a file of their own,
beside the blocks, until the job has ended.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from mesh.errors import MeshError, NotFound
from mesh.metrics import Metrics
from mesh.peer.crew import Crew
from mesh.peer.pins import Pins
from mesh.peer.spool import Spool
from mesh.peer.walk import Tree
from mesh.peer.warmup import ALL, EVICT, KINDS, Warmup
from mesh.store.notes import Notes
from mesh.wire.care import Job, JobList, JobOrder, JobRequest, decode_job, encode_job
from mesh.wire.messages import Nothing

log = structlog.get_logger()

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
UNENDED = (QUEUED, RUNNING)

RUNNING_MAX = 2
UNENDED_MAX = 100
KEPT_MAX = 100
OPEN_MAX = 16
"""Orders whose paths still come; the oldest is forgotten for a new one."""

PATHS_SHOWN = 10
PATHS_TOGETHER = 512
ASKED_AT_ONCE = 32
FILES_AT_ONCE_MAX = 1000
READ_BYTES = 1 << 20
RESUME_AFTER_S = 2.0
"""A peer that has just started may not know yet who else is there."""


class Jobs:
    """All jobs that this peer knows."""

    def __init__(
        self,
        notes: Notes,
        tree: Tree,
        crew: Crew,
        pins: Pins,
        tasks: asyncio.TaskGroup,
        build: Callable[[Job], Warmup],
        metrics: Metrics,
        *,
        directory: Path,
    ) -> None:
        """Make the run of a job with *build*; keep paths in files in *directory*."""
        self._notes = notes
        self._tree = tree
        self._crew = crew
        self._pins = pins
        self._tasks = tasks
        self._build = build
        self._directory = directory
        self._jobs: dict[int, Job] = {}
        self._open: dict[int, Job] = {}
        self._runs: dict[int, Warmup] = {}
        self._running: dict[int, asyncio.Task[None]] = {}
        self._cancelled: set[int] = set()
        self._turns = asyncio.Semaphore(RUNNING_MAX)
        self._ended = metrics.jobs_ended
        metrics.jobs_unended.set_function(lambda: len(self._running))
        metrics.jobs_left_bytes.set_function(self._left_bytes)

    async def load(self) -> None:
        """Take up what was kept; forget the paths of what is not."""
        for value in (await self._notes.all()).values():
            job = decode_job(value)
            self._jobs[job.number] = job
        unended = {self._paths_file(j.number) for j in self._jobs.values() if j.state in UNENDED}
        for left in self._directory.glob("*.paths"):
            if left not in unended:
                left.unlink()

    async def resume(self) -> None:
        """Go on with what had not ended when this peer did."""
        unended = [job for job in self._jobs.values() if job.state in UNENDED]
        if unended:
            await asyncio.sleep(RESUME_AFTER_S)
        for job in unended:
            if job.number not in self._running and self._jobs[job.number].state in UNENDED:
                log.info("job resumed", job=job.number)
                self._begin(replace(job, state=QUEUED, resumed=job.resumed + 1))

    # What people ask

    async def start(self, order: JobOrder) -> Job:
        """Take an order, or more paths of one, and begin when it is whole.

        `NotFound` with the reason when it can't be done; then nothing has begun.
        """
        if order.number:
            return await self._add(order)
        self._check(order)
        await self._check_paths(order)
        number = max([0, *self._jobs, *self._open]) + 1
        while len(self._open) >= OPEN_MAX:
            self._forget_order(next(iter(self._open)))
        self._open[number] = Job(
            number=number,
            kind=order.kind,
            paths=order.paths[:PATHS_SHOWN],
            path_count=0,
            state=QUEUED,
            ordered_s=time.time(),
            files_at_once=order.files_at_once,
            replicas=order.replicas,
            peers=order.peers,
            bytes_per_s=order.bytes_per_s,
        )
        return await self._keep(number, order)

    async def _add(self, order: JobOrder) -> Job:
        if order.number not in self._open:
            raise NotFound(f"job {order.number} takes no more paths; order it anew")
        try:
            await self._check_paths(order)
        except MeshError:
            self._forget_order(order.number)
            raise
        return await self._keep(order.number, order)

    async def _keep(self, number: int, order: JobOrder) -> Job:
        await asyncio.to_thread(_write_paths, self._paths_file(number), order.paths)
        known = self._open[number]
        job = self._open[number] = replace(known, path_count=known.path_count + len(order.paths))
        if order.is_open:
            return job
        del self._open[number]
        await self._note(job)
        self._begin(job)
        return job

    def _check(self, order: JobOrder) -> None:
        if sum(job.state in UNENDED for job in self._jobs.values()) >= UNENDED_MAX:
            raise NotFound(f"{UNENDED_MAX} jobs wait already; wait for them or cancel some")
        if order.kind not in KINDS:
            raise NotFound(f"this peer knows no job of kind {order.kind}; update it")
        if not 1 <= order.files_at_once <= FILES_AT_ONCE_MAX:
            raise NotFound(f"{order.files_at_once} files at once; take 1 to {FILES_AT_ONCE_MAX}")
        here = self._crew.here()
        if not 1 <= order.replicas <= len(here):
            raise NotFound(
                f"--replicas {order.replicas} is more than there are peers; take 1 to {len(here)}"
            )
        for name in order.peers:
            if name != ALL and name not in here:
                known = ", ".join(here)
                raise NotFound(f"--on {name} is no peer of this mesh; take of {known}, or all")

    async def _check_paths(self, order: JobOrder) -> None:
        turns = asyncio.Semaphore(ASKED_AT_ONCE)

        async def check(path: str) -> None:
            if order.kind == EVICT and (pinned := self._pins.over(path)) is not None:
                raise NotFound(f"{path} is pinned; `mesh unpin {pinned}` first")
            async with turns:
                try:
                    await self._tree.stat(path)
                except NotFound as error:
                    raise NotFound(f"{path}: no such file or directory in the mesh") from error

        answers = await asyncio.gather(*map(check, order.paths), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer

    async def list(self, request: Nothing) -> JobList:
        """Return all jobs, those that ended last included; `show` has what failed of each."""
        jobs = (self._shown(self._jobs[number]) for number in sorted(self._jobs))
        return JobList(tuple(replace(job, failures=()) for job in jobs))

    async def show(self, request: JobRequest) -> Job:
        """Return one job as it is at this moment."""
        return self._shown(self._known(request.number))

    async def cancel(self, request: JobRequest) -> Job:
        """End a job; one that has ended stays as it is."""
        self._known(request.number)
        task = self._running.get(request.number)
        if task is not None:
            self._cancelled.add(request.number)
            task.cancel()
            await asyncio.wait({task})
            if self._running.pop(request.number, None) is not None:
                # The task was cancelled before it took its first step, and has seen nothing.
                self._cancelled.discard(request.number)
                job = replace(self._jobs[request.number], state=CANCELLED, ended_s=time.time())
                await self._end(job)
        return self._shown(self._jobs[request.number])

    def _known(self, number: int) -> Job:
        job = self._jobs.get(number)
        if job is None:
            raise NotFound(f"there is no job {number}; `mesh job ls` lists them")
        return job

    def _shown(self, job: Job) -> Job:
        run = self._runs.get(job.number)
        if run is None:
            return job
        failures = tuple(run.failures.items())
        return replace(job, stage=run.stage, tally=run.tally, failures=failures)

    def _left_bytes(self) -> int:
        tallies = (run.tally for run in list(self._runs.values()))  # asked from another thread
        return sum(max(0, tally.wanted_bytes - tally.seen_to_bytes) for tally in tallies)

    # Running

    def _begin(self, job: Job) -> None:
        self._jobs[job.number] = job
        task = self._tasks.create_task(self._do(job), name=f"job {job.number}")
        self._running[job.number] = task

    async def _do(self, job: Job) -> None:
        number = job.number
        task = asyncio.current_task()
        try:
            ended = await self._done(job)
        except (asyncio.CancelledError, Exception) as error:
            # While a peer stops, what a job waits for may fail before the job is cancelled.
            if number not in self._cancelled and task is not None and task.cancelling():
                raise asyncio.CancelledError from error  # after the next start it goes on
            ended = self._failed(number, error)
        finally:
            self._running.pop(number, None)
            self._runs.pop(number, None)
            self._cancelled.discard(number)
        await self._end(replace(ended, ended_s=time.time()))

    def _failed(self, number: int, error: BaseException) -> Job:
        job = self._shown(self._jobs[number])
        if number in self._cancelled:
            return replace(job, state=CANCELLED)
        if isinstance(error, MeshError):
            return replace(job, state=FAILED, error=str(error))
        # A bug of ours, or a full disk: it ends the job alone.
        log.error("job failed", job=number, exc_info=error)
        return replace(job, state=FAILED, error=f"{type(error).__name__}: {error}")

    async def _done(self, job: Job) -> Job:
        async with self._turns:
            job = replace(job, state=RUNNING, began_s=time.time())
            self._jobs[job.number] = job
            await self._note(job)
            log.info("job begins", job=job.number, kind=job.kind, paths=job.path_count)
            run = self._runs[job.number] = self._build(job)
            with Spool(self._directory, bytes) as roots:
                for paths in _read_paths(self._paths_file(job.number)):
                    await roots.append(paths)
                is_good = await run.run(roots)
            return replace(self._shown(job), state=DONE if is_good else FAILED)

    async def _end(self, job: Job) -> None:
        self._jobs[job.number] = job
        self._ended.labels(job.state).inc()
        log.info("job ended", job=job.number, kind=job.kind, state=job.state)
        ended = sorted(j.number for j in self._jobs.values() if j.state not in UNENDED)
        old = ended[:-KEPT_MAX]
        for number in old:
            del self._jobs[number]
        values: dict[bytes, bytes | None] = {_key(number): None for number in old}
        await self._notes.put(values | {_key(job.number): encode_job(job)})
        await asyncio.to_thread(self._paths_file(job.number).unlink, missing_ok=True)

    async def _note(self, job: Job) -> None:
        self._jobs[job.number] = job
        await self._notes.put({_key(job.number): encode_job(job)})

    def _forget_order(self, number: int) -> None:
        del self._open[number]
        self._paths_file(number).unlink(missing_ok=True)

    def _paths_file(self, number: int) -> Path:
        return self._directory / f"{number}.paths"


def _key(number: int) -> bytes:
    return number.to_bytes(8, "big")


def _write_paths(file: Path, paths: Sequence[str]) -> None:
    """Put paths behind those in the file, durably."""
    data = b"".join(path.encode("utf-8", "surrogateescape") + b"\0" for path in paths)
    with file.open("ab") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _read_paths(file: Path) -> Iterator[list[bytes]]:
    """Yield the paths in the file, some at a time."""
    with file.open("rb") as written:
        rest = b""
        while data := written.read(READ_BYTES):
            *whole, rest = (rest + data).split(b"\0")
            yield from _cut(whole)


def _cut(paths: Sequence[bytes]) -> Iterable[list[bytes]]:
    for start in range(0, len(paths), PATHS_TOGETHER):
        yield list(paths[start : start + PATHS_TOGETHER])
