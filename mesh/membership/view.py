"""Who is in the mesh, as an immutable snapshot.

Membership is a static list here: the members are those of the config, always.
Whether one of them answers is for those who ask it to find out (`peer.neighbors`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from uuid import UUID, uuid5

MESH = UUID("5b6ad9c2-3d0c-5f0e-9d2f-0c5b7a1e6d11")
"""Namespace of the ids of peers that a config names."""


@dataclass(frozen=True, slots=True)
class Member:
    """One peer, as everybody knows it."""

    name: str
    address: str
    """host:port of its gRPC server."""

    zone: str = ""
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 0.25 <= self.weight <= 4:
            raise ValueError(f"weight of peer {self.name} is {self.weight}, need 0.25 to 4")


@dataclass(frozen=True, slots=True)
class View:
    """All members, sorted by name, and the number that stands for exactly this set."""

    members: tuple[Member, ...]
    epoch: int
    """64-bit digest of the members: equal views have equal epochs."""

    def member(self, name: str) -> Member:
        """Return the member of that name; KeyError if there is none."""
        for member in self.members:
            if member.name == name:
                return member
        raise KeyError(name)


def view_of(members: Iterable[Member]) -> View:
    """Make the snapshot of *members*; their order does not matter."""
    ordered = tuple(sorted(members, key=lambda member: member.name))
    digest = blake2b(repr(ordered).encode(), digest_size=8).digest()
    return View(ordered, int.from_bytes(digest, "big"))


def peer_id(cluster: str, name: str) -> UUID:
    """Return the identity of the peer that a static config calls *name*."""
    return uuid5(MESH, f"{cluster}/{name}")
