"""What `mesh status`, `mesh info` and `mesh stats` say about a mesh of real daemons."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from mesh.blocks import MIB, Attributes, version_of
from mesh.cli import info, stats, status
from mesh.cli.ask import host_peer
from mesh.cli.commands import app_for
from mesh.cli.figures import duration_shown, hit_ratio, size_shown, text_shown
from mesh.cli.info import Run, path_in_mesh, runs
from mesh.cli.local_cluster import LocalCluster, local_cluster
from mesh.cli.stats import rates_between
from mesh.metrics import LOCAL, PEER, UNDER_STORE
from mesh.wire.catalog import STAT
from mesh.wire.channels import Channels
from mesh.wire.codec import SERVE
from mesh.wire.messages import BlockRequest, Description, Location, Overview, StatReply, StatRequest

NAMES = ("one", "two", "three")
MODEL_BYTES = 10 * MIB
BLOCKS = 3  # of 4 MiB each, the last one short
CTRL_C_WITHIN_S = 20.0

app = app_for()
runner = CliRunner(env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Three peers that show one model, which the first of them has whole."""
    with _started(tmp_path_factory.mktemp("mesh")) as cluster:
        asyncio.run(_bring_model(cluster))
        yield cluster


@pytest.fixture
def config(mesh: LocalCluster) -> str:
    return str(mesh.peers["one"].config)


@contextmanager
def _started(directory: Path) -> Iterator[LocalCluster]:
    data = directory / "data"
    (data / "models").mkdir(parents=True)
    (data / "models" / "[m] 1.bin").write_bytes(os.urandom(MODEL_BYTES))
    with local_cluster(directory, data, NAMES, capacity_bytes=256 * MIB) as cluster:
        asyncio.run(cluster.start_peers())
        yield cluster


async def _bring_model(cluster: LocalCluster) -> None:
    """Have the first peer bring the whole model to its disk."""
    socket = cluster.peers["one"].socket
    async with host_peer(socket) as peer:
        file = (await peer.ask(STAT, StatRequest("/models/[m] 1.bin"))).file
    assert file is not None
    channels = Channels()
    for index in range(file.block_count):
        async for _ in channels.pieces(f"unix:{socket}", SERVE, BlockRequest(file, index)):
            pass
    await channels.aclose()


# status


def test_status_shows_every_peer_and_the_whole(config: str) -> None:
    result = runner.invoke(app, ["status", "--config", config])
    assert result.exit_code == 0, result.output
    first, *_ = result.output.splitlines()
    assert first.startswith("cluster demo, epoch ")
    assert "3 of 3 peers up" in first
    assert "filled 10.0 MiB" in first
    assert "warning" not in result.output
    for name in NAMES:
        assert f"\n {name} " in result.output


def test_status_as_json_is_one_object(config: str) -> None:
    result = runner.invoke(app, ["status", "--config", config, "--json"])
    said = json.loads(result.output)
    assert said["cluster"] == "demo"
    assert [peer["name"] for peer in said["peers"]] == sorted(NAMES)
    assert sum(peer["fill_bytes"] for peer in said["peers"]) == MODEL_BYTES
    assert sum(peer["ring_share"] for peer in said["peers"]) == pytest.approx(1)


def test_a_killed_peer_is_down_and_warned_of(tmp_path: Path) -> None:
    with _started(tmp_path) as cluster:
        cluster.kill("two")
        config = str(cluster.peers["one"].config)
        result = runner.invoke(app, ["status", "--config", config])
    assert result.exit_code == 0
    assert "2 of 3 peers up" in result.output
    assert f"warning: two is down: no answer from {cluster.peers['two'].address}" in result.output


def test_what_a_person_should_look_at() -> None:
    well = Description(name="one", address="10.0.0.1:7101", capacity_bytes=100)
    assert list(status.warnings(Overview("demo", 1, (well,)))) == []
    ill = replace(well, errors=3, corrupt_blocks=2, used_bytes=91)
    said = list(status.warnings(Overview("demo", 1, (ill, replace(ill, name="two", is_up=False)))))
    assert [text.split(";")[0] for text in said] == [
        "one: 3 errors reached readers",
        "one: 2 corrupt blocks were dropped",
        "one: its cache is 91.0 % full",
        "two is down: no answer from 10.0.0.1:7101",
    ]


