"""Several faults at times that a seed decides."""

from __future__ import annotations

import time
from collections.abc import Callable

from chaos.cluster import Node
from chaos.faults.base import Fault
from chaos.faults.links import Cut, Loss, OneWay, SlowLink
from chaos.faults.processes import Kill, Restart, Stop
from chaos.faults.storage import DiskErrors, FlippedBytes, SlowSync
from chaos.plan import KINDS, Planned, draw
from chaos.run import Run
from chaos.scenario import scenario
from chaos.scenarios.links import SLOW_BYTES_S

_MAKERS: dict[str, Callable[[Run, Node], Fault]] = {
    "stop": lambda run, node: Stop(node, run.workload),
    "cut": lambda run, node: Cut(node, run.cluster.others(node)),
    "one-way": lambda run, node: OneWay(node, run.cluster.others(node)),
    "loss": lambda run, node: Loss(node, run.cluster.others(node)),
    "slow-link": lambda _, node: SlowLink(node, bytes_s=SLOW_BYTES_S),
    "disk-errors": lambda run, node: DiskErrors(node, run.cluster.place),
    "slow-fsync": lambda run, node: SlowSync(node, run.cluster.place),
    "flip": lambda run, node: FlippedBytes(node, run.dice),
    "restart": lambda run, node: Restart(node, run.workload),
    "kill": lambda run, node: Kill(node, run.workload),
}
assert _MAKERS.keys() >= set(KINDS)


@scenario(
    "mixed",
    "two to four faults, their victims and times drawn from the seed",
    proof="that of each fault",
)
def mixed(run: Run) -> None:
    plan = draw(run.report.seed, peers=len(run.nodes))
    run.report.settings["plan"] = [str(planned) for planned in plan]
    for planned in plan:
        print(f"  plan: {planned}", flush=True)
    run.warm()
    run.steady()
    _play(run, plan)
    run.hold(3)
    run.converge()


def _play(run: Run, plan: list[Planned]) -> None:
    """Begin and end each fault at its time; what is late moves nothing but itself."""
    start_s = time.monotonic()
    faults = {p: _MAKERS[p.kind](run, run.nodes[p.victim]) for p in plan}
    moments = [(p.at_s, 1, p) for p in plan] + [(p.at_s + p.for_s, 0, p) for p in plan]
    on: set[Planned] = set()
    try:
        for at_s, begins, planned in sorted(moments):
            time.sleep(max(0.0, start_s + at_s - time.monotonic()))
            if begins:
                if run.inject(faults[planned]):
                    on.add(planned)
            elif planned in on:
                run.prove(faults[planned])
                on.discard(planned)
                run.heal(faults[planned])
    finally:
        for planned in on:
            run.heal(faults[planned])
