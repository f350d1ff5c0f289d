"""What a fault is.

A fault that nobody noticed proves nothing, so each one says how it is known that it
fired: packets that were dropped, requests that were answered 503, a peer that had
just sent bytes to a reader when it died. A run whose fault has no evidence fails.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod

from chaos.cluster import Node
from chaos.workload import Workload

BUSY_WITHIN_S = 15.0
GLANCE_S = 0.25


class Fault(ABC):
    """One thing that goes wrong."""

    label: str
    """What the report and the plot call it."""

    @abstractmethod
    def inject(self) -> None:
        """Make it go wrong."""

    @abstractmethod
    def heal(self) -> None:
        """Make it right again."""

    @abstractmethod
    def evidence(self) -> str | None:
        """Return how we know that it fired, while it is on; None as long as we don't."""


class NotBusy(Exception):
    """A peer served nobody, so nothing that happens to it would be noticed."""


def until_busy(node: Node, workload: Workload) -> str:
    """Wait until a peer has just sent bytes and a reader waits; return that in words."""
    deadline_s = time.monotonic() + BUSY_WITHIN_S
    before_bytes = node.metric("mesh_served_bytes_total")
    while time.monotonic() < deadline_s:
        time.sleep(GLANCE_S)
        now_bytes = node.metric("mesh_served_bytes_total")
        if now_bytes > before_bytes and workload.is_reading():
            sent = (now_bytes - before_bytes) / 1024
            return f"it sent {sent:,.0f} KiB in the {GLANCE_S} s before, readers were waiting"
        before_bytes = now_bytes
    raise NotBusy(f"{node.name} sent nothing to anybody for {BUSY_WITHIN_S:g} s")
