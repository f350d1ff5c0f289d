"""Operators change the mesh under load: restart, join, leave; and a clock that jumps."""

from __future__ import annotations

import time

from chaos import checks
from chaos.faults.processes import ClockJump, FewFiles, Join, Restart
from chaos.knowledge import WELL
from chaos.report import row
from chaos.run import Run
from chaos.scenario import Mesh, scenario
from chaos.scenarios.timing import add_dip, add_latency

HOUR_S = 3600


@scenario(
    "rolling",
    "SIGTERM and start of every peer, one by one",
    proof="each had just sent bytes, ended with 0, and serves again",
    in_set=True,
)
def rolling(run: Run) -> None:
    run.warm()
    run.steady()
    before_bytes = run.cluster.under_store.egress_bytes
    for node in run.nodes:
        with run.fault(Restart(node, run.workload)):
            pass
        run.hold(1)
    run.hold(2)
    repeated_bytes = run.cluster.under_store.egress_bytes - before_bytes
    run.report.rows.append(row("fetched again", repeated_bytes, "bytes", at_most=0))
    run.check(checks.nothing_fetched(repeated_bytes, run.data_bytes))
    run.converge()
    add_dip(run)


@scenario(
    "join",
    "one more peer starts",
    proof="the new peer keeps blocks that it owns now",
    mesh=Mesh(starts_later=1, peers_min=4),
    in_set=True,
)
def join(run: Run) -> None:
    run.warm()
    run.steady()
    before_bytes = run.cluster.under_store.egress_bytes
    newcomer = run.nodes[-1]
    fault = Join(newcomer)
    with run.until_all_know(newcomer, states=WELL, goal_s=5.0, what="all see it, after it serves"):
        run.inject(fault)
    run.report.rows.append(row("it serves after", fault.took_s, "s", at_most=5.0))
    run.hold(6)
    run.prove(fault)
    moved = (run.cluster.under_store.egress_bytes - before_bytes) / run.data_bytes
    most = 1.25 / run.report.peers
    run.report.rows.append(row("fetched again for it", moved, "x data", at_most=0.02))
    run.check(checks.egress_at_most(moved, most=2 * most))
    add_dip(run, lost=0)


@scenario(
    "leave",
    "SIGTERM of one peer, which does not come back",
    proof="it had just sent bytes, and ended with 0",
)
def leave(run: Run) -> None:
    run.warm()
    run.steady()
    victim = run.victim()
    fault = Restart(victim, run.workload, label="leave of")
    with run.until_all_know(victim):
        start_s = time.monotonic()
        run.inject(fault)
        took_s = time.monotonic() - start_s
    run.report.rows.append(row("it was gone after", took_s, "s", at_most=5.0 + 0.5))
    run.prove(fault)
    run.hold(4)
    add_latency(run, killed=True)
    add_dip(run)


@scenario(
    "few-files",
    "one peer may open no more files for 5 s",
    proof="its log says 'Too many open files', or all files it may open are open",
)
def few_files(run: Run) -> None:
    run.warm()
    run.steady()
    with run.fault(FewFiles(run.victim())):
        run.hold(5)
    run.hold(3)
    run.converge()
    add_dip(run)


@scenario(
    "clock",
    "the wall clock of one peer jumps an hour ahead, and then an hour back",
    proof="the Date header of its answers",
)
def clock(run: Run) -> None:
    victim = run.victim()
    victim.peer.terminate()
    ClockJump.prepare(victim)
    victim.start_peer()
    run.warm()
    run.steady()
    for jump_s in (HOUR_S, -HOUR_S):
        with run.fault(ClockJump(victim, jump_s)):
            run.hold(3)
        run.hold(1)
    run.converge()
    add_dip(run, lost=0)
