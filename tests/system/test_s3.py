"""Mounts over real S3 servers, with a count of what leaves them that is not ours."""

from __future__ import annotations

import hashlib
import random
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from mesh.testing.request_log import RequestLog
from mesh.testing.servers import MotoS3, SeaweedS3
from tests.system.hosts import Hosts, fills, s3

pytestmark = [pytest.mark.fuse, pytest.mark.slow]
MIB = 1024 * 1024
SIZE = 40 * MIB + 12345
BLOCKS = 11


@pytest.fixture(scope="module", params=[SeaweedS3, MotoS3], ids=["weed", "moto"])
def server(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with request.param(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def model() -> bytes:
    return random.Random(5).randbytes(SIZE)


@pytest.fixture
def bucket(server: Any, model: bytes, request: pytest.FixtureRequest) -> tuple[str, Any]:
    """A bucket with a model and some small files under a prefix."""
    name = "b" + hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    server.make_bucket(name)
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )
    client.put_object(Bucket=name, Key="models/big/weights", Body=model)
    for n in range(20):
        client.put_object(Bucket=name, Key=f"models/small/{n:02}", Body=f"{n}".encode() * n)
    return name, client


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_each_block_leaves_the_server_once(
    tmp_path: Path, server: Any, bucket: tuple[str, Any], model: bytes
) -> None:
    """Nine readers on three hosts; counted by mesh, and by who stands before the server."""
    with RequestLog(server.endpoint) as log:
        mounts = s3(f"s3://{bucket[0]}/models", server, log.endpoint)
        with Hosts(tmp_path, ["one", "two", "three"], mounts) as hosts:
            hosts.start()
            views = [hosts.mount(name) for name in hosts.names]
            readers = [
                subprocess.Popen(
                    ["sha256sum", str(view / "big" / "weights")], stdout=subprocess.PIPE
                )
                for view in views
                for _ in range(3)
            ]
            answers = {r.communicate(timeout=100)[0].split()[0].decode() for r in readers}
            assert answers == {sha256(model)}
            assert fills(hosts.peers("one")) == (BLOCKS, SIZE)
        gets = [
            request
            for request in log.requests
            if request.method == "GET" and "weights" in request.path
        ]
        ranges = Counter((get.range_start, get.range_stop) for get in gets)
        assert set(ranges.values()) == {1}
        assert len(ranges) == BLOCKS
        assert sum(get.body_bytes for get in gets) == SIZE


def test_a_bucket_looks_like_a_tree(tmp_path: Path, server: Any, bucket: tuple[str, Any]) -> None:
    mounts = s3(f"s3://{bucket[0]}", server, server.endpoint, max_age="0")
    with Hosts(tmp_path, ["one"], mounts) as hosts:
        hosts.start()
        view = hosts.mount("one")
        assert [p.name for p in view.iterdir()] == ["models"]
        small = view / "models" / "small"
        assert sorted(p.name for p in small.iterdir()) == [f"{n:02}" for n in range(20)]
        for n in range(20):
            assert (small / f"{n:02}").read_bytes() == f"{n}".encode() * n
        with pytest.raises(FileNotFoundError):
            (small / "nothing").read_bytes()
        bucket[1].put_object(Bucket=bucket[0], Key="models/small/05", Body=b"another content")
        assert (small / "05").read_bytes() == b"another content"
        bucket[1].delete_object(Bucket=bucket[0], Key="models/small/05")
        with pytest.raises(FileNotFoundError):
            (small / "05").read_bytes()


def test_an_object_overwritten_while_it_is_read(
    tmp_path: Path, server: Any, bucket: tuple[str, Any], model: bytes
) -> None:
    """The open handle reads the old bytes as far as they are cached, or fails with ESTALE."""
    mounts = s3(f"s3://{bucket[0]}", server, server.endpoint, max_age="0")
    with Hosts(tmp_path, ["one"], mounts) as hosts:
        hosts.start()
        view = hosts.mount("one")
        path = view / "models" / "big" / "weights"
        new = model[::-1]
        with path.open("rb", buffering=0) as handle:
            assert handle.read(MIB) == model[:MIB]
            bucket[1].put_object(Bucket=bucket[0], Key="models/big/weights", Body=new)
            got = MIB
            try:
                while part := handle.read(MIB):
                    assert part == model[got : got + len(part)], "a mix of two versions"
                    got += len(part)
            except OSError as error:
                assert error.errno == 116  # noqa: PT017
            else:
                assert got == SIZE
        assert sha256(path.read_bytes()) == sha256(new)


def test_a_server_that_fails_now_and_then(
    tmp_path: Path, server: Any, bucket: tuple[str, Any], model: bytes
) -> None:
    with RequestLog(server.endpoint) as log:
        mounts = s3(f"s3://{bucket[0]}/models", server, log.endpoint)
        with Hosts(tmp_path, ["one"], mounts) as hosts:
            hosts.start()
            view = hosts.mount("one")
            assert (view / "small" / "03").read_bytes() == b"333"
            log.fail_next(2, status=503)
            assert sha256((view / "big" / "weights").read_bytes()) == sha256(model)
            assert sum(request.status == 503 for request in log.requests) == 2
