"""What a scheduler is told, and what it says is to be done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Met:
    """A peer that reads the same version, or ended to."""

    peer: str
    zone: str = ""


@dataclass(frozen=True, slots=True)
class Lost:
    """A neighbor that is gone, or has left the swarm."""

    peer: str


@dataclass(frozen=True, slots=True)
class Has:
    """What a neighbor has come to have since it last said so."""

    peer: str
    blocks: int
    """A set (`bits`)."""

    free_slots: int


@dataclass(frozen=True, slots=True)
class Wants:
    """A reader of this host is blocked on a block."""

    index: int


@dataclass(frozen=True, slots=True)
class Reads:
    """A stream of this host has come to a block."""

    index: int


@dataclass(frozen=True, slots=True)
class Arrived:
    """A block is here, whole and checked, from a source or by itself ("")."""

    index: int
    source: str
    took_s: float
    """Since it was asked for."""


@dataclass(frozen=True, slots=True)
class Missed:
    """A source did not give a block."""

    index: int
    source: str
    is_away: bool = False
    """The peer did not answer at all."""

    is_busy: bool = False
    retry_s: float = 0.0
    """Until then it is busy."""

    is_silent: bool = False
    """Nothing came from the peer for as long as one waits: for a moment it is left alone."""

    others: Sequence[str] = ()
    """Who has it too, or will in a moment, says the source."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A block is not on its way any more, and no source is to blame: there is no room for it,
    or the under-store is away."""

    index: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has gone by."""


Event = Met | Lost | Has | Wants | Reads | Arrived | Missed | Failed | Tick


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask a source for a block; an owner fills it if need be."""

    index: int
    source: str
    is_owner: bool = False
    is_urgent: bool = False


@dataclass(frozen=True, slots=True)
class Drop:
    """A block has come from elsewhere: what this source sends is not wanted any more."""

    index: int
    source: str


@dataclass(frozen=True, slots=True)
class Announce:
    """Tell neighbors what is here since they were told last."""

    peers: Sequence[str]
    blocks: int


Action = Fetch | Drop | Announce
