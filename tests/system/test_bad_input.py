"""Bad input gets one clear line and a non-zero exit, and changes nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from mesh.fuse.mount import device_of
from tests.system.hosts import MESH, Hosts, directory, mesh, until


def tree_of(root: Path) -> dict[str, int]:
    """Everything below, with its time of change; LMDB's lock file is touched by looking."""
    return {
        str(path): path.lstat().st_mtime_ns
        for path in sorted(root.rglob("*"))
        if path.name not in ("lock.mdb", "lock") and not path.is_dir()
    }


def one_line(*words: str, env: dict[str, str] | None = None) -> str:
    """Run a command that must fail; return the one line that it says."""
    done = mesh(*words, env={**os.environ, **(env or {})})
    assert done.returncode == 1, (done.returncode, done.stdout, done.stderr)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "f").write_text("x")
    return tmp_path / "data"


@pytest.fixture
def hosts(tmp_path: Path, data: Path) -> Hosts:
    return Hosts(tmp_path, ["one"], directory(data))


def peer(hosts: Hosts) -> tuple[str, ...]:
    return ("peer", "-c", str(hosts.config("one")))


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('capacity = "40GiB"', "capacity = true", ["store.capacity", "is not a size"]),
        ("[store]", "[store]\ncolour = 1", ["store.colour", "unknown key"]),
        ("[store]", "[stoer]", ["stoer"]),
        ('name = "test"', "name = ", ["one.toml"]),
    ],
)
def test_a_mistake_in_the_config(hosts: Hosts, old: str, new: str, words: list[str]) -> None:
    text = hosts.config("one").read_text()
    assert old in text
    hosts.config("one").write_text(text.replace(old, new))
    done = mesh(*peer(hosts))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word.lower() in done.stderr.lower()
    assert not hosts.store("one").exists()


def test_an_under_store_that_does_not_exist(hosts: Hosts, data: Path) -> None:
    (data / "f").unlink()
    data.rmdir()
    line = one_line(*peer(hosts))
    assert "does not exist" in line
    assert data.as_uri() in line
    assert not hosts.store("one").exists()


def test_an_under_store_that_nobody_serves(tmp_path: Path) -> None:
    mounts = (
        '[mounts."/"]\nurl = "s3://bucket"\n[mounts."/".s3]\nendpoint = "http://127.0.0.1:9"\n'
        'access_key = "k"\nsecret_key = "canary-secret"\n'
    )
    hosts = Hosts(tmp_path, ["one"], mounts)
    line = one_line(*peer(hosts))
    assert "s3://bucket" in line
    assert "canary" not in line
    assert not hosts.store("one").exists()


def test_missing_credentials(tmp_path: Path) -> None:
    mounts = '[mounts."/"]\nurl = "s3://bucket"\n[mounts."/".s3]\nendpoint = "http://127.0.0.1:9"\n'
    hosts = Hosts(tmp_path, ["one"], mounts)
    env = {"HOME": str(tmp_path / "nobody"), "AWS_EC2_METADATA_DISABLED": "true"}
    assert "credentials" in one_line(*peer(hosts), env=env)
    assert not hosts.store("one").exists()


def test_an_address_in_use(hosts: Hosts) -> None:
    host, _, port = hosts.addresses["one"].partition(":")
    with socket.create_server((host, int(port))):
        assert "peer.listen" in one_line(*peer(hosts))
    assert not hosts.store("one").exists()


@pytest.mark.slow
def test_two_peers_with_one_data_directory(hosts: Hosts) -> None:
    with hosts:
        hosts.start()
        other = hosts.root / "other.toml"
        text = hosts.config("one").read_text()
        port = hosts.addresses["one"].rpartition(":")[2]
        text = text.replace(port, str(int(port) - 1)).replace(
            f"127.0.0.1:{hosts.metrics['one']}", ""
        )
        other.write_text(text)
        before = tree_of(hosts.store("one"))
        line = one_line("peer", "-c", str(other))
        assert "in use by another peer" in line
        assert tree_of(hosts.store("one")) == before
        assert hosts.peers("one")["one"]["is_up"]


