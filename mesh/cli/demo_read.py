"""One read of the demo: the bytes, what they were, where they came from, how long it took."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from mesh.blocks import MIB
from mesh.cli.ask import LOOK_UP_TIMEOUT_S, HostPeer
from mesh.cli.figures import NOTHING, size_shown
from mesh.wire.codec import LOCATE, OVERVIEW
from mesh.wire.messages import Description, LocateRequest, Nothing

READ_BYTES = MIB
REPORTED_WITHIN_S = 1.5
"""A mount tells its peer each second what it has read."""


@dataclass(frozen=True, slots=True)
class Model:
    """The files that are read, by their path in the mesh."""

    files: Mapping[str, str]
    """SHA-256 of each."""

    sizes_bytes: Mapping[str, int]

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes_bytes.values())


@dataclass(slots=True)
class Pass:
    """What a reader sees of one pass over the files."""

    digests: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    took_s: float = 0.0
    longest_wait_s: float = 0.0
    """Of all reads of 1 MiB, and of opening the file before the first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Before:
    """How things stood before a read."""

    peer: str
    """Through which the mesh is mounted."""

    peers: Mapping[str, Description]
    here_bytes: int
    """Of the model, on the peer's disk already."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One read of the model, and where its bytes came from."""

    peer: str
    killed: str
    is_right: bool
    problems: Sequence[str]
    took_s: float
    longest_wait_s: float
    here_bytes: int
    peer_bytes: Mapping[str, int]
    own_fill_bytes: int
    fill_bytes: int
    """From the under-store, by all peers."""


async def before_read(host: HostPeer, model: Model, peer: str) -> Before:
    """Look at all peers, and at which blocks *peer* has already."""
    here_bytes = 0
    for path in model.files:
        location = await host.ask(LOCATE, LocateRequest(path), timeout_s=LOOK_UP_TIMEOUT_S)
        file = location.found.file
        if file is not None:
            here_bytes += sum(map(file.length_bytes, location.held.get(peer, ())))
    return Before(peer=peer, peers=await _described(host), here_bytes=here_bytes)


async def read_model(
    host: HostPeer, model: Model, mountpoint: Path, before: Before, *, killed: str
) -> Read:
    """Read the model below *mountpoint*, and compare it and the peers with before."""
    seen = await _read_in_thread(model, mountpoint)
    await asyncio.sleep(REPORTED_WITHIN_S)
    after = await _described(host)
    reader, was = after[before.peer], before.peers[before.peer]
    wrong = [path for path in model.files if seen.digests.get(path) != model.files[path]]
    problems = [*seen.problems, *(f"{path}: not the same SHA-256" for path in wrong)]
    return Read(
        peer=before.peer,
        killed=killed,
        is_right=not wrong,
        problems=problems,
        took_s=seen.took_s,
        longest_wait_s=seen.longest_wait_s,
        here_bytes=before.here_bytes,
        peer_bytes={
            name: count_bytes - was.peer_bytes.get(name, 0)
            for name, count_bytes in reader.peer_bytes.items()
        },
        own_fill_bytes=reader.fill_bytes - was.fill_bytes,
        fill_bytes=sum(
            peer.fill_bytes - before.peers[name].fill_bytes
            for name, peer in after.items()
            if peer.is_up
        ),
    )


def result_table(model: Model, first: Read, second: Read, names: Sequence[str]) -> Table:
    """Return both reads side by side, and what the kill cost."""
    reads = (first, second)
    title = f"{size_shown(model.size_bytes)}, read twice"
    table = Table(title=title, title_justify="left", header_style="bold")
    table.add_column("", no_wrap=True)
    table.add_column("first read", justify="right", no_wrap=True)
    table.add_column(f"after SIGKILL of {second.killed}", justify="right", no_wrap=True)

    def row(label: str, cell: Callable[[Read], str], *, ends: bool = False) -> None:
        table.add_row(label, *map(cell, reads), end_section=ends)

    row("mounted through", lambda read: read.peer, ends=True)
    row("from local blocks, here before", lambda read: size_shown(read.here_bytes))
    for name in names:
        row(f"from peer {name}", lambda read, name=name: _from_peer(read, name))  # type: ignore[misc]
    row("from the under-store, by itself", lambda r: size_shown(r.own_fill_bytes), ends=True)
    row("from the under-store, by all peers", lambda r: size_shown(r.fill_bytes), ends=True)
    row("seconds", lambda read: f"{read.took_s:.2f} s")
    row("rate", lambda read: f"{size_shown(model.size_bytes / read.took_s)}/s")
    row("longest wait for 1 MiB", lambda read: f"{1000 * read.longest_wait_s:.0f} ms")
    row("errors", lambda read: str(len(read.problems)))
    row("SHA-256", lambda read: "same" if read.is_right else "DIFFERENT", ends=True)
    extra_s = second.took_s - first.took_s
    stall_ms = 1000 * (second.longest_wait_s - first.longest_wait_s)
    table.add_row("the kill cost: time", "", f"{extra_s:+.2f} s")
    table.add_row("the kill cost: longest wait", "", f"{stall_ms:+.0f} ms")
    table.add_row("the kill cost: errors", "", str(len(second.problems)))
    table.add_row("the kill cost: fetched again", "", size_shown(second.fill_bytes))
    return table


def _from_peer(read: Read, name: str) -> str:
    if name == read.peer:
        return NOTHING
    if name == read.killed:
        return "killed"
    return size_shown(read.peer_bytes.get(name, 0))


async def _described(host: HostPeer) -> dict[str, Description]:
    overview = await host.ask(OVERVIEW, Nothing())
    return {peer.name: peer for peer in overview.peers}


async def _read_in_thread(model: Model, mountpoint: Path) -> Pass:
    """Read in a thread, so that a signal ends us even while a read hangs.

    A thread that hangs is let go when its mount ends, which is our way out.
    """
    stop = threading.Event()
    with _progress() as progress:
        task = progress.add_task("        ", total=model.size_bytes)
        try:
            return await asyncio.to_thread(
                _read, model, mountpoint, stop, lambda count: progress.advance(task, count)
            )
        finally:
            stop.set()


def _read(
    model: Model, mountpoint: Path, stop: threading.Event, note: Callable[[int], None]
) -> Pass:
    seen = Pass()
    started_s = time.monotonic()
    buffer = memoryview(bytearray(READ_BYTES))
    for path in model.files:
        try:
            seen.digests[path] = _digest(mountpoint / path[1:], buffer, seen, stop, note)
        except OSError as error:
            seen.problems.append(str(error))
        if stop.is_set():
            break
    seen.took_s = time.monotonic() - started_s
    return seen


def _digest(
    path: Path, buffer: memoryview, seen: Pass, stop: threading.Event, note: Callable[[int], None]
) -> str:
    digest = sha256()
    asked_s = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while not stop.is_set():
            count_bytes = file.readinto(buffer)
            seen.longest_wait_s = max(seen.longest_wait_s, time.monotonic() - asked_s)
            if not count_bytes:
                break
            digest.update(buffer[:count_bytes])
            note(count_bytes)
            asked_s = time.monotonic()
    return digest.hexdigest()


def _progress() -> Progress:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True))
    return Progress(
        *columns, TransferSpeedColumn(), console=console, disable=not console.is_terminal
    )
