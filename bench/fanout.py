"""One file to many hosts: real daemons and mounts, each host with a link of its own.

    N hosts in network namespaces, N x rate = 200 MB/s in all, so that links are the limit and
    not two cores; every mount reads the file in order; the under-store is a directory

The time of the last reader over that of one transfer (size / rate) is R. The control is the
same mesh in the same run that reads from owners alone (`peer.swarm = false`). Sizes are those
of fanout.md 4.1.

What one machine does to be so many hosts is no cost of theirs, and is kept small: packets have
16 segments at least. TCP sends two at once over links as slow as these, and all those packets of
all hosts, each through two queues, were a fourth of the CPU of two cores. A queue holds 50 ms.

Before time is taken the machine's memory is had (`bench.lent`): each byte that is read goes
into two caches, and where the memory of those must be lent first, that is what is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import median

from bench.lent import memory_had
from bench.table import OUT, Table, value_at_most
from chaos.cluster import Cluster, Node
from chaos.config import MeshSettings
from chaos.place import check_machine, ended_by_signals, until, workplace
from mesh.blocks import KIB, MIB

ALL_BYTES_S = 200e6
"""Of all links; `--all-links` for less, where so much is more than the cores carry."""

READ_WITHIN = 8.0
"""Times one transfer; then it is given up."""

STEP_BYTES = 256 * KIB
FILE = "model.bin"
SEGMENTS = 16
QUEUE_S = 0.05


@dataclass(frozen=True, slots=True)
class Size:
    """What is run with so many hosts, and what is accepted."""

    hosts: int
    file_bytes: int
    block_bytes: int
    ratio_max: float
    sent_max: float
    killed: int
    all_bytes_s: float = ALL_BYTES_S
    is_memory_had: bool = True

    @property
    def rate_bytes_s(self) -> float:
        return self.all_bytes_s / self.hosts

    @property
    def transfer_s(self) -> float:
        return self.file_bytes / self.rate_bytes_s


SIZES = {
    8: Size(8, 512 * MIB, 4 * MIB, 1.30, 1.15, 1),
    16: Size(16, 256 * MIB, 2 * MIB, 1.35, 1.2, 2),
    32: Size(32, 128 * MIB, MIB, 1.45, 1.25, 4),
}


@dataclass(slots=True)
class Reading:
    """What became of one fan-out."""

    size: Size
    done_s: dict[str, float] = field(default_factory=dict)
    """By reader, from the first start on."""

    progress: dict[str, list[tuple[float, int]]] = field(default_factory=dict)
    fill_bytes: float = 0.0
    sent_bytes: dict[str, float] = field(default_factory=dict)
    is_right: bool = True
    cpu_s: float = 0.0
    """What the whole machine has used meanwhile."""

    took_s: float = 0.0

    @property
    def ratio(self) -> float:
        return max(self.done_s.values()) / self.size.transfer_s

    @property
    def median_ratio(self) -> float:
        return median(self.done_s.values()) / self.size.transfer_s

    @property
    def cpu_s_per_gb(self) -> float:
        return self.cpu_s / (sum(p[-1][1] for p in self.progress.values() if p) / 1e9)

    @property
    def busy_part(self) -> float:
        """Of all cores; links are the limit only while this is well under 1."""
        return self.cpu_s / self.took_s / (os.cpu_count() or 1)

    @property
    def egress(self) -> float:
        return self.fill_bytes / self.size.file_bytes

    @property
    def sent_max(self) -> float:
        return max(self.sent_bytes.values()) / self.size.file_bytes


def fan_out(size: Size, place: Path, *, is_swarm: bool, killed: int = 0) -> Reading:
    """Have all hosts read a file that none of them has; kill some half-way."""
    data = place / "data"
    data.mkdir()
    digest = _write(data / FILE, size)
    settings = MeshSettings(
        capacity=f"{4 * size.file_bytes // MIB}MiB",
        block=f"{size.block_bytes // MIB}MiB",
        more={"peer": f"swarm = {str(is_swarm).lower()}"},
    )
    reading = Reading(size)
    with Cluster(place, peers=size.hosts, settings=settings, directory=data) as cluster:
        for node in cluster.nodes:
            node.host.send_large_packets(SEGMENTS)
        for start in range(0, size.hosts, 4):  # a start takes seconds of CPU
            cluster.launch(cluster.nodes[start : start + 4])
            cluster.wait(cluster.nodes[start : start + 4])
        time.sleep(3.0)  # until all know all
        for node in cluster.nodes:
            node.host.limit_rate(size.rate_bytes_s, queue_s=QUEUE_S)
        with memory_had(place) if size.is_memory_had else nullcontext():
            readers = [_Reader(node, size) for node in cluster.nodes]
            try:
                until(lambda: all(reader.is_ready() for reader in readers), "readers", within_s=30)
                _follow(readers, reading, killed)
            finally:
                for reader in readers:
                    reader.end()
        reading.is_right = all(
            reader.digest() == digest for reader in readers if not reader.was_killed
        )
        living = [reader.node for reader in readers if not reader.was_killed]
        _count(living, reading)
    return reading


def _write(path: Path, size: Size) -> str:
    random, digest = Random(size.hosts), hashlib.sha256()
    with path.open("wb") as out:
        for _ in range(size.file_bytes // MIB):
            piece = random.randbytes(MIB)
            digest.update(piece)
            out.write(piece)
    return digest.hexdigest()


_READ = """
import sys, time
at, step_bytes = 0, int(sys.argv[2])
piece = bytearray(step_bytes)
print("ready", flush=True)
sys.stdin.readline()
with open(sys.argv[1], "rb", buffering=0) as data:
    while count := data.readinto(piece):
        at += count
        print(time.monotonic(), at, flush=True)
