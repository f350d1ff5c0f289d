"""A fan-out of one file to thousands of readers, with the decisions of the real ones.

Sends share the sender's link, and what arrives shares the reader's; news, questions and
refusals take a moment. What the disks and the CPUs need is not simulated.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from random import Random

from mesh.swarm.bits import lowest, span
from mesh.swarm.events import (
    Action,
    Announce,
    Arrived,
    Event,
    Fetch,
    Has,
    Lost,
    Met,
    Missed,
    Reads,
    Tick,
    Wants,
)
from mesh.swarm.graph import INTERVAL_S, Graph
from mesh.swarm.scheduler import Rules, Scheduler
from mesh.swarm.slots import Busy, SlotRules, Slots, Ticket

VERSION = b"simulated version"
HOLDERS_ASKED = 16
"""As many as a peer asks for copies while somebody is away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FanOut:
    """What is simulated."""

    readers: int
    blocks: int
    block_s: float = 0.1
    """What a block takes on a whole link."""

    message_s: float = 0.001
    jitter: float = 0.1
    under_store_links: float = 1.0
    """What the under-store gives, in links of a reader."""

    killed: float = 0.0
    """This part of the readers dies when half of the time is over."""

    slow: float = 0.0
    """This part of the readers sends ten times slower."""

    spread: float = 0.0
    """Readers begin within this part of the time that one transfer takes."""

    strategy: str = "swarm"
    """Or "owners": each block in order, from its owner alone."""

    seed: int = 1
    rules: Rules = Rules()  # noqa: RUF009 (frozen)
    slots: SlotRules = SlotRules()  # noqa: RUF009 (frozen)


