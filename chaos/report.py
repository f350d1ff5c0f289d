"""What a run found: rows for people and machines, and a plot of the throughput."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from chaos.checks import Check
from chaos.place import ROOT

OUT = ROOT / "out"
MIB = 1024 * 1024
STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class Row:
    """One line; `met` is None where there is no goal. As `bench.table` writes them."""

    what: str
    value: float | None
    unit: str
    control: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None


def row(
    what: str,
    value: float | None,
    unit: str,
    *,
    control: float | None = None,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Row:
    """Return a row; a value that never came (None) misses its goal."""
    ratio = value / control if value is not None and control else None
    goal, met = None, None
    if at_most is not None:
        goal, met = f"<= {at_most:.4g}", value is not None and value <= at_most
    if at_least is not None:
        goal, met = f">= {at_least:.4g}", value is not None and value >= at_least
    return Row(what, value, unit, control, ratio, goal, met)


@dataclass(frozen=True, slots=True)
class Mark:
    """A moment that the plot shows."""

    at_s: float
    text: str


@dataclass
class Report:
    """Everything that a run has to say."""

    name: str
    seed: int
    peers: int
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    fired: list[str] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    """Bytes/s of all readers, in steps of 100 ms from the start of the load."""
    egress: list[float] = field(default_factory=list)
    """The same of the under-store."""
    settings: dict[str, Any] = field(default_factory=dict)
    took_s: float = 0.0
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)

    @property
    def is_final(self) -> bool:
        """Whether a check broke that no repetition can mend: what a stall may not do either."""
        return any(check.is_final and not check.holds for check in self.checks)

    def print(self) -> None:
        console = Console()
        Console(width=max(console.width, 120)).print(self._drawn())
        for check in self.checks:
            mark = "ok    " if check.holds else "BROKEN"
            print(f"  {mark} {check}")
        verdict = "passed" if self.passed else f"FAILED, seed {self.seed}"
        print(f"chaos {self.name}: {verdict} in {self.took_s:.0f} s", flush=True)

    def write(self) -> Path:
        """Write out/chaos-NAME.json and .png; return the first."""
        OUT.mkdir(exist_ok=True)
        path = OUT / f"chaos-{self.name}.json"
        path.write_text(json.dumps(self._record(), indent=1) + "\n")
        if self.rates:
            plot(self, path.with_suffix(".png"))
        return path

    def _drawn(self) -> Table:
        drawn = Table(title=f"chaos {self.name}, seed {self.seed}, {self.peers} peers")
        drawn.add_column("what")
        for heading in ("value", "control", "ratio"):
            drawn.add_column(heading, justify="right")
        drawn.add_column("goal")
        drawn.add_column("met")
        for each in self.rows:
            met = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[each.met]
            value = f"{_short(each.value)} {each.unit}" if each.value is not None else "never"
            figures = (_short(each.control), _short(each.ratio))
            drawn.add_row(each.what, value, *figures, each.goal or "", met)
        for words in self.fired:
            drawn.add_row("fault fired: how we know", "", "", "", words, "")
        return drawn

    def _record(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "seed": self.seed,
            "peers": self.peers,
            "passed": self.passed,
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round(self.took_s, 1),
            "machine": {
                "kernel": os.uname().release,
                "cpus": os.cpu_count(),
                "load_1min": os.getloadavg()[0],
            },
            "settings": self.settings,
            "fired": self.fired,
            "checks": [asdict(check) for check in self.checks],
            "marks": [asdict(mark) for mark in self.marks],
            "rows": [asdict(each) for each in self.rows],
        }


def plot(report: Report, path: Path) -> None:
    """Draw the throughput over time, with the faults marked."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 4.5))
    _line(axes, report.rates, "read by all readers")
    if report.egress:
        _line(axes, report.egress, "left the under-store")
    top = max([*report.rates, *report.egress, 1.0]) / MIB
    for number, mark in enumerate(report.marks):
        axes.axvline(mark.at_s, color="tab:red", linewidth=0.8, linestyle="--")
        height = top * (1.12 - 0.06 * (number % 4))
        axes.text(mark.at_s, height, f" {mark.text}", fontsize=7, color="tab:red")
    axes.set_ylim(0, top * 1.2)
    axes.set_xlabel("seconds")
    axes.set_ylabel("MiB/s")
    axes.set_title(f"chaos {report.name}, seed {report.seed}, {report.peers} peers")
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _line(axes: Any, values: Sequence[float], label: str) -> None:
    times_s = [index * STEP_S for index in range(len(values))]
    axes.plot(times_s, [value / MIB for value in values], linewidth=1.0, label=label)


def _short(figure: float | None) -> str:
    if figure is None:
        return ""
    return f"{figure:,.0f}" if abs(figure) >= 1000 else f"{figure:.3g}"
