"""`mesh status`: all peers at a glance, and what is wrong with them."""

from __future__ import annotations

import asyncio
import json
from collections import Counter as Tally
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Annotated

import msgspec
import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mesh.cli.ask import HostPeer, ask, host_peer
from mesh.cli.exits import AsJson, ConfigPath, settings_of
from mesh.cli.figures import NOTHING, duration_shown, hit_ratio, percent_shown, size_shown
from mesh.cli.settings import Settings
from mesh.errors import MeshError
from mesh.metrics import LOCAL, PEER, UNDER_STORE
from mesh.wire.codec import OVERVIEW
from mesh.wire.messages import Description, Nothing, Overview

REFRESH_S = 1.0
FULL_RATIO = 0.9
WIDE_COLUMNS = 176
"""So wide must a terminal be for everything in one table; otherwise there are two."""

Column = tuple[str, Callable[[Description], str]]

_STATE: list[Column] = [
    ("zone", lambda d: d.zone or NOTHING),
    ("address", lambda d: d.address),
    ("ring", lambda d: percent_shown(d.ring_share)),
    ("cache", lambda d: f"{size_shown(d.used_bytes)} / {size_shown(d.capacity_bytes)}"),
    ("blocks", lambda d: str(d.block_count)),
    ("hit", lambda d: percent_shown(hit_ratio(d.read_bytes))),
    ("uptime", lambda d: duration_shown(d.uptime_s)),
]
_TRAFFIC: list[Column] = [
    ("local", lambda d: size_shown(d.read_bytes.get(LOCAL, 0))),
    ("peer", lambda d: size_shown(d.read_bytes.get(PEER, 0))),
    ("under-store", lambda d: size_shown(d.read_bytes.get(UNDER_STORE, 0))),
    ("served", lambda d: size_shown(d.served_bytes)),
    ("filled", lambda d: size_shown(d.fill_bytes)),
    ("failovers", lambda d: str(d.failovers)),
    ("corrupt", lambda d: str(d.corrupt_blocks)),
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
    if as_json:
        print(as_line(overview))
    else:
        console = _console()
        console.print(rendered(overview, columns=console.width))


def as_line(overview: Overview) -> str:
    """Return everything as one line of JSON."""
    return json.dumps(msgspec.to_builtins(overview))


def rendered(overview: Overview, *, columns: int) -> RenderableType:
    """Return the summary, the peers and the warnings, as fits into so many columns."""
    groups = [_STATE + _TRAFFIC] if columns >= WIDE_COLUMNS else [_STATE, _TRAFFIC]
    parts: list[RenderableType] = [Text(summary(overview), style="bold")]
    parts += [_table(overview.peers, group) for group in groups]
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
    return ", ".join(parts)


def warnings(overview: Overview) -> Iterator[str]:
    """Yield what a person should look at."""
    for peer in overview.peers:
        if not peer.is_up:
            yield f"{peer.name} is down: no answer from {peer.address}"
            continue
        if peer.errors:
            yield f"{peer.name}: {peer.errors} errors reached readers; its log says which"
        if peer.corrupt_blocks:
            yield (
                f"{peer.name}: {peer.corrupt_blocks} corrupt blocks were dropped; "
                "check its disk and memory"
            )
        if peer.used_bytes > FULL_RATIO * peer.capacity_bytes:
            ratio = percent_shown(peer.used_bytes / max(1, peer.capacity_bytes))
            yield f"{peer.name}: its cache is {ratio} full; more store.capacity evicts less"


def _table(peers: Sequence[Description], columns: Sequence[Column]) -> Table:
    table = Table(header_style="bold", pad_edge=False)
    table.add_column("peer", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for title, _ in columns:
        is_text = title in _KNOWN_OF_ALL
        table.add_column(title, justify="left" if is_text else "right", no_wrap=True)
    for peer in peers:
        state = Text("up", "green") if peer.is_up else Text("down", "bold red")
        cells = [
            Text(cell(peer) if peer.is_up or title in _KNOWN_OF_ALL else NOTHING)
            for title, cell in columns
        ]
        table.add_row(Text(peer.name), state, *cells)
    return table


def _console() -> Console:
    console = Console(highlight=False)
    # What is piped into a file or grep has no width, and 80 columns would cut it.
    return console if console.is_terminal else Console(highlight=False, width=WIDE_COLUMNS)


async def _watch(settings: Settings, *, as_json: bool) -> None:
    console = _console()
    async with host_peer(settings.peer.socket) as peer:
        if as_json:
            await _print_lines(peer)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                live.update(await _seen(peer, console.width), refresh=True)
                await asyncio.sleep(REFRESH_S)


async def _print_lines(peer: HostPeer) -> None:
    while True:
        try:
            print(as_line(await peer.ask(OVERVIEW, Nothing())), flush=True)
        except MeshError as error:
            print(json.dumps({"error": str(error)}), flush=True)
        await asyncio.sleep(REFRESH_S)


async def _seen(peer: HostPeer, columns: int) -> RenderableType:
    try:
        return rendered(await peer.ask(OVERVIEW, Nothing()), columns=columns)
    except MeshError as error:
        return Text(f"no answer from {error}", style="bold red")  # it may come back
