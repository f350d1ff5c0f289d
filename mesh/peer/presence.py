"""How this peer is known to the others, from its first word to its last.

    joining ──> active, a quarter of its weight ──> … ──> active, all of it
                                                              │ SIGTERM
                                        left <── draining <───┘

And the other way round: every new view of the mesh goes to the neighbors, to a file
beside the blocks for mounts that start while this peer is away, and to repair.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from mesh.clock import Clock, monotonic_s
from mesh.errors import MeshError, Unusable
from mesh.membership.membership import Membership
from mesh.membership.view import (
    Member,
    State,
    View,
    view_from_json,
    view_to_json,
)
from mesh.peer.neighbors import RingNeighbors

log = structlog.get_logger()

PORTIONS = (0.25, 0.5, 0.75, 1.0)
"""Of its weight, that a peer takes as it warms up: an empty one with all of it would send
a whole share of the mesh's reads to the under-store, or to its neighbors, at once."""

HEAL_AFTER_S = 2.0
"""Gossip has told everybody by then; views that still differ need help."""

HEAL_EVERY_S = 5.0
TWIN_AGAIN_S = 60.0
TWIN_ASKED = 3
TWIN_ASKED_EVERY_S = 0.2
OTHERS_ASKED = 8


class Presence:
    """This peer's place in the mesh."""

    def __init__(
        self,
        membership: Membership,
        neighbors: RingNeighbors,
        me: Member,
        *,
        view_path: Path,
        moved: Sequence[Callable[[], None]] = (),
        clock: Clock = monotonic_s,
    ) -> None:
        """Call each of *moved* whenever blocks have other owners than before."""
        self._membership = membership
        self._neighbors = neighbors
        self._me = me
        self._view_path = view_path
        self._moved = moved
        self._clock = clock
        self._differs: dict[str, float] = {}
        self._healing: set[str] = set()
        self._told_twin_s = -TWIN_AGAIN_S

    # Arrival

    async def check(self) -> None:
        """Raise `Unusable` if somebody else is already here under this identity or name."""
        twin = self._membership.twin
        if twin is None or not await self._is_real(twin):
            return
        if twin.id != self._me.id:
            raise Unusable(
                f'peer.name "{self._me.name}" is taken by the peer at {twin.address}; '
                "give each peer a name of its own"
            )
        raise Unusable(
            f"store.directory: the peer {twin.name} at {twin.address} runs with the same "
            f"identity, {twin.id}: one of the directories is a copy; give this peer an "
            "empty one"
        )

    async def enter(self, *, slowly: bool) -> None:
        """Be active, with a part of the weight if *slowly*."""
        await self._announce(State.ACTIVE, PORTIONS[0] if slowly else 1.0)

    async def warm_up(self, over_s: float) -> None:
        """Take the rest of the weight, bit by bit."""
        for portion in PORTIONS[1:]:
            await asyncio.sleep(over_s / (len(PORTIONS) - 1))
            if self._me.state is State.ACTIVE:
                await self._announce(State.ACTIVE, portion)

    async def is_newcomer(self) -> bool:
        """Whether others have blocks, so that an empty peer should begin slowly."""
        others = [m for m in self._membership.view.here if m.name != self._me.name]
        asked = others[:OTHERS_ASKED]
        answers = await asyncio.gather(*map(self._neighbors.description, asked))
        return any(answer is not None and answer.block_count for answer in answers)

    # Departure

    async def drain(self, *, for_s: float) -> None:
        """Have the others ask this peer for nothing new, and wait until they know."""
        await self._announce(State.DRAINING, self._me.portion)
        if len(self._membership.view.here) > 1:
            await asyncio.sleep(for_s)

    async def _announce(self, state: State, portion: float) -> None:
        self._me = replace(self._me, state=state, portion=portion)
        await self._membership.announce(self._me)

    # Views

    async def follow(self) -> None:
        """Go by each new view of the mesh, for as long as this peer runs."""
        while True:
            epoch = self._neighbors.view.epoch
            await self._take(await self._membership.changed(epoch))
            await self._look_at_twin()

    async def look(self) -> None:
        """Go by the view of this moment."""
        await self._take(self._membership.view)

    async def _take(self, view: View) -> View:
        before = self._neighbors.view
        moved = await self._neighbors.update(view)
        for line in changes(before, view):
            log.info("member", **line)
        with suppress(OSError):
            await asyncio.to_thread(_write, self._view_path, view_to_json(view))
        if moved:
            for call in self._moved:
                call()
        return view

    async def _look_at_twin(self) -> None:
        twin = self._membership.twin
        now_s = self._clock()
        if twin is None or now_s - self._told_twin_s < TWIN_AGAIN_S:
            return
        if await self._is_real(twin):
            self._told_twin_s = now_s
            log.error(
                "another peer claims this one's identity or name",
                peer=twin.name,
                address=twin.address,
                mend="empty the data directory that is a copy, or give the peers two names",
            )

    async def _is_real(self, twin: Member) -> bool:
        """Whether who claims our identity or name answers, and is not this very peer."""
        if twin.address == self._me.address:
            return False  # our run before this one, or this one
        for _ in range(TWIN_ASKED):
            said = await self._neighbors.hello(twin)
            if said is not None:
                return said.id == twin.id
            await asyncio.sleep(TWIN_ASKED_EVERY_S)
        return False

    # Views that differ

    def note_epoch(self, address: str, epoch: int) -> None:
        """Note that the peer at *address* answered under another epoch than ours."""
        now_s = self._clock()
        since_s = self._differs.setdefault(address, now_s)
        if now_s - since_s > HEAL_EVERY_S + HEAL_AFTER_S:
            self._differs[address] = now_s  # it differs again, not still
        elif now_s - since_s > HEAL_AFTER_S and address not in self._healing:
            self._healing.add(address)
            del self._differs[address]

    async def heal(self) -> None:
        """Meet the peers that others know and we don't, for as long as this peer runs."""
        while True:
            await asyncio.sleep(HEAL_AFTER_S)
            healing, self._healing = self._healing, set()
            for address in sorted(healing):
                with suppress(MeshError, ValueError):
                    await self._compare(view_from_json(await self._neighbors.view_at(address)))

    async def _compare(self, theirs: View) -> None:
        ours = self._membership.view
        unknown = [
            member
            for member in theirs.here
            if (known := ours.find(member.name)) is None or not known.is_here
        ]
        if unknown:
            log.info("views differ", unknown=[member.name for member in unknown])
            await self._membership.meet(unknown)


def changes(before: View, after: View) -> list[dict[str, str]]:
    """Return what is worth a line of the log, as its keys and values."""
    lines = []
    for member in after.members:
        last = before.find(member.name)
        if last is None or last.state != member.state or last.is_placed != member.is_placed:
            lines.append(
                {
                    "peer": member.name,
                    "state": member.state.value,
                    "address": member.address,
                    "ring": "in" if member.is_placed else "out",
                }
            )
    gone = {m.name for m in before.members} - {m.name for m in after.members}
    return lines + [{"peer": name, "state": "forgotten"} for name in sorted(gone)]


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_suffix(".new")
    temporary.touch(mode=0o600)
    temporary.write_bytes(data)
    os.replace(temporary, path)  # noqa: PTH105
