"""What only HDFS has: users, modes, and a NameNode that may be away. A real one."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mesh.errors import NotADirectory, NotFound, Refused, Stale, UnderStoreUnavailable
from mesh.metrics import Metrics
from mesh.understore.hdfs import HdfsStore
from mesh.understore.open import open_under_store
from mesh.understore.understore import HdfsSettings, UnderStoreSettings
from tests.contracts.understores import names, whole

pytestmark = pytest.mark.slow


@asynccontextmanager
async def opened(url: str, **more: Any) -> AsyncIterator[HdfsStore]:
    store = open_under_store(UnderStoreSettings(url=url, **{"timeout_s": 10} | more), Metrics())
    assert isinstance(store, HdfsStore)
    yield store
    await store.aclose()


async def test_modes_and_times_are_those_of_hdfs(hdfs: Any) -> None:
    hdfs.write("/modes/f", b"12345")
    hdfs.client().set_permission("/modes/f", 0o640)
    async with opened(f"{hdfs.url}/modes") as store:
        found = await store.stat("f")
        info = hdfs.client().get_file_info("/modes/f")
        assert found.mode == 0o640
        assert found.mtime_ns == info.modification_time * 10**6
        assert found.tag == str(found.mtime_ns)


async def test_the_root_of_hdfs(hdfs: Any) -> None:
    hdfs.write("/at-the-root", b"12345")
    async with opened(hdfs.url) as store:
        assert (await names(store, ""))["at-the-root"] is False
        assert await whole(store, "at-the-root") == b"12345"


async def test_another_user_is_refused(hdfs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    hdfs.write("/closed/f", b"12345")
    hdfs.client().set_permission("/closed", 0o700)
    monkeypatch.setenv("HADOOP_USER_NAME", "somebody")
    async with opened(f"{hdfs.url}/closed") as store:
        for ask in (store.stat("f"), names(store, "")):
            with pytest.raises(Refused):
                await ask


async def test_paths_that_lead_elsewhere_are_not_found(hdfs: Any) -> None:
    hdfs.write("/fence/in/f", b"12345")
    async with opened(f"{hdfs.url}/fence/in") as store:
        for path in ("../in/f", "a//f", "./f", "f/under-a-file"):
            with pytest.raises(NotFound):
                await store.stat(path)
        with pytest.raises(NotADirectory):
            await names(store, "f")


async def test_a_file_that_became_shorter_is_stale_and_no_panic(hdfs: Any) -> None:
    hdfs.write("/shrinks/f", b"x" * 1000)
    async with opened(f"{hdfs.url}/shrinks") as store:
        found = await store.stat("f")
        hdfs.write("/shrinks/f", b"x")
        with pytest.raises(Stale):
            _ = [run async for run in store.read("f", found, 500, 500)]


async def test_a_nameservice_by_its_name(hdfs: Any) -> None:
    hdfs.write("/named/f", b"12345")
    address = hdfs.url.removeprefix("hdfs://")
    options = (
        ("dfs.ha.namenodes.lake", "one"),
        ("dfs.namenode.rpc-address.lake.one", address),
    )
    async with opened("hdfs://lake/named", hdfs=HdfsSettings(options=options)) as store:
        assert await whole(store, "f") == b"12345"


async def test_a_name_node_that_hangs_costs_a_deadline_and_no_more(hdfs: Any) -> None:
    hdfs.write("/hangs/f", b"12345")
    async with opened(f"{hdfs.url}/hangs", timeout_s=1, concurrency=1) as store:
        await store.stat("f")
        os.kill(hdfs.name_node.pid, signal.SIGSTOP)
        try:
            for _ in range(2):
                with pytest.raises(UnderStoreUnavailable):
                    await store.stat("f")
        finally:
            os.kill(hdfs.name_node.pid, signal.SIGCONT)
        assert await whole(store, "f") == b"12345"
