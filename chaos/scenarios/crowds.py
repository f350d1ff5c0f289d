"""Very many readers, and readers that go away in the middle of a read."""

from __future__ import annotations

import os
from contextlib import suppress

from chaos import checks
from chaos.faults.processes import FreezeMount
from chaos.place import until
from chaos.report import row
from chaos.run import Run
from chaos.scenario import MIB, Mesh, scenario
from chaos.workload import Load

PROCESSES_MAX = 32
THREADS = 32
CROWD_EGRESS_MAX = 1.5


def _model(_: int) -> dict[str, int]:
    return {"model": 24 * MIB}


@scenario(
    "thousand",
    "very many readers of one cold file: 4 processes a core of 32 threads each",
    proof="more readers than 100 waited at the same time",
    mesh=Mesh(files=_model, capacity="160MiB"),
    in_set=True,
)
def thousand(run: Run) -> None:
    run.read_deadline_s = 60.0
    processes = min(PROCESSES_MAX, 4 * (os.cpu_count() or 1))
    copies = max(1, processes // len(run.nodes))
    readers = run.start_cold(threads=THREADS, copies=copies)
    most = 0

    def many_wait() -> bool:
        nonlocal most
        most = max(most, sum(len(reader.waiting_s()) for reader in readers))
        return most > 100

    with suppress(TimeoutError):
        until(many_wait, "many readers wait", within_s=20, every_s=0.02)
    run.expect("fault fired: a crowd", f"{most} readers waited at once", holds=most > 100)
    run.report.fired.append(f"{most} readers waited at once")
    took_s = run.workload.wait(readers, within_s=120)
    total = len(readers) * THREADS
    run.report.rows += [row("readers", total, ""), row("all done in", took_s, "s")]
    ratio = run.cluster.under_store.egress_bytes / run.data_bytes
    run.report.rows.append(row("under-store egress of the crowd", ratio, "x data", at_most=1.02))
    # 256 threads of readers on two cores starve the peers too: silence is not death then,
    # but it can't be told from it for long. Without that bound every reader fills.
    run.check(checks.egress_at_most(ratio, most=CROWD_EGRESS_MAX))


@scenario(
    "vanish",
    "readers are killed in the middle of their reads, five times",
    proof="reads were at hand when their readers were killed",
)
def vanish(run: Run) -> None:
    run.warm()
    run.steady()
    load = Load(files=run.files, threads=8, pattern="random")
    caught = 0
    for _ in range(5):
        hasty = run.workload.start([node.view for node in run.nodes], load)
        until(lambda hasty=hasty: all(r.count > 8 for r in hasty), "they read", within_s=20)  # type: ignore[misc]
        caught += sum(len(reader.waiting_s()) for reader in hasty)
        for reader in hasty:
            reader.process.kill()
        run.mark("readers killed")
        run.hold(0.5)
    run.expect("fault fired: readers vanish", f"in {caught} reads", holds=caught > 0)
    run.report.fired.append(f"{caught} reads were at hand when their readers were killed")
    run.stop()
    left = _in_flight(run)
    run.expect("nothing stays in flight", f"{left:,.0f} bytes", holds=left == 0)


@scenario(
    "slow-reader",
    "one mount stops taking what peers send it, for 5 s",
    proof="process state T, and reads that wait in it",
)
def slow_reader(run: Run) -> None:
    run.warm()
    run.steady()
    load = Load(files=run.files, threads=8, pattern="random")
    victim = run.victim()
    run.workload.start([victim.view], load)
    run.hold(1)
    with run.fault(FreezeMount(victim, run.workload)):
        run.hold(5)
    run.hold(2)
    run.stop()
    left = _in_flight(run)
    run.expect("nothing stays in flight", f"{left:,.0f} bytes", holds=left == 0)


def _in_flight(run: Run) -> float:
    """Return what peers still hold for readers, once it is nothing or five seconds have gone."""

    def now() -> float:
        return sum(node.metric("mesh_in_flight_bytes") for node in run.cluster.running())

    with suppress(TimeoutError):
        until(lambda: now() == 0, "nothing is in flight", within_s=5, every_s=0.2)
    return now()
