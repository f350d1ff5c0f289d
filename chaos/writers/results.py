"""What seeds have shown, as rows and checks. No I/O."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median

from chaos.checks import Check
from chaos.report import Report, Row, row
from chaos.stats import percentile
from chaos.writers.content import MIB
from chaos.writers.history import Step
from chaos.writers.run import HOSTS, Outcome
from chaos.writers.verdict import STEP_MOST_S, is_calm, is_promised

SHOWN = 8
"""Findings of a seed that are printed; its logs have all."""
WRONG = ("lost", "older", "torn", "both", "unreadable")


def in_words(outcome: Outcome) -> str:
    """Return how a seed ended, for people."""
    if outcome.passed:
        steps = sum(step.is_acked for step in outcome.history.steps)
        return f"seed {outcome.seed}: passed in {outcome.took_s:.0f} s, {steps} steps\n"
    lines = [f"seed {outcome.seed}: FAILED in {outcome.took_s:.0f} s"]
    lines += [f"  {finding}" for finding in outcome.findings[:SHOWN]]
    if len(outcome.findings) > SHOWN:
        lines.append(f"  and {len(outcome.findings) - SHOWN} more")
    return "\n".join([*lines, f"  {outcome.broken}" if outcome.broken else ""])


def report(outcomes: Sequence[Outcome]) -> Report:
    """Return what all seeds have shown."""
    found = Report("writers", outcomes[0].seed, HOSTS)
    found.took_s = sum(outcome.took_s for outcome in outcomes)
    found.rows = [*_promises(outcomes), *_times(outcomes), *_work(outcomes)]
    found.checks = [_check(outcome) for outcome in outcomes]
    faults = Counter(
        re.sub(r"(peer|mount)-\d+", r"a \1", t.label) for o in outcomes for t in o.troubles
    )
    found.fired = [f"{label}: {count} times" for label, count in sorted(faults.items())]
    found.settings = {
        "seeds": [
            {
                "seed": outcome.seed,
                "passed": outcome.passed,
                "seconds": round(outcome.took_s, 1),
                "takeover_s": outcome.takeover_s,
                "lost_bytes": outcome.lost_bytes,
                "findings": [str(finding) for finding in outcome.findings],
                "fired": outcome.fired,
            }
            for outcome in outcomes
        ]
    }
    return found


def _check(outcome: Outcome) -> Check:
    kinds = ", ".join(f"{kind} x {count}" for kind, count in outcome.kinds().items())
    words = [kinds] if kinds else []
    words += [outcome.broken] if outcome.broken else []
    seen = "; ".join(words) or f"takeover {outcome.takeover_s or 0:.1f} s"
    return Check(f"seed {outcome.seed}", outcome.passed, seen)


def _promises(outcomes: Sequence[Outcome]) -> list[Row]:
    kinds = sum((outcome.kinds() for outcome in outcomes), Counter[str]())
    wrong = sum(kinds[kind] for kind in WRONG)
    read = sum(count for kind, count in kinds.items() if kind.startswith("read "))
    left = kinds["left"] + kinds["not flushed"] + kinds["stranger"]
    return [
        row("seeds that failed", sum(not o.passed for o in outcomes), "", at_most=0),
        row("acknowledged bytes lost", sum(o.lost_bytes for o in outcomes), "bytes", at_most=0),
        row("wrong at the end, on a mount or in the under-store", wrong, "files", at_most=0),
        row("wrong reads meanwhile", read, "reads", at_most=0),
        row("conflicts", kinds["conflict"], "files", at_most=0),
        row("uploads of the dead in the under-store", sum(o.unfinished for o in outcomes), "files"),
        row("left behind after the flush", left, "", at_most=0),
        row(f"steps longer than {STEP_MOST_S:g} s", kinds["hang"], "", at_most=0),
    ]


def _times(outcomes: Sequence[Outcome]) -> list[Row]:
    took_s = [outcome.takeover_s for outcome in outcomes if outcome.takeover_s is not None]
    flushed_s = [outcome.flush_s for outcome in outcomes if outcome.flush_s is not None]
    steps_s = [s.end_s - s.begin_s for s in _ended(outcomes) if s.is_acked]
    late_s = [late for outcome in outcomes for late in outcome.late_s]
    return [
        row("time to takeover, median", median(took_s) if took_s else None, "s"),
        row("time to takeover, longest", max(took_s, default=None), "s"),
        row("last flush, longest", max(flushed_s, default=None), "s"),
        row("p50 of an acknowledged step", percentile(steps_s, 0.5) * 1000, "ms"),
        row("p99 of an acknowledged step", percentile(steps_s, 0.99) * 1000, "ms"),
        row("longest step", max((s.end_s - s.begin_s for s in _ended(outcomes)), default=0), "s"),
        row("reads of what was older, told late", len(late_s), "reads"),
        row("the latest of them", max(late_s, default=0.0), "s"),
    ]


def _work(outcomes: Sequence[Outcome]) -> list[Row]:
    steps = list(_ended(outcomes))
    acked = [step for step in steps if step.is_acked]
    acked_bytes = sum(
        content.size_bytes for s in acked if s.style != "rename" for content in s.effects.values()
        if content
    )  # fmt: skip
    reads = [(outcome, seen) for outcome in outcomes for seen in outcome.reads]
    failed_reads = [(outcome, seen) for outcome, seen in reads if seen.error]
    errors = Counter(step.error for step in steps if not step.is_acked)
    named = ", ".join(f"{name} x {count}" for name, count in errors.most_common())
    return [
        row("steps acknowledged", len(acked), ""),
        row("bytes acknowledged", acked_bytes / MIB, "MiB"),
        row(f"steps that failed ({named})" if named else "steps that failed", errors.total(), ""),
        row("of them with all well", _failed_in_calm(outcomes), ""),
        row("reads meanwhile", len(reads), ""),
        row("reads that failed", len(failed_reads), ""),
        row(
            "of them with all well",
            sum(
                is_calm(s.start_s, s.end_s, o.troubles) and not is_promised(o.history, s)
                for o, s in failed_reads
            ),
            "",
            at_most=0,
        ),
    ]


def _failed_in_calm(outcomes: Iterable[Outcome]) -> int:
    return sum(
        bool(step.error) and is_calm(step.begin_s, step.end_s, outcome.troubles)
        for outcome in outcomes
        for step in outcome.history.steps
    )


def _ended(outcomes: Iterable[Outcome]) -> Iterable[Step]:
    return (s for o in outcomes for s in o.history.steps if s.is_acked or s.error)
