"""Peers die: one, the own one, all, again and again."""

from __future__ import annotations

from chaos import checks
from chaos.faults.processes import Kill, KillAll, Stop
from chaos.report import row
from chaos.run import Run
from chaos.scenario import MIB, Mesh, scenario
from chaos.scenarios.timing import add_dip, add_latency


def _model(peers: int) -> dict[str, int]:
    """Return one big file, for many peers a bigger one.

    What a peer has read and not yet sent dies with it, some blocks for each of the 16
    that are read ahead: with 8 peers these are few of 384.
    """
    return {"model": 96 * MIB if peers < 8 else 384 * MIB}


COLD = Mesh(files=_model, capacity="640MiB", link_bytes_s=20e6)
"""Cables slow enough for something to happen in the middle of it."""

AT_HAND_BYTES = 3 * 16 * MIB
"""Three windows of blocks read ahead: of these the one that dies has its part."""


@scenario(
    "calm",
    "nothing: a cold read by all over slow cables, the control of kill-cold",
    proof="nothing is to be proven",
    mesh=COLD,
)
def calm(run: Run) -> None:
    took_s = run.workload.wait(run.start_cold(), within_s=300)
    run.report.rows.append(row("all done in", took_s, "s"))
    run.check(checks.egress_at_most(run.cluster.under_store.egress_bytes / run.data_bytes))


@scenario(
    "kill",
    "SIGKILL of one peer under a steady load",
    proof="it had just sent bytes, and readers were waiting",
    in_set=True,
)
def kill(run: Run) -> None:
    run.warm()
    run.steady()
    victim = run.victim()
    fault = Kill(victim, run.workload)
    with run.until_all_know(victim):
        run.inject(fault)
    run.hold(5)
    run.prove(fault)
    add_latency(run, killed=True)
    add_dip(run)


@scenario(
    "kill-cold",
    "SIGKILL of one peer in the middle of a cold read by all",
    proof="it had just sent bytes, and readers were waiting",
    mesh=COLD,
    in_set=True,
)
def kill_cold(run: Run) -> None:
    readers = run.start_cold()
    run.until_read(run.data_bytes * len(readers) // 2)
    fault = Kill(run.victim(), run.workload)
    run.inject(fault)
    run.prove(fault)
    took_s = run.workload.wait(readers, within_s=300)
    ratio = run.cluster.under_store.egress_bytes / run.data_bytes
    run.report.rows += [
        row("all done after the kill in", took_s, "s"),
        row("under-store egress, the kill included", ratio, "x data", at_most=1.02),
    ]
    at_hand = AT_HAND_BYTES / len(run.nodes) / run.data_bytes
    run.check(checks.egress_at_most(ratio, most=round(1.02 + at_hand, 3)))


@scenario(
    "stop",
    "SIGSTOP of one peer for some 6 s: connections stay, nothing comes back",
    proof="process state T; it had just sent bytes, and readers were waiting",
    in_set=True,
)
def stop(run: Run) -> None:
    run.warm()
    run.steady()
    victim = run.victim()
    fault = Stop(victim, run.workload)
    with run.until_all_know(victim):
        run.inject(fault)
    run.hold(4)
    run.prove(fault)
    run.heal(fault)
    run.hold(2)
    run.converge()
    add_latency(run, killed=False)
    add_dip(run)


@scenario(
    "own-peer",
    "SIGKILL of the peer beside the only mount that is read from; then it comes back",
    proof="the metric of the bytes that the peer sent to others, and its exit code",
    in_set=True,
)
def own_peer(run: Run) -> None:
    run.warm()
    run.steady()
    victim = run.victim()
    others = [r for r in run.workload.readers if not r.name.endswith(victim.view.name)]
    fault = Kill(victim, run.workload)
    run.inject(fault)
    run.prove(fault)
    run.workload.stop(others)
    run.hold(5)
    run.heal(fault)
    run.hold(2)
    add_latency(run, killed=True)


@scenario(
    "kill-all",
    "SIGKILL of every peer: all mounts fall back to the under-store",
    proof="all are dead, one had just sent bytes, and readers were waiting",
)
def kill_all(run: Run) -> None:
    run.warm()
    run.steady()
    before_bytes = run.cluster.under_store.egress_bytes
    with run.fault(KillAll(run.nodes, run.workload)):
        run.hold(6)
        fetched = run.cluster.under_store.egress_bytes - before_bytes
        run.expect("mounts read the under-store", f"{fetched:,} bytes", holds=fetched > 0)
    run.hold(4)
    add_dip(run, lost=0)


@scenario(
    "flap",
    "a peer that stops for 1.5 s, four times",
    proof="process state T each time",
)
def flap(run: Run) -> None:
    run.warm()
    run.steady()
    victim = run.victim()
    for _ in range(4):
        with run.fault(Stop(victim, run.workload)):
            run.hold(1.5)
        run.hold(1.5)
    run.hold(3)
    add_latency(run, killed=False)
    add_dip(run)
