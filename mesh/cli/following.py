"""A job as people see it: its plan, its progress, its end."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from mesh.cli.ask import HostPeer
from mesh.cli.exits import fail
from mesh.cli.figures import duration_shown, percent_shown, size_shown, text_shown
from mesh.errors import MeshError, PeerUnavailable
from mesh.store.eviction import START_RATIO
from mesh.wire.care import CANCEL_JOB, SHOW_JOB, Job, JobRequest, Tally
from mesh.wire.codec import OVERVIEW
from mesh.wire.messages import Nothing, Overview

POLL_S = 0.25
LINE_EVERY_S = 5.0
"""When nobody watches a terminal, so often a line says how far it is."""

CANCEL_WITHIN_S = 20.0
PEER_BACK_WITHIN_S = 60.0
"""A job goes on after a restart of its peer, and so does who follows it."""

NAMED_MAX = 20
RUNNING = ("queued", "running")
MOVING = ("bringing", "copying")
"""Stages of which one knows how much is left."""


def as_line(job: Job) -> str:
    """Return all of a job as one line of JSON."""
    said = asdict(job)
    said["failures"] = [{"path": path, "reason": reason} for path, reason in job.failures]
    return json.dumps(said)


def plan_line(job: Job) -> str:
    """Return what a job found before it brings anything."""
    tally = job.tally
    return (
        f"job {job.number}: {_counted(tally.files, 'file')} in "
        f"{_counted(tally.directories, 'directory')}, "
        f"{size_shown(tally.size_bytes)}{_wanted(job)}; "
        f"here already: {size_shown(tally.here_bytes)} "
        f"({percent_shown(_ratio(tally.here_bytes, tally.size_bytes))})"
    )


def result_line(job: Job) -> str:
    """Return what became of a job that ended, on one line."""
    tally = job.tally
    seconds = max(job.ended_s - job.began_s, 0.001) if job.began_s else 0.0
    took = duration_shown(seconds) if seconds >= 10 else f"{seconds:.1f}s"
    if job.error:
        return f"job {job.number} {job.state}: {text_shown(job.error)}"
    if job.state == "cancelled":
        return f"job {job.number} was cancelled after {took}; what was brought stays"
    if job.kind == "check":
        return (
            f"in the mesh: {tally.here_files:,} of {tally.files:,} files, "
            f"{tally.here_blocks:,} of {tally.blocks:,} blocks, "
            f"{size_shown(tally.here_bytes)} of {size_shown(tally.size_bytes)} "
            f"({percent_shown(_ratio(tally.here_bytes, tally.size_bytes))})"
        )
    if job.kind == "evict":
        return _evicted(tally)
    if job.kind == "walk":
        return (
            f"walked {_counted(tally.directories, 'directory')} in {took}: "
            f"{_counted(tally.files, 'file')}, {size_shown(tally.size_bytes)}"
        )
    return (
        f"in the mesh: {tally.kept_files:,} of {tally.files:,} files, "
        f"{size_shown(tally.kept_bytes)} of {size_shown(tally.size_bytes)}, as the peers say; "
        f"{size_shown(tally.under_store_bytes)} came from the under-store and "
        f"{size_shown(tally.peer_bytes)} from peers in {took} "
        f"({size_shown((tally.under_store_bytes + tally.peer_bytes) / seconds)}/s)"
    )


def failure_lines(job: Job) -> Iterator[str]:
    """Yield what is not as it should be, by name as far as that fits a screen."""
    named = job.failures[:NAMED_MAX]
    if not named:
        return
    if job.kind == "warm":
        yield f"missing are {job.tally.failed:,} of {_counted(job.tally.files, 'file')}:"
    else:
        yield f"not seen to, {job.tally.failed:,} in all:"
    for path, reason in named:
        yield f"  {text_shown(path)}: {text_shown(reason)}"
    if job.tally.failed > len(named):
        yield f"  and {job.tally.failed - len(named):,} more"


def report(job: Job, *, as_json: bool) -> int:
    """Print the end of a job; return the exit code that says it."""
    if as_json:
        print(as_line(job))
    elif job.state == "done":
        print(result_line(job))
    else:
        fail(result_line(job))
    if not as_json:
        for line in failure_lines(job):
            print(line, file=sys.stderr)
    is_all = job.kind != "check" or job.tally.here_files == job.tally.files
    return 0 if job.state == "done" and is_all else 1


async def follow(peer: HostPeer, number: int, *, is_quiet: bool, is_ours: bool) -> Job:
    """Show how a job goes on until it ends; return it then.

    Interrupted, it cancels the job if it *is_ours*, and says so.
    """
    looked = is_quiet
    with _shown(is_quiet=is_quiet) as show:
        try:
            while True:
                job = await _patiently(peer, number)
                show(job)
                if job.tally.is_planned and not looked:
                    looked = True
                    await _warn_of_room(peer, job)
                if job.state not in RUNNING:
                    return job
                await asyncio.sleep(POLL_S)
        except asyncio.CancelledError:
            if is_ours:
                job = await peer.ask(CANCEL_JOB, JobRequest(number), timeout_s=CANCEL_WITHIN_S)
                print(f"mesh: {result_line(job)}", file=sys.stderr)
            else:
                print(f"mesh: job {number} goes on without you", file=sys.stderr)
            raise


def room_warning(job: Job, overview: Overview) -> str | None:
    """Return what to say of a plan that the caches can't hold; None of one that they can."""
    up = {each.name: START_RATIO * each.capacity_bytes for each in overview.peers if each.is_up}
    named = up if "all" in job.peers else {n: up[n] for n in job.peers if n in up}
    wanted_bytes = job.tally.size_bytes * (1 if named and job.peers else job.replicas)
    room_bytes = min(named.values()) if named and job.peers else sum(up.values())
    if job.kind != "warm" or wanted_bytes <= room_bytes:
        return None
    where = "each of these caches keeps" if job.peers else "all caches together keep"
    return (
        f"{size_shown(wanted_bytes)} are wanted and {where} {size_shown(room_bytes)}: "
        "the oldest will go while the newest comes; take fewer files or raise store.capacity"
    )