@pytest.mark.parametrize("columns", [80, 100, 130, 160, 190, 220])
def test_a_narrow_terminal_gets_more_tables_and_loses_nothing(columns: int) -> None:
    peer = Description(
        name="worker-17",
        address="10.100.200.101:57101",
        zone="eu-west-1a",
        used_bytes=1000 * 1024**3,
        capacity_bytes=1000 * 1024**3,
        block_count=10**6,
        read_bytes={LOCAL: 1000 * MIB, PEER: 500 * MIB, UNDER_STORE: 500 * MIB},
        served_bytes=1000 * MIB,
        fill_bytes=1000 * MIB,
        uptime_s=10**6,
        ring_share=1.0,
    )
    out = StringIO()
    console = Console(width=columns, file=out)
    console.print(status.rendered(Overview("demo", 1, (peer,)), columns=columns))
    text = out.getvalue()
    for wanted in ("10.100.200.101:57101", "75.0 %", "1000 MiB", "under-store", "uptime"):
        assert wanted in text
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= columns


# info


def test_info_of_a_file_says_where_its_blocks_are(config: str) -> None:
    result = runner.invoke(app, ["info", "--config", config, "/models/[m] 1.bin"])
    assert result.exit_code == 0, result.output
    assert "/models/[m] 1.bin" in result.output
    assert "10.0 MiB (10,485,760 bytes)" in result.output
    assert f"held by one    {BLOCKS} of {BLOCKS}" in result.output
    assert "owners, nearest first" in result.output


def test_info_as_json_has_every_block(config: str) -> None:
    result = runner.invoke(app, ["info", "--config", config, "--json", "/models/[m] 1.bin"])
    said = json.loads(result.output)
    assert said["size_bytes"] == MODEL_BYTES
    assert said["held"]["one"] == list(range(BLOCKS))
    assert len(said["owners"]) == BLOCKS
    assert len(bytes.fromhex(said["version"])) == 16


def test_info_of_a_directory_has_attributes_only(config: str) -> None:
    result = runner.invoke(app, ["info", "--config", config, "/models"])
    assert result.exit_code == 0
    assert "directory" in result.output
    assert "owners" not in result.output


def test_info_goes_on_after_a_path_that_is_nothing(config: str) -> None:
    result = runner.invoke(app, ["info", "--config", config, "/nothing", "here", "/models"])
    assert result.exit_code == 1
    assert "directory" in result.stdout
    assert len(result.stderr.splitlines()) == 2
    assert "mesh: /nothing: " in result.stderr
    assert "mesh: here is not in the mesh; " in result.stderr


@pytest.mark.fuse
def test_info_takes_a_path_below_a_mount(mesh: LocalCluster, config: str) -> None:
    mountpoint = asyncio.run(mesh.mount("one"))
    result = runner.invoke(app, ["info", "--config", config, f"{mountpoint}/models/[m] 1.bin"])
    assert result.exit_code == 0, result.output
    assert result.output.startswith("/models/[m] 1.bin")


def test_the_innermost_mount_wins_and_a_neighbor_of_a_like_name_does_not() -> None:
    mountpoints = [Path("/mnt/mesh"), Path("/mnt/mesh/inner")]
    assert path_in_mesh("/mnt/mesh/a/b", mountpoints) == "/a/b"
    assert path_in_mesh("/mnt/mesh", mountpoints) == "/"
    assert path_in_mesh("/mnt/mesh/inner/a", mountpoints) == "/a"
    assert path_in_mesh("/mnt/mesh2/a", mountpoints) == "/mnt/mesh2/a"
    assert path_in_mesh("/a//b/../c", []) == "/a/c"
    assert path_in_mesh("//a", []) == "/a"
    assert path_in_mesh("a", []) is None


def test_mount_points_are_read_with_the_blanks_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "42 27 0:39 / /mnt/a\\040b ro,nosuid shared:1 - fuse.mesh mesh ro,user_id=0\n"
        "43 27 0:40 / /mnt/other rw - ext4 /dev/vda rw\n"
    )
    monkeypatch.setattr(info, "MOUNT_TABLE", table)
    assert info.mesh_mountpoints() == [Path("/mnt/a b")]


def test_blocks_that_are_alike_are_one_row() -> None:
    file = version_of(source="file:///d", path="m", size_bytes=6, tag="1", block_bytes=1)
    found = StatReply(Attributes(is_directory=False, size_bytes=6, mtime_ns=1), file)
    ab, ba = ("a", "b"), ("b", "a")
    held = {"a": frozenset({0, 1, 2}), "b": frozenset({2}), "c": frozenset[int]()}
    location = Location(found, (ab, ab, ab, ba, ba, ba), held)
    assert list(runs(location)) == [
        Run(0, 1, ab, ("a",)),
        Run(2, 2, ab, ("a", "b")),
        Run(3, 5, ba, ()),
    ]
    assert [run.blocks for run in runs(location)] == ["0-1", "2", "3-5"]
    assert list(runs(Location(found, (), {}))) == []


