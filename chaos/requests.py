"""What `origin` wrote down, in figures. No I/O."""

from __future__ import annotations

import json
from collections.abc import Iterable

from chaos.stats import Read, rates


def egress_rates(lines: Iterable[str], *, from_s: float, to_s: float, step_s: float) -> list[float]:
    """Return the bytes/s that left the under-store in each step."""
    requests = []
    for line in lines:
        at_s, took_s, method, _path, _ranges, status, sent_bytes = json.loads(line)
        if method == "GET" and status in (200, 206):
            requests.append(Read("", 0, at_s, at_s + took_s, 0, sent_bytes, 0, 0))
    return rates(requests, from_s=from_s, to_s=to_s, step_s=step_s)
