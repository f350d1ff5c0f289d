"""A real mount shows the tree of the under-store, and only shows it."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.fuse.mount import device_of
from tests.system.hosts import Hosts, directory, mesh, run_python

pytestmark = pytest.mark.fuse
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory, tree: Path) -> Iterator[Hosts]:
    root = tmp_path_factory.mktemp("hosts")
    with Hosts(
        root, ["one", "two", "three"], directory(tree, block='"1MiB"', read_only="true")
    ) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def view(hosts: Hosts) -> Path:
    return hosts.mount("one")


def test_every_file_is_what_it_is_in_the_under_store(tree: Path, view: Path) -> None:
    expected = {p.relative_to(tree): p for p in tree.rglob("*")}
    found = {p.relative_to(view): p for p in view.rglob("*")}
    assert found.keys() == expected.keys()
    for name, path in expected.items():
        assert found[name].is_dir() == path.is_dir()
        if path.is_file():
            assert found[name].read_bytes() == path.read_bytes(), name
            about, here = path.stat(), found[name].stat()
            assert (here.st_size, here.st_mtime_ns) == (about.st_size, about.st_mtime_ns)
            assert here.st_mode == about.st_mode


def test_random_backward_and_parallel_reads(tree: Path, view: Path) -> None:
    name = f"size-{3 * MIB + 17}"
    data = (tree / name).read_bytes()
    noise = random.Random(2)
    places = [(noise.randrange(len(data)), noise.randrange(1, 300_000)) for _ in range(200)]
    places += [(offset, 70_000) for offset in range(len(data), 0, -70_000)]
    places += [(len(data) - 1, 100), (len(data), 10), (len(data) + 5, 10)]
    fd = os.open(view / name, os.O_RDONLY)

    def read(place: tuple[int, int]) -> bool:
        offset, size = place
        return os.pread(fd, size, offset) == data[offset : offset + size]

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(read, places))
    os.close(fd)


def test_mmap(tree: Path, view: Path) -> None:
    name = f"size-{3 * MIB + 17}"
    data = (tree / name).read_bytes()
    code = (
        "import mmap, sys, hashlib\n"
        "with open(sys.argv[1], 'rb') as f, mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as m:\n"
        "    print(hashlib.sha256(m).hexdigest())\n"
    )
    assert run_python(code, str(view / name)).strip() == hashlib.sha256(data).hexdigest()


def test_what_is_not_there(view: Path) -> None:
    with pytest.raises(FileNotFoundError):
        (view / "nothing").stat()
    with pytest.raises(NotADirectoryError):
        (view / "size-1" / "x").stat()
    with pytest.raises(OSError, match="File name too long"):
        (view / ("x" * 256)).stat()


@pytest.mark.parametrize(
    "change",
    [
        lambda view: (view / "new").write_bytes(b"x"),
        lambda view: (view / "size-1").write_bytes(b"x"),
        lambda view: (view / "size-1").unlink(),
        lambda view: (view / "new").mkdir(),
        lambda view: (view / "empty-directory").rmdir(),
        lambda view: (view / "size-1").rename(view / "other"),
        lambda view: (view / "size-1").chmod(0o600),
        lambda view: os.truncate(view / "size-1", 0),
        lambda view: (view / "link").symlink_to("size-1"),
        lambda view: os.setxattr(view / "size-1", "user.x", b"y"),
    ],
)
def test_a_write_is_told_that_this_is_read_only(view: Path, change: object) -> None:
    with pytest.raises(OSError, match="Read-only file system") as failure:
        change(view)  # type: ignore[operator]
    assert failure.value.errno == errno.EROFS


def test_statfs_and_xattrs(view: Path) -> None:
    about = os.statvfs(view)
    assert about.f_namemax == 255
    assert about.f_bsize * about.f_blocks > 1 << 40
    assert about.f_flag & os.ST_RDONLY
    path = view / f"size-{MIB + 1}"
    path.read_bytes()
    assert set(os.listxattr(path)) >= {"user.mesh.version", "user.mesh.cached"}
    assert len(os.getxattr(path, "user.mesh.version")) == 32
    assert os.getxattr(path, "user.mesh.cached") == b"2/2"
    assert os.getxattr(path, "user.mesh.stale") == b"0"
    with pytest.raises(OSError, match="No data"):
        os.getxattr(path, "user.other")


def test_read_ahead_was_raised(view: Path) -> None:
    device = device_of(view)
    path = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
    if not os.access(path, os.W_OK):
        pytest.skip(f"{path} is not writable here")
    assert int(path.read_text()) == 4096


def test_metrics_are_exported(hosts: Hosts, view: Path) -> None:
    (view / "size-65537").read_bytes()
    url = f"http://127.0.0.1:{hosts.metrics['one']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    for name in (
        'mesh_read_bytes_total{source="',
        'mesh_read_blocks_total{source="',
        "mesh_read_seconds_bucket",
        "mesh_fills_total",
        "mesh_evicted_blocks_total",
        "mesh_store_used_bytes",
        'mesh_in_flight_bytes{group="fills"}',
        "mesh_under_store_request_seconds_bucket",
    ):
        assert name in text, name


def test_the_standard_health_service_answers(hosts: Hosts) -> None:
    with grpc.insecure_channel(hosts.addresses["two"]) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "mesh.v1.Blocks"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_neighbor_may_not_ask_a_peer_to_bring_blocks(hosts: Hosts) -> None:
    """Fetch and Report are for this host's mounts, on the Unix socket alone."""
    with grpc.insecure_channel(hosts.addresses["two"]) as channel:
        call = channel.unary_unary("/mesh.v1.Local/Fetch")
        with pytest.raises(grpc.RpcError) as failure:
            call(b"", timeout=5)
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


