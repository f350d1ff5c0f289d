"""The catalog of several peers: each directory has owners, and who knows of it is told."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mesh.blocks import Attributes
from mesh.errors import NotFound, PeerUnavailable
from mesh.metrics import by_label, total
from mesh.peer.health import Hedging
from mesh.peer.listings import COPY_AGAIN_S
from mesh.peer.peer import Peer
from mesh.peer.tidying import forget_idle
from mesh.store.entries import directory_key
from mesh.testing.cluster import Cluster, running_cluster
from mesh.testing.memory import SOURCE, MemoryUnderStore
from mesh.wire.messages import Change, ListReply, ListRequest

NAMES = ("a", "b", "c")
COUNT = 2500


def many(count: int = COUNT) -> MemoryUnderStore:
    return MemoryUnderStore({f"big/{number:04}": bytes(number % 3) for number in range(count)})


@asynccontextmanager
async def cluster_of(
    root: Path, store: MemoryUnderStore, *, max_age_s: float = 60.0
) -> AsyncIterator[Cluster]:
    async with running_cluster(root, NAMES, store, max_age_s=max_age_s) as cluster:
        # Who has just joined asks former owners, too.
        for peer in cluster.peers.values():
            assert {m.name for m in peer.neighbors.view.here} == set(NAMES)
            # As one that runs late: on a busy machine nobody is to be asked twice.
            peer.neighbors.hedging = Hedging(lambda: 1.0)
        yield cluster


def owners(cluster: Cluster, directory: str) -> list[str]:
    ring = next(iter(cluster.peers.values())).neighbors.ring
    return ring.owners(directory_key(SOURCE, directory), copies=3)


async def forget(peer: Peer, *, for_s: float) -> int:
    return await forget_idle(peer.store.entries, peer.catalog._shards, for_s=for_s)


def asked(peer: Peer, answer: str) -> int:
    return by_label(peer.metrics.catalog_requests, "answer").get(answer, 0)


async def until(condition: Callable[[], bool], *, within_s: float = 30.0) -> None:
    async with asyncio.timeout(within_s):
        while not condition():  # what is waited for has no event
            await asyncio.sleep(0.01)


async def names(peer: Peer, path: str) -> list[str]:
    return [entry.name async for page in peer.catalog.scan(path) for entry in page]


async def test_one_look_up_serves_all_peers_and_its_owner_asks(tmp_path: Path) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store) as cluster:
        first = owners(cluster, "big")[0]
        for name in sorted(NAMES, key=lambda name: name == first):
            reply = await cluster.peers[name].catalog.stat("big/0002")
            assert reply.attributes.size_bytes == 2
        assert store.stats == 1
        assert {n: asked(p, "asked") for n, p in cluster.peers.items()} == {
            name: int(name == first) for name in NAMES
        }


async def test_many_who_look_at_once_everywhere_ask_once(tmp_path: Path) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store) as cluster:
        looks = [peer.catalog.stat("big/0001") for peer in cluster.peers.values() for _ in range(9)]
        assert {r.attributes.size_bytes for r in await asyncio.gather(*looks)} == {1}
        assert store.stats == 1


async def test_names_that_are_asked_together_go_in_few_calls(tmp_path: Path) -> None:
    store = many(1000)
    async with cluster_of(tmp_path, store, max_age_s=0.0) as cluster:
        asker = cluster.peers[owners(cluster, "big")[2]]
        replies = await asyncio.gather(*(asker.catalog.stat(f"big/{n:04}") for n in range(1000)))
        assert [reply.attributes.size_bytes for reply in replies[:4]] == [0, 1, 2, 0]
        assert store.stats >= 1000
        assert asked(asker, "asked") == 0
        assert total(asker.metrics.catalog_calls) <= 50


async def test_a_listing_is_made_once_and_copied(tmp_path: Path) -> None:
    store = many()
    async with cluster_of(tmp_path, store) as cluster:
        expected = [f"{number:04}" for number in range(COUNT)]
        for peer in cluster.peers.values():
            assert await names(peer, "big") == expected
        assert store.listings == 1
        for peer in cluster.peers.values():
            directory = directory_key(SOURCE, "big")
            async with asyncio.timeout(30.0):
                while peer.store.entries.listed_s(directory) is None:
                    # A copy that was overtaken is given up; whoever asks next makes it.
                    assert await names(peer, "big") == expected
                    await asyncio.sleep(0.01)
            found = await peer.catalog.stat("big/2000")
            assert found.attributes.size_bytes == 2000 % 3
        assert (store.listings, store.stats) == (1, 0)


async def test_pages_that_are_long_on_their_way_are_of_the_same_listing(tmp_path: Path) -> None:
    """How long a page took makes it look older than the first one."""
    async with cluster_of(tmp_path, many()) as cluster:
        peer = cluster.peers[owners(cluster, "big")[2]]
        shards, delays_s = peer.catalog._listings._shards, iter([0.0, 0.05, 0.1, 0.15])
        page = shards.page

        async def slow(owner: str, request: ListRequest) -> ListReply:
            await asyncio.sleep(next(delays_s, 0.2))
            return await page(owner, request)

        shards.page = slow  # type: ignore[method-assign]
        await names(peer, "big")
        directory = directory_key(SOURCE, "big")
        await until(lambda: peer.store.entries.listed_s(directory) is not None, within_s=5.0)
        found, _ = peer.store.entries.tables.after(directory, "", COUNT)
        assert [name for name, _ in found] == [f"{number:04}" for number in range(COUNT)]


async def test_the_second_owner_has_a_copy_and_answers_for_the_first(tmp_path: Path) -> None:
    store = many()
    async with cluster_of(tmp_path, store) as cluster:
        first, second, third = owners(cluster, "big")
        directory = directory_key(SOURCE, "big")
        await names(cluster.peers[third], "big")
        await cluster.peers[third].catalog.stat("big")
        await until(lambda: cluster.peers[second].store.entries.listed_s(directory) is not None)
        asked = store.listings, store.stats
        await cluster.peers[third].store.entries.forget(directory)
        await cluster.stop(first)
        assert await names(cluster.peers[third], "big") == [f"{n:04}" for n in range(COUNT)]
        assert (store.listings, store.stats) == asked


@pytest.mark.parametrize("max_age_s", [0.0, 0.001])
async def test_a_second_copy_never_makes_anybody_list_again(
    tmp_path: Path, max_age_s: float
) -> None:
    store = many()
    async with cluster_of(tmp_path, store, max_age_s=max_age_s) as cluster:
        first, second, _ = owners(cluster, "big")
        directory = directory_key(SOURCE, "big")
        await names(cluster.peers[first], "big")
        await until(lambda: cluster.peers[second].store.entries.listed_s(directory) is not None)
        await asyncio.sleep(1.2 * COPY_AGAIN_S)  # nothing is to happen, so there is no event
        assert store.listings == 1


async def test_what_was_looked_up_has_a_second_copy_too(tmp_path: Path) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store) as cluster:
        first, second, _ = owners(cluster, "big")
        directory = directory_key(SOURCE, "big")
        await cluster.peers[first].catalog.stat("big/0001")
        entries = cluster.peers[second].store.entries
        await until(lambda: entries.look(directory, "0001")[0] is not None)
        await cluster.stop(first)
        assert (await cluster.peers[second].catalog.stat("big/0001")).attributes.size_bytes == 1
        assert store.stats == 1


async def test_without_any_owner_the_under_store_is_asked(tmp_path: Path) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store) as cluster:
        first, second, third = owners(cluster, "big")
        for name in (first, second):
            await cluster.stop(name)
        assert (await cluster.peers[third].catalog.stat("big/0001")).attributes.size_bytes == 1
        assert len(await names(cluster.peers[third], "big")) == 10


def stop_between(cluster: Cluster, asker: str, owner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no answer of *owner* come to *asker*, as if its process were stopped."""
    neighbors = cluster.peers[asker].neighbors
    call = neighbors._control.call

    async def silent(address: str, *words: Any, timeout_s: float) -> Any:
        if address == neighbors._address(owner):
            await asyncio.sleep(timeout_s)
            raise PeerUnavailable(owner, f"silent for {timeout_s} s")
        return await call(address, *words, timeout_s=timeout_s)

    monkeypatch.setattr(neighbors._control, "call", silent)


