"""Peer to peer: what one neighbor delivers to another, and what it costs both.

A file is read through the mount beside peer-1, so that its owners have it; then
through the mount beside peer-2, whose missing blocks come from peer-1. What was
moved between them is taken from peer-2's own counter of bytes by source.
"""

from __future__ import annotations

import multiprocessing
import socket
import time
from multiprocessing.connection import Connection
from pathlib import Path

from bench import flags
from bench.cluster import Cluster, UnderStore, workplace
from bench.data import make_file
from bench.measure import GB, MB, MIB, Median, must_be_equal, sequential_mb_per_s, stopwatch
from bench.table import Table, value_at_most

COMPARED = "control: the same bytes over one loopback socket, two processes of Python"
READ_BYTES = "mesh_read_bytes_total"


def main() -> None:
    given = flags.settled(flags.parser(__doc__, size="1GiB", quick_size="128MiB"))
    table = Table("xfer", compared=COMPARED)
    table.settings = {"size_bytes": given.size, "turns": given.turns}
    with workplace(given.directory) as place:
        for turn in range(given.turns):
            make_file(place / "data" / str(turn), given.size, seed=turn)
        under_store = UnderStore(f"file://{place / 'data'}")
        with Cluster(place / "mesh", under_store, peers=2, mounts=2, settle_s=3.0) as mesh:
            turns = [one_turn(mesh, place / "data" / str(turn)) for turn in range(given.turns)]
    add_rows(table, turns)
    table.finish()


def one_turn(mesh: Cluster, file: Path) -> dict[str, float]:
    """Move what peer-2 lacks of *file*; return the figures of the move and of its control."""
    sequential_mb_per_s(mesh.view(0) / file.name)
    before = bytes_from_peers(mesh)
    with mesh.counted_cpu() as used, stopwatch() as elapsed_s:
        sequential_mb_per_s(mesh.view(1) / file.name)
    moved_bytes = int(bytes_from_peers(mesh) - before)
    must_be_equal(mesh.view(1) / file.name, file)
    if not moved_bytes:
        raise RuntimeError("peer-2 took nothing from peer-1: nothing to measure")
    wire_mb_per_s, wire_cpu_s = raw_socket(moved_bytes)
    gigabytes = moved_bytes / GB
    return {
        "mb_per_s": moved_bytes / elapsed_s() / MB,
        "peers_cpu": (used["peer-1"] + used["peer-2"]) / gigabytes,
        "mount_cpu": used["mount-2"] / gigabytes,
        "share": moved_bytes / file.stat().st_size,
        "wire_mb_per_s": wire_mb_per_s,
        "wire_cpu": wire_cpu_s / gigabytes,
    }


def bytes_from_peers(mesh: Cluster) -> float:
    """Return what peer-2 has read so far from other peers.

    Blocks that it has itself are in no counter of a peer: the mount reads their files.
    """
    return mesh.metric(1, READ_BYTES, source="peer")


def add_rows(table: Table, turns: list[dict[str, float]]) -> None:
    """Add the medians of *turns*."""
    median = {name: Median([turn[name] for turn in turns]) for name in turns[0]}
    table.add(
        "moved from peer-1 to peer-2, while read through mount-2",
        median["mb_per_s"],
        "MB/s",
        control=median["wire_mb_per_s"],
    )
    table.add(
        "CPU of both peers for each GB moved",
        median["peers_cpu"],
        "CPU-s/GB",
        control=median["wire_cpu"],
        goal=value_at_most(2.0),
    )
    table.add("CPU of mount-2 for each GB moved", median["mount_cpu"], "CPU-s/GB")
    table.add("share of the file that came from the peer", median["share"], "of 1")


def raw_socket(size_bytes: int) -> tuple[float, float]:
    """Send *size_bytes* between two processes; return MB/s and the CPU-seconds of both."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        child = context.Process(target=_send, args=(listener.getsockname()[1], size_bytes, theirs))
        child.start()
        sock, _ = listener.accept()
        buffer = bytearray(MIB)
        with sock, stopwatch() as elapsed_s:
            cpu_before_s = time.process_time()
            left_bytes = size_bytes
            while left_bytes:
                left_bytes -= sock.recv_into(buffer, min(left_bytes, MIB))
            cpu_s = time.process_time() - cpu_before_s
    cpu_s += ours.recv()
    child.join()
    return size_bytes / elapsed_s() / MB, cpu_s


def _send(port: int, size_bytes: int, report: Connection) -> None:
    piece = memoryview(bytes(MIB))
    with socket.create_connection(("127.0.0.1", port)) as sock:
        cpu_before_s = time.process_time()
        for start_bytes in range(0, size_bytes, MIB):
            sock.sendall(piece[: min(MIB, size_bytes - start_bytes)])
        report.send(time.process_time() - cpu_before_s)


if __name__ == "__main__":
    main()
