"""`mesh job`: what warm-ups this host's peer does, did, and should stop to do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mesh.cli.ask import ask, host_peer
from mesh.cli.exits import AsJson, ConfigPath, one_line, settings_of
from mesh.cli.figures import NOTHING, percent_shown, size_shown, text_shown
from mesh.cli.following import (
    CANCEL_WITHIN_S,
    RUNNING,
    as_line,
    failure_lines,
    follow,
    plan_line,
    report,
    result_line,
)
from mesh.wire.care import CANCEL_JOB, LIST_JOBS, SHOW_JOB, Job, JobRequest
from mesh.wire.messages import Nothing

WIDTH_WHEN_PIPED = 160
PATHS_SHOWN = 3

app = typer.Typer(help="Jobs of this host's peer: warm-ups and their like.", no_args_is_help=True)
Number = Annotated[int, typer.Argument(metavar="ID", min=1)]


@app.command("ls")
def list_jobs(config: ConfigPath, as_json: AsJson = False) -> None:
    """List the jobs that run or wait, and the last ones that ended."""
    jobs = ask(settings_of(config), LIST_JOBS, Nothing()).jobs
    if as_json:
        print(json.dumps([json.loads(as_line(job)) for job in jobs]))
        return
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for column in ("id", "kind", "state", "files", "size", "done", "ordered", "paths"):
        table.add_column(column, justify="right" if column in ("id", "files") else "left")
    for job in jobs:
        table.add_row(*map(Text, _row(job)))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH_WHEN_PIPED)
    console.print(table)


@app.command()
def show(number: Number, config: ConfigPath, as_json: AsJson = False) -> None:
    """Show one job as it is at this moment."""
    job = ask(settings_of(config), SHOW_JOB, JobRequest(number))
    if as_json:
        print(as_line(job))
        return
    for line in _lines(job):
        print(line)


@app.command()
def wait(number: Number, config: ConfigPath, as_json: AsJson = False) -> None:
    """Follow a job to its end; the exit code is the one that `mesh warmup` would have had."""
    settings = settings_of(config)
    with one_line():
        job = asyncio.run(_wait(settings.peer.socket, number, is_quiet=as_json))
    raise typer.Exit(report(job, as_json=as_json))


@app.command()
def cancel(number: Number, config: ConfigPath, as_json: AsJson = False) -> None:
    """End a job; what it has brought stays."""
    settings = settings_of(config)
    with one_line():
        job = asyncio.run(_cancel(settings.peer.socket, number))
    print(as_line(job) if as_json else result_line(job))


async def _wait(socket: Path, number: int, *, is_quiet: bool) -> Job:
    async with host_peer(socket) as peer:
        await peer.ask(SHOW_JOB, JobRequest(number))  # who asks a dead peer hears so at once
        return await follow(peer, number, is_quiet=is_quiet, is_ours=False)


async def _cancel(socket: Path, number: int) -> Job:
    async with host_peer(socket) as peer:
        return await peer.ask(CANCEL_JOB, JobRequest(number), timeout_s=CANCEL_WITHIN_S)


def _row(job: Job) -> tuple[str, ...]:
    tally = job.tally
    ratio = tally.seen_to_bytes / tally.wanted_bytes if tally.wanted_bytes else None
    return (
        str(job.number),
        job.kind,
        f"{job.state}, {job.stage}" if job.state in RUNNING and job.stage else job.state,
        f"{tally.files:,}" if tally.files else NOTHING,
        size_shown(tally.size_bytes) if tally.files else NOTHING,
        NOTHING if ratio is None else percent_shown(min(1.0, ratio)),
        _moment(job.ordered_s),
        _paths(job),
    )


def _lines(job: Job) -> Iterator[str]:
    yield f"job {job.number}: {job.kind} {_paths(job)}"
    stage = f", {job.stage}" if job.state in RUNNING and job.stage else ""
    resumed = f", resumed {job.resumed} times" if job.resumed else ""
    yield f"{job.state}{stage}{resumed}; ordered {_moment(job.ordered_s)}"
    if job.tally.is_planned and job.kind == "warm":
        yield plan_line(job)
    if job.state in RUNNING:
        tally = job.tally
        yield f"seen to: {size_shown(tally.seen_to_bytes)} of {size_shown(tally.wanted_bytes)}"
    else:
        yield result_line(job)
    yield from failure_lines(job)


def _paths(job: Job) -> str:
    named = " ".join(text_shown(path) for path in job.paths[:PATHS_SHOWN])
    more = job.path_count - min(len(job.paths), PATHS_SHOWN)
    return f"{named} and {more} more" if more > 0 else named


def _moment(stamp_s: float) -> str:
    return datetime.fromtimestamp(stamp_s, UTC).isoformat(" ", "seconds")
