"""`mesh ring`: who owns how much, and what a change would move."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mesh.cli.ask import host_peer
from mesh.cli.exits import AsJson, ConfigPath, fail, one_line, settings_of
from mesh.cli.figures import percent_shown, size_shown
from mesh.membership.view import Member, State, View, view_from_json, view_of
from mesh.peer.rings import ring_of
from mesh.ring.moves import Move, collateral_share, moves
from mesh.wire.codec import MEMBERS, OVERVIEW
from mesh.wire.messages import Nothing, Overview

ENDLESS_COLUMNS = 10_000
ID_SHOWN = 8

app = typer.Typer(help="Show who owns how much, and what a change would move.")


@dataclass(frozen=True, slots=True)
class Plan:
    """What moves when peers join and leave."""

    before: View
    after: View
    moves: tuple[Move, ...]
    moved_share: float
    collateral_share: float
    """Between peers that stay: 0, or the ring is broken."""

    owned_bytes: int
    """What the mesh keeps now, copies included: no more than this times the share moves."""


@app.callback(invoke_without_command=True)
def ring(
    context: typer.Context,
    config: ConfigPath,
    as_json: AsJson = False,
) -> None:
    """Show each peer's state, weight and share of the keys."""
    if context.invoked_subcommand is not None:
        context.obj = config
        return
    view, _ = _asked(config)
    shares = ring_of(view).shares()
    if as_json:
        rows = [_row(member, shares.get(member.name, 0.0)) for member in view.members]
        print(json.dumps({"epoch": f"{view.epoch:016x}", "members": rows}))
        return
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    for title in ("peer", "id", "state", "zone", "address"):
        table.add_column(title, no_wrap=True)
    for title in ("weight", "takes", "share"):
        table.add_column(title, justify="right", no_wrap=True)
    for member in view.members:
        table.add_row(
            member.name,
            member.id[:ID_SHOWN],
            member.state.value + ("" if member.is_placed else ", no place"),
            member.zone or "-",
            member.address,
            f"{member.weight:g}",
            percent_shown(member.portion),
            percent_shown(shares.get(member.name, 0.0)),
        )
    console = _console()
    console.print(f"epoch {view.epoch:016x}, {len(view.placed)} peers have places", style="bold")
    console.print(table)


@app.command()
def plan(
    context: typer.Context,
    add: Annotated[int, typer.Option(min=0, max=1000, help="So many peers of weight 1 join.")] = 0,
    remove: Annotated[
        list[str] | None, typer.Option(metavar="PEER", help="This peer, by name or id, leaves.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what would move if peers joined or left for good; changes nothing."""
    if not add and not remove:
        raise fail("ring plan: nothing would change; say --add N or --remove PEER")
    view, overview = _asked(context.obj)
    with one_line():
        found = planned(view, overview, add=add, remove=remove or [])
    if as_json:
        print(json.dumps(_plan_row(found)))
        return
    _print(found)


def planned(view: View, overview: Overview, *, add: int, remove: Sequence[str]) -> Plan:
    """Work out what moves."""
    members = {member.name: member for member in view.placed}
    for wanted in remove:
        named = [m for m in members.values() if wanted == m.name or m.id.startswith(wanted)]
        if len(named) != 1:
            known = ", ".join(members) or "nobody"
            rule = "is no peer with a place in the ring" if not named else "is not one peer alone"
            raise fail(f"ring plan: --remove {wanted} {rule}; write one of {known}")
        del members[named[0].name]
    for number in range(add):
        name = f"new-{number + 1}"
        members[name] = Member(name, "", zone=f"new-{number + 1}", id=f"planned-{number}")
    if not members:
        raise fail("ring plan: nobody would be left; remove fewer peers")
    # Those who warm up will have their full weight by then.
    before = view_of(replace(member, portion=1.0) for member in view.placed)
    after = view_of(replace(member, portion=1.0) for member in members.values())
    old, new = ring_of(before), ring_of(after)
    found = tuple(moves(old, new))
    return Plan(
        before,
        after,
        found,
        sum(move.share for move in found),
        collateral_share(old, new),
        sum(peer.used_bytes for peer in overview.peers if peer.is_up),
    )


def _asked(config: ConfigPath) -> tuple[View, Overview]:
    settings = settings_of(config)

    async def ask() -> tuple[View, Overview]:
        async with host_peer(settings.peer.socket) as peer:
            members = await peer.ask(MEMBERS, Nothing())
            return view_from_json(members.view), await peer.ask(OVERVIEW, Nothing())

    with one_line():
        return asyncio.run(ask())


def _row(member: Member, share: float) -> dict[str, object]:
    return {
        "name": member.name,
        "id": member.id,
        "state": State(member.state).value,
        "zone": member.zone,
        "address": member.address,
        "weight": member.weight,
        "portion": member.portion,
        "is_placed": member.is_placed,
        "share": share,
    }


def _plan_row(found: Plan) -> dict[str, object]:
    return {
        "peers_before": len(found.before.members),
        "peers_after": len(found.after.members),
        "moved_share": found.moved_share,
        "moved_bytes_max": int(found.moved_share * found.owned_bytes),
        "collateral_share": found.collateral_share,
        "moves": [
            {"from": move.giver, "to": move.taker, "share": move.share} for move in found.moves
        ],
    }


def _print(found: Plan) -> None:
    console = _console()
    console.print(
        f"{len(found.before.members)} peers become {len(found.after.members)}: "
        f"{percent_shown(found.moved_share)} of the keys move, "
        f"at most {size_shown(found.moved_share * found.owned_bytes)}; "
        f"{percent_shown(found.collateral_share)} between peers that stay",
        style="bold",
        soft_wrap=True,
    )
    table = Table(box=SIMPLE_HEAD, header_style="bold", padding=(0, 1, 0, 0))
    table.add_column("from", no_wrap=True)
    table.add_column("to", no_wrap=True)
    table.add_column("keys", justify="right", no_wrap=True)
    for move in found.moves:
        table.add_row(move.giver, move.taker, percent_shown(move.share))
    console.print(table)


def _console() -> Console:
    console = Console(highlight=False)
    if console.is_terminal or "COLUMNS" in os.environ:
        return console
    return Console(highlight=False, width=ENDLESS_COLUMNS)
