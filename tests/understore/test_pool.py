"""Threads that hang, libraries that panic or are missing, and files that are huge."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from mesh.blocks import GIB, Attributes, DirectoryEntry
from mesh.errors import NotFound, UnderStoreUnavailable, Unusable
from mesh.metrics import Metrics
from mesh.understore.open import open_under_store
from mesh.understore.pool import CheckedStore, SlowDown, split_url
from mesh.understore.understore import UnderStoreSettings

FOUND = Attributes(is_directory=False, size_bytes=1, mtime_ns=0, tag="t")


class Panic(BaseException):
    """As hdfs-native's come out of Rust."""


class Odd(CheckedStore):
    """Does what its paths say."""

    def __init__(self, *, timeout_s: float = 20.0) -> None:
        settings = UnderStoreSettings(url="odd://x", concurrency=2, timeout_s=timeout_s)
        super().__init__(settings, Metrics())
        self.go_on = threading.Event()
        self.failures: list[Exception] = []

    def _make(self) -> Any:
        return None

    def _stat(self, path: str) -> Attributes:
        if path == "hang":
            self.go_on.wait(60)
        if path == "panic":
            raise Panic("read past the end")
        if self.failures:
            raise self.failures.pop()
        return FOUND

    def _pages(self, path: str) -> Iterator[list[DirectoryEntry]]:
        yield [DirectoryEntry("a", FOUND)]
        raise OSError("the connection broke")

    def _read_range(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> bytes:
        return b"short"[:1]


@pytest.fixture
async def odd() -> AsyncIterator[Odd]:
    store = Odd()
    yield store
    store.go_on.set()
    await store.aclose()


async def test_calls_that_hang_cost_no_turn() -> None:
    """A NameNode is away for a minute, and each call to it keeps a thread as long."""
    store = Odd(timeout_s=0.05)
    for _ in range(3):
        with pytest.raises(UnderStoreUnavailable, match=r"no answer in 0\.05 s"):
            await store.stat("hang")
    assert await store.stat("f") == FOUND
    store.go_on.set()
    await store.aclose()


async def test_a_panic_ends_the_call_and_not_the_loop(odd: Odd) -> None:
    with pytest.raises(UnderStoreUnavailable, match="read past the end"):
        await odd.stat("panic")
    assert await odd.stat("f") == FOUND


async def test_what_fails_is_tried_three_times(odd: Odd) -> None:
    odd.failures = [OSError("two"), OSError("one")]
    assert await odd.stat("f") == FOUND
    odd.failures = [OSError("four"), OSError("three"), OSError("two"), OSError("one")]
    with pytest.raises(UnderStoreUnavailable, match="three"):
        await odd.stat("f")
    assert [str(error) for error in odd.failures] == ["four"]


async def test_an_answer_is_not_asked_for_again(odd: Odd) -> None:
    odd.failures = [OSError("not asked for"), FileNotFoundError("gone")]
    with pytest.raises(NotFound):
        await odd.stat("f")
    assert len(odd.failures) == 1


async def test_slow_down_is_worth_more_tries_and_narrows_the_window(odd: Odd) -> None:
    odd.failures = [SlowDown("less")] * 4
    assert await odd.stat("f") == FOUND
    assert odd.failures == []


async def test_a_listing_that_breaks_raises_and_never_ends(odd: Odd) -> None:
    pages = odd.scan("")
    assert [entry.name for entry in await anext(pages)] == ["a"]
    with pytest.raises(UnderStoreUnavailable, match="the connection broke"):
        await anext(pages)


async def test_a_read_that_ends_too_early_is_no_content(odd: Odd) -> None:
    with pytest.raises(UnderStoreUnavailable, match="ended too early"):
        _ = [run async for run in odd.read("f", FOUND, 0, 5)]


async def test_a_file_of_101_gib(tmp_path: Path) -> None:
    size_bytes, offset = 101 * GIB, 100 * GIB + 5
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(size_bytes)
        os.pwrite(file.fileno(), b"far out", offset)
    store = open_under_store(UnderStoreSettings(url=tmp_path.as_uri()), Metrics())
    found = await store.stat("huge")
    assert found.size_bytes == size_bytes
    assert b"".join([run async for run in store.read("huge", found, offset, 7)]) == b"far out"
    last = [run async for run in store.read("huge", found, size_bytes - 1, 1)]
    assert last == [b"\0"]
    await store.aclose()


@pytest.mark.parametrize(
    ("url", "module", "line"),
    [
        (
            "hdfs://host/a",
            "hdfs_native",
            r"hdfs-native is not .*; pip install 'mesh-cache\[hdfs\]'",
        ),
        ("fsspec+memory://", "fsspec", r"fsspec is not .*; pip install 'mesh-cache\[fsspec\]'"),
        ("fsspec+sftp://host/a", "paramiko", r"what fsspec needs for sftp is not installed"),
    ],
)
def test_a_library_that_is_missing_is_one_line(
    monkeypatch: pytest.MonkeyPatch, url: str, module: str, line: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(Unusable, match=f"^{line}") as caught:
        open_under_store(UnderStoreSettings(url=url), Metrics())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("s3://bucket", ("s3", "bucket", "")),
        ("s3://bucket/a%20b/c#d?e", ("s3", "bucket", "a b/c#d?e")),
        ("hdfs://host:8020/", ("hdfs", "host:8020", "")),
        ("file:///a/b", ("file", "", "a/b")),
    ],
)
def test_a_url_is_taken_apart(url: str, parts: tuple[str, str, str]) -> None:
    assert split_url(url) == parts