@dataclass(slots=True)
class Outcome:
    """What became of it; times in times that one transfer takes."""

    done: list[float]
    """For each reader that lived, from the first start on, in order."""

    under_store_blocks: int
    sent_max: float
    """What the busiest sender has sent, in files."""

    messages: int
    hedges: int
    refused: int
    fetches: int
    blocks: int
    healthy: list[float] = field(default_factory=list)
    """As done, without the slow ones."""

    @property
    def ratio(self) -> float:
        return self.done[-1]

    @property
    def median(self) -> float:
        return self.done[len(self.done) // 2]

    @property
    def egress(self) -> float:
        return self.under_store_blocks / self.blocks


class _Uplink:
    """What is sent shares one link, all of it at the same rate."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sent_s = 0.0
        """Seconds of the whole link that each send that is under way has had, from the
        beginning of time."""

        self._at_s = 0.0
        self._ends: list[tuple[float, int, Callable[[], None]]] = []
        self._turn = 0

    def send(self, took_s: float, then: Callable[[], None]) -> None:
        """Call *then* once that much of the link was had."""
        self._go_on()
        heapq.heappush(self._ends, (self._sent_s + took_s, next(self._world.number), then))
        self._set()

    def _go_on(self) -> None:
        now_s = self._world.now_s
        if self._ends:
            self._sent_s += (now_s - self._at_s) / len(self._ends)
        self._at_s = now_s

    def _set(self) -> None:
        self._turn += 1
        if self._ends:
            after_s = max(0.0, (self._ends[0][0] - self._sent_s) * len(self._ends))
            self._world.at(after_s, partial(self._end, self._turn))

    def _end(self, turn: int) -> None:
        if turn != self._turn:
            return
        self._go_on()
        _, _, then = heapq.heappop(self._ends)
        self._set()
        then()


class _Host:
    def __init__(self, world: World, name: str, index: int) -> None:
        self.name = name
        self.index = index
        self.world = world
        self.slots = Slots(world.what.slots)
        self.scheduler: Scheduler | None = None
        self.uplink = _Uplink(world)
        self.arrives_s = 0.0
        """Until then the link that it reads from is full."""

        self.is_dead = False
        self.is_slow = False
        self.sent_blocks = 0
        self.done_s = 0.0
        self.position = 0
        self.tick_s = 0.0
        self.waiting: dict[Ticket, Callable[[], None]] = {}
        self.asked: dict[Ticket, tuple[_Host, Fetch]] = {}
        """What it was asked for and has not sent yet: who asked finds out when it dies."""

        self.passed_on: dict[int, list[Callable[[], None]]] = {}
        """By block that is on its way: what is to be sent of it, once it is here."""

        self.fills: dict[int, list[Callable[[], None]]] = {}
        self.filled = 0
        self.dropped: set[tuple[int, str]] = set()


class World:
    """All hosts, and what will happen."""

    def __init__(self, what: FanOut) -> None:
        self.what = what
        self.random = Random(what.seed)  # noqa: S311 (the same seed, the same run)
        self.now_s = 0.0
        self.messages = 0
        self.under_store_blocks = 0
        self._under_store_free_s = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self.number = count()
        self.names = [f"peer-{i}" for i in range(what.readers)]
        self.hosts = {name: _Host(self, name, i) for i, name in enumerate(self.names)}
        self.owners_of = [
            tuple(self.random.sample(self.names, min(3, what.readers))) for _ in range(what.blocks)
        ]
        self.graph = Graph(Random(what.seed + 1))  # noqa: S311

    # Time

    def at(self, after_s: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_s + after_s, next(self.number), call))

    def run(self) -> Outcome:
        what = self.what
        file_s = what.blocks * what.block_s
        slow = set(self.random.sample(self.names, int(what.slow * what.readers)))
        for name in self.names:
            self.hosts[name].is_slow = name in slow
            self.at(self.random.random() * what.spread * file_s, partial(self._begin, name))
        if what.killed:
            dying = self.random.sample(self.names, int(what.killed * what.readers))
            for name in dying:
                self.at(file_s / 2, partial(self._kill, name))
        while self._events:
            self.now_s, _, call = heapq.heappop(self._events)
            call()
            if self.now_s > 100 * file_s:
                raise AssertionError("somebody waits for ever")
        living = [host for host in self.hosts.values() if not host.is_dead]
        assert all(host.done_s for host in living), "somebody was never done"
        schedulers = [h.scheduler for h in living if h.scheduler]
        return Outcome(
            done=sorted(host.done_s / file_s for host in living),
            healthy=sorted(h.done_s / file_s for h in living if not h.is_slow),
            under_store_blocks=self.under_store_blocks,
            sent_max=max(host.sent_blocks for host in living) / what.blocks,
            messages=self.messages,
            hedges=sum(s.hedges for s in schedulers),
            refused=sum(h.slots.refused for h in self.hosts.values()),
            fetches=sum(s.fetches for s in schedulers),
            blocks=what.blocks,
        )

    def _owners(self, index: int) -> list[str]:
        """Return the owners of a block that live; the next one on the ring if none does."""
        found = [name for name in self.owners_of[index] if not self.hosts[name].is_dead]
        if found:
            return found
        after = self.names[index % len(self.names) :] + self.names
        return [next(name for name in after if not self.hosts[name].is_dead)]

    def _holder(self, index: int) -> _Host | None:
        """Return who has a block of those that an owner asks whose primary is gone
        (`peer.neighbors.other_holders`)."""
        asked = self.random.sample(self.names, min(HOLDERS_ASKED, len(self.names)))
        hosts = [self.hosts[name] for name in asked if not self.hosts[name].is_dead]
        return next((h for h in hosts if h.scheduler and h.scheduler.mine >> index & 1), None)

    # A reader's life

    def _begin(self, name: str) -> None:
        host = self.hosts[name]
        if host.is_dead:
            return
        host.scheduler = Scheduler(
            self.what.blocks,
            name,
            self._owners,
            Random(self.random.random()),  # noqa: S311
            mine=host.filled,
            rules=self.what.rules,
        )
        self._heartbeat(host)
        self._go_on(host)

    def _heartbeat(self, host: _Host) -> None:
        if host.is_dead or host.scheduler is None or self.what.strategy != "swarm":
            return
        scheduler = host.scheduler
        gone = [name for name in scheduler.neighbors if self.hosts[name].is_dead]
        known = [name for name in scheduler.neighbors if name not in gone]
        for name in self.graph.join(self.now_s, host.name, known=known, gone=gone):
            if name not in known and not self.hosts[name].is_dead:
                self._meet(host, name)
        if not all(h.done_s or h.is_dead for h in self.hosts.values()):
            self.at(INTERVAL_S * self.what.block_s / 0.1, partial(self._heartbeat, host))

    def _meet(self, host: _Host, name: str) -> None:
        self.step(host, Met(name))
        other = self.hosts[name]
        self.at(self.what.message_s, lambda: self.step(other, Met(host.name)))

    def _kill(self, name: str) -> None:
        dead = self.hosts[name]
        dead.is_dead = True
        for host, fetch in dead.asked.values():
            self.at(self.what.message_s, partial(self._miss, host, fetch, is_away=True))
        dead.asked.clear()
        fills, dead.fills = dead.fills, {}
        for index, waiting in fills.items():
            for then in waiting:  # who had it relayed asks the next one
                self._fill(self.hosts[self._owners(index)[0]], index, then)
        self.graph.leave(name)
        for host in self.hosts.values():
            if host.scheduler and not host.is_dead and name in host.scheduler.neighbors:
                self.at(0.5, partial(self.step, host, Lost(name)))

    def _go_on(self, host: _Host) -> None:
        """Move the reader's cursor over what is here; it is blocked on what is not."""
        scheduler = host.scheduler
        assert scheduler is not None
        missing = ~scheduler.mine & span(0, self.what.blocks)
        if not missing:
            host.done_s = host.done_s or self.now_s
            return
        position = lowest(missing)
        if position != host.position:  # a mount sees a stream once its first bytes have come
            host.position = position
            if self.what.strategy == "swarm":
                self.step(host, Reads(position))
        self.step(host, Wants(position))

    def step(self, host: _Host, event: Event) -> None:
        if host.is_dead or host.scheduler is None:
            return
        for action in host.scheduler.step(self.now_s, event):
            self._do(host, action)
        self._set_tick(host)

    def _set_tick(self, host: _Host) -> None:
        assert host.scheduler is not None
        due_s = host.scheduler.due_s()
        if due_s == float("inf") or (self.now_s < host.tick_s <= due_s + 0.001):
            return
        host.tick_s = max(due_s, self.now_s + 0.001)
        at_s = host.tick_s

        def tick() -> None:
            if host.tick_s == at_s:
                host.tick_s = 0.0
                self.step(host, Tick())

        self.at(at_s - self.now_s, tick)

    # What it does

    def _do(self, host: _Host, action: Action) -> None:
        match action:
            case Announce():
                free = host.slots.free
                for peer in action.peers:
                    self.messages += 1
                    has = Has(host.name, action.blocks, free)
                    self.at(self.what.message_s, partial(self.step, self.hosts[peer], has))
            case Fetch():
                if action.source == host.name:
                    began_s = self.now_s
                    self._fill(host, action.index, lambda: self._arrive(host, action, began_s))
                else:
                    self.at(self.what.message_s, partial(self._asked, host, action, self.now_s))

    def _asked(self, host: _Host, fetch: Fetch, began_s: float) -> None:
        sender = self.hosts[fetch.source]
        if sender.is_dead:
            self.at(0.2, lambda: self._miss(host, fetch, is_away=True))
            return
        ticket = Ticket(host.name, VERSION, fetch.index, fetch.is_urgent)
        if sender.scheduler is not None:
            sender.slots.usual_s = sender.scheduler.usual_s
        answer = sender.slots.ask(self.now_s, ticket)
        if isinstance(answer, Busy):
            missed = Missed(
                fetch.index,
                fetch.source,
                is_busy=True,
                retry_s=answer.retry_s,
                others=answer.others,
            )
            self.at(self.what.message_s, partial(self.step, host, missed))
            return
        sender.asked[ticket] = (host, fetch)
        send = partial(self._send, sender, host, fetch, ticket, began_s)
        if answer:
            send()
        else:
            sender.waiting[ticket] = send

    def _send(
        self, sender: _Host, host: _Host, fetch: Fetch, ticket: Ticket, began_s: float
    ) -> None:
        def sent() -> None:
            if sender.asked.pop(ticket, None) is None:
                return  # it has died
            sender.sent_blocks += 1
            for granted in sender.slots.done(self.now_s, ticket):
                sender.waiting.pop(granted)()
            self._arrive(host, fetch, began_s)

        def arrive() -> None:
            wait_s = host.arrives_s - self.now_s
            if wait_s > 0:
                self.at(wait_s, sent)
            else:
                sent()

        def begin() -> None:
            took_s = self.what.block_s * (1 + self.what.jitter * (2 * self.random.random() - 1))
            host.arrives_s = max(host.arrives_s, self.now_s) + self.what.block_s
            sender.uplink.send(took_s * (10 if sender.is_slow else 1), arrive)

        mine = sender.scheduler.mine if sender.scheduler else sender.filled
        if mine >> fetch.index & 1:
            begin()
        elif sender.name in self._owners(fetch.index):
            self._fill(sender, fetch.index, begin)
        elif sender.scheduler is not None and sender.scheduler.is_coming(fetch.index):
            sender.passed_on.setdefault(fetch.index, []).append(begin)
        else:
            del sender.asked[ticket]
            for granted in sender.slots.done(self.now_s, ticket, is_sent=False):
                sender.waiting.pop(granted)()
            self._miss(host, fetch, is_away=False)

    def _miss(self, host: _Host, fetch: Fetch, *, is_away: bool) -> None:
        self.step(host, Missed(fetch.index, fetch.source, is_away=is_away))
        self._want_again(host)

    def _want_again(self, host: _Host) -> None:
        if host.scheduler is not None and not host.is_dead:
            self._go_on(host)

    def _fill(self, host: _Host, index: int, then: Callable[[], None]) -> None:
        """Bring a block from the under-store, once."""
        waiting = host.fills.setdefault(index, [])
        waiting.append(then)
        if len(waiting) > 1:
            return
        first = self.hosts[self._owners(index)[0]]
        if host.filled >> index & 1 or (host.scheduler and host.scheduler.mine >> index & 1):
            self.at(0, partial(self._filled, host, index))
            return
        if first is not host:
            # It asks the first owner, who fills it.
            self._fill(
                first, index, lambda: self.at(self.what.block_s, partial(self._filled, host, index))
            )
            return
        if host.name != self.owners_of[index][0] and (holder := self._holder(index)) is not None:
            holder.uplink.send(self.what.block_s, partial(self._filled, host, index))
            return
        self.under_store_blocks += 1
        took_s = self.what.block_s / self.what.under_store_links
        self._under_store_free_s = max(self._under_store_free_s, self.now_s) + took_s
        host.arrives_s = max(host.arrives_s, self.now_s) + self.what.block_s
        until_s = max(self._under_store_free_s, host.arrives_s)
        self.at(until_s - self.now_s, partial(self._filled, host, index))

    def _filled(self, host: _Host, index: int) -> None:
        host.filled |= 1 << index
        for then in host.fills.pop(index, ()):
            then()

    def _arrive(self, host: _Host, fetch: Fetch, began_s: float) -> None:
        if host.is_dead or host.scheduler is None:
            return
        self.step(host, Arrived(fetch.index, fetch.source, self.now_s - began_s))
        for pass_on in host.passed_on.pop(fetch.index, ()):
            pass_on()
        self._go_on(host)


def fan_out(what: FanOut) -> Outcome:
    """Run it; the same *what* comes out the same."""
    return World(what).run()
