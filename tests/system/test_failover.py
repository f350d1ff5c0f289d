"""Peers die; readers notice a delay at most."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.fuse.mount import device_of
from tests.system.hosts import Hosts, directory, fills, until

pytestmark = pytest.mark.fuse
MIB = 1024 * 1024
SIZE = 48 * MIB


@pytest.fixture
def data(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    root.mkdir()
    (root / "model").write_bytes(random.Random(3).randbytes(SIZE))
    (root / "other").write_bytes(random.Random(4).randbytes(SIZE))
    return root


@pytest.fixture
def hosts(tmp_path: Path, data: Path) -> Iterator[Hosts]:
    mounts = directory(data, block='"1MiB"')
    with Hosts(tmp_path, ["one", "two", "three"], mounts) as running:
        running.start()
        yield running


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@pytest.mark.slow
def test_all_read_one_cold_file_and_each_block_leaves_the_under_store_once(
    hosts: Hosts, data: Path
) -> None:
    views = [hosts.mount(name) for name in hosts.names]
    readers = [
        subprocess.Popen(["sha256sum", str(view / "model")], stdout=subprocess.PIPE)
        for view in views
        for _ in range(3)
    ]
    answers = {reader.communicate(timeout=60)[0].split()[0].decode() for reader in readers}
    assert answers == {digest(data / "model")}
    assert fills(hosts.peers("one")) == (48, SIZE)


@pytest.mark.slow
def test_own_peer_killed_then_an_owner_then_all(hosts: Hosts, data: Path) -> None:
    view = hosts.mount("one")
    with (view / "model").open("rb") as model:
        assert model.read(MIB) == (data / "model").read_bytes()[:MIB]
        hosts.kill("one")
        assert model.read() == (data / "model").read_bytes()[MIB:]
    hosts.kill("two")
    assert digest(view / "other") == digest(data / "other")
    hosts.kill("three")
    (data / "third").write_bytes(b"third" * 1_000_000)
    assert digest(view / "third") == digest(data / "third")
    assert sorted(p.name for p in view.iterdir()) == ["model", "other", "third"]
    hosts.start("one")
    until(lambda: hosts.peers("one")["one"]["is_up"], "the own peer is back")
    assert digest(view / "model") == digest(data / "model")


@pytest.mark.slow
def test_a_stopped_peer_is_a_dead_one(hosts: Hosts, data: Path) -> None:
    """Its connections stay, and nothing comes back."""
    view = hosts.mount("one")
    hosts.daemons["two"].send_signal(signal.SIGSTOP)
    assert digest(view / "model") == digest(data / "model")
    hosts.daemons["two"].send_signal(signal.SIGCONT)
    until(lambda: hosts.peers("one")["two"]["is_up"], "the peer is back")


@pytest.mark.slow
def test_a_stopped_own_peer_is_a_dead_one(hosts: Hosts, data: Path) -> None:
    view = hosts.mount("one")
    with (view / "model").open("rb") as model:
        model.read(10)
        hosts.daemons["one"].send_signal(signal.SIGSTOP)
        assert digest(view / "other") == digest(data / "other")
        hosts.daemons["one"].send_signal(signal.SIGCONT)
    assert digest(view / "model") == digest(data / "model")


@pytest.mark.slow
def test_killed_under_readers_that_check_every_byte(hosts: Hosts, data: Path) -> None:
    """The peer dies while it is being read from."""
    view = hosts.mount("one")
    readers = [
        subprocess.Popen(["sha256sum", str(view / name)], stdout=subprocess.PIPE)
        for name in ("model", "other")
    ]
    until(lambda: hosts.peers("one")["two"]["served_bytes"] > 0, "peer two is being read from")
    hosts.kill("two")
    for reader, name in zip(readers, ("model", "other"), strict=True):
        out = reader.communicate(timeout=60)[0]
        assert reader.returncode == 0
        assert out.split()[0].decode() == digest(data / name)


@pytest.mark.slow
def test_a_restart_keeps_what_was_cached(hosts: Hosts, data: Path) -> None:
    view = hosts.mount("one")
    assert digest(view / "model") == digest(data / "model")
    for how in ("clean", "killed"):
        for name in hosts.names:
            if how == "clean":
                assert hosts.stop(name) == 0
            else:
                hosts.kill(name)
        hosts.start()
        fresh = hosts.mount("two")
        assert digest(fresh / "model") == digest(data / "model")
        assert fills(hosts.peers("one")) == (0, 0), f"after a {how} stop blocks were brought again"


@pytest.mark.slow
def test_the_under_store_goes_away_and_what_is_cached_is_served(
    hosts: Hosts, data: Path, tmp_path: Path
) -> None:
    view = hosts.mount("one")
    expected = digest(data / "model")
    assert digest(view / "model") == expected
    data.rename(tmp_path / "elsewhere")
    fresh = hosts.mount("two")
    assert digest(view / "model") == expected
    # Nobody can know what is gone while all of it is.
    with pytest.raises(OSError, match="Input/output error"):
        digest(fresh / "nothing-of-that-name")
    (tmp_path / "elsewhere").rename(data)


def test_ctrl_c_and_sigterm_end_cleanly(hosts: Hosts, data: Path) -> None:
    view = hosts.mount("one")
    digest(view / "model")
    assert hosts.unmount(view) == 0
    assert device_of(view) is None
    second = hosts.mount("one")
    hosts.views[second].send_signal(signal.SIGINT)
    assert hosts.views[second].wait(20) == 0
    assert device_of(second) is None
    hosts.daemons["one"].send_signal(signal.SIGINT)
    assert hosts.daemons["one"].wait(20) == 0
    assert hosts.stop("two") == 0
    assert "Traceback" not in hosts.log("one") + hosts.log("two")


@pytest.mark.slow
def test_unmounted_by_somebody_else_the_daemon_ends(hosts: Hosts) -> None:
    view = hosts.mount("one")
    subprocess.run(
        [sys.executable, "-m", "mesh.cli.main", "umount", str(view)], check=True, timeout=30
    )
    assert hosts.views[view].wait(20) == 0


@pytest.mark.slow
def test_a_change_behind_the_mesh(tmp_path: Path) -> None:
    """max_age = 0: every open asks. A handle reads one version, or fails with ESTALE."""
    data = tmp_path / "data"
    data.mkdir()
    old, new = os.urandom(8 * MIB), os.urandom(8 * MIB)
    (data / "f").write_bytes(old)
    mounts = directory(data, block='"1MiB"', max_age="0")
    with Hosts(tmp_path, ["one", "two"], mounts) as hosts:
        hosts.start()
        view = hosts.mount("one")
        with (view / "f").open("rb", buffering=0) as handle:
            assert handle.read(MIB) == old[:MIB]
            (data / "g").write_bytes(new)
            (data / "g").rename(data / "f")
            assert (view / "f").read_bytes() == new
            try:
                rest = b"".join(iter(lambda: handle.read(MIB), b""))
            except OSError as error:
                assert error.errno == 116  # noqa: PT017
            else:
                assert rest == old[MIB:]
        (data / "f").write_bytes(b"short")
        assert (view / "f").read_bytes() == b"short"
        assert (view / "f").stat().st_size == 5
        (data / "f").unlink()
        with pytest.raises(FileNotFoundError):
            (view / "f").read_bytes()
        (data / "f").write_bytes(b"again!")
        until(lambda: (view / "f").exists(), "the file is seen again", within_s=5)
        assert (view / "f").read_bytes() == b"again!"


@pytest.mark.slow
def test_a_flipped_byte_on_the_own_disk_is_read_right(hosts: Hosts, data: Path) -> None:
    """The mount reads extent files itself, and checks what it reads piece by piece."""
    digest(hosts.mount("one") / "model")
    for extent in (hosts.store("one") / "data").glob("??/??/*"):
        with extent.open("r+b") as file:
            for block in range(48):
                file.seek(block * MIB + 77_777)
                byte = file.read(1)
                file.seek(block * MIB + 77_777)
                file.write(bytes([byte[0] ^ 4]))
    fresh = hosts.mount("one")
    assert digest(fresh / "model") == digest(data / "model")
    assert hosts.peers("one")["one"]["corrupt_blocks"] > 0
    assert digest(hosts.mount("one") / "model") == digest(data / "model")
