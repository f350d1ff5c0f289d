"""One of each kind of under-store, with a way to change it behind the mesh's back."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import fsspec

from mesh.metrics import Metrics
from mesh.testing.memory import MemoryUnderStore
from mesh.understore.open import open_under_store
from mesh.understore.understore import (
    AzureSettings,
    GcsSettings,
    S3Settings,
    UnderStore,
    UnderStoreSettings,
)

_numbers = count()


@dataclass
class Subject:
    """An under-store under test."""

    store: UnderStore
    write: Callable[[str, bytes], Any]
    remove: Callable[[str], Any]
    fill: Callable[[str, int], Any]
    """Make so many entries in a directory."""


def opened(settings: UnderStoreSettings, write: Any, remove: Any, fill: Any = None) -> Subject:
    def one_by_one(path: str, entries: int) -> None:
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(lambda n: write(f"{path}/{n:05}", b"x"), range(entries)))

    return Subject(open_under_store(settings, Metrics()), write, remove, fill or one_by_one)


def memory() -> Subject:
    store = MemoryUnderStore()

    def fill(path: str, entries: int) -> None:
        store.files |= {f"{path}/{n:05}": b"x" for n in range(entries)}

    return Subject(store, store.write, store.remove, fill)


def directory(root: Path, *, protocol: str = "") -> Subject:
    def write(path: str, data: bytes) -> None:
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)

    settings = UnderStoreSettings(url=protocol + root.as_uri(), timeout_s=5)
    return opened(settings, write, lambda path: (root / path).unlink())


def without_server(kind: str, root: Path) -> Subject:
    """Return one of memory, directory, fsspec-memory and fsspec-file."""
    if kind == "memory":
        return memory()
    if kind == "fsspec-memory":
        return fsspec_memory()
    return directory(root, protocol="fsspec+" if kind == "fsspec-file" else "")


def s3_settings(server: Any, bucket: str, prefix: str = "", **more: Any) -> UnderStoreSettings:
    return UnderStoreSettings(
        url=f"s3://{bucket}/{prefix}".rstrip("/"),
        s3=S3Settings(
            endpoint=server.endpoint,
            access_key=server.access_key,
            secret_key=server.secret_key,
        ),
        **{"timeout_s": 10} | more,
    )


def boto(server: Any) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )


def new_bucket(server: Any) -> str:
    bucket = f"bucket-{next(_numbers)}"
    server.make_bucket(bucket)
    return bucket


def s3(server: Any) -> Subject:
    bucket, client = new_bucket(server), boto(server)
    return opened(
        s3_settings(server, bucket, "some/prefix"),
        lambda p, data: client.put_object(Bucket=bucket, Key=f"some/prefix/{p}", Body=data),
        lambda p: client.delete_object(Bucket=bucket, Key=f"some/prefix/{p}"),
    )


def hdfs(server: Any) -> Subject:
    root = f"/root-{next(_numbers)}"
    client = server.client()

    def fill(path: str, entries: int) -> None:
        for number in range(entries):
            client.mkdirs(f"{root}/{path}/{number:05}", create_parent=True)

    client.mkdirs(root)
    return opened(
        UnderStoreSettings(url=f"{server.url}{root}", timeout_s=10),
        lambda path, data: server.write(f"{root}/{path}", data),
        lambda path: client.delete(f"{root}/{path}"),
        fill,
    )


def azure(server: Any) -> Subject:
    container = f"container-{next(_numbers)}"
    settings = UnderStoreSettings(
        url=f"abfs://{container}/some/prefix",
        timeout_s=10,
        azure=AzureSettings(
            account=server.account, account_key=server.account_key, endpoint=server.endpoint
        ),
    )
    return _by_arrow(server.filesystem(), container, settings, None)


def gcs(server: Any) -> Subject:
    bucket = f"bucket-{next(_numbers)}"
    settings = UnderStoreSettings(
        url=f"gs://{bucket}/some/prefix",
        timeout_s=10,
        gcs=GcsSettings(endpoint=server.endpoint, anonymous=True),
    )

    def fill(path: str, entries: int) -> None:
        for number in range(entries):  # one by one: the emulator mixes up those at the same time
            server.put(bucket, f"some/prefix/{path}/{number:05}", b"x")

    return _by_arrow(server.filesystem(), bucket, settings, fill)


def _by_arrow(filesystem: Any, bucket: str, settings: UnderStoreSettings, fill: Any) -> Subject:
    def write(path: str, data: bytes) -> None:
        with filesystem.open_output_stream(f"{bucket}/some/prefix/{path}") as stream:
            stream.write(data)

    def remove(path: str) -> None:
        filesystem.delete_file(f"{bucket}/some/prefix/{path}")

    filesystem.create_dir(bucket)
    return opened(settings, write, remove, fill)


def fsspec_memory() -> Subject:
    root = f"/root-{next(_numbers)}"
    filesystem = fsspec.filesystem("memory")
    filesystem.mkdir(root)
    return opened(
        UnderStoreSettings(url=f"fsspec+memory:/{root}", timeout_s=5),
        lambda path, data: filesystem.pipe_file(f"{root}/{path}", data),
        lambda path: filesystem.rm_file(f"{root}/{path}"),
    )


async def whole(store: UnderStore, path: str, offset: int = 0, size: int | None = None) -> bytes:
    stat = await store.stat(path)
    size = stat.size_bytes - offset if size is None else size
    return b"".join([run async for run in store.read(path, stat, offset, size)])


async def names(store: UnderStore, path: str) -> dict[str, bool]:
    pages = [page async for page in store.scan(path)]
    assert all(len(page) <= 1000 for page in pages)
    found = [entry for page in pages for entry in page]
    assert len({entry.name for entry in found}) == len(found)
    return {entry.name: entry.attributes.is_directory for entry in found}
