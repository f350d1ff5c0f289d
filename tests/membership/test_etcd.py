"""etcd alone: what happens when etcd itself is away, slow, or has lost what it had."""

from __future__ import annotations

import asyncio
import secrets
from base64 import b64encode
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import structlog

from mesh.errors import Unusable
from mesh.membership.etcd import Answers, Etcd, EtcdSettings
from mesh.membership.etcd_api import EtcdAccess, EtcdApi, Forgotten, Moment
from mesh.membership.view import Member, State
from mesh.testing.etcd import EtcdServer, etcd_program
from mesh.testing.servers import free_port
from tests.membership.worlds import TTL_S, EtcdWorld, Node, agree, all_started, until, watched

needs_etcd = pytest.mark.skipif(
    etcd_program() is None, reason="etcd is not installed: apt-get install etcd-server"
)
A = Member("a", "h:1", id="id-a")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with EtcdServer(tmp_path_factory.mktemp("etcd")) as running:
        yield running


@pytest.fixture
async def world(server: EtcdServer) -> AsyncIterator[EtcdWorld]:
    made = EtcdWorld(server.endpoint, f"c{secrets.token_hex(4)}")
    yield made
    await made.end()


def etcd_at(*endpoints: str, **access: Any) -> Etcd:
    told = EtcdAccess(endpoints=endpoints, **access)
    return Etcd(EtcdSettings(cluster="c", access=told, ttl_s=TTL_S), A)


async def post(server: EtcdServer, path: str, request: dict[str, Any]) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{server.endpoint}/v3/{path}", json=request) as response,
    ):
        assert response.status == 200, await response.text()
        found: dict[str, Any] = await response.json()
        return found


# Which deaths are believed

TTL = 4.0
BELIEVED = {
    "asked each third of a lease": ([1.3, 2.6, 3.9], 4.0, True),
    "one answer was lost": ([1.3, 3.2], 4.0, True),
    "no answer for half a lease": ([1.3], 3.4, False),
    "it is back just now": ([1.3, 8.0], 8.0, False),
    "it is back, and not all had the time to enter themselves": ([1.3, 8, 9, 10, 11], 12.9, False),
    "it has been back for long enough": ([1.3, 8, 9, 10, 11, 12, 13], 13.0, True),
    "it came back and went again": ([1.3, 8, 9, 13], 14.0, False),
}


@pytest.mark.parametrize(("answers_s", "now_s", "is_believed"), BELIEVED.values(), ids=BELIEVED)
def test_whether_a_lease_that_ended_is_a_death(
    answers_s: list[float], now_s: float, is_believed: bool
) -> None:
    answers = Answers(TTL, 0.0)
    for at_s in answers_s:
        answers.answered(at_s)
    assert answers.is_believed(now_s) is is_believed


# Bad input


async def test_nobody_listens() -> None:
    etcd = etcd_at(f"127.0.0.1:{free_port()}")
    with pytest.raises(Unusable, match=r"cluster\.etcd: 127\.0\.0\.1:\d+ can't be used: .*; start"):
        await etcd.start()


async def test_somebody_else_listens() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        writer.close()

    other = await asyncio.start_server(hang, "127.0.0.1", 0)
    port = other.sockets[0].getsockname()[1]
    with pytest.raises(Unusable, match="its answer is not what etcd says"):
        await etcd_at(f"127.0.0.1:{port}").start()
    other.close()


def test_tls_files_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unusable, match=r"cluster\.etcd: its PEM files can't be used"):
        etcd_at("h:1", ca=tmp_path / "none.pem")


def test_a_password_is_not_in_the_repr() -> None:
    assert "hush" not in repr(EtcdAccess(endpoints=["h:1"], user="u", password="hush"))


@needs_etcd
async def test_one_endpoint_of_two_is_enough(server: EtcdServer) -> None:
    etcd = etcd_at(f"127.0.0.1:{free_port()}", server.endpoint)
    await etcd.start()
    assert [member.name for member in etcd.view.here] == [A.name]
    await etcd.leave()
    await etcd.aclose()


@needs_etcd
@pytest.mark.slow
async def test_a_password_that_is_wrong_and_one_that_is_right(tmp_path: Path) -> None:
    with EtcdServer(tmp_path / "etcd") as server:
        await post(server, "auth/user/add", {"name": "root", "password": "right"})
        await post(server, "auth/role/add", {"name": "root"})
        await post(server, "auth/user/grant", {"user": "root", "role": "root"})
        await post(server, "auth/enable", {})
        for access in ({}, {"user": "root", "password": "wrong"}):
            with pytest.raises(Unusable, match=r"cluster\.etcd: .* does not let us in"):
                await etcd_at(server.endpoint, **access).start()
        etcd = etcd_at(server.endpoint, user="root", password="right")
        await etcd.start()
        # A token that has aged is replaced by another one.
        etcd._api._token = "aged"
        await etcd.announce(replace(A, portion=0.5))
        await until(lambda: etcd._is_said)
        await etcd.aclose()


# etcd works


@needs_etcd
async def test_another_cluster_is_not_seen(server: EtcdServer, world: EtcdWorld) -> None:
    theirs = EtcdWorld(server.endpoint, world.cluster + "2")
    a, b = await all_started(world, "ab")
    x = await theirs.start("x")
    c = await world.start("c")
    await until(lambda: agree([a, b, c]) and a.sees(c))
    assert not a.sees(x)
    await theirs.end()


