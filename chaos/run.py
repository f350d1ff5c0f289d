"""One run of one scenario: a mesh is made, a play is played, everything is checked.

A play calls, in this order: `warm` or `start_cold`, `steady`, then faults (`with
run.fault(...)`), `hold`, and rows and checks of its own. Wrong bytes, errors, reads
that hang and faults without evidence are checked for every run.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from chaos import checks, stats
from chaos.checks import Check, Window
from chaos.cluster import Cluster, Node
from chaos.config import DEFAULT_MEMBERSHIP, MeshSettings
from chaos.daemons import Daemon, end
from chaos.faults.base import Fault, NotBusy
from chaos.knowledge import GONE, WELL, all_knew_s, parsed
from chaos.place import ended_by_signals, ignore_signals, until, workplace
from chaos.report import OUT, STEP_S, Mark, Report, row
from chaos.requests import egress_rates
from chaos.scenario import MIB, Scenario
from chaos.workload import Load, Reader, Workload

PACE_BYTES_S_PER_CORE = 16 * MIB
"""What a steady load asks for: two thirds of what a core with all daemons on it can do."""
BASELINE_S = 3.0
WARM_WITHIN_S = 120.0
EVIDENCE_WITHIN_S = 8.0
READ_DEADLINE_S = 20.0
KNOW_WITHIN_S = 15.0


class Run:
    """What a play can do and what it has done so far."""

    def __init__(self, scenario: Scenario, cluster: Cluster, report: Report) -> None:
        self.scenario, self.cluster, self.report = scenario, cluster, report
        self.dice = random.Random(report.seed)
        self.sizes = scenario.mesh.files(report.peers)
        self.workload = Workload(cluster.place / "data", cluster.place, seed=report.seed)
        self.excused: list[Window] = []
        self.read_deadline_s = READ_DEADLINE_S
        self.begin_s = 0.0
        """When the load that is measured began."""
        self.fault_s: float | None = None
        """When the first fault was injected."""
        self.end_s = 0.0
        self._steady_readers: list[Reader] = []

    # Who and what

    @property
    def nodes(self) -> list[Node]:
        return self.cluster.nodes

    @property
    def files(self) -> tuple[str, ...]:
        """What all read; files called fresh are for those who want something uncached."""
        return tuple(name for name in self.sizes if not name.startswith("fresh"))

    @property
    def data_bytes(self) -> int:
        return sum(self.sizes[name] for name in self.files)

    def victim(self, among: Sequence[Node] | None = None) -> Node:
        """Return a peer that the seed chose."""
        return self.dice.choice(list(among or self.nodes))

    # Load

    def warm(self, nodes: Sequence[Node] | None = None, *, checked: bool = True) -> None:
        """Read everything once through every mount; each byte leaves the under-store once."""
        before_bytes = self.cluster.under_store.egress_bytes
        readers = self.start_cold(nodes, threads=1)
        self.workload.wait(readers, within_s=WARM_WITHIN_S)
        self.cluster.wait_for_egress_to_end()
        ratio = (self.cluster.under_store.egress_bytes - before_bytes) / self.data_bytes
        self.report.rows.append(
            row("egress of the cold read by all", ratio, "x data", at_most=1.02)
        )
        if checked:
            self.check(checks.egress_at_most(ratio, most=checks.EGRESS_HEDGED_RATIO_MAX))

    def start_cold(
        self, nodes: Sequence[Node] | None = None, *, threads: int = 1, copies: int = 1
    ) -> list[Reader]:
        """Start readers at every mount that read everything once, as fast as they can."""
        load = Load(files=self.files, threads=threads, pattern="sequential", passes=1)
        views = [node.view for node in (nodes or self._mounted()) for _ in range(copies)]
        self._begin()
        return self.workload.start(views, load)

    def steady(
        self,
        nodes: Sequence[Node] | None = None,
        *,
        pattern: str = "mixed",
        baseline_s: float = BASELINE_S,
    ) -> None:
        """Start readers that go on at one pace, and let them read for a while."""
        views = [node.view for node in (nodes or self._mounted())]
        threads = 2
        pace = PACE_BYTES_S_PER_CORE * 2 / (threads * len(views))
        load = Load(files=self.files, threads=threads, pattern=pattern, pace_bytes_s=pace)
        self._steady_readers = self.workload.start(views, load)
        until(
            lambda: all(reader.count > 2 for reader in self._steady_readers),
            "every reader has read",
            within_s=30,
        )
        self._begin()
        self.hold(baseline_s)

    def hold(self, seconds: float) -> None:
        """Let the load go on."""
        time.sleep(seconds)

    def until_read(self, size_bytes: int, *, within_s: float = 60.0) -> None:
        """Wait until readers have read so much since the load began."""
        until(
            lambda: sum(r.size_bytes for r in self._measured()) >= size_bytes,
            f"{size_bytes:,} bytes are read",
            within_s=within_s,
        )

    def _begin(self) -> None:
        self.begin_s = time.monotonic()

    def _mounted(self) -> list[Node]:
        return [node for node in self.nodes if node.mount.is_running]

    # Faults

    @contextmanager
    def fault(self, fault: Fault) -> Iterator[None]:
        """Have a fault inside the block, which ends once there is evidence of it."""
        if not self.inject(fault):
            yield
            return
        try:
            yield
            self.prove(fault)
        finally:
            self.heal(fault)

    def inject(self, fault: Fault) -> bool:
        """Inject a fault; a failed check and False when nobody would notice it."""
        print(f"  {fault.label}", flush=True)
        try:
            fault.inject()
        except NotBusy as idle:
            self.check(Check(f"fault fired: {fault.label}", holds=False, seen=str(idle)))
            return False
        now_s = time.monotonic()
        self.fault_s = self.fault_s or now_s
        self.mark(fault.label)
        return True

    def prove(self, fault: Fault, *, within_s: float = EVIDENCE_WITHIN_S) -> None:
        """Wait for the evidence of a fault; without it the run fails."""
        with suppress(TimeoutError):
            until(lambda: fault.evidence() is not None, fault.label, within_s=within_s, every_s=0.1)
        words = fault.evidence()
        self.check(Check(f"fault fired: {fault.label}", words is not None, words or "no evidence"))
        if words:
            self.report.fired.append(f"{fault.label}: {words}")

    def heal(self, fault: Fault) -> None:
        fault.heal()
        self.mark(f"end: {fault.label}")

    def mark(self, text: str) -> None:
        self.report.marks.append(Mark(time.monotonic(), text))

    # What all know

    @contextmanager
    def until_all_know(
        self, about: Node, *, states: frozenset[str] = GONE, goal_s: float | None = 3.0,
        what: str = "time until all knew",
    ) -> Iterator[None]:  # fmt: skip
        """Measure, from the end of the block on, when all others see a peer in a state."""
        observers = [node for node in self.cluster.running() if node is not about]
        out = self.cluster.place / f"seen-{len(self.report.rows)}-{about.name}.jsonl"
        watch = self._watch(observers, out)
        try:
            until(lambda: out.exists() and out.read_text().count("\n") >= len(observers),
                  "the peers tell how they see each other", within_s=20)  # fmt: skip
            yield
            since_s = time.monotonic()
            knew_s: float | None = None
            while knew_s is None and time.monotonic() - since_s < KNOW_WITHIN_S:
                time.sleep(0.1)
                sights = parsed(out.read_text().splitlines())
                names = [node.name for node in observers]
                knew_s = all_knew_s(
                    sights, about=about.name, observers=names, since_s=since_s, states=states
                )
            self.report.rows.append(row(what, knew_s, "s", at_most=goal_s))
        finally:
            end([watch])

    def converge(self, *, within_s: float = KNOW_WITHIN_S) -> None:
        """Check that, with no fault left, every peer soon sees every peer well."""
        names = [node.name for node in self.cluster.running()]
        out = self.cluster.place / f"converged-{len(self.report.rows)}.jsonl"
        since_s = time.monotonic()
        watch = self._watch(self.cluster.running(), out)

        def all_well() -> bool:
            sights = parsed(out.read_text().splitlines()) if out.exists() else []
            return all(
                all_knew_s(sights, about=n, observers=names, since_s=since_s, states=WELL)
                is not None
                for n in names
            )

        try:
            with suppress(TimeoutError):
                until(all_well, "all see all well", within_s=within_s, every_s=0.2)
            took_s = time.monotonic() - since_s
            self.expect("all see all well again", f"after {took_s:.1f} s", holds=all_well())
        finally:
            end([watch])

    def _watch(self, observers: Sequence[Node], out: Path) -> Daemon:
        peers = [f"{node.name}={node.socket}" for node in observers]
        command = [sys.executable, "-m", "chaos.watch", "--out", str(out), *peers]
        watch = Daemon("watch", None, command, log=self.cluster.place / "watch.log")
        watch.start()
        return watch

    # Probes: reads that are judged by the play itself

    def probe(self, node: Node, file: str) -> list[stats.Read]:
        """Read a file once through a mount; return the reads, the failed ones as well."""
        aside = Workload(self.cluster.place / "data", self.cluster.place, seed=self.report.seed)
        self.workload.aside.append(aside)
        readers = aside.start([node.view], Load(files=(file,), threads=1, passes=1))
        with suppress(TimeoutError):
            aside.wait(readers, within_s=self.read_deadline_s)
        aside.stop(within_s=0.1)
        self.expect(f"a read of {file} ends", f"{len(aside.stuck_s)} hang", holds=not aside.stuck_s)
        return aside.reads()

    # Results

    def check(self, check: Check) -> None:
        self.report.checks.append(check)

    def expect(self, what: str, seen: str, *, holds: bool) -> None:
        self.check(Check(what, holds, seen))

    @contextmanager
    def excuse(self) -> Iterator[None]:
        """Allow errors of reads inside the block: nobody can answer them."""
        start_s = time.monotonic()
        try:
            yield
        finally:
            self.excused.append(Window(start_s, time.monotonic()))

    def stop(self) -> None:
        """End the load; what follows in the play is not measured."""
        if not self.end_s:
            self.end_s = time.monotonic()
            self.workload.stop(within_s=self.read_deadline_s)

    def _measured(self) -> list[stats.Read]:
        return [read for read in self.workload.reads() if read.end_s >= self.begin_s]

    def finish(self) -> None:
        """End the load if it still runs; add the rows and checks of every run."""
        self.stop()
        everything = self.workload.reads()
        longest_s = max((read.took_s for read in everything), default=0.0)
        self.check(checks.something_was_read(everything))
        self.check(checks.no_wrong_bytes(everything))
        self.check(checks.no_errors(everything, self.excused))
        self.check(
            checks.no_hang(self.workload.stuck_s, longest_s, deadline_s=self.read_deadline_s)
        )
        for words in self.workload.broken():
            self.expect("readers run", words, holds=False)
        self._add_rows(everything)
        self._add_plot()

    def _add_rows(self, everything: list[stats.Read]) -> None:
        reads = [read for read in everything if self.begin_s <= read.end_s <= self.end_s]
        took_ms = [read.took_s * 1000 for read in reads]
        good = [read.end_s for read in reads if not read.errno]
        egress_bytes = self.cluster.under_store.egress_bytes
        rows = self.report.rows
        rows += [
            row("read errors", sum(bool(read.errno) for read in everything), ""),
            row("wrong bytes", sum(read.wrong_bytes for read in everything), "bytes", at_most=0),
            row("reads", len(reads), ""),
            row("p50 of a read", stats.percentile(took_ms, 0.5), "ms"),
            row("p99 of a read", stats.percentile(took_ms, 0.99), "ms"),
            row("longest read", max(took_ms, default=0.0), "ms"),
            row("longest time without a byte to any reader",
                1000 * stats.longest_gap_s(good, from_s=self.begin_s, to_s=self.end_s), "ms"),
            row("under-store egress", egress_bytes / MIB, "MiB", control=self.data_bytes / MIB),
        ]  # fmt: skip

    def _add_plot(self) -> None:
        everything = self.workload.reads()
        from_s = min((read.start_s for read in everything), default=self.begin_s)
        marks = self.report.marks
        self.report.marks = [Mark(round(m.at_s - from_s, 2), m.text) for m in marks]
        to_s = max(self.end_s, from_s + STEP_S)
        self.report.rates = stats.rates(everything, from_s=from_s, to_s=to_s, step_s=STEP_S)
        log = self.cluster.place / "s3" / "requests.jsonl"
        self.report.egress = egress_rates(
            log.read_text().splitlines(), from_s=from_s, to_s=to_s, step_s=STEP_S
        )


def play(
    scenario: Scenario,
    *,
    seed: int,
    peers: int,
    membership: str = DEFAULT_MEMBERSHIP,
    name: str = "",
) -> Report:
    """Run a scenario from nothing to nothing; return what it found."""
    start_s = time.monotonic()
    report = Report(name or scenario.name, seed, max(peers, scenario.mesh.peers_min))
    print(f"chaos {report.name}: seed {seed}, {report.peers} peers", flush=True)
    with ended_by_signals(), workplace() as place:
        try:
            _play_at(place, scenario, report, membership)
        except Exception as error:  # the run itself broke; say so as any failure
            words = f"{type(error).__name__}: {error}"
            report.checks.append(Check("the run came to its end", holds=False, seen=words))
        if not report.passed or os.environ.get("CHAOS_KEEP"):
            _keep_logs(place, report)
    report.took_s = time.monotonic() - start_s
    return report


def _play_at(place: Path, scenario: Scenario, report: Report, membership: str) -> None:
    mesh = scenario.mesh
    sizes = mesh.files(report.peers)
    _make_data(place / "data", sizes, seed=report.seed)
    settings = MeshSettings(
        membership="gossip" if membership == "gossip" else "static",
        capacity=mesh.capacity,
        seed=report.seed,
    )
    report.settings = {"membership": membership, "files": sizes, "capacity": mesh.capacity}
    cluster = Cluster(
        place,
        peers=report.peers,
        settings=settings,
        disk_bytes=mesh.disk_bytes,
        relayed=mesh.relayed,
    )
    with cluster:
        run = Run(scenario, cluster, report)
        try:
            if mesh.link_bytes_s:
                for node in cluster.nodes:
                    node.host.limit_rate(mesh.link_bytes_s)
            there = cluster.nodes[: report.peers - mesh.starts_later]
            cluster.launch(there)
            cluster.under_store.put(place / "data")
            cluster.wait(there)
            scenario.play(run)
            run.finish()
        finally:
            ignore_signals()
            run.workload.stop(within_s=0)
            cluster.release_readers()
            run.workload.abandon()


def _make_data(folder: Path, sizes: dict[str, int], *, seed: int) -> None:
    folder.mkdir()
    dice = random.Random(seed)
    for name, size_bytes in sizes.items():
        with (folder / name).open("wb") as file:
            for start in range(0, size_bytes, 16 * MIB):
                file.write(dice.randbytes(min(16 * MIB, size_bytes - start)))


def _keep_logs(place: Path, report: Report) -> None:
    """Keep what explains a run: configs, logs, requests, and what readers saw."""
    kept = OUT / f"chaos-{report.name}-logs"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for path in place.iterdir():
        if path.suffix in (".log", ".toml", ".reads", ".jsonl", ".strace") and path.is_file():
            shutil.copy(path, kept)
    with suppress(OSError):
        shutil.copy(place / "s3" / "requests.jsonl", kept)
