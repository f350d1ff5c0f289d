"""Time that stands still until a test moves it."""

from __future__ import annotations


class ManualClock:
    """A `mesh.clock.Clock`; call it for the time, `advance` it to let time pass."""

    def __init__(self, now_s: float = 1000.0) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        return self.now_s

    def advance(self, by_s: float) -> None:
        self.now_s += by_s
