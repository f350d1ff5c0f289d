"""Who may change what is at a path: one after the other, and not for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from mesh.errors import Unavailable
from mesh.peer import turns
from mesh.peer.shards import Shards
from mesh.peer.turns import Turns
from mesh.store.entries import directory_key
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.wire.messages import Nothing
from mesh.wire.writes import TurnRequest

NAMES = ["a", "b", "c"]
PATH = "models/weights.bin"


def turns_of(cluster: Cluster, name: str) -> Turns:
    """Return how a peer that does not own the directory asks for turns."""
    catalog = cluster.peers[name].catalog
    return Turns(catalog._shards, catalog._table)


def askers(cluster: Cluster, *directories: str) -> list[str]:
    """Return peers that own none of these directories first."""
    shards = cluster.peers["a"].catalog._shards
    owners = {shards.owners(directory_key(SOURCE, each))[0] for each in directories}
    return [name for name in NAMES if name not in owners]


async def test_hosts_have_it_one_after_the_other(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, NAMES, MemoryUnderStore()) as cluster:
        inside = 0
        names = askers(cluster, "models")
        order: list[int] = []

        async def change(name: str, number: int) -> None:
            nonlocal inside
            async with turns_of(cluster, name).of(PATH):
                assert not inside
                inside += 1
                await asyncio.sleep(0.01)
                order.append(number)
                inside -= 1

        await asyncio.gather(*(change(names[n % 2], n) for n in range(12)))
        assert sorted(order) == list(range(12))


async def test_other_paths_have_turns_of_their_own(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, NAMES, MemoryUnderStore()) as cluster:
        one, other = askers(cluster, "models")
        entered = False
        async with asyncio.timeout(10), turns_of(cluster, one).of(PATH):
            async with turns_of(cluster, other).of("models/other"):
                entered = True
        assert entered


async def test_two_paths_in_any_order_do_not_wait_for_each_other_for_ever(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, NAMES, MemoryUnderStore()) as cluster, asyncio.timeout(20):
        changed = 0

        async def change(name: str, *paths: str) -> None:
            nonlocal changed
            for _ in range(5):
                async with turns_of(cluster, name).of(*paths):
                    await asyncio.sleep(0)
                    changed += 1

        name = askers(cluster, "x", "y")[0]
        await asyncio.gather(change(name, "x/one", "y/two"), change(name, "y/two", "x/one"))
        assert changed == 10


async def test_without_its_owner_one_goes_on(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, NAMES, MemoryUnderStore()) as cluster:
        catalog = cluster.peers["a"].catalog
        owner = catalog._shards.owners(directory_key(SOURCE, "models"))[0]
        asker = next(name for name in NAMES if name != owner)
        await cluster.stop(owner)
        began = False
        async with asyncio.timeout(10), turns_of(cluster, asker).of(PATH):
            began = True
        assert began


class Alone(Shards):
    """This peer owns everything."""

    def __init__(self) -> None:
        return

    def nearer(self, directory: bytes) -> list[str]:
        return []


def alone(cluster: Cluster) -> Turns:
    return Turns(Alone(), cluster.peers["a"].catalog._table)


async def test_a_turn_that_is_not_given_back_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.2)
    async with running_cluster(tmp_path, ["a"], MemoryUnderStore()) as cluster:
        owner = alone(cluster)
        await owner.take(TurnRequest(PATH, "gone"))
        await owner.take(TurnRequest(PATH, "gone"))  # asked again, as when an answer was lost
        async with asyncio.timeout(5):
            assert await owner.take(TurnRequest(PATH, "next")) == Nothing()


async def test_who_waits_too_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns, "WAIT_S", 0.1)
    async with running_cluster(tmp_path, ["a"], MemoryUnderStore()) as cluster:
        owner = alone(cluster)
        await owner.take(TurnRequest(PATH, "first"))
        await owner.take(TurnRequest(PATH, "another", is_over=True))  # ends only its own
        with pytest.raises(Unavailable, match="all the time"):
            await owner.take(TurnRequest(PATH, "second"))


async def test_turns_that_ended_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "TURN_S", 0.0)
    monkeypatch.setattr(turns, "LINES_MAX", 10)
    async with running_cluster(tmp_path, ["a"], MemoryUnderStore()) as cluster:
        owner = alone(cluster)
        for number in range(50):
            await owner.take(TurnRequest(f"models/{number}", "gone"))
            await owner.take(TurnRequest(f"other/{number}", "never began", is_over=True))
        assert len(owner._lines) <= 10


async def test_one_who_is_cancelled_passes_it_on(tmp_path: Path) -> None:
    async with running_cluster(tmp_path, ["a"], MemoryUnderStore()) as cluster:
        owner = alone(cluster)
        await owner.take(TurnRequest(PATH, "first"))
        second = asyncio.create_task(owner.take(TurnRequest(PATH, "second")))
        third = asyncio.create_task(owner.take(TurnRequest(PATH, "third")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        await owner.take(TurnRequest(PATH, "first", is_over=True))  # wakes the second
        second.cancel()
        async with asyncio.timeout(5):
            assert await third == Nothing()
