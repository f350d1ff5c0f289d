"""`python -m chaos`: what people type."""

from __future__ import annotations

import random
import time
from typing import Annotated, get_args

import typer
from rich.console import Console
from rich.table import Table

import chaos.scenarios  # noqa: F401 (enters all scenarios)
from chaos import scenario
from chaos.config import DEFAULT_MEMBERSHIP, Membership
from chaos.place import Refused, check_machine
from chaos.plan import soak as soak_seeds
from chaos.report import Report
from chaos.run import play
from chaos.scenario import ALL, Scenario
from chaos.writers import results
from chaos.writers.plan import FULL, SHORT
from chaos.writers.run import play as write_through_faults

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Faults under load.")
PEERS = 4

Seed = Annotated[int | None, typer.Option(help="Who, when, what; drawn when not given.")]
Peers = Annotated[int, typer.Option(min=3, max=64, help="How many hosts.")]
Told = Annotated[str, typer.Option(help="How peers know of each other: static or gossip.")]


@app.command("list")
def list_all() -> None:
    """Show all scenarios."""
    drawn = Table(title="chaos scenarios")
    for heading in ("name", "what happens", "what proves that it did", "in the set"):
        drawn.add_column(heading)
    for each in ALL.values():
        drawn.add_row(each.name, each.summary, each.proof, "yes" if each.in_set else "")
    Console().print(drawn)


@app.command()
def run(
    name: str, seed: Seed = None, peers: Peers = PEERS, membership: Told = DEFAULT_MEMBERSHIP
) -> None:
    """Run one scenario."""
    if name not in ALL:
        raise Refused(f"no scenario is called {name}; `python -m chaos list` shows all")
    report = _played(ALL[name], seed, peers, membership)
    raise typer.Exit(0 if report.passed else 1)


@app.command("set")
def run_set(seed: Seed = None, peers: Peers = PEERS, membership: Told = DEFAULT_MEMBERSHIP) -> None:
    """Run the scenarios that CI runs; ends with `N passed, N failed`.

    One that failed runs once more, with the same seed, and both are shown: machines that are
    shared stall. Wrong bytes are final.
    """
    seed = _drawn() if seed is None else seed
    reports: list[Report] = []
    last: list[Report] = []
    for each in scenario.in_set():
        reports.append(_played(each, seed, peers, membership))
        if not reports[-1].passed and not reports[-1].is_final:
            reports.append(_played(each, seed, peers, membership))
        last.append(reports[-1])
    _summarize(reports, last)
    raise typer.Exit(0 if all(report.passed for report in last) else 1)


@app.command()
def soak(
    minutes: Annotated[float, typer.Option(min=0.1, help="When to begin no further round.")],
    seed: Seed = None,
    peers: Peers = PEERS,
    membership: Told = DEFAULT_MEMBERSHIP,
) -> None:
    """Run plans drawn from a seed, one after the other, until the time is over."""
    seed = _drawn() if seed is None else seed
    deadline_s = time.monotonic() + minutes * 60
    reports: list[Report] = []
    for number, each in enumerate(soak_seeds(seed, rounds=10_000)):
        if time.monotonic() >= deadline_s:
            break
        name = f"mixed-{number + 1}"
        reports.append(_played(ALL["mixed"], each, peers, membership, name=name))
    _summarize(reports, reports)
    raise typer.Exit(0 if all(report.passed for report in reports) else 1)


@app.command()
def writers(
    seeds: Annotated[int, typer.Option(min=1, help="How many, one after the other.")] = 20,
    first_seed: Annotated[int, typer.Option(min=0)] = 1,
    *,
    short: Annotated[bool, typer.Option("--short", help="26 s of load in place of 100.")] = False,
) -> None:
    """Write through faults, and see that no acknowledged byte is lost."""
    check_machine()
    outcomes = []
    for seed in range(first_seed, first_seed + seeds):
        outcomes.append(write_through_faults(seed, SHORT if short else FULL))
        print(results.in_words(outcomes[-1]), flush=True)
        report = results.report(outcomes)
        report.write()
    report.print()
    raise typer.Exit(0 if report.passed else 1)


def _played(
    each: Scenario, seed: int | None, peers: int, membership: str, *, name: str = ""
) -> Report:
    if membership not in get_args(Membership):
        raise Refused(f"membership is {' or '.join(get_args(Membership))}, not {membership}")
    check_machine()
    seed = _drawn() if seed is None else seed
    report = play(each, seed=seed, peers=peers, membership=membership, name=name)
    report.print()
    print(f"written to {report.write()}\n", flush=True)
    return report


def _summarize(reports: list[Report], last: list[Report]) -> None:
    """Draw all reports; those that are the *last* of their scenario count."""
    drawn = Table(title="chaos")
    for heading in ("scenario", "seed", "seconds", "goals missed", "result"):
        drawn.add_column(heading)
    for report in reports:
        broken = [str(check) for check in report.checks if not check.holds]
        missed = [row.what for row in report.rows if row.met is False]
        verdict = "[red]" + "; ".join(broken) + "[/]" if broken else "[green]passed[/]"
        took = f"{report.took_s:.0f}"
        drawn.add_row(report.name, str(report.seed), took, "; ".join(missed), verdict)
    Console().print(drawn)
    passed = sum(report.passed for report in last)
    repeated = len(reports) - len(last)
    print(f"{passed} passed, {len(last) - passed} failed, {repeated} had to be repeated")


def _drawn() -> int:
    return random.SystemRandom().randrange(1_000_000)


def main() -> None:
    """Run the command line; a refusal is one line and exit code 2."""
    try:
        app()
    except Refused as refusal:
        Console(stderr=True).print(f"chaos: {refusal}", highlight=False, soft_wrap=True)
        raise SystemExit(2) from None
