"""Rows about time that several scenarios share, with the goals of design.md, section 8."""

from __future__ import annotations

from chaos import stats
from chaos.report import STEP_S, row
from chaos.run import Run

AFTER_S = 3.0
KILLED_P99_MS = 20.0
UNREACHABLE_MS = 500.0


def add_latency(run: Run, *, killed: bool) -> None:
    """Add what the fault cost: p99 for a peer that is dead, the longest read for a silent one."""
    assert run.fault_s is not None
    before, after = _around(run, AFTER_S)
    if killed:
        control, value = (1000 * stats.percentile(took_s, 0.99) for took_s in (before, after))
        what = f"p99 of a read in the {AFTER_S:g} s after the fault"
        goal = control + KILLED_P99_MS
    else:
        control, value = (1000 * max(took_s, default=0.0) for took_s in (before, after))
        what = f"longest read in the {AFTER_S:g} s after the fault"
        goal = control + UNREACHABLE_MS
    run.report.rows.append(row(what, value, "ms", control=control, at_most=goal))


def add_dip(run: Run, *, lost: int = 1, until_s: float | None = None) -> None:
    """Add how throughput fell and came back, for *lost* peers of all."""
    assert run.fault_s is not None
    run.stop()
    reads = run.workload.reads()
    peers = run.report.peers
    found = stats.dip(
        stats.rates(reads, from_s=run.begin_s, to_s=run.fault_s, step_s=STEP_S),
        stats.rates(reads, from_s=run.fault_s, to_s=until_s or run.end_s, step_s=STEP_S),
        step_s=STEP_S,
        most=(1 - lost / peers) * 0.9,
    )
    owed = f"{peers - lost}/{peers} less 10 %"
    run.report.rows += [
        row("throughput before the fault", found.before_bytes_s / 2**20, "MiB/s"),
        row("lowest throughput after it", found.depth, "x before"),
        row(f"throughput back to {owed}", found.most_back_s, "s", at_most=1.0),
        row("throughput back in full", found.full_back_s, "s", at_most=3.0),
    ]


def _around(run: Run, after_s: float) -> tuple[list[float], list[float]]:
    assert run.fault_s is not None
    reads = run.workload.reads()
    before = [r.took_s for r in reads if run.begin_s <= r.end_s < run.fault_s]
    after = [r.took_s for r in reads if run.fault_s <= r.end_s < run.fault_s + after_s]
    return before, after