# stats


def test_stats_prints_a_header_and_a_line_for_each_interval(config: str) -> None:
    result = runner.invoke(app, ["stats", "--config", config, "-i", "50ms", "-n", "21"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len(lines) == 21 + 2 * 2
    assert lines[:2] == list(stats.HEADER) == lines[22:24]
    assert {len(line) for line in lines} == {len(stats.HEADER[1])}


def test_stats_of_all_peers_names_them(config: str) -> None:
    result = runner.invoke(app, ["stats", "--config", config, "-i", "50ms", "-n", "1", "--all"])
    lines = result.output.splitlines()[2:]
    assert [line.split()[0] for line in lines] == sorted(NAMES)


def test_stats_as_json_has_one_object_on_each_line(config: str) -> None:
    result = runner.invoke(app, ["stats", "--config", config, "-i", "50ms", "-n", "2", "--json"])
    said = [json.loads(line) for line in result.output.splitlines()]
    assert [one["peer"] for one in said] == ["one", "one"]
    assert said[0]["fill_bytes_per_s"] == 0
    assert said[0]["hit_ratio"] is None


@pytest.mark.parametrize("interval", ["0", "soon", "-1s"])
def test_an_interval_that_is_none_is_one_line(config: str, interval: str) -> None:
    result = runner.invoke(app, ["stats", "--config", config, f"--interval={interval}"])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"mesh: --interval {interval} ")
    assert len(result.stderr.splitlines()) == 1


def test_rates_are_differences_and_a_new_beginning_has_none() -> None:
    before = Description(
        name="one", address="", uptime_s=10, read_bytes={LOCAL: 100, PEER: 10}, fill_bytes=50
    )
    after = replace(
        before,
        uptime_s=12,
        read_bytes={LOCAL: 160, PEER: 30, UNDER_STORE: 20},
        fill_bytes=70,
        errors=1,
    )
    rates = rates_between(before, after, took_s=2.0)
    assert rates is not None
    assert (rates.local_bytes_per_s, rates.peer_bytes_per_s) == (30, 10)
    assert (rates.under_store_bytes_per_s, rates.fill_bytes_per_s) == (10, 10)
    assert rates.hit_ratio == pytest.approx(0.8)
    assert rates.errors_per_s == 0.5
    assert rates_between(after, before, took_s=2.0) is None
    assert rates_between(replace(before, is_up=False), after, took_s=2.0) is None


# All three


@pytest.mark.parametrize(
    "command",
    [["stats", "-i", "100ms"], ["stats", "-i", "100ms", "--all", "--json"], ["status", "--watch"]],
    ids=["stats", "stats all", "status"],
)
def test_ctrl_c_ends_what_repeats_without_a_word(config: str, command: list[str]) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "mesh.cli.main", *command, "--config", config],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with child:
        if command[0] == "stats":
            assert child.stdout is not None
            child.stdout.readline()
        else:
            time.sleep(3)  # a live table is not written to a pipe before its end
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=CTRL_C_WITHIN_S)
    assert (child.returncode, said) == (0, "")


@pytest.mark.parametrize("command", [["status"], ["stats"], ["info", "/a"]], ids=lambda c: c[0])
def test_without_a_peer_there_is_one_line(tmp_path: Path, command: list[str]) -> None:
    with local_cluster(tmp_path, tmp_path, NAMES, capacity_bytes=0) as cluster:
        config = str(cluster.peers["one"].config)
        result = runner.invoke(app, [*command, "--config", config])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "is `mesh peer` running here?" in result.stderr


# Figures


@pytest.mark.parametrize(
    ("size_bytes", "shown"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (90868376, "86.7 MiB"),
        (100 * 1024**3, "100 GiB"),
        (1000 * 1024**3, "1000 GiB"),
    ],
)
def test_sizes_for_people(size_bytes: int, shown: str) -> None:
    assert size_shown(size_bytes) == shown


@pytest.mark.parametrize(
    ("duration_s", "shown"),
    [(0.9, "0s"), (59, "59s"), (61, "1m01s"), (3600, "1h00m"), (90_000, "1d01h")],
)
def test_durations_for_people(duration_s: float, shown: str) -> None:
    assert duration_shown(duration_s) == shown


def test_nothing_read_has_no_hit_ratio() -> None:
    assert hit_ratio({}) is None
    assert hit_ratio({UNDER_STORE: 1}) == 0


def test_a_path_of_any_bytes_can_be_printed() -> None:
    text_shown(os.fsdecode(b"/a\xff\n\x1b[31m")).encode()
    assert "\x1b" not in text_shown("\x1b[31m")
