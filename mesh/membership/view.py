"""Who is in the mesh, as an immutable snapshot.

    joining → active ⇄ suspect → dead          what the others see of a peer
                 └→ draining → left            what it says itself before it stops

A peer is known by its `id`, a UUID kept with its blocks, so a new address or port
moves nothing. A peer that is dead or has left keeps its place in the ring for the
grace: it is not asked, and nothing moves. Only then does it lose its place.

`Roster` makes these snapshots; nobody else does, and nobody changes one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2b
from pathlib import Path
from uuid import UUID, uuid5

import msgspec

MESH = UUID("5b6ad9c2-3d0c-5f0e-9d2f-0c5b7a1e6d11")
"""Namespace of the ids of peers that a static list names."""

VIEW_FILE = "view.json"
"""In the data directory: the last view, for mounts that start while the peer is away."""


class State(StrEnum):
    """What a peer is for the others."""

    JOINING = "joining"  # here, not yet ready: has no place in the ring
    ACTIVE = "active"
    SUSPECT = "suspect"  # silent for a moment: asked last
    DRAINING = "draining"  # stops soon: ends what it does, is asked nothing new
    DEAD = "dead"
    LEFT = "left"


@dataclass(frozen=True, slots=True)
class Member:
    """One peer, as everybody knows it."""

    name: str
    """Unique in the mesh; for people, logs and metrics."""

    address: str
    """host:port of its gRPC server."""

    zone: str = ""
    weight: float = 1.0
    """Relative capacity, 0.25 to 4."""

    id: str = ""
    """A UUID; its place in the ring hangs on this alone."""

    state: State = State.ACTIVE
    run: int = 0
    """How often it was started on its data; a later run replaces an earlier one."""

    portion: float = 1.0
    """The part of its weight that it takes while it warms up."""

    gossip: str = ""
    """host:port where membership reaches it; "" where there is no gossip."""

    is_placed: bool = True
    """Whether the ring counts on it: not yet when joining, no more after the grace."""

    bulk_port: int = field(default=0, repr=False)
    """Port of its bulk channel; 0 when it has none, or does not say. No part of the epoch."""

    def __post_init__(self) -> None:
        if not self.id:  # a list that names peers needs no other identity
            object.__setattr__(self, "id", self.name)
        # As JSON gives it back: 1 and 1.0 would make two epochs of one view.
        object.__setattr__(self, "weight", float(self.weight))
        object.__setattr__(self, "portion", float(self.portion))
        if not 0.25 <= self.weight <= 4:
            raise ValueError(f"weight of peer {self.name} is {self.weight:g}, need 0.25 to 4")
        if not 0 <= self.bulk_port < 1 << 16:
            raise ValueError(f"bulk port of peer {self.name} is {self.bulk_port}, need 0 to 65535")
        if not 0 < self.portion <= 1:
            raise ValueError(f"portion of peer {self.name} is {self.portion:g}, need 0 to 1")

    @property
    def is_asked(self) -> bool:
        """Whether it may be asked for blocks."""
        return self.state in (State.ACTIVE, State.SUSPECT)

    @property
    def is_here(self) -> bool:
        """Whether it runs, as far as one knows."""
        return self.state not in (State.DEAD, State.LEFT)


@dataclass(frozen=True, slots=True)
class View:
    """All members, sorted by name, and the number that stands for exactly this set."""

    members: tuple[Member, ...]
    epoch: int
    """64-bit digest of the members that are here or have a place: equal ones, equal epochs."""

    def member(self, name: str) -> Member:
        """Return the member of that name; KeyError if there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise KeyError(name)

    def find(self, name: str) -> Member | None:
        """Return the member of that name, or None."""
        return next((member for member in self.members if member.name == name), None)

    def at(self, address: str) -> Member | None:
        """Return who is here at an address, or None."""
        return next((m for m in self.members if m.address == address and m.is_here), None)

    @property
    def placed(self) -> tuple[Member, ...]:
        """The members that the ring counts on."""
        return tuple(member for member in self.members if member.is_placed)

    @property
    def here(self) -> tuple[Member, ...]:
        """The members that run, as far as one knows."""
        return tuple(member for member in self.members if member.is_here)


def view_of(members: Iterable[Member]) -> View:
    """Make the snapshot of *members*; their order does not matter."""
    ordered = tuple(sorted(members, key=lambda member: member.name))
    # Of those who are gone for good not all have heard: a newcomer has not.
    counted = [member for member in ordered if member.is_here or member.is_placed]
    digest = blake2b(repr(counted).encode(), digest_size=8).digest()
    return View(ordered, int.from_bytes(digest, "big"))


def peer_id(cluster: str, name: str) -> UUID:
    """Return the identity of the peer that a static list calls *name*."""
    return uuid5(MESH, f"{cluster}/{name}")


def view_to_json(view: View) -> bytes:
    """Return a view as peers, mounts and files have it."""
    return msgspec.json.encode(view.members)


def view_from_json(data: bytes) -> View:
    """Return the view that `view_to_json` wrote; ValueError when it is none."""
    return view_of(msgspec.json.decode(data, type=tuple[Member, ...]))


def member_to_json(member: Member) -> bytes:
    return msgspec.json.encode(member)


def member_from_json(data: bytes) -> Member:
    """Return the member that `member_to_json` wrote; ValueError when it is none."""
    return msgspec.json.decode(data, type=Member)


def read_view(path: Path) -> View | None:
    """Return the view that a peer left beside its blocks; None if there is none to read."""
    try:
        return view_from_json(path.read_bytes())
    except (OSError, ValueError):
        return None
