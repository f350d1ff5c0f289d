"""One contract for every under-store: in memory, a directory, and real servers of each kind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from mesh.blocks import MIB
from mesh.errors import NotADirectory, NotFound, Refused, Stale, UnderStoreUnavailable
from mesh.metrics import Metrics
from mesh.testing.servers import free_port
from mesh.understore.open import open_under_store
from mesh.understore.understore import S3Settings, UnderStoreSettings
from tests.contracts import understores
from tests.contracts.understores import Subject, names, s3_settings, whole

SERVERS: dict[str, Callable[[Any], Subject]] = {
    "moto": understores.s3,
    "weed": understores.s3,
    "hdfs": understores.hdfs,
    "azurite": understores.azure,
    "gcs": understores.gcs,
}
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in SERVERS]


@pytest.fixture(params=["memory", "directory", "fsspec-memory", "fsspec-file", *SLOW])
async def subject(request: Any, tmp_path: Path) -> AsyncIterator[Subject]:
    if request.param in SERVERS:
        made = SERVERS[request.param](request.getfixturevalue(request.param))
    else:
        made = understores.without_server(request.param, tmp_path)
    yield made
    await made.store.aclose()


async def test_stat_says_size_and_kind(subject: Subject) -> None:
    subject.write("a/b/file", b"12345")
    stat = await subject.store.stat("a/b/file")
    assert (stat.is_directory, stat.size_bytes) == (False, 5)
    assert stat.tag
    for directory in ("", "a", "a/b"):
        found = await subject.store.stat(directory)
        assert (found.is_directory, found.tag) == (True, "")
    with pytest.raises(NotFound):
        await subject.store.stat("a/nothing")


async def test_what_was_written_is_read(subject: Subject, noise: Random) -> None:
    data = noise.randbytes(5 * MIB + 3)
    subject.write("big", data)
    assert await whole(subject.store, "big") == data
    assert await whole(subject.store, "big", 3, 10) == data[3:13]
    assert await whole(subject.store, "big", 5 * MIB, 3) == data[-3:]
    assert await whole(subject.store, "big", MIB - 1, 2 * MIB) == data[MIB - 1 : 3 * MIB - 1]


async def test_an_empty_file(subject: Subject) -> None:
    subject.write("empty", b"")
    assert (await subject.store.stat("empty")).size_bytes == 0
    assert await whole(subject.store, "empty") == b""


async def test_a_directory_is_listed(subject: Subject) -> None:
    subject.write("d/file", b"1")
    subject.write("d/sub/deep", b"2")
    subject.write("e", b"3")
    assert await names(subject.store, "d") == {"file": False, "sub": True}
    assert await names(subject.store, "") == {"d": True, "e": False}
    with pytest.raises(NotFound):
        await names(subject.store, "nothing")


async def test_a_file_is_no_directory(subject: Subject) -> None:
    subject.write("file", b"1")
    with pytest.raises((NotADirectory, NotFound)):
        await names(subject.store, "file")


@pytest.mark.parametrize("name", ["with space", "ünïcödé", "a+b%20c&d", "'quoted\"", "n" * 200])
async def test_names(subject: Subject, name: str) -> None:
    subject.write(f"dir {name}"[:200] + "/" + name, b"content")
    directory = f"dir {name}"[:200]
    assert await names(subject.store, directory) == {name: False}
    assert await whole(subject.store, f"{directory}/{name}") == b"content"


async def test_more_entries_than_a_page(subject: Subject) -> None:
    subject.fill("many", 1100)
    assert sorted(await names(subject.store, "many")) == [f"{n:05}" for n in range(1100)]


async def test_a_listing_names_the_version_that_a_stat_names(subject: Subject) -> None:
    """Or none: no peer must take two names of one content for two versions."""
    subject.write("d/f", b"12345")
    [[entry]] = [page async for page in subject.store.scan("d")]
    found = await subject.store.stat("d/f")
    listed = entry.attributes
    assert listed.size_bytes == found.size_bytes
    assert (listed.tag, listed.mtime_ns) == (found.tag, found.mtime_ns) or not listed.tag


async def test_another_content_has_another_tag(subject: Subject) -> None:
    subject.write("f", b"one!")
    first = await subject.store.stat("f")
    assert (await subject.store.stat("f")).tag == first.tag
    await asyncio.sleep(0.02)  # the clock of a local file system ticks each 4 ms
    subject.write("f", b"two!")
    second = await subject.store.stat("f")
    assert second.tag != first.tag


async def test_a_changed_file_is_stale_never_a_mix(subject: Subject, noise: Random) -> None:
    subject.write("f", noise.randbytes(3 * MIB))
    old = await subject.store.stat("f")
    await asyncio.sleep(0.02)
    subject.write("f", noise.randbytes(3 * MIB))
    with pytest.raises(Stale):
        _ = [run async for run in subject.store.read("f", old, 0, MIB)]
    # Also for one that had begun to read it.
    now = await subject.store.stat("f")
    assert [run async for run in subject.store.read("f", now, 0, 10)]
    await asyncio.sleep(0.02)
    subject.write("f", b"short")
    with pytest.raises(Stale):
        _ = [run async for run in subject.store.read("f", now, MIB, MIB)]


async def test_a_removed_file_is_stale_or_not_found(subject: Subject) -> None:
    subject.write("f", b"x" * 1000)
    stat = await subject.store.stat("f")
    subject.remove("f")
    with pytest.raises((Stale, NotFound)):
        _ = [run async for run in subject.store.read("f", stat, 0, 1000)]
    with pytest.raises(NotFound):
        await subject.store.stat("f")


async def test_many_at_once(subject: Subject, noise: Random) -> None:
    data = noise.randbytes(4 * MIB)
    subject.write("f", data)
    parts = await asyncio.gather(
        *(whole(subject.store, "f", n * 100_000, 100_000) for n in range(40))
    )
    assert b"".join(parts) == data[: 40 * 100_000]


# A directory alone


async def test_a_link_never_leads_outside(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("secret")
    (root / "inside").write_text("fine")
    (root / "good").symlink_to("inside")
    (root / "bad").symlink_to("../secret")
    (root / "dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    subject = understores.directory(root)
    assert await whole(subject.store, "good") == b"fine"
    for path in ("bad", "../secret", "dangling"):
        with pytest.raises(NotFound):
            await subject.store.stat(path)
    assert sorted(await names(subject.store, "")) == ["good", "inside"]
    await subject.store.aclose()


async def test_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).write_bytes(b"latin")
    subject = understores.directory(tmp_path)
    assert await names(subject.store, "") == {name: False}
    assert await whole(subject.store, name) == b"latin"
    await subject.store.aclose()


async def test_a_root_that_looks_alike_is_outside_too(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "f").write_text("x")
    subject = understores.directory(tmp_path / "root")
    with pytest.raises(NotFound):
        await subject.store.stat("../root2/f")
    await subject.store.aclose()


@pytest.mark.root
async def test_of_a_directory_that_is_away_no_file_is_gone(tmp_path: Path) -> None:
    """A network file system that is not mounted has lost nothing."""
    root = tmp_path / "mount" / "data"
    made = understores.directory(root)
    made.write("d/f", b"1")
    about = await made.store.stat("d/f")
    root.rename(tmp_path / "away")
    store: Any = made.store
    for ask in (
        lambda: store.stat("d/f"),
        lambda: store.stat("d/never"),
        lambda: names(store, "d"),
        lambda: names(store, ""),
        lambda: anext(store.read("d/f", about, 0, 1)),
        lambda: store.upload("d/new"),
        lambda: store.make_directory("new"),
    ):
        with pytest.raises(UnderStoreUnavailable, match="does not exist"):
            await ask()
    assert list((tmp_path / "mount").iterdir()) == []
    (tmp_path / "away").rename(root)
    assert await whole(made.store, "d/f") == b"1"
    with pytest.raises(NotFound):
        await made.store.stat("d/never")
    await made.store.aclose()


async def test_a_file_that_may_not_be_read_is_refused(tmp_path: Path) -> None:
    """Root may read everything, so another user asks."""
    (tmp_path / "f").write_text("x")
    (tmp_path / "f").chmod(0)
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    code = (
        "import asyncio, os, sys\n"
        "from mesh.errors import Refused\n"
        "from mesh.metrics import Metrics\n"
        "from mesh.understore.open import open_under_store\n"
        "from mesh.understore.understore import UnderStoreSettings\n"
        "os.setuid(65534)\n"
        "async def go():\n"
        "    store = open_under_store(UnderStoreSettings(url=sys.argv[1]), Metrics())\n"
        "    try:\n"
        "        await store.stat('closed/f')\n"
        "    except Refused:\n"
        "        print('refused')\n"
        "asyncio.run(go())\n"
    )
    for parent in [tmp_path, *tmp_path.parents]:
        if parent.stat().st_mode & 0o005 != 0o005 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o005)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path.as_uri()], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "refused", done.stderr


async def test_a_deadline_ends_the_wait(tmp_path: Path) -> None:
    subject = understores.directory(tmp_path)
    store = open_under_store(UnderStoreSettings(url=tmp_path.as_uri(), timeout_s=0.05), Metrics())
    release = asyncio.Event()
    loop = asyncio.get_running_loop()

    def hang(path: str) -> None:
        asyncio.run_coroutine_threadsafe(release.wait(), loop).result()

    store._stat = hang  # type: ignore[assignment, method-assign]
    with pytest.raises(UnderStoreUnavailable, match=r"no answer in 0\.05 s"):
        await store.stat("f")
    release.set()
    await store.aclose()
    await subject.store.aclose()


# S3 alone


@pytest.mark.slow
async def test_nobody_listens_at_the_endpoint() -> None:
    settings = UnderStoreSettings(
        url="s3://bucket",
        timeout_s=20,
        s3=S3Settings(
            endpoint=f"http://127.0.0.1:{free_port()}", access_key="a", secret_key="b" * 8
        ),
    )
    store = open_under_store(settings, Metrics())
    with pytest.raises(UnderStoreUnavailable):
        await store.stat("")
    await store.aclose()


@pytest.mark.slow
async def test_no_such_bucket(weed: Any) -> None:
    store = open_under_store(s3_settings(weed, "no-such-bucket"), Metrics())
    with pytest.raises(NotFound):
        await store.stat("")
    await store.aclose()


@pytest.mark.slow
async def test_wrong_credentials_are_refused(weed: Any) -> None:
    weed.make_bucket("guarded")
    settings = s3_settings(weed, "guarded")
    wrong = replace(settings, s3=replace(settings.s3, secret_key="wrong-secret-key"))
    store = open_under_store(wrong, Metrics())
    with pytest.raises(Refused):
        await store.stat("some-key")
    await store.aclose()


def test_a_secret_is_not_in_the_repr() -> None:
    assert "hush" not in repr(S3Settings(secret_key="hush", session_token="hush"))
