"""What only object stores have: keys that are no paths, pages, requests that cost. Real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from mesh.blocks import MIB
from mesh.errors import NotADirectory, NotFound, UnderStoreUnavailable
from mesh.metrics import Metrics
from mesh.testing.request_log import RequestLog
from mesh.understore.open import open_under_store
from mesh.understore.s3 import S3Store
from tests.contracts.understores import boto, names, new_bucket, s3_settings, whole

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=["moto", "weed"])
def server(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def crowded(server: Any) -> str:
    """A bucket with more keys under many/ than a page has."""
    return bucket_of(server, *(f"many/{number:04}" for number in range(1100)))


@pytest.fixture
def log(server: Any) -> Iterator[RequestLog]:
    with RequestLog(server.endpoint) as running:
        yield running


@asynccontextmanager
async def opened(server: Any, bucket: str, prefix: str = "", **more: Any) -> AsyncIterator[S3Store]:
    store = open_under_store(s3_settings(server, bucket, prefix, **more), Metrics())
    assert isinstance(store, S3Store)
    yield store
    await store.aclose()


def through(log: RequestLog, server: Any, bucket: str, **more: Any) -> Any:
    settings = s3_settings(server, bucket, **more)
    settings = replace(settings, s3=replace(settings.s3, endpoint=log.endpoint))
    return open_under_store(settings, Metrics())


def bucket_of(server: Any, *keys: str, body: bytes = b"12345") -> str:
    """Make a bucket with the keys that the server takes: weed refuses some, and mends others."""
    bucket, client = new_bucket(server), boto(server)
    for key in keys:
        with suppress(ClientError):
            client.put_object(Bucket=bucket, Key=key, Body=b"" if key.endswith("/") else body)
    return bucket


async def agree(store: S3Store, folder: str) -> dict[str, bool]:
    """Return a listing, after asking for each of its entries in the two other ways."""
    found = await names(store, folder)
    for name, is_directory in found.items():
        path = f"{folder}/{name}".lstrip("/")
        assert (await store.stat(path)).is_directory == is_directory
        if is_directory:
            await names(store, path)
        else:
            assert await whole(store, path) == b"12345"
            with pytest.raises(NotADirectory):
                await names(store, path)
    return found


async def test_marks_of_directories(server: Any) -> None:
    bucket = bucket_of(server, "marked/", "marked/f", "empty/", "deep/er/")
    async with opened(server, bucket) as store:
        assert await agree(store, "") == {"marked": True, "empty": True, "deep": True}
        assert await agree(store, "marked") == {"f": False}
        assert await agree(store, "empty") == {}
        assert await agree(store, "deep") == {"er": True}


async def test_a_file_and_a_prefix_of_one_name(server: Any) -> None:
    bucket = bucket_of(server, "a", "a-b", "a/b", "a.c", "ab/c")
    async with opened(server, bucket) as store:
        found = await agree(store, "")
        assert found == {"a": False, "a-b": False, "a.c": False, "ab": True}


async def test_keys_that_are_no_paths_are_not_there(server: Any) -> None:
    long = "n" * 256
    odd = ["x//y", "/z", "x/../w", "x/./v", f"x/{long}", "x/ok"]
    bucket = bucket_of(server, *odd)
    async with opened(server, bucket) as store:
        found = await agree(store, "x")
        assert found["ok"] is False
        assert set(found) <= {"ok", "y"}  # weed made "x/y" of "x//y"
        assert "" not in await agree(store, "")
        for path in ("x//y", "/z", "x/../w", "x/./v", f"x/{long}"):
            with pytest.raises(NotFound):
                await store.stat(path)
            with pytest.raises(NotFound):
                await names(store, path)


async def test_a_prefix_without_anything_is_not_found(server: Any) -> None:
    bucket = bucket_of(server, "some/prefix-and-more/f")
    async with opened(server, bucket, "some/prefix") as store:
        for ask in (store.stat(""), names(store, "")):
            with pytest.raises(NotFound):
                await ask
    async with opened(server, new_bucket(server)) as store:
        assert await names(store, "") == {}
        assert (await store.stat("")).is_directory


async def test_a_listing_is_paged_and_needs_no_heads(
    server: Any, log: RequestLog, crowded: str
) -> None:
    store = through(log, server, crowded)
    pages = store.scan("many")
    first = await anext(pages)
    assert [each.method for each in log.requests] == ["HEAD", "GET"]
    rest = [entry for page in [page async for page in pages] for entry in page]
    assert [len(first), len(rest)] == [1000, 100]
    assert [each.method for each in log.requests] == ["HEAD", "GET", "GET"]
    for entry in (first[0], rest[-1]):
        assert await store.stat(f"many/{entry.name}") == entry.attributes
    await store.aclose()


async def test_a_fill_is_one_request_for_each_range(server: Any, log: RequestLog) -> None:
    bucket = bucket_of(server, "f", body=bytes(4 * MIB))
    store = through(log, server, bucket, request_bytes=MIB)
    found = await store.stat("f")
    log.clear()
    runs = [run async for run in store.read("f", found, 0, 4 * MIB)]
    assert b"".join(runs) == bytes(4 * MIB)
    assert [(each.method, each.status) for each in log.requests] == [("GET", 206)] * 4
    assert sum(each.body_bytes for each in log.requests) == 4 * MIB
    await store.aclose()


async def test_slow_down_for_a_while_loses_nothing(server: Any, log: RequestLog) -> None:
    bucket = bucket_of(server, "f", body=bytes(8 * MIB))
    store = through(log, server, bucket, request_bytes=MIB)
    found = await store.stat("f")
    log.fail_next(3)
    runs = [run async for run in store.read("f", found, 0, 8 * MIB)]
    assert b"".join(runs) == bytes(8 * MIB)
    statuses = [each.status for each in log.requests[1:]]
    assert sorted(statuses) == [206] * 8 + [503] * 3
    assert store._window.limit < store._settings.concurrency
    await store.aclose()


async def test_a_listing_that_breaks_in_the_middle_raises(
    server: Any, log: RequestLog, crowded: str
) -> None:
    store = through(log, server, crowded)
    pages = store.scan("many")
    await anext(pages)
    log.fail_status = 500
    with pytest.raises(UnderStoreUnavailable):
        await anext(pages)
    log.fail_status = None
    assert len(await names(store, "many")) == 1100
    await store.aclose()
