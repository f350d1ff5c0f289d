"""Real daemons and mounts that read one file together."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.hosts import Hosts, directory, fills, mesh

MIB = 1024 * 1024
NAMES = ["one", "two", "three", "four"]
BLOCKS = 40
DATA = random.Random(8).randbytes(BLOCKS * MIB - 123)
DIGEST = hashlib.sha256(DATA).hexdigest()

pytestmark = pytest.mark.slow


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[Hosts]:
    root = tmp_path / "data"
    (root / "models").mkdir(parents=True)
    (root / "models" / "big").write_bytes(DATA)
    (root / "models" / "small").write_bytes(DATA[:1000])
    with Hosts(tmp_path, NAMES, directory(root, block='"1MiB"')) as running:
        running.start()
        yield running


def command(hosts: Hosts, *words: str, by: str = "one") -> tuple[int, dict[str, Any]]:
    done = mesh(*words, "--json", "-c", str(hosts.config(by)))
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout)


def test_a_file_is_on_all_peers_and_each_block_was_brought_once(hosts: Hosts) -> None:
    code, said = command(hosts, "distribute", "/models")
    assert (code, sorted(said["whole"])) == (0, sorted(NAMES))
    assert all(peer["held_bytes"] == len(DATA) + 1000 for peer in said["peers"])
    assert fills(hosts.peers("one")) == (BLOCKS + 1, len(DATA) + 1000)
    code, shown = command(hosts, "swarm", "/models/big", by="two")
    assert code == 0
    assert shown["size_bytes"] == len(DATA)
    received = {
        peer["peer"]: sum(source["received_bytes"] for source in peer["sources"])
        for peer in shown["peers"]
    }
    assert all(received_bytes > len(DATA) // 2 for received_bytes in received.values())


@pytest.mark.fuse
def test_mounts_that_read_together_read_what_is_there(hosts: Hosts) -> None:
    views = {name: hosts.mount(name) for name in NAMES}
    reading = [
        subprocess.Popen(["sha256sum", str(views[name] / "models/big")], stdout=subprocess.PIPE)
        for name in NAMES
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[0].split()[0].decode() for process in reading]
    assert said == [DIGEST] * len(reading)
    assert fills(hosts.peers("one")) == (BLOCKS, len(DATA))


@pytest.mark.fuse
def test_a_thousand_processes_of_one_host_are_one_copy_there(hosts: Hosts, tmp_path: Path) -> None:
    view = hosts.mount("two")
    script = 'for _ in $(seq 1000); do cmp "$1" "$2" && echo right & done; wait'
    words = ["sh", "-c", script, "sh", str(view / "models/big"), str(tmp_path / "data/models/big")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, check=True)
    assert (done.stdout, done.stderr) == ("right\n" * 1000, "")
    assert fills(hosts.peers("one")) == (BLOCKS, len(DATA))
    _, shown = command(hosts, "swarm", "/models/big")
    (two,) = [peer for peer in shown["peers"] if peer["peer"] == "two"]
    assert two["held_bytes"] == len(DATA)
    received_bytes = sum(source["received_bytes"] for source in two["sources"])
    assert received_bytes + hosts.peers("one")["two"]["fill_bytes"] <= 1.05 * len(DATA)


def test_who_is_killed_on_the_way_is_named_and_the_others_have_it(hosts: Hosts) -> None:
    hosts.daemons["four"].send_signal(signal.SIGSTOP)
    try:
        words = ("distribute", "/models/big", "--at-least", "75%")
        code, said = command(hosts, *words)
    finally:
        hosts.daemons["four"].send_signal(signal.SIGCONT)
    assert code == 0
    assert sorted(said["whole"]) == ["one", "three", "two"]


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        (("distribute", "/nothing"), "no such file"),
        (("distribute", "/models", "--to", "one,ten"), "ten: no such peer"),
        (("distribute", "/models", "--at-least", "95"), "write such as 95%"),
        (("distribute", "/models", "--by", "soon"), "write such as 90s"),
        (("swarm", "models"), "is not in the mesh"),
    ],
)
def test_what_can_not_be_done_is_said_in_one_line(
    hosts: Hosts, words: tuple[str, ...], rule: str
) -> None:
    done = mesh(*words, "-c", str(hosts.config("one")))
    assert done.returncode != 0
    assert rule in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
