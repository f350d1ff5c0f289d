"""`mesh distribute` and `mesh swarm`: one file on all hosts, and who gives it to whom."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from mesh.blocks import FileVersion
from mesh.cli.ask import LOOK_UP_TIMEOUT_S, HostPeer, host_peer
from mesh.cli.exits import AsJson, ConfigPath, fail, one_line, settings_of
from mesh.cli.figures import NOTHING, duration_shown, percent_shown, size_shown, text_shown
from mesh.cli.info import mesh_mountpoints, path_in_mesh
from mesh.cli.quantities import parse_seconds
from mesh.wire.swarm import (
    DISTRIBUTE,
    SHOW_ALL,
    DistributeReply,
    DistributeRequest,
    Shown,
    ShowRequest,
)

POLL_S = 0.5
SHOWN_MAX = 32
"""So many peers have a bar of their own; of more the slowest have."""

STUCK_S = 60.0
"""After so long without a byte more anywhere it is given up."""


@dataclass(frozen=True, slots=True)
class _Goal:
    """When it is done."""

    size_bytes: int
    peers: tuple[str, ...]
    at_least: float
    within_s: float

    def whole(self, shown: Sequence[Shown]) -> list[str]:
        """Return the peers that have all of it."""
        return [s.name for s in shown if s.name in self.peers and self._has_all(s)]

    def _has_all(self, one: Shown) -> bool:
        return not one.reason and one.reply.held_bytes >= self.size_bytes

    def is_met(self, shown: Sequence[Shown]) -> bool:
        return len(self.whole(shown)) >= self.at_least * len(self.peers)


def distribute(
    config: ConfigPath,
    path: Annotated[str, typer.Argument(metavar="PATH")],
    to: Annotated[str, typer.Option("--to", metavar="PEERS", help="one,two or all.")] = "all",
    by: Annotated[
        str, typer.Option("--by", metavar="TIME", help="Fail if it takes longer, such as 60s.")
    ] = "1h",
    at_least: Annotated[
        str, typer.Option("--at-least", metavar="SHARE", help="Of the peers, such as 95%.")
    ] = "100%",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until it is there.")] = True,
    plan: Annotated[bool, typer.Option("--plan", help="Say what would be done, and end.")] = False,
    as_json: AsJson = False,
) -> None:
    """Bring a file, or all files of a directory, to many peers, which help each other."""
    settings = settings_of(config)
    within = _path(path)
    peers = () if to == "all" else tuple(filter(None, to.split(",")))
    share, within_s = _share(at_least), _seconds(by)

    async def run() -> int:
        async with host_peer(settings.peer.socket) as peer:
            request = DistributeRequest(within.lstrip("/"), peers, is_plan=True)
            order = await peer.ask(DISTRIBUTE, request, timeout_s=LOOK_UP_TIMEOUT_S)
            size_bytes = sum(file.size_bytes for file in order.files)
            goal = _Goal(size_bytes, order.peers, share, within_s)
            before = await _show(peer, order.files)
            if not as_json:
                print(_plan(order, goal, before))
            if plan:
                return 0
            request = DistributeRequest(within.lstrip("/"), peers)
            order = await peer.ask(DISTRIBUTE, request, timeout_s=LOOK_UP_TIMEOUT_S)
            for failure in order.failures:
                fail(f"not told: {text_shown(failure)}")
            if not wait:
                return 1 if order.failures else 0
            return await _follow(peer, order, goal, as_json=as_json)

    with one_line():
        code = asyncio.run(run())
    if code:
        raise typer.Exit(code)


def swarm(config: ConfigPath, path: str, as_json: AsJson = False) -> None:
    """Who has how much of a file, who gives it to whom, and how fast."""
    settings = settings_of(config)
    request = DistributeRequest(_path(path).lstrip("/"), is_plan=True)

    async def run() -> tuple[DistributeReply, Sequence[Shown]]:
        async with host_peer(settings.peer.socket) as peer:
            order = await peer.ask(DISTRIBUTE, request, timeout_s=LOOK_UP_TIMEOUT_S)
            return order, await _show(peer, order.files)

    with one_line():
        order, shown = asyncio.run(run())
    size_bytes = sum(file.size_bytes for file in order.files)
    if as_json:
        print(json.dumps({"size_bytes": size_bytes, "peers": [_plain(one) for one in shown]}))
        return
    table = Table(box=None, pad_edge=False)
    for heading, is_number in (("peer", 0), ("has", 1), ("", 1), ("reads", 0), ("from", 0)):
        table.add_column(heading, justify="right" if is_number else "left")
    for one in sorted(shown, key=lambda one: one.name):
        reply = one.reply
        sources = ", ".join(
            f"{s.name} {size_shown(s.received_bytes)}"
            + (f" at {size_shown(int(s.bytes_per_s))}/s" if s.bytes_per_s else "")
            for s in reply.sources[:8]
        )
        table.add_row(
            one.name,
            size_shown(reply.held_bytes),
            percent_shown(reply.held_bytes / max(1, size_bytes)),
            "yes" if reply.is_reading else NOTHING,
            text_shown(one.reason) or sources or NOTHING,
        )
    print(f"{len(order.files)} files, {size_shown(size_bytes)}")
    Console().print(table)


async def _show(peer: HostPeer, files: Sequence[FileVersion]) -> Sequence[Shown]:
    request = ShowRequest(tuple(files))
    return (await peer.ask(SHOW_ALL, request, timeout_s=LOOK_UP_TIMEOUT_S)).peers


async def _follow(peer: HostPeer, order: DistributeReply, goal: _Goal, *, as_json: bool) -> int:
    """Show how far each peer is until it is done; return the exit code."""
    began_s = moved_s = time.monotonic()
    best_bytes = -1
    bars: dict[str, TaskID] = {}
    progress = None if as_json else _progress()
    with progress or nullcontext():
        while True:
            shown = await _show(peer, order.files)
            took_s = time.monotonic() - began_s
            if progress is not None:
                _draw(progress, bars, shown, goal)
            held_bytes = sum(one.reply.held_bytes for one in shown)
            if held_bytes > best_bytes:
                best_bytes, moved_s = held_bytes, time.monotonic()
            is_stuck = time.monotonic() - moved_s > STUCK_S
            if goal.is_met(shown) or took_s > goal.within_s or is_stuck:
                break
            await asyncio.sleep(POLL_S)
    whole = goal.whole(shown)
    if as_json:
        said = {"seconds": round(took_s, 3), "whole": whole, "is_met": goal.is_met(shown)}
        print(json.dumps(said | {"peers": [_plain(one) for one in shown]}))
    else:
        print(f"{len(whole)} of {len(goal.peers)} peers have all of it, {duration_shown(took_s)}")
    if goal.is_met(shown):
        return 0
    slow = [s for s in shown if s.name in goal.peers and s.name not in whole]
    for one in sorted(slow, key=lambda s: s.reply.held_bytes)[:8]:
        had = percent_shown(one.reply.held_bytes / max(1, goal.size_bytes))
        fail(f"{one.name} has {had}{': ' + one.reason if one.reason else ''}")
    return 1


def _plan(order: DistributeReply, goal: _Goal, before: Sequence[Shown]) -> str:
    held_bytes = sum(min(s.reply.held_bytes, goal.size_bytes) for s in before)
    left_bytes = goal.size_bytes * len(goal.peers) - held_bytes
    return (
        f"{len(order.files)} files, {size_shown(goal.size_bytes)}, to {len(goal.peers)} peers: "
        f"{len(goal.whole(before))} have all of it, {size_shown(max(0, left_bytes))} to be sent"
    )


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )


def _draw(progress: Progress, bars: dict[str, TaskID], shown: Sequence[Shown], goal: _Goal) -> None:
    wanted = [one for one in shown if one.name in goal.peers]
    slowest = sorted(wanted, key=lambda one: one.reply.held_bytes)[:SHOWN_MAX]
    for one in wanted if len(wanted) <= SHOWN_MAX else slowest:
        if one.name not in bars:
            bars[one.name] = progress.add_task(one.name, total=goal.size_bytes)
        progress.update(bars[one.name], completed=min(one.reply.held_bytes, goal.size_bytes))


def _plain(one: Shown) -> dict[str, object]:
    return {
        "peer": one.name,
        "held_bytes": one.reply.held_bytes,
        "is_reading": one.reply.is_reading,
        "error": one.reason,
        "sources": [
            {"peer": s.name, "received_bytes": s.received_bytes, "bytes_per_s": s.bytes_per_s}
            for s in one.reply.sources
        ],
    }


def _path(written: str) -> str:
    within = path_in_mesh(written, mesh_mountpoints())
    if within is None:
        fail(f"{text_shown(written)} is not in the mesh; write a path from / on, or one of a mount")
        raise typer.Exit(2)
    return within


def _share(written: str) -> float:
    try:
        share = float(written.removesuffix("%")) / 100
    except ValueError:
        share = -1.0
    if not (written.endswith("%") and 0 < share <= 1):
        fail(f"--at-least {text_shown(written)}: not a share of the peers; write such as 95%")
        raise typer.Exit(2)
    return share


def _seconds(written: str) -> float:
    try:
        return parse_seconds(written)
    except ValueError as error:
        fail(f"--by {text_shown(written)}: {error}; write such as 90s")
        raise typer.Exit(2) from None
