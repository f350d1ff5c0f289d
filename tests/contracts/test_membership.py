"""One contract for all that find out who lives: gossip, etcd, a static list, a simulation."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

import pytest
import structlog

from mesh.membership.view import State
from mesh.testing.etcd import EtcdServer, etcd_program
from tests.membership.worlds import (
    GONE,
    WITHIN_S,
    EtcdWorld,
    GossipWorld,
    SimulatedWorld,
    StaticWorld,
    World,
    agree,
    all_started,
    until,
    watched,
)


@pytest.fixture(scope="session")
def etcd_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    if etcd_program() is None:
        pytest.skip("etcd is not installed: apt-get install etcd-server")
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as server:
        yield server


def world_of(kind: str, request: pytest.FixtureRequest) -> World:
    if kind == "etcd":
        server = request.getfixturevalue("etcd_server")
        return EtcdWorld(server.endpoint, f"c{secrets.token_hex(4)}")
    return {"gossip": GossipWorld, "static": StaticWorld, "sim": SimulatedWorld}[kind]()


@pytest.fixture(params=["gossip", "static", "etcd", "sim"])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    made = world_of(request.param, request)
    yield made
    await made.end()


@pytest.fixture(params=["gossip", "etcd", "sim"])
async def open_world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """One that newcomers can enter."""
    made = world_of(request.param, request)
    yield made
    await made.end()


async def test_all_see_all_alike(world: World) -> None:
    nodes = await all_started(world, weight=1 / 3, zone="z", portion=1 / 7)
    for node in nodes:
        assert [m.name for m in node.view.members] == ["a", "b", "c"]
        assert {m.state for m in node.view.members} == {State.ACTIVE}
        assert {(m.weight, m.zone, m.portion) for m in node.view.members} == {(1 / 3, "z", 1 / 7)}
        assert node.view == nodes[0].view
        assert node.membership.twin is None


@pytest.mark.slow
async def test_a_killed_one_keeps_its_place_for_the_grace(world: World) -> None:
    a, b, c = await all_started(world)
    async with watched(a) as seen:
        await world.kill(c)
        for node in (a, b):
            await until(lambda node=node: node.sees(c).state is State.DEAD)
            assert node.sees(c).is_placed
        await until(lambda: not a.sees(c).is_placed and not b.sees(c).is_placed)
        await until(lambda: agree([a, b]))
    states = [view.member("c").state for view in seen]
    assert State.LEFT not in states
    assert states.index(State.DEAD) > 0
    assert len(a.view.here) == 2


@pytest.mark.slow
async def test_a_restart_within_the_grace_moves_nothing(world: World) -> None:
    a, b, c = await all_started(world)
    async with watched(a) as seen_by_a, watched(b) as seen_by_b:
        await world.kill(c)
        await until(lambda: a.sees(c).state is not State.ACTIVE)
        again = await world.restart(c, state=State.JOINING)
        await until(lambda: all(n.sees(c).run == 2 for n in (a, b, again)))
        await again.membership.announce(replace(again.me, state=State.ACTIVE))
        await until(
            lambda: (
                all(n.sees(c).state is State.ACTIVE for n in (a, b, again)) and agree([a, b, again])
            )
        )
        for view in [*seen_by_a, *seen_by_b]:
            assert view.member("c").is_placed
            assert view.member("c").id == c.me.id
    assert {n.sees(c).address for n in (a, b)} == {again.me.address}
    await until(lambda: again.membership.twin is None)


async def test_who_leaves_has_left_and_did_not_die(world: World) -> None:
    a, b, c = await all_started(world)
    async with watched(a) as seen:
        await world.leave(c)
        await until(lambda: a.sees(c).state in GONE and b.sees(c).state in GONE)
        assert (a.sees(c).state, b.sees(c).state) == (State.LEFT, State.LEFT)
        assert a.sees(c).is_placed
    assert {view.member("c").state for view in seen} == {State.ACTIVE, State.LEFT}


async def test_what_a_peer_announces_is_seen_by_all(world: World) -> None:
    a, b, c = await all_started(world)
    await c.membership.announce(replace(c.me, portion=0.5))
    await until(lambda: a.sees(c).portion == b.sees(c).portion == 0.5)
    await c.membership.announce(replace(c.me, state=State.DRAINING))
    await until(lambda: agree([a, b, c]) and a.sees(c).state is State.DRAINING)
    assert a.sees(c).portion == 1.0
    assert a.sees(c).is_placed
    assert not a.sees(c).is_asked


async def test_changed_wakes_whoever_waits(world: World) -> None:
    a, _, c = await all_started(world)
    epoch = a.view.epoch
    waiting = [asyncio.create_task(a.membership.changed(epoch)) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    await c.membership.announce(replace(c.me, portion=0.25))
    async with asyncio.timeout(WITHIN_S):
        views = await asyncio.gather(*waiting)
    assert all(view.epoch != epoch for view in views)
    # An epoch that is not the present one never waits.
    assert (await a.membership.changed(epoch)).epoch == a.view.epoch


async def test_a_newcomer_that_is_not_ready_is_seen_but_not_placed(open_world: World) -> None:
    a, b = await all_started(open_world, "ab")
    c = await open_world.start("c", state=State.JOINING)
    await until(lambda: agree([a, b, c]) and a.sees(c))
    assert not a.sees(c).is_placed
    await c.membership.announce(replace(c.me, state=State.ACTIVE))
    await until(lambda: agree([a, b, c]) and a.sees(c).is_placed)


async def test_twins_notice_each_other_and_others_keep_one(open_world: World) -> None:
    """A data directory was copied: two runs with one identity and one number."""
    a, b, c = await all_started(open_world)
    twin = await open_world.start("c", id=c.me.id)
    await until(lambda: twin.membership.twin and c.membership.twin)
    assert twin.membership.twin.address == c.me.address
    assert c.membership.twin.address == twin.me.address
    for node in (a, b):
        assert node.sees(c).address == c.me.address
        assert len(node.view.members) == 3
    await open_world.leave(twin)
    await until(lambda: c.membership.twin is None)
    assert a.sees(c).state is State.ACTIVE


@pytest.mark.parametrize("order", ["id-1 id-2", "id-2 id-1"])
async def test_of_two_with_one_name_all_choose_the_same(open_world: World, order: str) -> None:
    a, b = await all_started(open_world, "ab")
    c, other = [await open_world.start("c", id=each) for each in order.split()]
    late = await open_world.start("d")
    nodes = [a, b, c, other, late]
    await until(lambda: agree(nodes) and len(a.view.here) == 4)
    assert {node.view.member("c").id for node in nodes} == {"id-1"}


async def test_another_protocol_is_not_counted(open_world: World) -> None:
    a, b = await all_started(open_world, "ab")
    with structlog.testing.capture_logs() as logs:
        x = await open_world.start("x", protocol=99)
        c = await open_world.start("c")
        await until(lambda: a.sees(c) and b.sees(c) and agree([a, b, c]))
    assert [m.name for m in a.view.members] == ["a", "b", "c"]
    assert [m.name for m in x.view.members] == ["x"]
    told = [line for line in logs if line["event"].startswith("a peer speaks another protocol")]
    assert told or isinstance(open_world, SimulatedWorld)
