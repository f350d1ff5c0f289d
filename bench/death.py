"""How long until all know a death: real gossip, a process for each peer, SIGKILL.

Each process is a member and nothing else, so what is measured is membership, not the
rest of a peer. The control is one interval of its probes: no protocol that asks its
members by turns can know sooner than the question is put.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import time
from multiprocessing.connection import Connection
from statistics import median
from typing import Any

from bench.table import Table, value_at_most
from mesh.membership.gossip import Gossip, GossipSettings, Timings
from mesh.membership.view import Member, State
from mesh.testing.servers import free_ports

KEY = "A" * 43 + "="
GOAL_S = 3.0
"""With up to 32 peers (design.md, 8)."""

JOIN_WITHIN_S = 60.0
KNOWN_WITHIN_S = 30.0


def member(number: int, ports: list[int], told: Connection) -> None:
    """Be a member until killed; tell of every state of every peer, and when."""
    asyncio.run(_member(number, ports, told))


async def _member(number: int, ports: list[int], told: Connection) -> None:
    settings = GossipSettings(
        cluster="bench", seeds=[f"127.0.0.1:{port}" for port in ports[:3]], key=KEY
    )
    me = Member(
        f"p{number}", f"127.0.0.1:{ports[number]}", id=f"id-{number}", run=1,
        gossip=f"127.0.0.1:{ports[number]}",
    )  # fmt: skip
    gossip = Gossip(settings, me)
    await gossip.start()
    while True:
        view = gossip.view
        told.send((time.monotonic(), {m.name: m.state.value for m in view.members}))
        await gossip.changed(view.epoch)


class Mesh:
    """Some members, each in a process."""

    def __init__(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        ports = free_ports(count)
        self.pipes: dict[str, Connection] = {}
        self.processes: dict[str, Any] = {}
        for number in range(count):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=member, args=(number, ports, there), daemon=True)
            process.start()
            self.pipes[f"p{number}"], self.processes[f"p{number}"] = here, process

    def when_all(self, name: str, states: set[str], *, within_s: float) -> dict[str, float]:
        """Return when each living member saw *name*, or all if "", in one of *states*."""
        seen: dict[str, float] = {}
        deadline_s = time.monotonic() + within_s
        others = {other for other in self.pipes if other != name}
        while others - seen.keys():
            if time.monotonic() > deadline_s:
                raise SystemExit(f"not all knew in {within_s:g} s: {others - seen.keys()}")
            for other in others - seen.keys():
                while other not in seen and self.pipes[other].poll(0.001):
                    at_s, view = self.pipes[other].recv()
                    wanted = [name] if name else list(self.pipes)
                    if all(view.get(one) in states for one in wanted):
                        seen[other] = at_s
        return seen

    def kill(self, name: str) -> float:
        self.processes[name].kill()
        self.processes[name].join()
        return time.monotonic()

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.join()


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--peers", type=int, default=16)
    flags.add_argument("--turns", type=int, default=5)
    given = flags.parse_args()
    table = Table("death", compared="control: one interval of probes")
    table.settings = {"peers": given.peers, "turns": given.turns}
    first: list[float] = []
    last: list[float] = []
    suspected: list[float] = []
    for turn in range(given.turns):
        mesh = Mesh(given.peers)
        try:
            mesh.when_all("", {State.ACTIVE.value}, within_s=JOIN_WITHIN_S)
            victim = f"p{given.peers - 1 - turn % (given.peers - 3)}"
            killed_s = mesh.kill(victim)
            gone = {State.SUSPECT.value, State.DEAD.value}
            suspects = mesh.when_all(victim, gone, within_s=KNOWN_WITHIN_S)
            suspected.append(min(suspects.values()) - killed_s)
            dead = mesh.when_all(victim, {State.DEAD.value}, within_s=KNOWN_WITHIN_S)
            first.append(min(dead.values()) - killed_s)
            last.append(max(dead.values()) - killed_s)
        finally:
            mesh.close()
    probe_s = Timings().probe_every_s
    table.add("first suspects", median(suspected), "s", control=probe_s)
    table.add("first knows", median(first), "s", control=probe_s)
    table.add("all know", median(last), "s", control=probe_s, goal=value_at_most(GOAL_S))
    table.add("all know, worst turn", max(last), "s", control=probe_s, goal=value_at_most(GOAL_S))
    table.finish()


if __name__ == "__main__":
    main()