"""
_DIGEST = """
import hashlib, sys
with open(sys.argv[1], "rb") as data:
    print(hashlib.file_digest(data, "sha256").hexdigest())
"""


class _Reader:
    """One process that reads the file of one mount in order, once it is told to."""

    def __init__(self, node: Node, size: Size) -> None:
        self.node = node
        self.was_killed = False
        self._log = node.view.parent / f"reader-{node.name}.txt"
        words = [sys.executable, "-c", _READ, str(node.view / FILE), str(STEP_BYTES)]
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                words, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.DEVNULL
            )
        self._size = size

    def is_ready(self) -> bool:
        """Whether it only waits to be told to begin; a Python takes 9 ms of CPU to be there."""
        return self._log.read_text().startswith("ready")

    def begin(self) -> None:
        """Have it open the file and read."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    @property
    def is_done(self) -> bool:
        return self.was_killed or self._process.poll() is not None

    def steps(self) -> list[tuple[float, int]]:
        """Return when it had read how much."""
        lines = [line.split() for line in self._log.read_text().splitlines()]
        # The last line may be half there.
        return [(float(words[0]), int(words[1])) for words in lines if len(words) == 2]

    def digest(self) -> str:
        """Read all of it once more; that costs CPU, so nobody does it while time is taken."""
        words = [sys.executable, "-c", _DIGEST, str(self.node.view / FILE)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
        return done.stdout.strip()

    def kill(self) -> None:
        """Kill its host: the peer and the mount, and itself."""
        self.was_killed = True
        for daemon in (self.node.peer, self.node.mount):
            daemon.signal(signal.SIGKILL)
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(10.0)


def _follow(readers: Sequence[_Reader], reading: Reading, killed: int) -> None:
    began_s, cpu_before_s = time.monotonic(), _cpu_s()
    for reader in readers:
        reader.begin()
    size = reading.size
    while not all(reader.is_done for reader in readers):
        now_s = time.monotonic() - began_s
        if killed and now_s > size.transfer_s / 2:
            for reader in list(readers)[-killed:]:
                # What it has filled until now was asked of the under-store all the same.
                reading.fill_bytes += reader.node.metric("mesh_fill_bytes_total")
                reader.kill()
            killed = 0
        if now_s > READ_WITHIN * size.transfer_s:
            break
        time.sleep(0.2)
    reading.took_s = time.monotonic() - began_s
    reading.cpu_s = _cpu_s() - cpu_before_s
    for reader in readers:
        steps = reader.steps()
        if reader.was_killed:
            continue
        reading.progress[reader.node.name] = [(at_s - began_s, done) for at_s, done in steps]
        is_whole = steps and steps[-1][1] == size.file_bytes
        reading.done_s[reader.node.name] = (
            steps[-1][0] - began_s if is_whole else READ_WITHIN * size.transfer_s
        )


def _cpu_s() -> float:
    """Return how long the cores of this machine have been busy, but for what gives way."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    user, _nice, system, _, _, irq, softirq = map(int, words[1:8])
    return (user + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _count(nodes: Sequence[Node], reading: Reading) -> None:
    for node in nodes:
        reading.fill_bytes += node.metric("mesh_fill_bytes_total")
        reading.sent_bytes[node.name] = node.metric("mesh_served_bytes_total")


def draw(name: str, readings: Sequence[tuple[str, Reading]]) -> Path:
    """Draw how far each reader was, and when."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(readings), figsize=(6 * len(readings), 4), squeeze=False)
    for axis, (title, reading) in zip(axes[0], readings, strict=True):
        for steps in reading.progress.values():
            axis.plot(
                [at_s / reading.size.transfer_s for at_s, _ in steps],
                [done / reading.size.file_bytes for _, done in steps],
                linewidth=0.7,
            )
        axis.set(title=title, xlabel="time / (size / rate)", ylabel="read", xlim=(0, None))
        axis.axvline(1.0, color="gray", linewidth=0.5)
    figure.tight_layout()
    OUT.mkdir(exist_ok=True)
    path = OUT / f"bench-{name}.png"
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    flags.add_argument("--hosts", type=int, nargs="*", choices=sorted(SIZES), default=sorted(SIZES))
    flags.add_argument("--no-control", action="store_true", help="leave out owners alone")
    flags.add_argument("--no-kill", action="store_true", help="leave out the kills")
    flags.add_argument("--all-links", type=float, default=ALL_BYTES_S / 1e6, metavar="MB/S")
    flags.add_argument(
        "--lent-memory", action="store_true", help="don't have the machine's memory before"
    )
    words = flags.parse_args()
    check_machine()
    table = Table(
        "fanout",
        compared="time of the last reader over size / rate, against owners alone in the same run",
    )
    for hosts in words.hosts:
        size = replace(
            SIZES[hosts],
            all_bytes_s=words.all_links * 1e6,
            is_memory_had=not words.lent_memory,
        )
        shown: list[tuple[str, Reading]] = []
        swarm = _run(size, is_swarm=True)
        shown.append((f"{hosts} hosts", swarm))
        alone = None if words.no_control else _run(size, is_swarm=False)
        if alone is not None:
            shown.append((f"{hosts} hosts, owners alone", alone))
        control = None if alone is None else alone.ratio
        table.add(
            f"{hosts} hosts: last reader", swarm.ratio, "x", control=control,
            goal=value_at_most(size.ratio_max),
        )  # fmt: skip
        table.add(f"{hosts} hosts: median reader", swarm.median_ratio, "x")
        table.add(f"{hosts} hosts: CPU", swarm.cpu_s_per_gb, "CPU-s/GB")
        table.add(f"{hosts} hosts: cores busy", swarm.busy_part, "of all")
        table.add(f"{hosts} hosts: egress", swarm.egress, "x", goal=value_at_most(1.0))
        table.add(
            f"{hosts} hosts: busiest sender",
            swarm.sent_max,
            "files",
            goal=value_at_most(size.sent_max),
        )
        table.add(
            f"{hosts} hosts: wrong bytes", float(not swarm.is_right), "", goal=value_at_most(0)
        )
        if not words.no_kill:
            killed = _run(size, is_swarm=True, killed=size.killed)
            shown.append((f"{hosts} hosts, {size.killed} killed", killed))
            what = f"{hosts} hosts, {size.killed} killed half-way"
            table.add(
                f"{what}: last reader", killed.ratio, "x", goal=value_at_most(size.ratio_max + 0.15)
            )
            table.add(f"{what}: egress", killed.egress, "x", goal=value_at_most(1.02))
            table.add(f"{what}: wrong bytes", float(not killed.is_right), "", goal=value_at_most(0))
        print(f"drawn in {draw(f'fanout-{hosts}', shown)}")
    table.finish()


def _run(size: Size, *, is_swarm: bool, killed: int = 0) -> Reading:
    print(f"{size.hosts} hosts, {'swarm' if is_swarm else 'owners alone'}, {killed} killed")
    with ended_by_signals(), workplace() as place:
        return fan_out(size, place, is_swarm=is_swarm, killed=killed)


if __name__ == "__main__":
    main()
