"""`mesh status`: all peers at a glance, and what is wrong with them."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Annotated

import msgspec
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mesh.cli.ask import HostPeer, ask, host_peer
from mesh.cli.exits import AsJson, ConfigPath, settings_of
from mesh.cli.figures import NOTHING, duration_shown, hit_ratio, percent_shown, size_shown
from mesh.cli.settings import Settings
from mesh.errors import MeshError
from mesh.membership.view import State
from mesh.metrics import LOCAL, PEER, UNDER_STORE
from mesh.wire.codec import OVERVIEW
from mesh.wire.messages import Description, Nothing, Overview

REFRESH_S = 1.0
FULL_RATIO = 0.9
STAGED_LONG_S = 60.0
SETTLED_AFTER_S = 10.0
"""By then all peers have heard of a start."""

ENDLESS_COLUMNS = 10_000
"""What is piped into a file or grep has no width, and 80 columns would cut it."""

Column = tuple[str, Callable[[Description], str]]

_PLACE: list[Column] = [
    ("zone", lambda d: d.zone or NOTHING),
    ("address", lambda d: d.address),
    ("ring", lambda d: percent_shown(d.ring_share)),
    ("uptime", lambda d: duration_shown(d.uptime_s)),
]
_CACHE: list[Column] = [
    ("cache", lambda d: f"{size_shown(d.used_bytes)} / {size_shown(d.capacity_bytes)}"),
    ("blocks", lambda d: str(d.block_count)),
    ("hit", lambda d: percent_shown(hit_ratio(d.read_bytes))),
    ("failovers", lambda d: str(d.failovers)),
    ("corrupt", lambda d: str(d.corrupt_blocks)),
]
_TRAFFIC: list[Column] = [
    ("local", lambda d: size_shown(d.read_bytes.get(LOCAL, 0))),
    ("peer", lambda d: size_shown(d.read_bytes.get(PEER, 0))),
    ("under-store", lambda d: size_shown(d.read_bytes.get(UNDER_STORE, 0))),
    ("served", lambda d: size_shown(d.served_bytes)),
    ("hedges", lambda d: str(d.hedges)),
    ("filled", lambda d: size_shown(d.fill_bytes)),
]
_KNOWN_OF_ALL = {"zone", "address"}  # from the config, not from the peer


def status(
    config: ConfigPath,
    as_json: AsJson = False,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh each second.")] = False,
) -> None:
    """Show all peers: how full they are, what they read and from where, what is wrong."""
    settings = settings_of(config)
    if watch:
        with suppress(KeyboardInterrupt):
            asyncio.run(_watch(settings, as_json=as_json))
        return
    overview = ask(settings, OVERVIEW, Nothing())
    writes = durabilities(settings)
    if as_json:
        print(as_line(overview, writes))
    else:
        console = _console()
        console.print(rendered(overview, columns=console.width, writes=writes))


def durabilities(settings: Settings) -> dict[str, str]:
    """Return what has a file when its writer is told that it is safe, by path of the mesh."""
    found: dict[str, str] = {}
    for path, mount in settings.mounts.items():
        found[path] = "read-only" if mount.read_only else mount.durability
        for below, durability in mount.durabilities.items():
            if not mount.read_only:
                found[f"{path.rstrip('/')}/{below.strip('/')}"] = durability
    return found


def as_line(overview: Overview, writes: Mapping[str, str] | None = None) -> str:
    """Return everything as one line of JSON."""
    known = {} if writes is None else {"durability": dict(writes)}
    return json.dumps(msgspec.to_builtins(overview) | known)


def rendered(
    overview: Overview, *, columns: int, writes: Mapping[str, str] | None = None
) -> RenderableType:
    """Return the summary, the peers and the warnings, as fits into so many columns."""
    parts: list[RenderableType] = [Text(summary(overview), style="bold")]
    if writes:
        parts.append(Text("writes: " + ", ".join(f"{p} {d}" for p, d in sorted(writes.items()))))
    parts += _tables(overview.peers, columns)
    parts += [Text(f"warning: {warning}", style="yellow") for warning in warnings(overview)]
    return Group(*parts)


def summary(overview: Overview) -> str:
    """Return the whole mesh on one line."""
    peers = overview.peers
    read_bytes: Tally[str] = Tally()
    for peer in peers:
        read_bytes.update(peer.read_bytes)
    used, capacity = sum(p.used_bytes for p in peers), sum(p.capacity_bytes for p in peers)
    parts = [
        f"cluster {overview.cluster}",
        f"epoch {overview.epoch:016x}",
        f"{sum(p.is_up for p in peers)} of {len(peers)} peers up",
        f"cache {size_shown(used)} of {size_shown(capacity)}",
        f"{sum(p.block_count for p in peers)} blocks",
        f"read {size_shown(read_bytes.total())}",
        f"hit {percent_shown(hit_ratio(read_bytes))}",
        f"filled {size_shown(sum(p.fill_bytes for p in peers))}",
    ]
    if any(p.staged_files for p in peers):
        parts.append(f"{size_shown(sum(p.staged_bytes for p in peers))} staged")
    return ", ".join(parts)


def warnings(overview: Overview) -> Iterator[str]:
    """Yield what a person should look at."""
    up = [peer for peer in overview.peers if peer.is_up]
    is_settled = min((peer.uptime_s for peer in up), default=0.0) > SETTLED_AFTER_S
    for peer in overview.peers:
        if peer.state == State.LEFT:
            yield f"{peer.name} has left{_place_of(peer)}"
            continue
        if not peer.is_up:
            yield f"{peer.name} is down: no answer from {peer.address}{_place_of(peer)}"
            continue
        if is_settled and peer.epoch != overview.epoch:
            yield f"{peer.name} has another view of the mesh, {peer.epoch:016x}; it should pass"
        if peer.repair_pending_blocks:
            yield (
                f"{peer.name} brings {peer.repair_pending_blocks} blocks that it owns since the "
                f"ring changed, {size_shown(peer.repaired_bytes)} so far"
            )
        if peer.errors:
            yield f"{peer.name}: {peer.errors} errors reached readers; its log says which"
        if peer.corrupt_blocks:
            yield (
                f"{peer.name}: {peer.corrupt_blocks} corrupt blocks were dropped; "
                "check its disk and memory"
            )
        if peer.staged_age_s > STAGED_LONG_S:
            yield (
                f"{peer.name}: {peer.staged_files} files, {size_shown(peer.staged_bytes)}, wait "
                f"for the under-store, the oldest for {duration_shown(peer.staged_age_s)}; "
                "`mesh uploads` says why"
            )
        if peer.used_bytes > FULL_RATIO * peer.capacity_bytes:
            ratio = percent_shown(peer.used_bytes / max(1, peer.capacity_bytes))
            yield f"{peer.name}: its cache is {ratio} full; more store.capacity evicts less"


def state_of(peer: Description) -> str:
    """Return what a peer is, as far as the peer that was asked knows."""
    if peer.is_up:
        return peer.state or "up"
    gone = (State.SUSPECT, State.DEAD, State.LEFT, State.DRAINING)
    return peer.state if peer.state in gone else "down"


def _place_of(peer: Description) -> str:
    """Return what becomes of what a peer that is gone owned."""
    if not peer.ring_share:
        return "; others own what it had"
    return f"; its {percent_shown(peer.ring_share)} of the keys are kept for it for a while"


def _tables(peers: Sequence[Description], columns: int) -> list[Table]:
    """Return everything in as few tables as fit into so many columns."""
    endless = Console(width=ENDLESS_COLUMNS)
    tables: list[Table] = []
    for groups in (
        [_PLACE + _CACHE + _TRAFFIC],
        [_PLACE + _CACHE, _TRAFFIC],
        [_PLACE, _CACHE, _TRAFFIC],
    ):
        tables = [_table(peers, group) for group in groups]
        if all(endless.measure(table).maximum <= columns for table in tables):
            break
    return tables


def _table(peers: Sequence[Description], columns: Sequence[Column]) -> Table:
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("peer", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title, _ in columns:
        is_text = title in _KNOWN_OF_ALL
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    for peer in peers:
        state = Text(state_of(peer), "green" if peer.is_up else "bold red")
        cells = [
            Text(cell(peer) if peer.is_up or title in _KNOWN_OF_ALL else NOTHING)
            for title, cell in columns
        ]
        table.add_row(Text(peer.name), state, *cells)
    return table


def _console() -> Console:
    console = Console(highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(highlight=False, width=ENDLESS_COLUMNS)


async def _watch(settings: Settings, *, as_json: bool) -> None:
    console = _console()
    async with host_peer(settings.peer.socket) as peer:
        writes = durabilities(settings)
        if as_json:
            await _print_lines(peer, writes)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(await _seen(peer, console.width, writes), refresh=True)
                await asyncio.sleep(REFRESH_S)


async def _print_lines(peer: HostPeer, writes: Mapping[str, str]) -> None:
    while True:
        try:
            print(as_line(await peer.ask(OVERVIEW, Nothing()), writes), flush=True)
        except MeshError as error:
            print(json.dumps({"error": str(error)}), flush=True)
        await asyncio.sleep(REFRESH_S)


async def _seen(peer: HostPeer, columns: int, writes: Mapping[str, str]) -> RenderableType:
    try:
        return rendered(await peer.ask(OVERVIEW, Nothing()), columns=columns, writes=writes)
    except MeshError as error:
        return Text(f"no answer from {error}", style="bold red")  # it may come back