@pytest.mark.slow
def test_a_data_directory_of_another_cluster(hosts: Hosts) -> None:
    with hosts:
        hosts.start()
        hosts.stop("one")
        before = tree_of(hosts.store("one"))
        text = hosts.config("one").read_text().replace('name = "test"', 'name = "else"')
        hosts.config("one").write_text(text)
        line = one_line(*peer(hosts))
        assert 'belongs to cluster "test", not "else"' in line
        assert tree_of(hosts.store("one")) == before


def test_an_address_for_everybody_needs_tls(hosts: Hosts) -> None:
    text = hosts.config("one").read_text()
    hosts.config("one").write_text(text.replace("[peer]", '[peer]\nlisten = "0.0.0.0:7100"'))
    assert "security.insecure" in one_line(*peer(hosts))


def test_no_such_config() -> None:
    assert "/no/such/file" in one_line("peer", "-c", "/no/such/file")


def test_status_without_a_peer(hosts: Hosts) -> None:
    assert "is `mesh peer` running here?" in one_line("status", "-c", str(hosts.config("one")))


@pytest.mark.fuse
@pytest.mark.slow
class TestMountPoints:
    def test_not_empty(self, hosts: Hosts, tmp_path: Path) -> None:
        (tmp_path / "mnt").mkdir()
        (tmp_path / "mnt" / "thesis").write_text("x")
        words = ("mount", "-c", str(hosts.config("one")), str(tmp_path / "mnt"))
        assert "is not empty" in one_line(*words)
        assert "is not empty" in one_line(*words, "-d")
        assert (tmp_path / "mnt" / "thesis").read_text() == "x"

    def test_a_file(self, hosts: Hosts, tmp_path: Path) -> None:
        (tmp_path / "mnt").write_text("x")
        line = one_line("mount", "-c", str(hosts.config("one")), str(tmp_path / "mnt"))
        assert "is not a directory" in line

    def test_mounted_already_and_umount_of_nothing(self, hosts: Hosts, tmp_path: Path) -> None:
        with hosts:
            hosts.start()
            view = hosts.mount("one")
            line = one_line("mount", "-c", str(hosts.config("one")), str(view))
            assert "mounted already" in line
            assert (view / "f").read_text() == "x"
        assert "not mounted" in one_line("umount", str(tmp_path / "data"))

    def test_a_dead_mount_and_the_way_out(self, hosts: Hosts) -> None:
        with hosts:
            hosts.start()
            view = hosts.mount("one")
            hosts.views[view].send_signal(signal.SIGKILL)
            hosts.views[view].wait()
            line = one_line("mount", "-c", str(hosts.config("one")), str(view))
            assert "is a dead mount" in line
            assert f"mesh umount --force {view}" in line
            assert mesh("umount", "--force", str(view)).returncode == 0
            assert device_of(view) is None
            again = subprocess.Popen(
                [*MESH, "mount", "-c", str(hosts.config("one")), str(view)],
                stderr=subprocess.DEVNULL,
            )
            hosts.views[view] = again
            until(lambda: (view / "f").exists(), "it is mounted again")

    def test_a_busy_mount(self, hosts: Hosts) -> None:
        with hosts:
            hosts.start()
            view = hosts.mount("one")
            with (view / "f").open():
                line = one_line("umount", str(view))
                assert "busy" in line
                assert "--force" in line
            assert (view / "f").read_text() == "x"

    def test_in_the_background(self, hosts: Hosts, tmp_path: Path) -> None:
        with hosts:
            hosts.start()
            view = tmp_path / "background"
            done = mesh("mount", "-d", "-c", str(hosts.config("one")), str(view))
            assert done.returncode == 0, done.stderr
            assert (view / "f").read_text() == "x"
            assert mesh("umount", str(view)).returncode == 0
            assert device_of(view) is None
