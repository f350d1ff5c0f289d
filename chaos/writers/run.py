"""One seed: a mesh, writers and readers, faults, and what is there in the end."""

from __future__ import annotations

import json
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chaos.cluster import Cluster, Node
from chaos.config import MeshSettings
from chaos.daemons import Daemon, end
from chaos.faults.base import Fault
from chaos.faults.storage import FullDisk
from chaos.place import ended_by_signals, ignore_signals, take_away, until, workplace
from chaos.plan import Planned
from chaos.report import OUT
from chaos.writers import takeover, verdict
from chaos.writers.content import DIRECTORIES, MIB, THROUGH
from chaos.writers.faults import Away, KillHost, KillPeer, Lane, start_again
from chaos.writers.history import History
from chaos.writers.plan import Length, draw
from chaos.writers.verdict import STEP_MOST_S, Finding, Seen, Trouble

HOSTS = 4
WRITERS = 8
DISK_BYTES = 640 * MIB
CAPACITY = "440MiB"
MAX_AGE_S = 5.0
MOST_LATE_S = MAX_AGE_S + 3.0
"""For so long a peer that was not told of a change may believe what it knew."""
FLUSH_S = 100.0
MEND_WITHIN_S = 90.0
EMPTY_WITHIN_S = 30.0
CHECK_WITHIN_S = 240.0
UNDER_STORE = "under-store"
LOGS = OUT / "chaos-writers-logs"


@dataclass
class Outcome:
    """What a seed has shown."""

    seed: int
    findings: list[Finding] = field(default_factory=list)
    troubles: list[Trouble] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    history: History = field(default_factory=History)
    reads: list[Seen] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    takeover_s: float | None = None
    flush_s: float | None = None
    unfinished: int = 0
    """Uploads of peers that were killed, still in the under-store."""
    broken: str = ""
    """Why the run did not come to its end."""
    took_s: float = 0.0

    @property
    def passed(self) -> bool:
        return not self.findings and not self.broken

    @property
    def lost_bytes(self) -> int:
        return sum(finding.lost_bytes for finding in self.findings)

    def kinds(self) -> Counter[str]:
        return Counter(finding.kind for finding in self.findings)


