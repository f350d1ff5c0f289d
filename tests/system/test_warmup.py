"""Warm-ups by real daemons: each byte once, true ends, and who dies on the way."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest

from mesh.testing.request_log import RequestLog
from mesh.testing.servers import MotoS3
from tests.system.hosts import MESH, Hosts, directory, fills, mesh, s3, until

MIB = 1024 * 1024
NAMES = ["one", "two", "three"]
SMALL = 300
BIG_BYTES = 24 * MIB + 12345
ALL_BYTES = BIG_BYTES + sum(1000 + n for n in range(SMALL))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    (root / "models").mkdir(parents=True)
    (root / "models" / "big").write_bytes(random.Random(8).randbytes(BIG_BYTES))
    for n in range(SMALL):
        folder = root / "small" / f"{n % 7}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{n:03}").write_bytes(random.Random(n).randbytes(1000 + n))
    return root


@pytest.fixture
def hosts(tmp_path: Path, data: Path) -> Iterator[Hosts]:
    with Hosts(tmp_path, NAMES, directory(data, block='"1MiB"', max_age='"0s"')) as running:
        running.start()
        yield running


def warmup(hosts: Hosts, *words: str, by: str = "one") -> dict[str, Any]:
    """Return what `mesh warmup --json` says, and its exit code."""
    done = mesh("warmup", "--json", *words, "-c", str(hosts.config(by)))
    assert done.stdout, done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said | {"exit_code": done.returncode}


def background(hosts: Hosts, *words: str, by: str = "one") -> str:
    done = mesh("warmup", "-b", *words, "-c", str(hosts.config(by)))
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def waited(hosts: Hosts, number: str, *, by: str = "one") -> tuple[dict[str, Any], int]:
    done = mesh("job", "wait", number, "--json", "-c", str(hosts.config(by)))
    assert done.stdout, done.stderr
    return json.loads(done.stdout), done.returncode


def job(hosts: Hosts, number: str, *, by: str = "one") -> dict[str, Any]:
    done = mesh("job", "show", number, "--json", "-c", str(hosts.config(by)))
    said: dict[str, Any] = json.loads(done.stdout)
    return said


@pytest.mark.slow
def test_what_is_brought_checked_and_evicted_is_what_the_peers_say(hosts: Hosts) -> None:
    assert warmup(hosts, "--check", "/")["exit_code"] == 1
    said = warmup(hosts, "/")
    assert (said["exit_code"], said["state"], said["failures"]) == (0, "done", [])
    tally = said["tally"]
    assert tally["kept_files"] == tally["files"] == SMALL + 1
    assert tally["kept_bytes"] == tally["size_bytes"] == ALL_BYTES
    assert fills(hosts.peers("one")) == (SMALL + 25, ALL_BYTES)
    assert warmup(hosts, "--check", "/", by="two")["exit_code"] == 0
    assert warmup(hosts, "--evict", "/small")["tally"]["dropped_blocks"] == SMALL
    said = warmup(hosts, "--check", "/", by="two")
    assert said["exit_code"] == 1
    assert (said["tally"]["here_blocks"], said["tally"]["here_bytes"]) == (25, BIG_BYTES)


@pytest.mark.fuse
@pytest.mark.slow
def test_a_path_below_a_mount_is_warmed_and_read(hosts: Hosts, data: Path) -> None:
    view = hosts.mount("two")
    said = warmup(hosts, str(view / "models"), by="two")
    assert (said["exit_code"], said["paths"]) == (0, ["/models"])
    read = subprocess.run(
        ["sha256sum", str(view / "models" / "big")], capture_output=True, timeout=60, check=True
    )
    expected = hashlib.sha256((data / "models" / "big").read_bytes()).hexdigest()
    assert read.stdout.split()[0].decode() == expected
    assert fills(hosts.peers("one")) == (25, BIG_BYTES)


@pytest.mark.slow
def test_a_file_that_is_gone_is_named(hosts: Hosts, data: Path) -> None:
    """Removed while the job is held back on the way to it."""
    number = background(hosts, "/small", "/models", "--bandwidth", "3MiB")
    until(lambda: job(hosts, number)["tally"]["is_planned"], "the plan is made")
    (data / "models" / "big").unlink()
    said, exit_code = waited(hosts, number)
    assert (exit_code, said["state"], said["tally"]["failed"]) == (1, "failed", 1)
    assert said["failures"] == [{"path": "/models/big", "reason": "it was removed"}]
    assert said["tally"]["kept_files"] == SMALL


@pytest.mark.slow
def test_ctrl_c_cancels_and_says_so(hosts: Hosts) -> None:
    child = subprocess.Popen(
        [*MESH, "warmup", "/", "--bandwidth", "64KiB", "-c", str(hosts.config("one"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline().startswith("job 1: 301 files")
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert said.startswith("mesh: job 1 was cancelled after ")
    assert said.count("\n") == 1
    assert job(hosts, "1")["state"] == "cancelled"


@pytest.mark.slow
def test_a_peer_killed_in_the_middle_costs_nothing_but_time(hosts: Hosts) -> None:
    number = background(hosts, "/", "--bandwidth", "4MiB")
    until(lambda: job(hosts, number)["tally"]["seen_to_bytes"] > 4 * MIB, "some of it is here")
    hosts.kill("three")
    said, exit_code = waited(hosts, number)
    assert (exit_code, said["state"], said["failures"]) == (0, "done", [])
    assert said["tally"]["kept_bytes"] == ALL_BYTES
    assert warmup(hosts, "--check", "/", by="two")["exit_code"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("how", ["clean", "killed"])
def test_the_coordinator_goes_on_after_its_restart(hosts: Hosts, how: str) -> None:
    number = background(hosts, "/", "--bandwidth", "2MiB")
    until(lambda: job(hosts, number)["tally"]["seen_to_bytes"] > 3 * MIB, "some of it is here")
    follower = subprocess.Popen(
        [*MESH, "job", "wait", number, "-c", str(hosts.config("one"))],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with follower:
        assert follower.stdout is not None
        assert follower.stdout.readline().startswith(f"job {number}: 301 files")
        if how == "clean":
            assert hosts.stop("one") == 0
        else:
            hosts.kill("one")
        hosts.start("one")
        out, told = follower.communicate(timeout=60)
    assert follower.returncode == 0, told
    assert "in the mesh: 301 of 301 files" in out
    assert "mesh: this host's peer does not answer; waiting for it\n" in told
    said = job(hosts, number)
    assert (said["state"], said["resumed"]) == ("done", 1)
    assert said["tally"]["kept_bytes"] == ALL_BYTES
    assert said["tally"]["here_bytes"] >= 2 * MIB


@pytest.mark.slow
def test_pinned_files_outlive_pressure_and_restarts(tmp_path: Path, data: Path) -> None:
    mounts = directory(data, block='"1MiB"')
    with Hosts(tmp_path, NAMES, mounts, store='capacity = "64MiB"') as hosts:
        hosts.start()
        for n in range(16):
            (data / f"more-{n}").write_bytes(os.urandom(16 * MIB))
        config = str(hosts.config("two"))
        assert mesh("pin", "/models", "-c", config).returncode == 0
        assert warmup(hosts, "/models")["exit_code"] == 0
        said = warmup(hosts, *(f"/more-{n}" for n in range(16)))
        assert said["exit_code"] == 1  # 256 MiB into 192 MiB, and nobody calls that done
        assert said["tally"]["kept_bytes"] < said["tally"]["size_bytes"]
        assert sum(peer["evicted_bytes"] for peer in hosts.peers("one").values()) > 0
        assert warmup(hosts, "--check", "/models")["exit_code"] == 0
        for name in NAMES:
            assert hosts.stop(name) == 0
        hosts.start()
        listed = mesh("pin", "--json", "-c", config)
        assert [pin["path"] for pin in json.loads(listed.stdout)] == ["/models"]
        warmup(hosts, *(f"/more-{n}" for n in range(16)))
        assert warmup(hosts, "--check", "/models")["exit_code"] == 0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[MotoS3]:
    with MotoS3(tmp_path / "s3") as running:
        running.make_bucket("models")
        yield running


def client_of(server: MotoS3) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
    )


@pytest.mark.slow
def test_each_byte_leaves_an_s3_server_once_while_one_object_fails(
    tmp_path: Path, server: MotoS3
) -> None:
    """Counted by who stands before the server, with all peers wanting all of it."""
    big = random.Random(9).randbytes(BIG_BYTES)
    client = client_of(server)
    client.put_object(Bucket="models", Key="big", Body=big)
    for n in range(40):
        client.put_object(Bucket="models", Key=f"small/{n:02}", Body=bytes([n]) * (n + 1))
    with RequestLog(server.endpoint) as log:
        mounts = s3("s3://models", server, log.endpoint)
        with Hosts(tmp_path, NAMES, mounts) as hosts:
            hosts.start()
            said = warmup(hosts, "/", "--on", "all")
            assert (said["exit_code"], said["failures"]) == (0, [])
            gets = [r for r in log.requests if r.method == "GET" and r.range_start is not None]
            places = Counter((r.path, r.range_start) for r in gets)
            assert set(places.values()) == {1}
            assert sum(r.body_bytes for r in gets) == BIG_BYTES + sum(range(1, 41))
            assert said["tally"]["under_store_bytes"] == BIG_BYTES + sum(range(1, 41))
            peers = hosts.peers("one")
            assert len({peer["block_count"] for peer in peers.values()}) == 1
            log.clear()
            client.delete_object(Bucket="models", Key="small/07")
            warmup(hosts, "--evict", "/")
            said = warmup(hosts, "/small")
            assert (said["exit_code"], said["failures"]) == (
                1,
                [{"path": "/small/07", "reason": "it was removed"}],
            )
