"""What a benchmark found: rows with a control beside each value, and a verdict."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

from bench.cpu import stolen_s
from bench.measure import Median

OUT = Path(__file__).resolve().parent.parent / "out"
NOISY = 1.5


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on the value of a row, or on its ratio to the control."""

    of: str
    """"value" or "ratio"."""

    at_least: float | None = None
    at_most: float | None = None

    def __str__(self) -> str:
        subject = "x control" if self.of == "ratio" else ""
        sign, bound = (">=", self.at_least) if self.at_most is None else ("<=", self.at_most)
        return f"{sign} {bound:g} {subject}".strip()

    def met(self, figure: float) -> bool:
        low = self.at_least is None or figure >= self.at_least
        high = self.at_most is None or figure <= self.at_most
        return low and high


def ratio_at_least(bound: float) -> Goal:
    return Goal("ratio", at_least=bound)


def value_at_most(bound: float) -> Goal:
    return Goal("value", at_most=bound)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table; `met` is None where there is no goal."""

    what: str
    value: float
    unit: str
    control: float | None
    ratio: float | None
    goal: str | None
    met: bool | None
    samples: list[float]
    control_samples: list[float]


class Table:
    """Collects rows; `finish` prints and stores them."""

    def __init__(self, name: str, *, compared: str) -> None:
        """Start the table *name*; *compared* says in words what is held against what."""
        self.name = name
        self.compared = compared
        self.rows: list[Row] = []
        self.settings: dict[str, Any] = {}
        self._started = datetime.now(UTC)
        self._stolen_s = stolen_s()

    def add(
        self,
        what: str,
        value: float,
        unit: str,
        *,
        control: float | None = None,
        goal: Goal | None = None,
    ) -> None:
        """Add a row; its ratio is value / control.

        Given a `Median`, the row shows how many times its highest sample is its lowest.
        """
        ratio = value / control if control else None
        figure = value if goal is None or goal.of == "value" else ratio
        met = None if goal is None or figure is None else goal.met(figure)
        samples, control_samples = _samples(value), _samples(control)
        plain = None if control is None else float(control)  # a Median cannot be copied
        words = str(goal) if goal else None
        self.rows.append(
            Row(what, float(value), unit, plain, ratio, words, met, samples, control_samples)
        )
        print(f"  {what}: {_short(value)} {unit}", flush=True)

    def finish(self) -> Path:
        """Print the table, write out/bench-NAME.json, return its path."""
        console = Console()
        Console(width=max(console.width, 120)).print(self._drawn())
        OUT.mkdir(exist_ok=True)
        path = OUT / f"bench-{self.name}.json"
        path.write_text(json.dumps(self._record(), indent=1) + "\n")
        print(f"written to {path}")
        return path

    def _drawn(self) -> RichTable:
        drawn = RichTable(title=f"bench {self.name}", caption=self.compared)
        drawn.add_column("what")
        for heading in ("value", "control", "ratio", "swing"):
            drawn.add_column(heading, justify="right")
        drawn.add_column("goal")
        drawn.add_column("met")
        for row in self.rows:
            met = {None: "", True: "[green]yes[/]", False: "[red]no[/]"}[row.met]
            value = f"{_short(row.value)} {row.unit}"
            figures = (_short(row.control), _short(row.ratio), _swing(row))
            drawn.add_row(row.what, value, *figures, row.goal or "", met)
        return drawn

    def _record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "compared": self.compared,
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self._started).total_seconds(), 1),
            "machine": {
                "kernel": os.uname().release,
                "cpus": os.cpu_count(),
                "load_1min": os.getloadavg()[0],
                "stolen_s": round(stolen_s() - self._stolen_s, 2),
            },
            "mesh": os.environ.get("BENCH_MESH", "this checkout"),
            "settings": self.settings,
            "rows": [asdict(row) for row in self.rows],
        }


def _samples(figure: float | None) -> list[float]:
    return figure.samples if isinstance(figure, Median) else []


def _swing(row: Row) -> str:
    """Return highest / lowest sample of value and control; yellow where ranks mean little."""
    kept = [samples for samples in (row.samples, row.control_samples) if samples]
    swings = [max(samples) / min(samples) for samples in kept if min(samples) > 0]
    words = ", ".join(f"{swing:.1f}x" for swing in swings)
    return f"[yellow]{words}[/]" if any(swing > NOISY for swing in swings) else words


def _short(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"
