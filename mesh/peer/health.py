"""Which peers to ask last, and which not at all for now: arithmetic only, no clock.

A peer is away when it refuses, falls silent or is overtaken by another one because it
did not come; it stays away until a probe of ours, which no reader waits for, has
found it well. Alive but slow counts as broken too: one whose bytes come five times
slower than those of the others is left alone for a while, and then tried once.

A peer that says that the under-store does not answer is barren for a moment: it may
be cut off from it alone. When two say so it is the under-store that is away, and
nobody asks a third one: all of them asking for all blocks would keep it down.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

PROBE_EVERY_S = 0.5
RECENT_S = 600.0
"""For so long after a change somebody else may hold what a peer would fill."""

QUIET_FOR_S = 1.0
"""By then it has been found away, by us or by membership, or has given a sign of life."""

SLOW_RATIO = 5.0
SLOW_BLOCKS = 3
SLOW_FOR_S = 5.0
SLOW_FOR_MAX_S = 60.0
BARREN_FOR_S = 5.0
RATES_KEPT = 32

HEDGE_AFTER_MIN_S = 0.2
HEDGE_AFTER_MAX_S = 2.0
SLOW_AFTER_MAX_S = 5.0
"""As long as one stream may be silent at all (`wire.basics.STALL_S`)."""

HEDGE_AFTER_MEDIANS = 3.0
HEDGE_QUANTILE = 0.95
"""What one answer of twenty takes is no silence: to hedge then costs 5 % more requests
(Dean and Barroso, The Tail at Scale, 2013)."""

HEDGE_AFTER_LAGS = 4.0
LOST_AFTER_MIN_S = 0.45
HEDGE_SHARE = 0.05
HEDGE_BURST = 8.0
WAITS_KEPT = 64
LAG_HALF_LIFE_S = 2.0


class Health:
    """What this peer has seen of the others."""

    def __init__(self, now_s: float) -> None:
        self._away: dict[str, float] = {}
        self._changed_s = now_s
        self._rates: dict[str, deque[float]] = {}
        self._slow: dict[str, tuple[float, float]] = {}
        """By peer: until when it is left alone, and for how long that was."""

        self._barren: dict[str, float] = {}
        self._quiet: dict[str, float] = {}

    def failed(self, peer: str, now_s: float) -> bool:
        """Note that *peer* did not answer; say whether that is news."""
        self._changed_s = now_s
        is_news = peer not in self._away
        self._away.setdefault(peer, now_s)
        return is_news

    def answered(self, peer: str, now_s: float) -> bool:
        """Note that *peer* answers; say whether that is news."""
        if self._away.pop(peer, None) is None:
            return False
        self._changed_s = now_s
        return True

    def forget(self, peer: str) -> None:
        """Drop what is known of a peer that is not in the mesh any more."""
        for kept in (self._away, self._rates, self._slow, self._barren, self._quiet):
            kept.pop(peer, None)

    def note_change(self, now_s: float) -> None:
        """Note that blocks have other owners than before."""
        self._changed_s = now_s

    def away(self) -> list[str]:
        return sorted(self._away)

    def is_away(self, peer: str, now_s: float) -> bool:
        """Whether *peer* is not to be asked: it does not answer, or is slow."""
        return peer in self._away or self._slow.get(peer, (0.0, 0.0))[0] > now_s

    def is_recent(self, now_s: float) -> bool:
        """Whether owners changed, or this peer began, not long ago."""
        return now_s - self._changed_s < RECENT_S

    def overtaken(self, peer: str, now_s: float) -> None:
        """Note that *peer* was silent for too long, and others were asked as well."""
        self._quiet[peer] = now_s + QUIET_FOR_S

    def heard(self, peer: str) -> None:
        """Note a sign of life."""
        self._quiet.pop(peer, None)

    def is_quiet(self, peer: str, now_s: float) -> bool:
        """Whether *peer* is better asked last, though it may not be away."""
        return self._quiet.get(peer, 0.0) > now_s

    # Slow peers

    def sent(self, peer: str, size_bytes: int, took_s: float, now_s: float) -> bool:
        """Note how fast bytes that *peer* had came from it; say whether it is slow now."""
        rates = self._rates.setdefault(peer, deque(maxlen=RATES_KEPT))
        rates.append(size_bytes / max(took_s, 1e-6))
        others = [median(kept) for name, kept in self._rates.items() if name != peer]
        if not others or len(rates) < SLOW_BLOCKS:
            return False
        if median(list(rates)[-SLOW_BLOCKS:]) * SLOW_RATIO >= median(others):
            if rates[-1] * SLOW_RATIO >= median(others):
                self._slow.pop(peer, None)
            return False
        _, last_s = self._slow.get(peer, (0.0, 0.0))
        for_s = min(SLOW_FOR_MAX_S, max(SLOW_FOR_S, 2 * last_s))
        self._slow[peer] = (now_s + for_s, for_s)
        return True

    # The under-store, as peers see it

    def barren(self, peer: str, now_s: float) -> None:
        """Note that the under-store does not answer *peer*."""
        self._barren[peer] = now_s + BARREN_FOR_S

    def fertile(self, peer: str) -> None:
        """Note that the under-store answers *peer*."""
        self._barren.pop(peer, None)

    def is_barren(self, peer: str, now_s: float) -> bool:
        return self._barren.get(peer, 0.0) > now_s

    def is_under_store_away(self, now_s: float) -> bool:
        """Whether two peers or more can't reach the under-store."""
        return sum(until_s > now_s for until_s in self._barren.values()) >= 2