async def _warn_of_room(peer: HostPeer, job: Job) -> None:
    with suppress(MeshError):
        warning = room_warning(job, await peer.ask(OVERVIEW, Nothing()))
        if warning is not None:
            print(f"mesh: warning: {warning}", file=sys.stderr)


async def _patiently(peer: HostPeer, number: int) -> Job:
    """Ask for a job, again and again while the peer is being restarted."""
    since_s = time.monotonic()
    told = False
    while True:
        try:
            return await peer.ask(SHOW_JOB, JobRequest(number))
        except PeerUnavailable:
            if time.monotonic() - since_s > PEER_BACK_WITHIN_S:
                raise
        if not told:
            print("mesh: this host's peer does not answer; waiting for it", file=sys.stderr)
            told = True
        await asyncio.sleep(POLL_S)


Show = Callable[[Job], None]


def _shown(*, is_quiet: bool) -> AbstractContextManager[Show]:
    if is_quiet:
        return nullcontext(lambda job: None)
    console = Console(stderr=True, highlight=False)
    return _Bar(console) if console.is_terminal else nullcontext(_Lines())


@dataclass(slots=True)
class _Plan:
    """Prints the plan, once it is there."""

    is_told: bool = False

    def tell(self, job: Job) -> None:
        if job.tally.is_planned and job.kind == "warm" and not self.is_told:
            self.is_told = True
            print(plan_line(job), flush=True)


class _Lines:
    """A plain line now and then."""

    def __init__(self) -> None:
        self._plan = _Plan()
        self._last_s = time.monotonic()
        self._last_bytes = 0

    def __call__(self, job: Job) -> None:
        self._plan.tell(job)
        now_s = time.monotonic()
        took_s = now_s - self._last_s
        if took_s < LINE_EVERY_S or job.state not in RUNNING:
            return
        tally = job.tally
        done_bytes, whole_bytes = _done(tally)
        line = f"job {job.number} {job.stage or job.state}: {tally.files:,} files"
        if job.stage in MOVING:
            rate = max(0, done_bytes - self._last_bytes) / took_s
            left = duration_shown((whole_bytes - done_bytes) / rate) if rate else "-"
            line = (
                f"job {job.number} {job.stage}: "
                f"{size_shown(done_bytes)} of {size_shown(whole_bytes)} "
                f"({percent_shown(_ratio(done_bytes, whole_bytes))}), "
                f"{size_shown(rate)}/s, {left} left"
            )
        self._last_s, self._last_bytes = now_s, done_bytes
        print(line, file=sys.stderr, flush=True)


class _Bar(AbstractContextManager[Show]):
    """A bar with rate and time left, on a terminal."""

    def __init__(self, console: Console) -> None:
        self._plan = _Plan()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._task = self._progress.add_task("waiting", total=None)

    def __enter__(self) -> Show:
        self._progress.start()
        return self._update

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _update(self, job: Job) -> None:
        self._plan.tell(job)
        done_bytes, whole_bytes = _done(job.tally)
        self._progress.update(
            self._task,
            description=f"{job.stage or job.state} {job.tally.files:,} files",
            total=whole_bytes if job.stage in MOVING else None,
            completed=done_bytes,
        )


def _done(tally: Tally) -> tuple[int, int]:
    """Return how much of what a job wants was seen to, and all of it."""
    return min(tally.seen_to_bytes, tally.wanted_bytes), tally.wanted_bytes


def _wanted(job: Job) -> str:
    if job.peers:
        return f", all of it on {' and '.join(job.peers)}"
    return f", each block on {job.replicas} peers" if job.replicas > 1 else ""


def _evicted(tally: Tally) -> str:
    dropped = _counted(tally.dropped_blocks, "block")
    line = f"dropped {dropped} ({size_shown(tally.dropped_bytes)})"
    if tally.pinned_files:
        line += f"; copies of pinned files stay: {tally.pinned_files:,}"
    if tally.busy_blocks:
        line += f"; blocks in use stay: {tally.busy_blocks:,}"
    return line


def _counted(number: int, thing: str) -> str:
    if number == 1:
        return f"1 {thing}"
    return (
        f"{number:,} {thing.removesuffix('y')}ies" if thing[-1] == "y" else f"{number:,} {thing}s"
    )


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 1.0
