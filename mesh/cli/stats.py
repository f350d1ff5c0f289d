"""`mesh stats`: what goes on right now, one line for each interval."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Annotated

import typer

from mesh.cli.ask import HostPeer, host_peer
from mesh.cli.exits import AsJson, ConfigPath, fail, one_line, settings_of
from mesh.cli.figures import NOTHING, hit_ratio, size_shown
from mesh.cli.quantities import BrokenRule, more_than_nothing, parse_seconds
from mesh.cli.settings import Settings
from mesh.errors import MeshError
from mesh.metrics import LOCAL, PEER, SOURCES, UNDER_STORE
from mesh.wire.codec import DESCRIBE, OVERVIEW
from mesh.wire.messages import Description, Nothing

HEADER_EVERY = 20
MB = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What one peer did between two looks at it; byte rates are bytes in a second."""

    peer: str
    local_bytes_per_s: float
    peer_bytes_per_s: float
    under_store_bytes_per_s: float
    hit_ratio: float | None
    """None when nothing was read."""

    used_bytes: int
    evicted_bytes_per_s: float
    served_bytes_per_s: float
    fill_bytes_per_s: float
    in_flight_bytes: int
    errors_per_s: float


def stats(
    config: ConfigPath,
    interval: Annotated[str, typer.Option("--interval", "-i", help="Such as 500ms or 1s.")] = "1s",
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Lines; 0: no end.")] = 0,
    all_peers: Annotated[bool, typer.Option("--all", help="A line for each peer.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show the rates of this host's peer, one line for each interval, until Ctrl-C."""
    try:
        interval_s = more_than_nothing(parse_seconds(interval))
    except BrokenRule as broken:
        raise fail(f"--interval {interval} {broken}") from None
    settings = settings_of(config)
    printer = _Printer(all_peers=all_peers, as_json=as_json)
    with suppress(KeyboardInterrupt), one_line():
        asyncio.run(_run(settings, printer, interval_s=interval_s, count=count))


def rates_between(before: Description, after: Description, *, took_s: float) -> Rates | None:
    """Return what happened between two looks; None when the peer was away or began anew."""
    if not (before.is_up and after.is_up) or after.uptime_s < before.uptime_s:
        return None
    read_bytes = {
        source: max(0, after.read_bytes.get(source, 0) - before.read_bytes.get(source, 0))
        for source in SOURCES
    }
    return Rates(
        peer=after.name,
        local_bytes_per_s=read_bytes[LOCAL] / took_s,
        peer_bytes_per_s=read_bytes[PEER] / took_s,
        under_store_bytes_per_s=read_bytes[UNDER_STORE] / took_s,
        hit_ratio=hit_ratio(read_bytes),
        used_bytes=after.used_bytes,
        evicted_bytes_per_s=(after.evicted_bytes - before.evicted_bytes) / took_s,
        served_bytes_per_s=(after.served_bytes - before.served_bytes) / took_s,
        fill_bytes_per_s=(after.fill_bytes - before.fill_bytes) / took_s,
        in_flight_bytes=after.in_flight_bytes,
        errors_per_s=(after.errors - before.errors) / took_s,
    )


def line(rates: Rates) -> str:
    """Return the columns below `HEADER`; what moves is in MB (1,000,000 bytes) a second."""
    hit = NOTHING if rates.hit_ratio is None else f"{100 * rates.hit_ratio:.1f}"
    return (
        f"{rates.local_bytes_per_s / MB:8.1f}{rates.peer_bytes_per_s / MB:8.1f}"
        f"{rates.under_store_bytes_per_s / MB:8.1f}{hit:>7} |"
        f"{size_shown(rates.used_bytes):>9}{rates.evicted_bytes_per_s / MB:8.1f} |"
        f"{rates.served_bytes_per_s / MB:8.1f}{rates.fill_bytes_per_s / MB:8.1f}"
        f"{rates.in_flight_bytes / MB:8.1f} |{rates.errors_per_s:7.1f}"
    )


HEADER = (
    f"{'read (MB/s)':-^31} |{'cache':-^17} |{'peers (MB/s)':-^24} | errors",
    f"{'local':>8}{'peer':>8}{'ufs':>8}{'hit %':>7} |{'used':>9}{'evicted':>8} |"
    f"{'served':>8}{'filled':>8}{'flight':>8} |{'/s':>7}",
)


class _Printer:
    """Puts lines on stdout, and the header above each twentieth."""

    def __init__(self, *, all_peers: bool, as_json: bool) -> None:
        self.all_peers = all_peers
        self._as_json = as_json
        self._printed = 0

    def show(self, name: str, rates: Rates | None, *, width: int) -> None:
        """Print one line; without rates it says that there are none."""
        if self._as_json:
            said = {"peer": name, "error": "no answer"} if rates is None else asdict(rates)
            print(json.dumps({"time_s": round(time.time(), 3), **said}), flush=True)
            return
        margin = f"{{:<{width}}} " if self.all_peers else ""
        if self._printed % HEADER_EVERY == 0:
            for heading in HEADER:
                print(margin.format("") + heading, flush=True)
        self._printed += 1
        print(margin.format(name) + ("no answer" if rates is None else line(rates)), flush=True)


async def _run(settings: Settings, printer: _Printer, *, interval_s: float, count: int) -> None:
    name = settings.peer.name
    async with host_peer(settings.peer.socket) as peer:
        before = await _described(peer, all_peers=printer.all_peers)
        looked_s = due_s = time.monotonic()
        rounds = 0
        while count == 0 or rounds < count:
            rounds += 1
            due_s = max(due_s + interval_s, time.monotonic())
            await asyncio.sleep(due_s - time.monotonic())
            now_s = time.monotonic()
            try:
                after = await _described(peer, all_peers=printer.all_peers)
            except MeshError:
                printer.show(name, None, width=len(name))  # it may come back
                continue
            _show(printer, before, after, took_s=now_s - looked_s)
            before, looked_s = after, now_s


def _show(
    printer: _Printer, before: Sequence[Description], after: Sequence[Description], *, took_s: float
) -> None:
    known = {description.name: description for description in before}
    width = max(len(description.name) for description in after)
    for now in after:
        then = known.get(now.name)
        rates = None if then is None else rates_between(then, now, took_s=took_s)
        printer.show(now.name, rates, width=width)


async def _described(peer: HostPeer, *, all_peers: bool) -> tuple[Description, ...]:
    if all_peers:
        return (await peer.ask(OVERVIEW, Nothing())).peers
    return (await peer.ask(DESCRIBE, Nothing()),)
