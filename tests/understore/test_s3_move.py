"""What S3 takes many requests for: a copy in parts, a directory, and what breaks off half-way."""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import pytest

from mesh.blocks import MIB
from mesh.errors import Exists, Refused, Stale
from mesh.metrics import Metrics
from mesh.testing.scripted_http import Answer, Asked, ScriptedHttp
from mesh.understore.open import open_under_store
from mesh.understore.s3 import S3Store
from mesh.understore.understore import S3Settings, UnderStoreSettings
from tests.contracts.conftest import moto, weed  # noqa: F401
from tests.contracts.understores import boto, names, new_bucket, opened, s3_settings, whole

pytestmark = pytest.mark.slow
MODIFIED = "Sun, 22 Nov 2026 10:00:00 GMT"
IF_E1 = ("if-match", '"e1"')


class Bucket:
    """A new one, as the mesh and as somebody else sees it."""

    def __init__(self, server: Any, **more: Any) -> None:
        self.name = new_bucket(server)
        self.client = boto(server)
        store = opened(s3_settings(server, self.name, "p", **more), None, None).store
        assert isinstance(store, S3Store)
        self.store = store

    def write(self, key: str, data: bytes = b"1", **more: Any) -> None:
        self.client.put_object(Bucket=self.name, Key=f"p/{key}", Body=data, **more)

    def all_keys(self) -> list[str]:
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", ())
        return [each["Key"].removeprefix("p/") for each in found]

    def unfinished(self) -> list[Any]:
        found: list[Any] = self.client.list_multipart_uploads(Bucket=self.name).get("Uploads", [])
        return found


@pytest.fixture(params=["moto", "weed"])
async def bucket(request: Any) -> AsyncIterator[Bucket]:
    made = Bucket(request.getfixturevalue(request.param), concurrency=8)
    yield made
    await made.store.aclose()


def broken(
    monkeypatch: pytest.MonkeyPatch, store: S3Store, name: str, breaks: Callable[[int, str], None]
) -> None:
    """Have *breaks* look at each call of a request, by number and path, before it is made."""
    real, lock, count = getattr(store, name), threading.Lock(), 0

    def call(path: str, *args: Any) -> Any:
        nonlocal count
        with lock:
            count += 1
            number = count
        breaks(number, path)
        return real(path, *args)

    monkeypatch.setattr(store, name, call)


