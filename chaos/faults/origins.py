"""Faults of the under-store: away, slow, or too busy."""

from __future__ import annotations

from typing import Any

from chaos.faults.base import Fault
from chaos.under_store import UnderStore


class _Ordered(Fault):
    """An order to the proxy before the under-store; what it counts is the evidence."""

    order: dict[str, Any]
    counted: tuple[str, ...]

    def __init__(self, under_store: UnderStore) -> None:
        self._orders = under_store.orders
        self._before: dict[str, int] = {}

    def inject(self) -> None:
        self._before = self._orders.counts()
        self._orders.give(**self.order)

    def heal(self) -> None:
        self._orders.give(mode="up")

    def evidence(self) -> str | None:
        counts = self._orders.counts()
        grown = {name: counts[name] - self._before[name] for name in self.counted}
        seen = [f"{count} {name}" for name, count in grown.items() if count]
        return f"{', '.join(seen)} requests or connections" if seen else None


class Away(_Ordered):
    """Connections to it are refused, those there are break."""

    label = "under-store down"
    order = {"mode": "down"}  # noqa: RUF012
    counted = ("refused",)


class Slow(_Ordered):
    """Every request to it takes half a second more."""

    label = "under-store +500 ms"
    order = {"mode": "up", "delay_s": 0.5}  # noqa: RUF012
    counted = ("delayed",)


class Busy(_Ordered):
    """It answers 503 to a share of the requests."""

    counted = ("failed",)

    def __init__(self, under_store: UnderStore, *, share: float) -> None:
        super().__init__(under_store)
        self.label = f"under-store 503 to {share:.0%}"
        self.order = {"mode": "fail", "share": share}