class Run:
    """The processes of one seed."""

    def __init__(self, place: Path, cluster: Cluster, outcome: Outcome, length: Length) -> None:
        self._place, self._cluster, self._outcome = place, cluster, outcome
        self._length = length
        self._data = place / "data"
        self._logs = [place / f"writer-{number}.jsonl" for number in range(WRITERS)]
        self._seens = [place / f"reader-{node.index}.jsonl" for node in cluster.nodes]
        self._writers = [self._writer(number) for number in range(WRITERS)]
        self._readers = [self._reader(node) for node in cluster.nodes]
        self._checkers: list[Daemon] = []
        self._over = threading.Event()
        self._hands = threading.Lock()
        """Held by whoever kills and starts daemons."""
        self._lanes: list[Lane] = []

    def play(self) -> None:
        """Do all of it, and judge."""
        self._outcome.takeover_s = takeover.measure(
            self._cluster, self._data, seed=self._outcome.seed
        )
        print(f"  takeover in {self._outcome.takeover_s:.1f} s", flush=True)
        for process in (*self._writers, *self._readers):
            process.start()
        self._break()
        stuck = self._stop_load()
        self._gather()
        self._outcome.findings += stuck
        self._outcome.findings += verdict.hangs(self._outcome.history, now_s=time.monotonic())
        self._flush()
        time.sleep(MAX_AGE_S)
        self._judge(self._look())

    def _writer(self, number: int) -> Daemon:
        node = self._cluster.nodes[number % HOSTS]
        words = ["--view", str(node.view), "--log", str(self._logs[number])]
        words += ["--seed", str(self._outcome.seed), "--number", str(number)]
        return self._process(f"writer-{number}", "chaos.writers.writer", words)

    def _reader(self, node: Node) -> Daemon:
        words = ["--view", str(node.view), "--out", str(self._seens[node.index])]
        words += ["--where", node.name, "--seed", str(self._outcome.seed)]
        elsewhere = [n for n in range(WRITERS) if n % HOSTS != node.index]
        words += ["--logs", *(f"{n}={self._logs[n]}" for n in elsewhere)]
        return self._process(f"reader-{node.index}", "chaos.writers.reader", words)

    def _process(self, name: str, module: str, words: Sequence[str]) -> Daemon:
        command = [sys.executable, "-m", module, *words]
        return Daemon(name, None, command, log=self._place / f"{name}.log")

    # Faults

    def _break(self) -> None:
        """Have all faults of the plan happen, and mend them."""
        start_s = time.monotonic()
        plan = draw(self._outcome.seed, hosts=HOSTS, length=self._length)
        self._lanes = [
            Lane(each, self._fault, start_s=start_s, over=self._over) for each in plan if each
        ]
        for lane in self._lanes:
            lane.start()
        while time.monotonic() - start_s < self._length.load_s:
            if any(lane.failure for lane in self._lanes):
                break
            self._raise_the_dead()
            time.sleep(0.2)
        self.end_faults()
        self._raise_the_dead()
        for lane in self._lanes:
            if lane.failure:
                raise RuntimeError(f"a fault broke the run: {lane.failure!r}") from lane.failure
            self._outcome.troubles += lane.troubles
            self._outcome.fired += lane.fired

    def _raise_the_dead(self) -> None:
        """Start daemons again that have ended by themselves; none of them may."""
        for node in self._cluster.nodes:
            for daemon in (node.peer, node.mount):
                if daemon.is_running or not self._hands.acquire(blocking=False):
                    continue
                try:
                    if not daemon.is_running:
                        self._raise(node, daemon)
                finally:
                    self._hands.release()

    def _raise(self, node: Node, daemon: Daemon) -> None:
        words = "".join(daemon.said().strip().splitlines()[-1:])
        self._found("died", daemon.name, f"by itself, with {daemon.exit_code}: {words}")
        from_s = time.monotonic()
        if daemon is node.mount:
            take_away(node.view)
            node.start_mount()
        else:
            start_again(node)
        self._outcome.troubles.append(Trouble(from_s, time.monotonic(), f"{daemon.name} died"))

    def _fault(self, planned: Planned) -> Fault:
        node = self._cluster.nodes[planned.victim]
        if planned.kind == "away":
            return Away(self._data)
        if planned.kind == "full":
            return FullDisk(node)
        return {"kill": KillPeer, "kill-host": KillHost}[planned.kind](node, self._hands)

    def end_faults(self) -> None:
        """Have nothing more go wrong, and wait until all is mended."""
        self._over.set()
        for lane in self._lanes:
            lane.join(MEND_WITHIN_S)
            if lane.is_alive():
                self._found("hang", lane.name, "its fault could not be mended")

    # The end

    def _stop_load(self) -> list[Finding]:
        """End writers and readers; return those that could not end their step."""
        processes = [*self._writers, *self._readers]
        ended = [each for each in processes if not each.is_running]
        found = [Finding("died", "", each.name, each.said()[-400:]) for each in ended]
        for process in processes:
            process.signal(15)
        deadline_s = time.monotonic() + STEP_MOST_S + 10
        while any(each.is_running for each in processes) and time.monotonic() < deadline_s:
            time.sleep(0.05)
        stuck = [each for each in processes if each.is_running]
        found += [Finding("hang", "", each.name, "its step never ended") for each in stuck]
        return found

    def abandon(self) -> None:
        """End all processes at once; call it when no mount can hold them any more."""
        end([*self._writers, *self._readers, *self._checkers], patience_s=2.0)

    def _gather(self) -> None:
        for number, log in enumerate(self._logs):
            self._outcome.history.feed(number, log.read_text().splitlines())
        self._outcome.reads = [seen for out in self._seens for seen in _seen(out)[0]]

    def _flush(self) -> None:
        """Have everything go into the under-store, and see that nothing is left behind."""
        node = self._cluster.nodes[self._outcome.seed % HOSTS]
        start_s = time.monotonic()
        words = ("flush", "/", "--timeout", f"{FLUSH_S:g}s")
        done = takeover.mesh(node, *words, timeout_s=FLUSH_S + 60)
        self._outcome.flush_s = time.monotonic() - start_s
        if done.returncode:
            self._found("not flushed", node.name, done.stderr.strip()[-400:])
        for each in self._cluster.nodes:
            try:
                until(lambda each=each: not _staged(each), "", within_s=EMPTY_WITHIN_S)  # type: ignore[misc]
            except TimeoutError:
                self._found("left", each.name, f"staged: {', '.join(_staged(each)[:5])}")
        if left := takeover.waiting(node):
            self._found("left", node.name, f"uploads: {left[:3]}")

    def _found(self, kind: str, where: str, words: str) -> None:
        self._outcome.findings.append(Finding(kind, "", where, words))

    def _look(self) -> list[Path]:
        """Have every path read on every mount and in the under-store; return where it says."""
        paths = self._place / "paths.json"
        paths.write_text(json.dumps(sorted(self._outcome.history.paths)))
        views = {node.name: node.view for node in self._cluster.nodes} | {UNDER_STORE: self._data}
        outs = []
        for where, view in views.items():
            out = self._place / f"found-{where}.jsonl"
            words = ["--view", str(view), "--out", str(out), "--where", where]
            words += ["--paths", str(paths), *(["--plain"] if where == UNDER_STORE else [])]
            checker = self._process(f"checker-{where}", "chaos.writers.reader", words)
            self._checkers.append(checker)
            checker.start()
            outs.append(out)
        try:
            until(
                lambda: not any(each.is_running for each in self._checkers),
                "all is read",
                within_s=CHECK_WITHIN_S,
            )
        except TimeoutError:
            for each in self._checkers:
                if each.is_running:
                    self._found("hang", each.name, "the last look did not end")
        return outs

    def _judge(self, outs: Sequence[Path]) -> None:
        outcome, history = self._outcome, self._outcome.history
        seen: list[Seen] = []
        names: dict[str, list[str]] = {}
        for out in outs:
            found, listed = _seen(out)
            seen += found
            names |= listed
        for where in [n.name for n in self._cluster.nodes] + [UNDER_STORE]:
            if where not in names:
                self._found("unreadable", where, "its files could not be listed")
        outcome.findings += verdict.final(history, seen, truth=UNDER_STORE)
        outcome.findings += verdict.half_moved(history, seen, truth=UNDER_STORE)
        outcome.findings += verdict.strangers(history, names, truth=UNDER_STORE)
        outcome.unfinished = sum(map(verdict.is_unfinished, names.get(UNDER_STORE, ())))
        outcome.findings += verdict.reads(
            history, outcome.reads, outcome.troubles, most_late_s=MOST_LATE_S
        )
        outcome.late_s = list(verdict.late(history, outcome.reads))