def test_sockets_and_stores_are_for_their_owner_alone(hosts: Hosts) -> None:
    store = hosts.store("one")
    assert store.stat().st_mode & 0o777 == 0o700
    for path in store.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


def test_a_sparse_file_of_20_gib(tree: Path, hosts: Hosts, view: Path) -> None:
    big = tree / "sparse"
    marks = {0: b"first", 7 * 1024 * MIB + 12345: b"middle", 20 * 1024 * MIB - 4: b"last"}
    with big.open("wb") as file:
        file.truncate(20 * 1024 * MIB)
        for offset, mark in marks.items():
            file.seek(offset)
            file.write(mark)
    fd = os.open(view / "sparse", os.O_RDONLY)
    try:
        assert os.fstat(fd).st_size == 20 * 1024 * MIB
        for offset, mark in marks.items():
            assert os.pread(fd, len(mark), offset) == mark
        assert os.pread(fd, 1000, 12 * 1024 * MIB) == bytes(1000)
    finally:
        os.close(fd)
        big.unlink()
    used = sum(peer["used_bytes"] for peer in hosts.peers("one").values())
    assert used < 200 * MIB, "the holes were brought too"


def test_ls_and_find_and_cp_work(tree: Path, view: Path, tmp_path: Path) -> None:
    listed = subprocess.run(
        ["ls", "-laR", str(view)], capture_output=True, timeout=60, check=True
    ).stdout
    assert b"leaf" in listed
    subprocess.run(
        ["cp", "-r", str(view / "names"), str(tmp_path / "copy")], timeout=60, check=True
    )
    diff = ["diff", "-r", str(tree / "names"), str(tmp_path / "copy")]
    assert subprocess.run(diff, timeout=60, check=False).returncode == 0


def test_info_tells_where_a_file_is(hosts: Hosts, view: Path) -> None:
    (view / f"size-{3 * MIB + 17}").read_bytes()
    done = mesh("info", f"/size-{3 * MIB + 17}", "--json", "-c", str(hosts.config("two")))
    assert done.returncode == 0, done.stderr
    assert "one" in done.stdout
