"""The network between hosts fails; the under-store can always be reached."""

from __future__ import annotations

from chaos.faults.base import Fault
from chaos.faults.links import Cut, Late, Loss, OneWay, SlowLink, Split
from chaos.run import Run
from chaos.scenario import Mesh, scenario
from chaos.scenarios.timing import add_dip, add_latency

SLOW_BYTES_S = 1e6


def _during(run: Run, fault: Fault, *, for_s: float = 6.0) -> None:
    """Have one fault in the middle of a steady load; with what it cost."""
    with run.fault(fault):
        run.hold(for_s)
    run.hold(3)
    add_latency(run, killed=False)
    add_dip(run)


@scenario(
    "cut",
    "one host is cut off from all other hosts for 6 s",
    proof="nftables counted the packets that it dropped",
    in_set=True,
)
def cut(run: Run) -> None:
    run.warm()
    run.steady()
    victim = run.victim()
    fault = Cut(victim, run.cluster.others(victim))
    with run.until_all_know(victim):
        run.inject(fault)
    run.hold(4)
    run.prove(fault)
    run.heal(fault)
    run.hold(3)
    run.converge()
    add_latency(run, killed=False)
    add_dip(run)


@scenario(
    "one-way",
    "what others send to one host is lost for 6 s; what it sends arrives",
    proof="nftables counted the packets that it dropped",
)
def one_way(run: Run) -> None:
    run.warm()
    run.steady()
    victim = run.victim()
    _during(run, OneWay(victim, run.cluster.others(victim)))
    run.converge()


@scenario(
    "loss",
    "one host loses 5 % of the packets from and to all others for 8 s",
    proof="nftables counted the packets that it dropped",
)
def loss(run: Run) -> None:
    run.warm()
    run.steady()
    victim = run.victim()
    _during(run, Loss(victim, run.cluster.others(victim)), for_s=8)


@scenario(
    "late",
    "one peer answers 50 to 80 ms late for 6 s",
    proof="the relay before it counted the bytes that it held back",
    mesh=Mesh(relayed=True),
)
def late(run: Run) -> None:
    run.warm()
    run.steady()
    _during(run, Late(run.victim(), base_s=0.05, jitter_s=0.03))


@scenario(
    "slow-link",
    "the cable of one host has 1 MB/s for 6 s",
    proof="tc counted the packets that had to wait",
)
def slow_link(run: Run) -> None:
    run.warm()
    run.steady()
    _during(run, SlowLink(run.victim(), bytes_s=SLOW_BYTES_S))


@scenario(
    "split",
    "two halves that cannot reach each other for 6 s",
    proof="nftables counted the packets that it dropped",
)
def split(run: Run) -> None:
    run.warm()
    run.steady()
    shuffled = run.dice.sample(run.nodes, len(run.nodes))
    half = len(shuffled) // 2
    with run.fault(Split(shuffled[:half], shuffled[half:])):
        run.hold(6)
    run.hold(3)
    run.converge()
    add_latency(run, killed=False)
    add_dip(run, lost=0)
