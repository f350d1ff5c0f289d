"""What a host's mesh.toml says: the one place that knows how peers are told of each other."""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Literal

Membership = Literal["static", "gossip"]

DEFAULT_MEMBERSHIP: Membership = "gossip"
"""What a run uses unless it is told; the one line that switches all scenarios."""

PEER_PORT = 7101
GOSSIP_PORT = 7102
METRICS_PORT = 9100
SEEDS = 3


@dataclass(frozen=True, slots=True)
class PeerPlace:
    """A peer as the others know it, and where it keeps its things."""

    name: str
    ip: str
    zone: str
    directory: Path
    """Holds the socket, and the store unless that has a disk of its own."""
    store: Path


@dataclass(frozen=True, slots=True)
class S3Place:
    """The bucket that the mesh shows as /."""

    endpoint: str
    bucket: str
    access_key: str
    secret_key: str


LOG_LEVEL = "CHAOS_LOG_LEVEL"
"""Environment variable: "debug" lets the daemons tell of each block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeshSettings:
    """What all hosts share."""

    membership: Membership = DEFAULT_MEMBERSHIP
    capacity: str = "64MiB"
    block: str = "1MiB"
    timeout: str = "5s"
    """Deadline of one request to the under-store: how long a read may wait for a dead one."""
    seed: int = 0
    more: Mapping[str, str] = field(default_factory=dict)
    """Lines to add, by section: {"fuse": "attr_cache = 1"}."""


def mesh_toml(
    me: PeerPlace, peers: Sequence[PeerPlace], under_store: S3Place | Path, settings: MeshSettings
) -> str:
    """Return the configuration of one peer and of the mounts beside it."""
    s3 = under_store if isinstance(under_store, S3Place) else None
    url = under_store.as_uri() if isinstance(under_store, Path) else f"s3://{under_store.bucket}"
    sections = {
        "cluster": _cluster(peers, settings),
        "peer": _peer(me, settings),
        "store": f'directory = "{me.store}"\ncapacity = "{settings.capacity}"\n'
        "free_space_ratio = 0.01\n",
        'mounts."/"': f'url = "{url}"\nblock = "{settings.block}"\n'
        f'timeout = "{settings.timeout}"\nrequest = "1MiB"\n',
        'mounts."/".s3': _s3(s3) if s3 else "",
        "security": "insecure = true\n",
        "fuse": "",
        "log": f'level = "{os.environ.get(LOG_LEVEL, "info")}"\n',
    }
    return "\n".join(
        f"[{name}]\n{_above_tables(lines, settings.more.get(name, ''))}"
        for name, lines in sections.items()
        if lines or not name.endswith(".s3")
    )


def _s3(place: S3Place) -> str:
    return (
        f'endpoint = "{place.endpoint}"\n'
        f'access_key = "{place.access_key}"\nsecret_key = "{place.secret_key}"\n'
    )


def _above_tables(lines: str, more: str) -> str:
    """Put further lines before the first sub-table, where they still belong to the section."""
    own, mark, tables = lines.partition("[[")
    return f"{own}{more}\n{mark}{tables}" if more else lines


def _cluster(peers: Sequence[PeerPlace], settings: MeshSettings) -> str:
    if settings.membership == "gossip":
        key = b64encode(Random(settings.seed).randbytes(32)).decode()
        seeds = ", ".join(f'"{peer.ip}:{GOSSIP_PORT}"' for peer in peers[:SEEDS])
        return f'name = "chaos"\nseeds = [{seeds}]\nkey = "{key}"\n'
    return 'name = "chaos"\n' + "".join(
        f'[[cluster.peers]]\nname = "{peer.name}"\n'
        f'address = "{peer.ip}:{PEER_PORT}"\nzone = "{peer.zone}"\n'
        for peer in peers
    )


def _peer(me: PeerPlace, settings: MeshSettings) -> str:
    common = (
        f'name = "{me.name}"\nsocket = "{me.directory / "s"}"\n'
        f'metrics = "127.0.0.1:{METRICS_PORT}"\ncheck_under_stores = false\n'
    )
    if settings.membership == "static":
        return common
    return (
        f'{common}listen = "{me.ip}:{PEER_PORT}"\ngossip = "{me.ip}:{GOSSIP_PORT}"\n'
        f'zone = "{me.zone}"\n'
    )