async def test_a_large_file_is_copied_in_parts(
    bucket: Bucket, noise: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.understore.s3_move.COPY_BYTES_MAX", 5 * MIB)
    parts: list[str] = []
    broken(monkeypatch, bucket.store, "copy_part", lambda _, path: parts.append(path))
    data = noise.randbytes(20 * MIB + 1)
    bucket.write("big", data, ContentType="model/gltf", Metadata={"by": "us"})
    about = await bucket.store.move("big", "d/new", over="")
    assert parts == ["big"] * 3
    assert about == await bucket.store.stat("d/new")
    assert await whole(bucket.store, "d/new") == data
    assert bucket.all_keys() == ["d/new"]
    told = bucket.client.head_object(Bucket=bucket.name, Key="p/d/new")
    assert (told["ContentType"], told["Metadata"]) == ("model/gltf", {"by": "us"})
    assert bucket.unfinished() == []


async def test_of_a_copy_in_parts_that_breaks_off_nothing_is_left(
    bucket: Bucket, noise: Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.understore.s3_move.COPY_BYTES_MAX", 5 * MIB)

    def refuse(number: int, _: str) -> None:
        if number == 2:
            raise Refused("no more")

    broken(monkeypatch, bucket.store, "copy_part", refuse)
    data = noise.randbytes(20 * MIB)
    bucket.write("d/big", data)
    bucket.write("d/a", b"a")
    with pytest.raises(Refused, match="no more"):
        await bucket.store.move("d", "e", over=None)
    assert bucket.unfinished() == []
    assert bucket.all_keys() == ["d/a", "d/big"]
    assert await whole(bucket.store, "d/big") == data


async def test_a_directory_of_many_pages_and_of_keys_that_are_no_paths(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mesh.understore.s3.PAGE_ENTRIES", 7)
    keys = sorted([f"d/{n:02}/f" for n in range(20)] + [f"d/{n:02}" for n in range(20, 40)])
    for key in keys:
        bucket.write(key, key.encode())
    bucket.write("d.txt")
    await bucket.store.move("d", "e", over=None)
    assert bucket.all_keys() == ["d.txt", *(f"e{key[1:]}" for key in keys)]
    assert await whole(bucket.store, "e/07/f") == b"d/07/f"
    assert await names(bucket.store, "") == {"d.txt": False, "e": True}


async def test_keys_that_are_no_paths_go_along(moto: Any) -> None:  # noqa: F811
    bucket = Bucket(moto)
    for key in ("d//x", "d/../y", "d/", "d/sub/"):
        bucket.write(key, b"" if key == "d/" else b"1")
    await bucket.store.move("d", "e", over=None)
    assert bucket.all_keys() == ["e/", "e/../y", "e//x", "e/sub/"]
    await bucket.store.aclose()


async def test_what_breaks_off_while_it_copies_is_taken_back(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"d/{n:02}/f" for n in range(20)]
    for key in keys:
        bucket.write(key)

    def refuse(number: int, _: str) -> None:
        if number == 12:
            raise Refused("no more")

    with monkeypatch.context() as breaking:
        broken(breaking, bucket.store, "copy", refuse)
        with pytest.raises(Refused, match="no more"):
            await bucket.store.move("d", "e", over=None)
    assert bucket.all_keys() == keys
    assert await names(bucket.store, "") == {"d": True}
    await bucket.store.move("d", "e", over=None)
    assert bucket.all_keys() == [f"e{key[1:]}" for key in keys]


async def test_what_breaks_off_while_it_removes_has_all_at_the_target(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [f"d/{n:02}" for n in range(20)]
    for key in keys:
        bucket.write(key, key.encode())

    def refuse(number: int, _: str) -> None:
        if number == 12:
            raise Refused("no more")

    broken(monkeypatch, bucket.store, "delete", refuse)
    with pytest.raises(Refused, match="no more"):
        await bucket.store.move("d", "e", over=None)
    moved = [key for key in bucket.all_keys() if key.startswith("e/")]
    assert moved == [f"e{key[1:]}" for key in keys]
    assert 0 < len(bucket.all_keys()) - len(moved) < 20
    with pytest.raises(Exists):
        await bucket.store.move("d", "e", over=None)


async def test_what_comes_or_changes_meanwhile_stays(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n in range(10):
        bucket.write(f"d/{n:02}", b"old")

    monkeypatch.setattr("mesh.understore.s3.PAGE_ENTRIES", 5)

    def change(number: int, _: str) -> None:
        if number == 3:  # two pages are copied, and are about to be removed
            bucket.write("d/00", b"changed")
            bucket.write("d/new", b"came")

    broken(monkeypatch, bucket.store, "objects", change)
    with pytest.raises(Stale, match="2 objects"):
        await bucket.store.move("d", "e", over=None)
    assert await names(bucket.store, "d") == {"00": False, "new": False}
    assert await whole(bucket.store, "d/00") == b"changed"
    assert len(await names(bucket.store, "e")) == 10
    assert await whole(bucket.store, "e/00") == b"old"


async def test_a_file_that_changes_while_it_is_copied_stays(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.write("f", b"old")
    broken(monkeypatch, bucket.store, "copy", lambda *_: bucket.write("f", b"newer"))
    with pytest.raises(Stale):
        await bucket.store.move("f", "g", over="")
    assert await whole(bucket.store, "f") == b"newer"


async def test_copies_are_made_several_at_once_and_leave_turns_to_others(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, under_way, most = threading.Lock(), 0, 0
    for n in range(24):
        bucket.write(f"d/{n:02}")
    real = bucket.store.copy

    def copy(*args: Any) -> str:
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.05)
        try:
            return real(*args)
        finally:
            with lock:
                under_way -= 1

    monkeypatch.setattr(bucket.store, "copy", copy)
    await bucket.store.move("d", "e", over=None)
    assert 1 < most <= 4
    assert len(await names(bucket.store, "e")) == 24


@pytest.mark.parametrize(("over", "condition"), [("", ("if-none-match", "*")), ("e1", IF_E1)])
async def test_a_target_that_came_since_the_look_is_not_replaced(
    over: str, condition: tuple[str, str]
) -> None:
    """Where the server heeds the condition of a copy, as moto and SeaweedFS do not."""
    there = Answer(headers={"Content-Length": "1", "ETag": '"e1"', "Last-Modified": MODIFIED})

    def script(asked: Asked) -> Answer:
        if asked.method == "PUT":
            return Answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
        if asked.method == "HEAD":
            return there if over or asked.path.endswith("/from") else Answer(404)
        return Answer(body=b"<ListBucketResult></ListBucketResult>")

    with ScriptedHttp(script) as server:
        s3 = S3Settings(endpoint=server.endpoint, access_key="us", secret_key="s" * 16)
        store = open_under_store(UnderStoreSettings(url="s3://bucket", s3=s3), Metrics())
        with pytest.raises(Stale):
            await store.move("from", "to", over=over)
        await store.aclose()
    assert "DELETE" not in [asked.method for asked in server.requests]
    [put] = [asked for asked in server.requests if asked.method == "PUT"]
    assert condition in put.headers.items()
    assert put.headers["x-amz-copy-source"] == "bucket/from"
    assert put.headers["x-amz-copy-source-if-match"] == '"e1"'
