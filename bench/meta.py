"""Names and attributes: stat, listings, small files, and how many of them there can be.

Cold: nothing is known in the mesh. Catalog: the peer of the host knows it, the kernel does
not. Kernel: asked again with nothing dropped. The control is the same tree on the local
disk, its dentries dropped where those of the view are.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from bench import cpu, flags
from bench.cluster import Cluster, UnderStore, workplace
from bench.measure import MIB, in_turns, stopwatch
from bench.table import Goal, Table, value_at_most

COMPARED = "control: the same of the backing tree on the local disk, by turns, medians"
ENTRY_BYTES_MAX = 250
SAMPLE_BYTES = (4096, 128 * 1024)
NAME_BYTES = 30
DROP_DENTRIES = "2\n"
LOOKUP_DIRECTORIES = 64
SYNTHETIC_ANON_BYTES_MAX = 512 * MIB
LOCAL_LOOKUPS_PER_S = 100_000


def main() -> None:
    words = flags.parser(__doc__, size="1MiB", quick_size="1MiB")
    words.add_argument("--entries", type=int, help="to list (default 1,000,000; quick: 50,000)")
    words.add_argument(
        "--synthetic", type=int, help="entries in one directory (10 million; 200,000)"
    )
    given = flags.settled(words)
    entries = given.entries or (50_000 if given.quick else 1_000_000)
    synthetic = given.synthetic or (200_000 if given.quick else 10_000_000)
    table = Table("meta", compared=COMPARED)
    table.settings = {"entries": entries, "synthetic": synthetic, "turns": given.turns}
    with workplace(given.directory) as place:
        bench = MetaBench(place, table, turns=given.turns, is_quick=given.quick)
        bench.stat_and_list()
        bench.samples()
        for peers in (1, 2, 4):
            bench.lookups(peers)
        bench.many(entries)
        bench.synthetic(synthetic)
    table.finish()


class MetaBench:
    """The rows of this benchmark, one method for each family."""

    def __init__(self, place: Path, table: Table, *, turns: int, is_quick: bool) -> None:
        self._place = place
        self._table = table
        self._turns = turns
        self._is_quick = is_quick

    def stat_and_list(self) -> None:
        """A tree of directories of 1,000 files; `ls -lR` of all, stat of some."""
        count = 10_000 if self._is_quick else 100_000
        data = self._place / "tree"
        paths = make_tree(data, count)
        drawn = random.Random(1).sample(paths, 2000)
        with Cluster(self._place / "mesh-tree", UnderStore(data.as_uri())) as mesh:
            view = mesh.view()
            cold = drawn[:500]
            drop_dentries()
            plain = stat_us(data, cold)
            drop_dentries()
            self._table.add("stat, cold (one turn)", stat_us(view, cold), "us", control=plain)
            drop_dentries()
            plain = seconds_of("ls", "-lR", data)
            drop_dentries()
            self._table.add(
                f"ls -lR of {count:,}, cold (one turn)",
                seconds_of("ls", "-lR", view),
                "s",
                control=plain,
            )
            for what, before in (("catalog", drop_dentries), ("kernel", nothing)):
                self._turn_row(
                    f"stat, {what}", lambda root: stat_us(root, drawn), "us", before, mesh
                )
                listed = f"ls -lR of {count:,}, {what}"
                self._turn_row(
                    listed, lambda root: seconds_of("ls", "-lR", root), "s", before, mesh
                )
            for name, command in COMMANDS.items():
                row = f"{name} of {count:,}, catalog"
                self._turn_row(
                    row, lambda r, c=command: seconds_of(*c, r), "s", drop_dentries, mesh
                )

        with Cluster(
            self._place / "mesh-plain",
            UnderStore(data.as_uri()),
            settings="[fuse]\nxattr = false\n",
        ) as mesh:
            seconds_of("find", mesh.view())  # now the catalog knows it
            row = f"ls -lR of {count:,}, catalog, fuse.xattr = false"
            self._turn_row(row, lambda r: seconds_of("ls", "-lR", r), "s", drop_dentries, mesh)

    def _turn_row(
        self,
        what: str,
        figure: Callable[[Path], float],
        unit: str,
        before: Callable[[], None],
        mesh: Cluster,
    ) -> None:
        def turn(root: Path) -> Callable[[int], float]:
            def measured(number: int) -> float:
                before()
                return figure(root)

            return measured

        plain, through = in_turns(turn(self._place / "tree"), turn(mesh.view()), turns=self._turns)
        self._table.add(what, through, unit, control=plain)

    def samples(self) -> None:
        """open + read + close of small files, as a loader does with a data set."""
        count = 2000 if self._is_quick else 20_000
        data = self._place / "samples"
        data.mkdir()
        draw = random.Random(2)
        for number in range(count):
            content = draw.randbytes(draw.randint(*SAMPLE_BYTES))
            (data / f"sample-{number:06}.bin").write_bytes(content)
        names = sorted(path.name for path in data.iterdir())
        shuffled = random.Random(3).sample(names, len(names))
        for what, order, peers in (
            ("in order", names, 1),
            ("in order, of 2 peers", names, 2),
            ("shuffled", shuffled, 1),
        ):
            place = self._place / f"mesh-{what.replace(' ', '-').replace(',', '')}"
            with Cluster(place, UnderStore(data.as_uri()), peers=peers) as mesh:
                self._sample_rows(f"{count:,} files of 4-128 KiB, {what}", data, mesh, order)

    def _sample_rows(self, what: str, data: Path, mesh: Cluster, order: list[str]) -> None:
        view = mesh.view()
        drop_everything()
        plain = files_per_s(data, order)
        drop_everything()
        cold = files_per_s(view, order)
        self._table.add(f"{what}, cold (one turn)", cold, "files/s", control=plain)
        drop_dentries()
        plain = files_per_s(data, order)
        drop_dentries()
        warm = files_per_s(view, order)
        self._table.add(f"{what}, warm (one turn)", warm, "files/s", control=plain)

    def lookups(self, peers: int) -> None:
        """Look-ups from all hosts at once; each directory is known by its owners alone."""
        count = 2000 if self._is_quick else 16_000
        data = self._place / f"lookups-{peers}"
        make_tree(data, count, directory_entries=count // LOOKUP_DIRECTORIES)
        mesh = Cluster(
            self._place / f"mesh-{peers}", UnderStore(data.as_uri()), peers=peers, mounts=0
        )
        with mesh:
            configs = [
                str(self._place / f"mesh-{peers}" / f"peer-{n + 1}.toml") for n in range(peers)
            ]
            self._lookup_rows("nobody knows", peers, data, mesh, configs[:1])
            if peers > 1:
                self._lookup_rows("owners know", peers, data, mesh, configs[1:])
            self._lookup_rows("known here, by a call", peers, data, mesh, configs)
            self._lookup_rows("known here, from LMDB", peers, data, mesh, configs)

    def _lookup_rows(
        self, kind: str, peers: int, data: Path, mesh: Cluster, configs: list[str]
    ) -> None:
        with mesh.counted_cpu() as used:
            lines = run_together("bench.lookups", kind, str(data), configs=configs)
        told = [json.loads(line) for line in lines]
        rate = sum(each["lookups"] / each["seconds"] for each in told)
        cpu_us = sum(used.values()) / sum(each["lookups"] for each in told) * 1e6
        what = f"look-ups, {peers} peers, {kind}, from {len(configs)} hosts"
        goal = Goal("value", at_least=LOCAL_LOOKUPS_PER_S) if "LMDB" in kind else None
        self._table.add(what, rate, "/s", goal=goal)
        self._table.add(f"{what}: CPU of the peers", cpu_us, "us each")

    def many(self, count: int) -> None:
        """As many names as a large data set has, warmed by a job and listed twice."""
        data = self._place / "many"
        make_tree(data, count, directory_entries=10_000)
        with Cluster(self._place / "mesh-many", UnderStore(data.as_uri())) as mesh:
            peer, config = mesh.peers[0], self._place / "mesh-many" / "peer-1.toml"
            before = cpu.anonymous_bytes(peer.pid)
            drop_dentries()
            plain = seconds_of("find", data, "-printf", "%s\\n")
            drop_dentries()
            words = [sys.executable, "-m", "mesh.cli.main", "warmup", "/", "--metadata-only"]
            with stopwatch() as elapsed_s:
                subprocess.run(
                    [*words, "--config", str(config)], check=True, stdout=subprocess.DEVNULL
                )
            self._table.add(f"{count:,} entries warmed (find)", elapsed_s(), "s", control=plain)
            drop_dentries()
            listed_s = seconds_of("find", mesh.view(), "-printf", "%s\\n")
            self._table.add(f"{count:,} entries listed with sizes", listed_s, "s", control=plain)
            after = cpu.anonymous_bytes(peer.pid)
            self._table.add("memory of the peer, anonymous, more", (after - before) / MIB, "MiB")
            mounted = cpu.anonymous_bytes(mesh.mounts[0].pid) / MIB
            self._table.add("memory of the mount, anonymous", mounted, "MiB")
        store = self._place / "mesh-many" / "store-1"
        told = json.loads(run_one("bench.synthetic", "usage", str(store)))
        self._table.add(
            "LMDB, each entry with a name of 30",
            told["bytes"] / told["entries"],
            "bytes",
            goal=value_at_most(ENTRY_BYTES_MAX),
        )

    def synthetic(self, count: int) -> None:
        """One directory larger than any disk of ours has, from an under-store that makes it up."""
        told = json.loads(run_one("bench.synthetic", "scan", str(self._place / "wide"), str(count)))
        self._table.add(f"{count:,} entries in one directory, made", told["scan_s"], "s")
        self._table.add("the same, paged to the end", told["list_s"], "s")
        grown = told["grown_bytes"] / MIB
        goal = value_at_most(SYNTHETIC_ANON_BYTES_MAX / MIB)
        self._table.add("memory, anonymous, more at its highest", grown, "MiB", goal=goal)
        self._table.add("LMDB, each of them", told["bytes"] / told["entries"], "bytes")


COMMANDS: dict[str, tuple[str, ...]] = {
    "find": ("find",),
    "du": ("du", "-s"),
    "os.scandir": (
        sys.executable,
        "-c",
        "import os, sys\nfor d, _, names in os.walk(sys.argv[1]):\n"
        "    with os.scandir(d) as entries:\n        sum(e.stat().st_size for e in entries)",
    ),
}


def nothing() -> None:
    return


def drop_dentries() -> None:
    Path("/proc/sys/vm/drop_caches").write_text(DROP_DENTRIES)


def drop_everything() -> None:
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def make_tree(root: Path, count: int, *, directory_entries: int = 1000) -> list[str]:
    """Make empty files with names of NAME_BYTES; return their paths below *root*."""
    paths = []
    for number in range(count):
        folder = f"{number // directory_entries:05}"
        if number % directory_entries == 0:
            (root / folder).mkdir(parents=True)
        path = f"{folder}/{f'sample-{number:08}'.ljust(NAME_BYTES, 'x')}"
        os.close(os.open(root / path, os.O_CREAT | os.O_WRONLY))
        paths.append(path)
    return paths


def stat_us(root: Path, paths: list[str]) -> float:
    names = [str(root / path) for path in paths]
    with stopwatch() as elapsed_s:
        for name in names:
            os.stat(name)  # noqa: PTH116  # what is measured
    return elapsed_s() / len(names) * 1e6


def seconds_of(*command: str | Path) -> float:
    with stopwatch() as elapsed_s:
        subprocess.run([str(word) for word in command], check=True, stdout=subprocess.DEVNULL)
    return elapsed_s()


def command_seconds(command: tuple[str, ...], root: Path) -> float:
    return seconds_of(*command, root)


def files_per_s(root: Path, names: list[str]) -> float:
    with stopwatch() as elapsed_s:
        for name in names:
            fd = os.open(root / name, os.O_RDONLY)
            while os.read(fd, 1 << 20):
                pass
            os.close(fd)
    return len(names) / elapsed_s()


def run_one(module: str, *words: str) -> str:
    command = [sys.executable, "-m", module, *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def run_together(module: str, *words: str, configs: list[str]) -> list[str]:
    """Run one process for each config at the same time; return what each prints."""
    running = [
        subprocess.Popen(
            [sys.executable, "-m", module, *words, config], stdout=subprocess.PIPE, text=True
        )
        for config in configs
    ]
    told = [process.communicate(timeout=600)[0] for process in running]
    assert all(process.returncode == 0 for process in running), told
    return told


if __name__ == "__main__":
    main()