@pytest.mark.parametrize("asker", [1, 2])
async def test_an_owner_who_is_stopped_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asker: int
) -> None:
    """The second owner has nobody else to ask before itself."""
    async with cluster_of(tmp_path, many(10)) as cluster:
        names_of_owners = owners(cluster, "big")
        stop_between(cluster, names_of_owners[asker], names_of_owners[0], monkeypatch)
        catalog = cluster.peers[names_of_owners[asker]].catalog
        async with asyncio.timeout(10.0):
            assert (await catalog.stat("big/0001")).attributes.size_bytes == 1
            assert len(await names(cluster.peers[names_of_owners[asker]], "big")) == 10


async def test_an_owner_does_not_wait_for_another_one_who_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has joined lately asks the other owners what they know: one of them never says it."""
    async with cluster_of(tmp_path, many(10)) as cluster:
        first, second, third = owners(cluster, "big")
        for asker in (second, third):
            cluster.peers[asker].neighbors.hedging = Hedging()
            stop_between(cluster, asker, first, monkeypatch)
        async with asyncio.timeout(10.0):
            found = await cluster.peers[third].catalog.stat("big/0001")
        assert found.attributes.size_bytes == 1


async def test_an_owner_who_only_looks_for_long_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store) as cluster:
        first, second, _ = owners(cluster, "big")
        stat = store.stat

        async def slow(path: str) -> Attributes:
            await asyncio.sleep(4.0)
            return await stat(path)

        monkeypatch.setattr(store, "stat", slow)
        assert (await cluster.peers[second].catalog.stat("big/0001")).attributes.size_bytes == 1
        assert (asked(cluster.peers[first], "asked"), store.stats) == (1, 1)


@pytest.mark.parametrize("max_age_s", [60.0, math.inf])
async def test_a_change_that_one_peer_sees_is_pushed_to_all_who_know(
    tmp_path: Path, max_age_s: float
) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store, max_age_s=max_age_s) as cluster:
        for peer in cluster.peers.values():
            assert (await peer.catalog.stat("big/0001")).attributes.size_bytes == 1
        store.write("big/0001", b"changed")
        store.remove("big/0002")
        for peer in cluster.peers.values():  # it is believed, nobody has looked
            assert (await peer.catalog.stat("big/0001")).attributes.size_bytes == 1
        await cluster.peers["a"].catalog.stat("big/0001", refresh=True)
        for peer in cluster.peers.values():
            assert (await peer.catalog.stat("big/0001")).attributes.size_bytes == 7


async def test_a_new_listing_takes_back_old_ones_and_their_names(tmp_path: Path) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store) as cluster:
        for peer in cluster.peers.values():
            assert len(await names(peer, "big")) == 10
        store.write("big/0001", b"changed")
        store.write("big/new", b"new")
        store.remove("big/0002")
        assert await cluster.peers["b"].catalog.refresh("big", is_recursive=False) == 11
        for peer in cluster.peers.values():
            listed = await names(peer, "big")
            assert ("new" in listed, "0002" in listed, len(listed)) == (True, False, 10)
            assert (await peer.catalog.stat("big/0001")).attributes.size_bytes == 7
            with pytest.raises(NotFound):
                await peer.catalog.stat("big/0002")


async def test_a_refresh_goes_down_if_it_is_told_to(tmp_path: Path) -> None:
    store = MemoryUnderStore({"top": b"1", "dir/one": b"1", "dir/sub/two": b"1"})
    async with cluster_of(tmp_path, store) as cluster:
        for path in store.files:
            await cluster.peers["a"].catalog.stat(path)
        for path in list(store.files):
            store.write(path, b"22")
        assert await cluster.peers["c"].catalog.refresh("", is_recursive=False) == 3
        b = cluster.peers["b"].catalog
        sizes = {path: (await b.stat(path)).attributes.size_bytes for path in store.files}
        assert sizes["top"] == 2  # of the others nobody was told
        assert await cluster.peers["c"].catalog.refresh("", is_recursive=True) == 3 + 3 + 2
        for peer in cluster.peers.values():
            for path in store.files:
                assert (await peer.catalog.stat(path)).attributes.size_bytes == 2


async def test_mounts_hear_of_changes_when_the_tables_have_them(tmp_path: Path) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store) as cluster:
        third = owners(cluster, "big")[2]
        async with cluster.client(third) as client:
            await client.stat("big/0001")
            heard: list[tuple[str, Change, int]] = []

            def changed(path: str, change: Change) -> None:
                record, _ = client.here.entry(directory_key(SOURCE, "big"), "0001")
                assert record is not None
                heard.append((path, change, record.generation))

            watching = asyncio.create_task(client.watch(changed))
            await asyncio.sleep(0.1)
            store.write("big/0001", b"changed")
            await cluster.peers["a"].catalog.stat("big/0001", refresh=True)
            await until(lambda: bool(heard))
            assert heard[0][0] == "big"
            assert heard[0][1].names == ("0001",)
            assert heard[0][2] == 0  # doubtful
            assert (await client.stat("big/0001")).attributes.size_bytes == 7
            watching.cancel()


async def test_with_max_age_0_every_look_up_is_of_now(tmp_path: Path) -> None:
    store = many(3)
    async with cluster_of(tmp_path, store, max_age_s=0.0) as cluster:
        for round_number in range(1, 5):
            store.write("big/0001", bytes(round_number))
            replies = await asyncio.gather(
                *(peer.catalog.stat("big/0001") for peer in cluster.peers.values())
            )
            assert {reply.attributes.size_bytes for reply in replies} == {round_number}
            assert {reply.fresh_s for reply in replies} == {0.0}


async def test_who_comes_while_an_older_question_is_under_way_gets_a_newer_answer(
    tmp_path: Path,
) -> None:
    """close() on one host, then open() on another: the answer was not begun before."""

    class Slow(MemoryUnderStore):
        gate_stat = asyncio.Event()

        async def stat(self, path: str):  # type: ignore[no-untyped-def]
            answer = await super().stat(path)
            await self.gate_stat.wait()
            return answer

    store = Slow({"dir/f": b"old"})
    async with cluster_of(tmp_path, store, max_age_s=0.0) as cluster:
        catalog = cluster.peers[owners(cluster, "dir")[0]].catalog
        early = asyncio.create_task(catalog.stat("dir/f"))
        await until(lambda: store.stats == 1)
        store.write("dir/f", b"newer")
        late = [asyncio.create_task(catalog.stat("dir/f")) for _ in range(5)]
        await asyncio.sleep(0)
        store.gate_stat.set()
        assert (await early).attributes.size_bytes == 3
        assert {(await task).attributes.size_bytes for task in late} == {5}
        assert store.stats == 2


async def test_while_the_under_store_is_away_what_is_known_is_served_everywhere(
    tmp_path: Path,
) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store, max_age_s=0.0) as cluster:
        for peer in cluster.peers.values():
            await peer.catalog.stat("big/0001")
            await names(peer, "big")
        store.go_away()
        for peer in cluster.peers.values():
            reply = await peer.catalog.stat("big/0001")
            assert (reply.attributes.size_bytes, reply.is_stale) == (1, True)
            page = await peer.catalog.page("big")
            assert page.is_stale
            assert len(await names(peer, "big")) == 10


async def test_what_nobody_asks_about_is_forgotten_by_those_who_do_not_own_it(
    tmp_path: Path,
) -> None:
    store = many(10)
    async with cluster_of(tmp_path, store) as cluster:
        first, second, third = owners(cluster, "big")
        directory = directory_key(SOURCE, "big")
        await names(cluster.peers[third], "big")
        await until(lambda: cluster.peers[second].store.entries.listed_s(directory) is not None)
        for name in NAMES:
            assert await forget(cluster.peers[name], for_s=3600.0) == 0
        for name in (first, second, third):
            assert await forget(cluster.peers[name], for_s=-1.0) >= 0
        listed = {n: p.store.entries.listed_s(directory) for n, p in cluster.peers.items()}
        assert (listed[third], None in (listed[first], listed[second])) == (None, False)