def _staged(node: Node) -> list[str]:
    return [path.name for path in (node.store / "staged").iterdir()]


def _seen(out: Path) -> tuple[list[Seen], dict[str, list[str]]]:
    """Return what a reader has noted: reads, and names by where it found them."""
    seen: list[Seen] = []
    names: dict[str, list[str]] = {}
    for line in out.read_text().splitlines() if out.exists() else []:
        record = json.loads(line)
        if "names" in record:
            names[record["where"]] = record["names"]
        else:
            seen.append(Seen(**record))
    return seen, names


def play(seed: int, length: Length) -> Outcome:
    """Run a seed from nothing to nothing; return what it found."""
    start_s = time.monotonic()
    outcome = Outcome(seed)
    print(f"chaos writers: seed {seed}", flush=True)
    with ended_by_signals(), workplace() as place:
        try:
            _play_at(place, outcome, length)
        except Exception as error:  # the run itself broke; say so as any failure
            outcome.broken = f"{type(error).__name__}: {error}"
        if not outcome.passed:
            _keep_logs(place, outcome)
    outcome.took_s = time.monotonic() - start_s
    return outcome


def _play_at(place: Path, outcome: Outcome, length: Length) -> None:
    data = place / "data"
    for directory in DIRECTORIES:
        (data / directory).mkdir(parents=True)
    table = (
        f'durability = "copies"\nmax_age = "{MAX_AGE_S:g}s"\n'
        f'[mounts."/".durabilities]\n"/{THROUGH}" = "through"\n'
    )
    settings = MeshSettings(capacity=CAPACITY, seed=outcome.seed, more={'mounts."/"': table})
    cluster = Cluster(
        place,
        peers=HOSTS,
        settings=settings,
        disk_bytes=DISK_BYTES,
        in_memory=True,
        directory=data,
    )
    with cluster:
        run = Run(place, cluster, outcome, length)
        try:
            cluster.launch(cluster.nodes)
            cluster.wait(cluster.nodes)
            run.play()
        finally:
            ignore_signals()
            run.end_faults()
            cluster.release_readers()
            run.abandon()


def _keep_logs(place: Path, outcome: Outcome) -> None:
    """Keep what explains a seed: configs, logs, what was written, seen, and is there now."""
    kept = LOGS / f"seed-{outcome.seed}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    for path in place.iterdir():
        if path.suffix in (".log", ".toml", ".jsonl") and path.is_file():
            shutil.copy(path, kept)
    lines = [str(finding) for finding in outcome.findings] + [outcome.broken]
    lines += [f"{t.from_s:.3f} to {t.to_s:.3f}: {t.label}" for t in outcome.troubles]
    (kept / "findings.txt").write_text("\n".join(lines) + "\n")
    for name in {finding.path for finding in outcome.findings if finding.kind == "torn"}:
        if (place / "data" / name).is_file():
            shutil.copy(place / "data" / name, kept / f"torn-{name.replace('/', '-')}")
