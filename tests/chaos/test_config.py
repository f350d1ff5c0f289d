"""What hosts are told is what mesh understands."""

from __future__ import annotations

import tomllib
from base64 import b64decode
from pathlib import Path

from chaos.config import MeshSettings, PeerPlace, S3Place, mesh_toml
from mesh.cli.settings import load_settings

PLACES = [
    PeerPlace(f"peer-{n}", f"10.77.0.{n}", f"rack-{n % 2}", Path(f"/t/n{n}"), Path(f"/t/n{n}/s"))
    for n in range(1, 6)
]
S3 = S3Place("http://10.77.0.9:9000", "truth", "mesh", "secret")


def test_a_static_list_names_all_peers(tmp_path: Path) -> None:
    path = tmp_path / "mesh.toml"
    path.write_text(mesh_toml(PLACES[1], PLACES, S3, MeshSettings(membership="static")))
    written = tomllib.loads(path.read_text())
    assert [p["address"] for p in written["cluster"]["peers"]][:2] == [
        "10.77.0.1:7101",
        "10.77.0.2:7101",
    ]
    assert written["peer"]["name"] == "peer-2"


def test_gossip_names_seeds_and_a_key_that_all_share() -> None:
    settings = MeshSettings(membership="gossip", seed=7)
    first, last = (
        tomllib.loads(mesh_toml(place, PLACES, S3, settings)) for place in (PLACES[0], PLACES[-1])
    )
    assert first["cluster"] == last["cluster"]
    assert first["cluster"]["seeds"] == ["10.77.0.1:7102", "10.77.0.2:7102", "10.77.0.3:7102"]
    assert len(b64decode(first["cluster"]["key"])) == 32
    assert last["peer"]["gossip"] == "10.77.0.5:7102"
    assert "peers" not in first["cluster"]


def test_further_lines_stay_in_their_section() -> None:
    settings = MeshSettings(
        membership="static", more={"cluster": "grace = 5", "fuse": "attr_cache = 1"}
    )
    written = tomllib.loads(mesh_toml(PLACES[0], PLACES, S3, settings))
    assert written["cluster"]["grace"] == 5
    assert written["fuse"]["attr_cache"] == 1
    assert len(written["cluster"]["peers"]) == 5


def test_mesh_takes_it(tmp_path: Path) -> None:
    path = tmp_path / "mesh.toml"
    path.write_text(mesh_toml(PLACES[0], PLACES, S3, MeshSettings()))
    settings = load_settings(path)
    assert settings.peer.name == "peer-1"
    assert settings.mounts["/"].block == 1024 * 1024
