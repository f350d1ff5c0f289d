"""What a scenario is: a mesh to make, a play, and what the play owes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from chaos.run import Run

MIB = 1024 * 1024
FILES = 4


def steady_files(peers: int) -> dict[str, int]:
    """Return a data set that one host cannot keep and the mesh can.

    A host keeps 72 MiB (90 % of its capacity), so peers serve each other all the time.
    Each block has two owners, which both may keep it as their own: 48 MiB a host, and
    64 MiB when one of four is gone, so nobody has to drop what it owns.
    """
    return {f"part-{number}": peers * 24 * MIB // FILES for number in range(FILES)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mesh:
    """The mesh that a scenario needs."""

    files: Callable[[int], dict[str, int]] = steady_files
    """Sizes by name, for a number of peers."""
    capacity: str = "80MiB"
    link_bytes_s: float | None = None
    """The rate of each host's cable."""
    disk_bytes: int | None = None
    relayed: bool = False
    starts_later: int = 0
    """How many of the peers are not there at the start."""
    peers_min: int = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """A named accident."""

    name: str
    summary: str
    proof: str
    """How the run knows that its fault fired."""
    play: Callable[[Run], None]
    mesh: Mesh
    in_set: bool = False


ALL: dict[str, Scenario] = {}


def scenario(
    name: str, summary: str, *, proof: str, mesh: Mesh | None = None, in_set: bool = False
) -> Callable[[Callable[[Run], None]], Callable[[Run], None]]:
    """Enter a play into the list of scenarios."""

    def enter(play: Callable[[Run], None]) -> Callable[[Run], None]:
        assert name not in ALL, f"two scenarios are called {name}"
        ALL[name] = Scenario(
            name=name, summary=summary, proof=proof, play=play, mesh=mesh or Mesh(), in_set=in_set
        )
        return play

    return enter


def in_set() -> Iterable[Scenario]:
    return (each for each in ALL.values() if each.in_set)