class Lag:
    """How late this process itself runs.

    One that is starved of CPU finds everybody silent. It must not conclude that they
    are (as Lifeguard has it, arXiv 1707.00788: be as slow to suspect as you are slow).
    """

    def __init__(self) -> None:
        self._worst_s = 0.0
        self._at_s = 0.0

    def woke(self, late_s: float, now_s: float) -> None:
        """Note that something came *late_s* later than it was due."""
        if late_s >= self.worst_s(now_s):
            self._worst_s, self._at_s = late_s, now_s

    def worst_s(self, now_s: float) -> float:
        """Return the worst lag, which counts for less as time goes by."""
        return float(self._worst_s * 0.5 ** ((now_s - self._at_s) / LAG_HALF_LIFE_S))


@dataclass(frozen=True, slots=True)
class Slow:
    """Patience with what comes over a slow link: a piece that is on its way is not silence."""

    hedging: Hedging
    patience_s: float
    """What may pass without a sign of life, at least."""

    @property
    def after_s(self) -> float:
        return max(self.hedging.after_s, min(SLOW_AFTER_MAX_S, self.patience_s))

    @property
    def lost_after_s(self) -> float:
        return max(self.hedging.lost_after_s, 2 * self.after_s)

    def may(self) -> bool:
        return self.hedging.may()


class Hedging:
    """When to ask a second peer for what a first one does not send, and how often."""

    def __init__(self, lag_s: Callable[[], float] = lambda: 0.0) -> None:
        """Be patient with others by as much as this process runs late itself."""
        self._lag_s = lag_s
        self._waits_s: deque[float] = deque(maxlen=WAITS_KEPT)
        self._usual_s = 0.0
        self._tokens = HEDGE_BURST

    def began(self) -> None:
        """Note a request; each one earns a part of a hedge."""
        self._tokens = min(HEDGE_BURST, self._tokens + HEDGE_SHARE)

    def heard(self, after_s: float) -> None:
        """Note how long the first sign of life of an answer took."""
        self._waits_s.append(after_s)
        waits_s = sorted(self._waits_s)
        slow_s = waits_s[int(HEDGE_QUANTILE * len(waits_s))]
        self._usual_s = max(HEDGE_AFTER_MEDIANS * waits_s[len(waits_s) // 2], slow_s)

    @property
    def after_s(self) -> float:
        """Silence that is long enough for a second request."""
        lag_s = HEDGE_AFTER_LAGS * self._lag_s()
        return min(HEDGE_AFTER_MAX_S, max(HEDGE_AFTER_MIN_S, self._usual_s, lag_s))

    @property
    def lost_after_s(self) -> float:
        """Silence of a peer after which it is taken to be away."""
        return max(LOST_AFTER_MIN_S, 2 * self.after_s)

    def may(self) -> bool:
        """Take what one hedge costs; False when too many were made lately."""
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
