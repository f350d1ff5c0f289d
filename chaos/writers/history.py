"""What writers have tried and what was acknowledged, by path. No I/O.

A step is one thing that a writer does: it is begun, and then acknowledged, failed, or never
ended. What it does to a path is an `Attempt`. A path may hold what was acknowledged last or
what was tried after that: an attempt without an answer may still have come true.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

NEVER_S = float("inf")


@dataclass(frozen=True, slots=True)
class Content:
    """What a file holds."""

    version: int
    size_bytes: int
    digest: str


@dataclass(slots=True)
class Step:
    """One thing that a writer did, or tried."""

    writer: int
    number: int
    style: str
    begin_s: float
    end_s: float = NEVER_S
    is_acked: bool = False
    error: str = ""
    effects: dict[str, Content | None] = field(default_factory=dict)

    @property
    def acked_s(self) -> float:
        return self.end_s if self.is_acked else NEVER_S


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a step did to one path; None: the path was to be gone."""

    step: Step
    content: Content | None


NOTHING = Attempt(Step(-1, -1, "nothing", -NEVER_S, -NEVER_S, is_acked=True), None)
"""Before anything was written there was nothing, and everybody knew."""


class History:
    """The logs of all writers."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.paths: dict[str, list[Attempt]] = {}
        self._open: dict[int, Step] = {}

    def feed(self, writer: int, lines: Iterable[str]) -> None:
        """Add lines of a writer's log, in their order; a line that is cut off ends it."""
        for line in lines:
            try:
                record = json.loads(line)
            except ValueError:
                return
            self._add(writer, record)

    def _add(self, writer: int, record: Mapping[str, Any]) -> None:
        if record["do"] == "begin":
            step = Step(writer, record["step"], record["style"], record["at"])
            for path, told in record["effects"].items():
                content = None if told is None else Content(*told)
                step.effects[path] = content
                self.paths.setdefault(path, [NOTHING]).append(Attempt(step, content))
            self.steps.append(step)
            self._open[writer] = step
            return
        step = self._open.pop(writer)
        assert step.number == record["step"], "a writer does one thing at a time"
        step.end_s = record["at"]
        step.is_acked = record["do"] == "acked"
        step.error = record.get("error", "")

    def attempts(self, path: str) -> Sequence[Attempt]:
        return self.paths.get(path, [NOTHING])

    def allowed(
        self, path: str, *, at_s: float = NEVER_S, until_s: float = NEVER_S
    ) -> Sequence[Attempt]:
        """Return what a path may hold for who looks from *at_s* to *until_s*, oldest first."""
        attempts = [a for a in self.attempts(path) if a.step.begin_s <= until_s]
        first = max(i for i, a in enumerate(attempts) if a.step.is_acked and a.step.end_s <= at_s)
        return attempts[first:]

    def acked_last(self, path: str) -> Attempt:
        return self.allowed(path)[0]

    def superseded_s(self, path: str, attempt: Attempt) -> float:
        """Return when something newer than an attempt was acknowledged."""
        attempts = self.attempts(path)
        later = attempts[attempts.index(attempt) + 1 :]
        return min((each.step.acked_s for each in later), default=NEVER_S)
