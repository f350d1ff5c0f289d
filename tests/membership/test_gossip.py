"""Gossip alone: seeds, keys, addresses."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Callable
from dataclasses import replace

import pytest
import structlog

from mesh.errors import Unusable
from mesh.membership.gossip import Gossip, GossipSettings
from mesh.membership.view import Member
from mesh.testing.servers import free_port
from tests.membership.worlds import (
    KEY,
    QUICK,
    GossipWorld,
    agree,
    all_started,
    until,
)


@pytest.fixture
async def gossips() -> AsyncIterator[Callable[..., GossipWorld]]:
    made: list[GossipWorld] = []

    def make(seed: str = "", **about: str) -> GossipWorld:
        made.append(GossipWorld(**about))
        made[-1].seed = seed or made[-1].seed
        return made[-1]

    yield make
    for world in made:
        await world.end()


OTHER_KEY = b64encode(bytes(32)).decode()


@pytest.mark.parametrize("about", [{"key": OTHER_KEY}, {"cluster": "d"}], ids=["key", "cluster"])
async def test_gossip_of_another_mesh_is_refused_and_both_sides_are_told(
    gossips: Callable[..., GossipWorld], about: dict[str, str]
) -> None:
    ours = gossips()
    a, b = await all_started(ours, "ab")
    with structlog.testing.capture_logs() as logs:
        theirs = gossips(**about)
        theirs.seed = ours.seed
        stranger = replace(Member("x", "h:1", id="id-x"), gossip=f"127.0.0.1:{free_port()}")
        settings = GossipSettings(
            cluster=theirs.cluster, seeds=[ours.seed], key=theirs.key, timings=QUICK
        )
        gossip = Gossip(settings, stranger)
        with pytest.raises(Unusable, match=r"cluster\.seeds: 127\.0\.0\.1:\d+ is up but does not"):
            await gossip.start()
        await gossip.aclose()
        await until(lambda: any("is refused" in str(line["event"]) for line in logs))
    assert [m.name for m in a.view.members] == ["a", "b"]
    assert agree([a, b])


def seeded(seeds: list[str], key: str = KEY) -> Gossip:
    me = Member("a", "h:1", gossip=f"127.0.0.1:{free_port()}")
    return Gossip(GossipSettings(cluster="c", seeds=seeds, key=key, timings=QUICK), me)


async def test_seeds_that_do_not_resolve() -> None:
    gossip = seeded(["no-such-host.invalid:7946"])
    with pytest.raises(Unusable, match=r"cluster\.seeds: no-such-host\.invalid:7946 resolves"):
        await gossip.start()
    await gossip.aclose()


async def test_some_seeds_that_do_not_resolve(gossips: Callable[..., GossipWorld]) -> None:
    world = gossips()
    a = await world.start("a")
    me = Member("b", "h:1", id="id-b", gossip=f"127.0.0.1:{free_port()}")
    seeds = ["no-such-host.invalid:7946", world.seed]
    gossip = Gossip(GossipSettings(cluster="c", seeds=seeds, key=KEY, timings=QUICK), me)
    with structlog.testing.capture_logs() as logs:
        await gossip.start()
    assert "seed does not resolve" in [line["event"] for line in logs]
    await until(lambda: len(a.view.here) == 2)
    await gossip.aclose()


async def test_no_seed_is_up_yet() -> None:
    """The first of a mesh begins it alone."""
    gossip = seeded([f"127.0.0.1:{free_port()}"])
    await gossip.start()
    assert [m.name for m in gossip.view.members] == ["a"]
    await gossip.aclose()


def test_a_key_that_is_none() -> None:
    with pytest.raises(Unusable, match="membership can't be set up"):
        seeded([], key="short")


async def test_an_address_that_is_taken() -> None:
    first = seeded([])
    await first.start()
    taken = first.view.member("a").gossip
    settings = GossipSettings(cluster="c", seeds=[], key=KEY)
    second = Gossip(settings, Member("b", "h:2", gossip=taken))
    with pytest.raises(Unusable, match=r"peer\.gossip 127\.0\.0\.1:\d+: .*in use"):
        await second.start()
    await second.aclose()
    await first.aclose()


async def test_a_peer_that_binds_a_wildcard_is_seen_as_it_sees_itself() -> None:
    """Or its epoch would never be that of the others."""
    first = seeded([])
    await first.start()
    seed = first.view.member("a").gossip
    me = Member("b", "h:2", gossip=f"0.0.0.0:{free_port()}")
    second = Gossip(GossipSettings(cluster="c", seeds=[seed], key=KEY, timings=QUICK), me)
    await second.start()
    await until(lambda: first.view == second.view and len(first.view.here) == 2)
    await second.announce(replace(me, portion=0.5))
    await until(lambda: first.view == second.view and first.view.member("b").portion == 0.5)
    assert not first.view.member("b").gossip.startswith("0.0.0.0")
    assert first.view.epoch == second.view.epoch
    await second.aclose()
    await first.aclose()
