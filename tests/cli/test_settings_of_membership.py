"""How peers find each other: one way, all of it, and where others can reach it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mesh.cli.commands import app_for
from mesh.cli.rooms import me, membership
from mesh.cli.settings import ConfigErrors, load_settings, render_toml
from mesh.membership.etcd import EtcdSettings
from mesh.membership.gossip import GossipSettings
from mesh.membership.open import StaticSettings
from mesh.membership.view import State

KEY = "A" * 43 + "="
REST = '[store]\ndirectory = "/var/lib/mesh"\n[mounts."/"]\nurl = "file:///data"\n'
CLEAR = "[security]\ninsecure = true\n"


def text(cluster: str, peer: str, more: str = CLEAR) -> str:
    return f'[cluster]\nname = "c"\n{cluster}\n[peer]\nname = "one"\n{peer}\n{REST}{more}'


GOSSIP = f'seeds = ["10.0.0.1:7102"]\nkey = "{KEY}"'
LISTED = '[[cluster.peers]]\nname = "one"\naddress = "127.0.0.1:7101"\nzone = "a"\nweight = 2'
LISTEN = 'listen = "10.0.0.5:7101"'


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def to_file(written: str) -> Path:
        path = tmp_path / "mesh.toml"
        path.write_text(written)
        return path

    return to_file


@pytest.mark.parametrize(
    ("cluster", "peer", "expected"),
    [
        ("", LISTEN, "cluster.peers: missing; add a [[cluster.peers]] section for each peer"),
        (f'{GOSSIP}\netcd = ["http://e:2379"]', LISTEN, "cluster.etcd: set beside cluster.seeds"),
        (f"{GOSSIP}\n{LISTED}", "", "cluster.seeds: set beside cluster.peers"),
        ('seeds = ["10.0.0.1:7102"]', LISTEN, "cluster.key: missing beside cluster.seeds"),
        (f'{GOSSIP[:-2]}"', LISTEN, "cluster.key: is not 32 bytes in base64; write what `mesh"),
        ('seeds = ["10.0.0.1"]', LISTEN, 'cluster.seeds[0]: "10.0.0.1" is not host:port'),
        ('etcd = ["e:2379"]', LISTEN, 'cluster.etcd[0]: "e:2379"'),
        (GOSSIP, "", "peer.listen: missing; add listen"),
        (GOSSIP, 'listen = "0.0.0.0:7101"', 'peer.listen: "0.0.0.0:7101" is no address to be'),
        (GOSSIP, f'{LISTEN}\ngossip = "0.0.0.0:7"', 'peer.gossip: "0.0.0.0:7" is no address'),
        (LISTED, 'zone = "b"', "peer.zone: set beside cluster.peers; say it there"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_write(
    write: Callable[[str], Path], cluster: str, peer: str, expected: str
) -> None:
    more = "" if "missing beside cluster.seeds" in expected else CLEAR
    with pytest.raises(ConfigErrors) as caught:
        load_settings(write(text(cluster, peer, more)))
    said = [str(mistake) for mistake in caught.value.mistakes]
    assert any(line.startswith(expected) for line in said), said
    assert not any("AAAA" in line for line in said), "a key is never repeated"


def test_gossip_has_the_port_after(write: Callable[[str], Path]) -> None:
    settings = load_settings(write(text(GOSSIP, LISTEN + '\nzone = "r1"\nweight = 2')))
    assert (settings.peer.address, settings.peer.gossip) == ("10.0.0.5:7101", "10.0.0.5:7102")
    told = membership(settings)
    assert isinstance(told, GossipSettings)
    assert (told.key, list(told.seeds), told.grace_s) == (KEY, ["10.0.0.1:7102"], 60.0)
    known = me(settings)
    assert (known.zone, known.weight, known.state) == ("r1", 2.0, State.JOINING)
    assert not known.is_placed


def test_behind_another_address(write: Callable[[str], Path]) -> None:
    peer = 'listen = "0.0.0.0:7101"\naddress = "gpu-5.example:9101"'
    settings = load_settings(write(text(GOSSIP, peer)))
    assert settings.peer.gossip == "gpu-5.example:7102"
    assert me(settings).address == "gpu-5.example:9101"


def test_a_list_says_where_and_how_much(write: Callable[[str], Path]) -> None:
    settings = load_settings(write(text(LISTED, "", "")))
    told = membership(settings)
    assert isinstance(told, StaticSettings)
    assert [member.name for member in told.listed] == ["one"]
    known = me(settings)
    assert (known.address, known.zone, known.weight) == ("127.0.0.1:7101", "a", 2.0)
    assert load_settings(write(render_toml(settings))) == settings


def test_etcd(write: Callable[[str], Path]) -> None:
    settings = load_settings(write(text('etcd = ["http://10.0.0.9:2379"]', LISTEN)))
    told = membership(settings)
    assert isinstance(told, EtcdSettings)
    assert list(told.access.endpoints) == ["http://10.0.0.9:2379"]
    assert settings.peer.gossip == ""


def test_a_key_that_was_made_is_one(write: Callable[[str], Path]) -> None:
    runner = CliRunner()
    keys = {runner.invoke(app_for(["keygen"]), ["keygen"]).output.strip() for _ in range(2)}
    assert len(keys) == 2
    for key in keys:
        load_settings(write(text(f'seeds = ["10.0.0.1:7102"]\nkey = "{key}"', LISTEN)))


def test_a_key_is_not_shown(write: Callable[[str], Path]) -> None:
    assert KEY not in render_toml(load_settings(write(text(GOSSIP, LISTEN))))