@needs_etcd
async def test_keys_that_make_no_sense_are_not_counted(
    server: EtcdServer, world: EtcdWorld
) -> None:
    a, b = await all_started(world, "ab")
    bad = {
        "noise": "noise",
        "id-x.1.aa": "{}",
        "id-x.1.ab": '{"protocol":1,"member":{"name":1}}',
        "id-x.1.ac": '{"protocol":1,"member":{"name":"x","address":"h:1","weight":9}}',
        "of.1.another": '{"protocol":1,"member":{"name":"x","address":"h:1","id":"id-x"}}',
    }
    with structlog.testing.capture_logs() as logs:
        for tag, value in bad.items():
            key = b64encode(f"/mesh/{world.cluster}/peers/{tag}".encode()).decode()
            value = b64encode(value.encode()).decode()
            await post(server, "kv/put", {"key": key, "value": value})
        c = await world.start("c")
        await until(lambda: agree([a, b, c]) and a.sees(c))
    assert len(a.view.members) == 3
    assert "a key in etcd makes no sense" in [line["event"] for line in logs]


@needs_etcd
@pytest.mark.slow
async def test_a_peer_that_hung_is_dead_and_comes_back(world: EtcdWorld) -> None:
    """Its lease ended, and etcd was there all the time."""
    a, b = await all_started(world, "ab")
    lease, _, _ = b.membership._tasks
    lease.cancel()
    await until(lambda: a.sees(b).state is State.DEAD)
    b.membership._tasks[0] = asyncio.create_task(b.membership._keep())
    await until(lambda: a.sees(b).state is State.ACTIVE and agree([a, b]))
    assert a.sees(b).run == 1


@needs_etcd
@pytest.mark.slow
async def test_a_key_that_somebody_deleted_is_written_again(
    server: EtcdServer, world: EtcdWorld
) -> None:
    a, b = await all_started(world, "ab")
    tag = b.membership._watched.tag
    key = b64encode(f"/mesh/{world.cluster}/peers/{tag}".encode()).decode()
    await post(server, "kv/deleterange", {"key": key})
    await until(lambda: a.sees(b).state is State.DEAD)
    await until(lambda: a.sees(b).state is State.ACTIVE and agree([a, b]))
    assert [member.state for member in a.membership.view.here] == [State.ACTIVE] * 2


@needs_etcd
async def test_changes_that_etcd_has_forgotten(server: EtcdServer) -> None:
    api = EtcdApi(EtcdAccess(endpoints=[server.endpoint]), timeout_s=2.0)
    lease = await api.grant(5)
    first, _ = await api.read("/x/")
    for number in range(3):
        assert await api.put("/x/a", b"%d" % number, lease)
    now, values = await api.read("/x/")
    assert values == {"/x/a": b"2"}
    changes = api.watch("/x/", first)
    seen: list[bytes | None] = []
    while len(seen) < 3:
        seen += [change.value for change in await anext(changes)]
    assert seen == [b"0", b"1", b"2"]
    await changes.aclose()
    await post(server, "kv/compaction", {"revision": str(now.revision)})
    ahead = Moment(now.cluster_id, now.revision + 100)
    other = Moment(now.cluster_id + 1, now.revision)
    for since in (first, ahead, other):
        with pytest.raises(Forgotten):
            async with aclosing(api.watch("/x/", since)) as watch:
                _ = [changes async for changes in watch]
    await api.revoke(lease)
    assert not await api.keep(lease)
    assert not await api.put("/x/a", b"", lease)
    await api.aclose()


# etcd is away


async def seen_alive(stack: AsyncExitStack, nodes: list[Node]) -> list[Any]:
    return [await stack.enter_async_context(watched(node)) for node in nodes]


def nobody_was_gone(all_views: list[Any]) -> bool:
    return all(member.is_here for views in all_views for view in views for member in view.members)


@needs_etcd
@pytest.mark.slow
@pytest.mark.parametrize("how", ["with its data", "without its data", "frozen"])
async def test_nobody_dies_when_etcd_does(tmp_path: Path, how: str) -> None:
    async with AsyncExitStack() as stack:
        server = stack.enter_context(EtcdServer(tmp_path / "etcd"))
        world = EtcdWorld(server.endpoint, "c")
        stack.push_async_callback(world.end)
        a, b, c = nodes = await all_started(world)
        views = await seen_alive(stack, nodes)
        epoch = a.view.epoch
        tags = {node.membership._watched.tag for node in nodes}
        with structlog.testing.capture_logs() as logs:
            server.freeze() if how == "frozen" else server.stop()
            await until(lambda: sum("etcd is away" in x["event"] for x in logs) == 3)
            await asyncio.sleep(2 * TTL_S)  # all leases end, if etcd counts the time
            assert {node.view.epoch for node in nodes} == {epoch}
            await c.membership.announce(replace(c.me, portion=0.5))
            if how == "frozen":
                server.thaw()
            else:
                if how == "without its data":
                    server.lose_data()
                stack.enter_context(server)
            await until(lambda: sum(x["event"] == "etcd is back" for x in logs) == 3)
        await until(lambda: a.sees(c).portion == b.sees(c).portion == 0.5)
        # What was said meanwhile is known, and a death is one again.
        await until(lambda: agree(nodes))
        await asyncio.sleep(TTL_S + 1.5)  # until what etcd says is believed again
        assert nobody_was_gone(views)
        assert tags == {node.membership._watched.tag for node in nodes}
        await world.kill(c)
        await until(lambda: a.sees(c).state is State.DEAD and b.sees(c).state is State.DEAD)
