"""`mesh warmup`: bring files into the mesh before anybody reads them."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from mesh.cli.ask import LOOK_UP_TIMEOUT_S, HostPeer, host_peer
from mesh.cli.exits import AsJson, ConfigPath, fail, one_line, settings_of
from mesh.cli.figures import text_shown
from mesh.cli.following import as_line, follow, report
from mesh.cli.info import mesh_mountpoints, path_in_mesh
from mesh.cli.quantities import BrokenRule, parse_size
from mesh.wire.care import START_JOB, Job, JobOrder

PATHS_TOGETHER = 500
PATH_BYTES_TOGETHER = 512 * 1024
"""So many paths go to the peer in one message."""

NOT_IN_MESH = "write a path from / on, or one below a mount of a mesh"


def warmup(
    config: ConfigPath,
    paths: Annotated[list[str] | None, typer.Argument(metavar="PATH...")] = None,
    list_file: Annotated[
        str, typer.Option("--file", "-f", metavar="LIST", help="One path a line; - is stdin.")
    ] = "",
    parallel: Annotated[
        int,
        typer.Option("--parallel", "-p", help="Files, or blocks of large ones, at once: 1-1000."),
    ] = 50,
    background: Annotated[
        bool, typer.Option("--background", "-b", help="Print the job's number and return.")
    ] = False,
    check: Annotated[
        bool,
        typer.Option("--check", help="Bring nothing; say how much is here. Exit 1 if not all."),
    ] = False,
    evict: Annotated[
        bool, typer.Option("--evict", help="Drop the blocks of these paths from all peers.")
    ] = False,
    metadata_only: Annotated[
        bool, typer.Option("--metadata-only", help="Learn names and attributes, bring no bytes.")
    ] = False,
    replicas: Annotated[
        int, typer.Option("--replicas", metavar="N", help="So many peers have each block.")
    ] = 1,
    on: Annotated[
        str, typer.Option("--on", metavar="PEERS", help="These have all: one,two or all.")
    ] = "",
    bandwidth: Annotated[
        str, typer.Option("--bandwidth", metavar="R", help="From the under-store: 200MiB a second.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Bring PATHs into the mesh, each byte once; exit 0 when the peers say that all is there.

    Ctrl-C cancels the job. PATH is one in the mesh or below a mount of it.
    """
    kind = _kind(check=check, evict=evict, metadata_only=metadata_only)
    if replicas != 1 and on:
        raise fail("--replicas and --on exclude each other; give one of them")
    order = JobOrder(
        kind=kind,
        paths=(),
        files_at_once=_bounded("--parallel", parallel, 1, 1000),
        replicas=_bounded("--replicas", replicas, 1, 1000),
        peers=_names(on),
        bytes_per_s=_rate(bandwidth),
    )
    settings = settings_of(config)
    wanted = _in_mesh([*(paths or []), *_listed(list_file)])
    with one_line():
        job = asyncio.run(
            _run(settings.peer.socket, order, wanted, background=background, as_json=as_json)
        )
    if background:
        print(as_line(job) if as_json else job.number)
        return
    raise typer.Exit(report(job, as_json=as_json))


async def _run(
    socket: Path, order: JobOrder, paths: Sequence[str], *, background: bool, as_json: bool
) -> Job:
    async with host_peer(socket) as peer:
        job = await _ordered(peer, order, paths)
        if background:
            return job
        return await follow(peer, job.number, is_quiet=as_json, is_ours=True)


async def _ordered(peer: HostPeer, order: JobOrder, paths: Sequence[str]) -> Job:
    """Order a job, its paths in as many messages as they need; return it."""
    parts = list(_parts(paths))
    job: Job | None = None
    for number, part in enumerate(parts):
        more = JobOrder(
            kind=order.kind,
            paths=tuple(part),
            files_at_once=order.files_at_once,
            replicas=order.replicas,
            peers=order.peers,
            bytes_per_s=order.bytes_per_s,
            number=0 if job is None else job.number,
            is_open=number < len(parts) - 1,
        )
        job = await peer.ask(START_JOB, more, timeout_s=LOOK_UP_TIMEOUT_S)
    assert job is not None
    return job


def _kind(*, check: bool, evict: bool, metadata_only: bool) -> str:
    given = {"--check": check, "--evict": evict, "--metadata-only": metadata_only}
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise fail(f"{names[0]} and {names[1]} exclude each other; give one of them")
    kinds = {"--check": "check", "--evict": "evict", "--metadata-only": "walk"}
    return kinds[names[0]] if names else "warm"


def _bounded(option: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise fail(f"{option} {value} is out of range; write {least} to {most}")
    return value


def _names(on: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in on.split(",") if name.strip()))


def _rate(written: str) -> int:
    if not written:
        return 0
    try:
        bytes_per_s = parse_size(written.removesuffix("/s"))
    except BrokenRule as broken:
        raise fail(f"--bandwidth {text_shown(written)} {broken}") from None
    if not bytes_per_s:
        raise fail(f"--bandwidth {written} brings nothing; write a rate such as 200MiB")
    return bytes_per_s


def _listed(list_file: str) -> Iterator[str]:
    """Yield the paths in a list, one a line; whatever bytes they are made of."""
    if not list_file:
        return
    try:
        data = sys.stdin.buffer.read() if list_file == "-" else Path(list_file).read_bytes()
    except OSError as error:
        raise fail(f"--file {text_shown(list_file)}: {error.strerror}") from None
    for line in data.split(b"\n"):
        if path := line.rstrip(b"\r").decode("utf-8", "surrogateescape"):
            yield path


def _in_mesh(written: Sequence[str]) -> list[str]:
    """Return the paths in the mesh, those below others left out; fail when one is none."""
    if not written:
        raise fail("nothing to do; name a PATH, or a list of them with -f")
    return distinct(resolved(written))


def resolved(written: Iterable[str]) -> list[str]:
    """Return what paths people mean, as the mesh names them; fail when one is none."""
    mountpoints = mesh_mountpoints()
    found = []
    for each in written:
        path = path_in_mesh(each, mountpoints)
        if path is None:
            raise fail(f"{text_shown(each)} is not in the mesh; {NOT_IN_MESH}")
        found.append(path)
    return found


def distinct(paths: Sequence[str]) -> list[str]:
    """Return *paths* without those that lie below others of them, or are named twice."""
    known = set(paths)
    return [path for path in dict.fromkeys(paths) if not known.intersection(_above(path))]


def _above(path: str) -> Iterator[str]:
    while path != "/":
        path = path.rpartition("/")[0] or "/"
        yield path


def _parts(paths: Sequence[str]) -> Iterator[list[str]]:
    part: list[str] = []
    size_bytes = 0
    for path in paths:
        part.append(path)
        size_bytes += len(path.encode("utf-8", "surrogateescape"))
        if len(part) >= PATHS_TOGETHER or size_bytes >= PATH_BYTES_TOGETHER:
            yield part
            part, size_bytes = [], 0
    if part:
        yield part
