"""One sender: who is served now, who waits, and who is sent elsewhere.

    slot free                             granted
    urgent, reserve free                  granted
    room in the queue, not sent often     waits; versions take turns, each has its own room
    else                                  busy: ask one of these

What was sent to a few a moment ago is not waited for here: they are named instead, so that
the first copies multiply elsewhere (super-seeding, as BitTorrent has it).
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

SENT_OFTEN = 4
SENT_OFTEN_S = 2.0
"""Who asks for a block that was sent so often in so long is told who has it instead."""

QUEUED_MAX = 16
"""So many wait, of whatever versions."""

OTHERS_TOLD = 3
BLOCKS_NOTED_MAX = 4096
RETRY_BLOCK_TIMES = 1.0
LANES = 1.5
"""So many times what a block usually takes it may take from here, or fewer are sent at once:
four at once over a link of a tenth would each take ten times as long as from elsewhere."""

RETRY_S_MIN = 0.02
RETRY_S_MAX = 1.0


@dataclass(frozen=True, slots=True)
class SlotRules:
    """How much is sent at once."""

    sends: int = 5
    urgent_sends: int = 2
    """Kept free for blocks that a reader is blocked on."""

    queue: int = 1
    """Of each version. What waits here could come from elsewhere: 1 is 7 % faster than 4 with
    100 readers."""


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """One request for a block."""

    asker: str
    version: bytes
    index: int
    is_urgent: bool = False


@dataclass(frozen=True, slots=True)
class Busy:
    """Ask again after a while, or one of these now."""

    retry_s: float
    others: Sequence[str]


class Slots:
    """The sends of one peer, of all versions."""

    def __init__(self, rules: SlotRules = SlotRules()) -> None:
        self._rules = rules
        self._sending: dict[Ticket, tuple[float, int]] = {}
        """Since when, and how many there were then."""

        self._queue: deque[Ticket] = deque()
        self._sent: OrderedDict[tuple[bytes, int], deque[tuple[str, float]]] = OrderedDict()
        self._took_s = 0.0
        self._alone_s = 0.0
        """What one send would have taken with the link for itself."""

        self.usual_s = 0.0
        """What a block takes from others, as this peer sees it; 0 if it can't say."""

        self.refused = 0

    @property
    def free(self) -> int:
        """How many more could be sent at once."""
        return max(0, self._lanes - len(self._sending) - len(self._queue))

    @property
    def _lanes(self) -> int:
        """How many are sent at once: a slow link sends few, so that each comes soon."""
        if not self.usual_s or not self._alone_s:
            return self._rules.sends
        return max(1, min(self._rules.sends, round(LANES * self.usual_s / self._alone_s)))

    def ask(self, now_s: float, ticket: Ticket) -> Busy | bool:
        """Return True if it may be sent now, False if it waits (`done` says when), or `Busy`."""
        others = self._others(ticket, now_s)
        is_first = not any(one.is_urgent or not ticket.is_urgent for one in self._queue)
        if is_first and self._has_slot(ticket):
            self._send(ticket, now_s)
            return True
        if self._has_room(ticket) and len(others) < SENT_OFTEN:
            self._queue.append(ticket)
            return False
        return self._busy(others)

    def done(self, now_s: float, ticket: Ticket, *, is_sent: bool = True) -> list[Ticket]:
        """Note that a send has ended, whole or not, or who waited is gone; return who may be
        sent now."""
        began = self._sending.pop(ticket, None)
        if began is None:
            if ticket in self._queue:
                self._queue.remove(ticket)
        elif is_sent:
            took_s = now_s - began[0]
            alone_s = took_s / max(began[1], len(self._sending) + 1)
            self._took_s += 0.2 * (took_s - self._took_s) if self._took_s else took_s
            self._alone_s += 0.2 * (alone_s - self._alone_s) if self._alone_s else alone_s
            self._note_sent(ticket, now_s)
        granted: list[Ticket] = []
        while (chosen := self._next()) is not None:
            self._queue.remove(chosen)
            granted.append(chosen)
            self._send(chosen, now_s)
        return granted

    def _has_slot(self, ticket: Ticket) -> bool:
        """Whether one more may be sent: for who is blocked there is a reserve."""
        lanes = self._lanes
        reserve = min(lanes, self._rules.urgent_sends) if ticket.is_urgent else 0
        return len(self._sending) < lanes + reserve

    def _has_room(self, ticket: Ticket) -> bool:
        """Whether one more may wait: of each version a few, and a few who are blocked, or one
        with many readers would have every place that falls free, and one with few none."""
        kind = ticket.version, ticket.is_urgent
        same = sum((one.version, one.is_urgent) == kind for one in self._queue)
        return same < self._rules.queue and len(self._queue) < QUEUED_MAX

    def _next(self) -> Ticket | None:
        """Return who is next of those who wait: of the version that is sent least just now,
        and there who is blocked. None if nobody may be sent yet."""
        sending = Counter(ticket.version for ticket in self._sending)
        may = [ticket for ticket in self._queue if self._has_slot(ticket)]
        return min(may, key=lambda t: (sending[t.version], not t.is_urgent), default=None)

    def _send(self, ticket: Ticket, now_s: float) -> None:
        self._sending[ticket] = now_s, len(self._sending) + 1

    def _note_sent(self, ticket: Ticket, now_s: float) -> None:
        key = (ticket.version, ticket.index)
        self._sent.setdefault(key, deque(maxlen=2 * SENT_OFTEN)).append((ticket.asker, now_s))
        self._sent.move_to_end(key)
        while len(self._sent) > BLOCKS_NOTED_MAX:
            self._sent.popitem(last=False)

    def _others(self, ticket: Ticket, now_s: float) -> list[str]:
        """Return who has a block from here since a while, or at least will have it."""
        sent = self._sent.get((ticket.version, ticket.index), ())
        others = [
            peer for peer, at_s in sent if now_s - at_s < SENT_OFTEN_S and peer != ticket.asker
        ]
        if others or not ticket.is_urgent:
            return others
        return [
            one.asker
            for one in self._sending
            if (one.version, one.index) == (ticket.version, ticket.index)
        ]

    def _busy(self, others: Sequence[str]) -> Busy:
        self.refused += 1
        retry_s = min(RETRY_S_MAX, max(RETRY_S_MIN, RETRY_BLOCK_TIMES * self._took_s))
        return Busy(retry_s, tuple(others[-OTHERS_TOLD:]))
