"""Real daemons that meet by gossip: they come, go, come back, and are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh.testing.servers import free_ports
from tests.system.hosts import Hosts, directory, fills, mesh, until
from tests.system.test_bad_input import one_line

KEY = "A" * 43 + "="
OTHER_KEY = "B" * 42 + "A="
MIB = 1024 * 1024
pytestmark = [pytest.mark.slow, pytest.mark.fuse]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "model").write_bytes(os.urandom(24 * MIB))
    return tmp_path / "data"


@pytest.fixture
def hosts(tmp_path: Path, data: Path) -> Iterator[Hosts]:
    names = ["one", "two", "three", "four"]
    cluster = f'key = "{KEY}"\nslow_start = "1s"\ngrace = "60s"'
    mounts = directory(data, block='"1MiB"')
    with Hosts(tmp_path, names, mounts, cluster=cluster) as hosts:
        yield hosts


def states(hosts: Hosts, by: str) -> dict[str, str]:
    return {name: peer["state"] for name, peer in hosts.peers(by).items()}


def shares(hosts: Hosts, by: str) -> dict[str, float]:
    return {name: peer["ring_share"] for name, peer in hosts.peers(by).items()}


def is_all(hosts: Hosts, by: str, **wanted: str) -> None:
    until(lambda: states(hosts, by) == wanted, f"{by} sees {wanted}", within_s=20)


def test_peers_join_die_and_come_back_and_nothing_moves(hosts: Hosts, data: Path) -> None:
    hosts.start("one", "two", "three")
    for name in ("one", "two", "three"):
        is_all(hosts, name, one="active", two="active", three="active")
    view = hosts.mount("one")
    expected = (data / "model").read_bytes()
    assert (view / "model").read_bytes() == expected
    before = shares(hosts, "one")
    filled = fills(hosts.peers("one"))
    hosts.kill("two")
    is_all(hosts, "one", one="active", two="dead", three="active")
    assert shares(hosts, "one") == before, "within the grace nothing moves"
    fresh = hosts.mount("three")
    assert (fresh / "model").read_bytes() == expected
    after = hosts.peers("three")
    assert fills(after)[0] <= filled[0], "one's copies serve for what two owned"
    # Back at another address, with another port for gossip: the same arcs, the same blocks.
    blocks = hosts.peers("one")["one"]["block_count"]
    address, gossip = (f"127.0.0.1:{port}" for port in free_ports(2))
    hosts.addresses["two"], hosts.gossip["two"] = address, gossip
    hosts.write("two")
    hosts.start("two")
    is_all(hosts, "three", one="active", two="active", three="active")
    seen = hosts.peers("three")
    assert seen["two"]["address"] == address
    assert {name: peer["ring_share"] for name, peer in seen.items()} == before
    assert seen["two"]["block_count"] > 0, "it kept its cache"
    assert seen["one"]["block_count"] == blocks


def test_a_rolling_restart_moves_nothing_and_fills_nothing_twice(hosts: Hosts, data: Path) -> None:
    names = ["one", "two", "three"]
    hosts.start(*names)
    view = hosts.mount("one")
    expected = (data / "model").read_bytes()
    assert (view / "model").read_bytes() == expected
    before = shares(hosts, "one")
    for name in names:
        assert hosts.stop(name) == 0
        others = [other for other in names if other != name]
        until(lambda n=name, o=others: states(hosts, o[0])[n] == "left", f"{name} has left")
        fresh = hosts.mount(others[1])
        assert (fresh / "model").read_bytes() == expected
        hosts.start(name)
        is_all(hosts, others[0], one="active", two="active", three="active")
    assert shares(hosts, "one") == before
    logs = "".join(hosts.log(name) for name in names)
    assert '"ring": "out"' not in "".join(
        line for line in logs.splitlines() if '"active"' in line
    ), "nobody active ever lost its place"
    assert "repair begins" not in logs
    filled = sum(1 for line in logs.splitlines() if '"event": "fill"' in line)
    assert filled in (0, 24), "log.level = info shows no fills; debug shows each once"


def test_a_newcomer_takes_its_part_and_fetches_it_from_its_neighbors(
    hosts: Hosts, data: Path
) -> None:
    hosts.start("one", "two", "three")
    view = hosts.mount("one")
    assert (view / "model").read_bytes() == (data / "model").read_bytes()
    filled = fills(hosts.peers("one"))
    hosts.start("four")
    until(lambda: hosts.peers("one")["four"]["portion"] == 1.0, "four has its full weight")
    until(
        lambda: (
            hosts.peers("one")["four"]["repaired_bytes"] > 0
            and hosts.peers("one")["four"]["repair_pending_blocks"] == 0
        ),
        "four has brought home what it owns",
    )
    seen = hosts.peers("one")
    assert 0.05 < seen["four"]["ring_share"] <= 1.25 / 4
    assert fills(seen) == filled, "from its neighbors, not from the under-store"
    assert seen["four"]["block_count"] * MIB == seen["four"]["repaired_bytes"]


def test_ring_and_plan(hosts: Hosts) -> None:
    hosts.start("one", "two", "three")
    is_all(hosts, "one", one="active", two="active", three="active")
    config = str(hosts.config("one"))
    shown = mesh("ring", "-c", config)
    assert shown.returncode == 0, shown.stderr
    for name in ("one", "two", "three"):
        assert f" {name} " in shown.stdout
    planned = mesh("ring", "-c", config, "plan", "--add", "1", "--remove", "two")
    assert planned.returncode == 0, planned.stderr
    assert "3 peers become 3" in planned.stdout
    assert "0.0 % between peers that stay" in planned.stdout
    assert one_line("ring", "-c", config, "plan") == (
        "mesh: ring plan: nothing would change; say --add N or --remove PEER"
    )
    assert "is no peer with a place in the ring" in one_line(
        "ring", "-c", config, "plan", "--remove", "nobody"
    )


def test_a_wrong_key_is_refused_on_both_sides(hosts: Hosts) -> None:
    hosts.start("one", "two")
    hosts.write("three", cluster=f'key = "{OTHER_KEY}"')
    line = one_line("peer", "-c", str(hosts.config("three")))
    assert "is up but does not take this peer in" in line
    assert "cluster.key" in line
    until(lambda: "calls and is refused" in hosts.log("one") + hosts.log("two"), "they say so too")
    assert states(hosts, "one") == {"one": "active", "two": "active"}


def test_another_cluster_is_refused(hosts: Hosts) -> None:
    hosts.start("one")
    hosts.write("three", cluster=f'name = "other"\nkey = "{KEY}"')
    line = one_line("peer", "-c", str(hosts.config("three")))
    assert "cluster.name is another" in line
    assert states(hosts, "one") == {"one": "active"}


def test_seeds_that_do_not_resolve(hosts: Hosts) -> None:
    hosts.write("one", cluster=f'key = "{KEY}"\nseeds = ["nobody.invalid:7102"]')
    line = one_line("peer", "-c", str(hosts.config("one")))
    assert line == (
        "mesh: cluster.seeds: nobody.invalid:7102 resolves to no address; mend the name or the DNS"
    )


def test_a_copied_data_directory_is_refused_and_the_others_go_on(hosts: Hosts) -> None:
    hosts.start("one", "two")
    is_all(hosts, "one", one="active", two="active")
    shutil.copytree(
        hosts.store("two"), hosts.store("three"), ignore=shutil.ignore_patterns("*.sock*")
    )
    line = one_line("peer", "-c", str(hosts.config("three")))
    assert "runs with the same identity" in line
    assert "give this peer an empty one" in line
    is_all(hosts, "one", one="active", two="active")


def test_a_taken_name_is_refused(hosts: Hosts) -> None:
    hosts.start("one", "two")
    is_all(hosts, "one", one="active", two="active")
    config = hosts.config("three")
    config.write_text(config.read_text().replace('name = "three"', 'name = "two"'))
    line = one_line("peer", "-c", str(config))
    assert 'peer.name "two" is taken by the peer at' in line
    assert states(hosts, "one") == {"one": "active", "two": "active"}


def test_a_mount_follows_the_mesh_and_outlives_its_peer(hosts: Hosts, data: Path) -> None:
    """It began with one peer; that one dies, and the others came only later."""
    hosts.start("one")
    view = hosts.mount("one")
    assert (view / "model").stat().st_size == 24 * MIB
    hosts.start("two", "three")
    is_all(hosts, "one", one="active", two="active", three="active")
    until(
        lambda: '"two"' in (hosts.store("one") / "view.json").read_text(),
        "the view is beside the blocks",
    )
    subprocess.run(["sleep", "1.5"], check=True)  # the mount is told within a second
    hosts.kill("one")
    assert (view / "model").read_bytes() == (data / "model").read_bytes()
    served = hosts.peers("two")
    assert served["two"]["served_bytes"] + served["three"]["served_bytes"] > 0
