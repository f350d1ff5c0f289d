"""Whole clusters, each from one number.

A failure names its seed and tells the end of the story. To live through it again:

    MESH_SEED=123 pytest tests/simulation
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import pytest

from mesh.blocks import BlockKey, FileVersion
from mesh.errors import PeerUnavailable
from mesh.peer.flight import Flights, Landing
from mesh.peer.neighbors import RingNeighbors
from mesh.peer.reader import BlockReader
from mesh.testing.accidents import accidents
from mesh.testing.simpeer import Build
from mesh.testing.simulation import Simulation, Tally, Violation, run
from mesh.wire.messages import Piece

GIVEN = os.environ.get("MESH_SEED")
"""Read before conftest takes the settings of mesh out of the environment."""

QUICK = range(30)
MANY = range(1000)


@pytest.mark.parametrize("seed", [int(GIVEN)] if GIVEN else QUICK)
def test_the_mesh_keeps_its_promises(seed: int) -> None:
    tally = run(seed, accidents)
    assert tally.reads > tally.failed_reads
    assert tally.fills > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_mesh_keeps_its_promises_a_thousand_times() -> None:
    tallies: list[Tally] = []
    broken: list[str] = []
    for seed in MANY:
        try:
            tallies.append(run(seed, accidents))
        except Violation as violation:
            broken.append(str(violation))
    assert not broken, f"{len(broken)} of {len(MANY)}: {broken[0]}"
    # Or nothing was tried.
    kinds = {kind for tally in tallies for kind in tally.accidents}
    assert kinds >= {"kill", "stop", "split", "cut", "loss", "rot", "join", "leave", "outage"}
    assert sum(tally.reads for tally in tallies) > 30 * len(MANY)
    assert any(tally.failed_reads for tally in tallies)


def test_the_same_seed_is_the_same_story() -> None:
    for seed in (3, 4, 5):
        assert run(seed, accidents) == run(seed, accidents)
    assert run(3, accidents).digest != run(4, accidents).digest


# Checkers that never fail check nothing: each of these peers breaks one promise.


class Gullible(BlockReader):
    """Takes whatever comes, without looking at its checksum."""

    async def _keep(self, landing: Landing, writer: Any, piece: Piece, whence: str) -> None:
        await self._put(landing, writer, piece)


class Stubborn(BlockReader):
    """Asks its first choice, and gives up when that does not answer."""

    async def _served(self, landing: Landing, writer: Any, peers: Sequence[str]) -> bool:
        if not await super()._served(landing, writer, peers[:1]):
            raise PeerUnavailable(peers[0], "is all that was asked")
        return True


class Greedy(BlockReader):
    """Begins a load for whoever asks."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fills = NoFlights(self._fills._tasks)


class NoFlights(Flights):
    def board(self, file: FileVersion, index: int, load: Any, **kwargs: Any) -> Landing:
        self._landings.pop(file.key(index), None)
        return super().board(file, index, load, **kwargs)

    async def _fly(self, key: BlockKey, landing: Landing, load: Any) -> None:
        self._landings.setdefault(key, landing)
        await super()._fly(key, landing, load)
        self._landings.setdefault(key, landing)


class Forgetful(RingNeighbors):
    """Does not hear that a peer has started again somewhere else."""

    def _address(self, peer: str) -> str:
        known: dict[str, str] = self.__dict__.setdefault("_known", {})
        return known.setdefault(peer, super()._address(peer))


class Leaky(BlockReader):
    """Keeps what was lent to it."""

    async def _bring(self, landing: Landing, writer: Any) -> None:
        await super()._bring(landing, writer)
        self._fill_budget._take(1)


BROKEN = {
    "wrong bytes": Build(reader=Gullible),
    "could have helped": Build(reader=Stubborn),
    "was filled": Build(reader=Greedy),
    "views agree": Build(neighbors=Forgetful),
    "nothing is left over": Build(reader=Leaky),
}


@pytest.mark.parametrize(("words", "build"), BROKEN.items(), ids=BROKEN)
def test_a_broken_peer_is_found_out(words: str, build: Build) -> None:
    with pytest.raises(Violation, match=words):
        for seed in range(40):
            run(seed, accidents, build=build)


def test_a_violation_tells_how_to_see_it_again() -> None:
    async def accident(sim: Simulation) -> None:
        sim.check()
        raise Violation("as an example")

    with pytest.raises(Violation, match=r"^MESH_SEED=7: as an example\n *0\.0000 start p0 run 1\n"):
        run(7, accident)
