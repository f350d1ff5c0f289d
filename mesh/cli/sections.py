"""The sections of mesh.toml: their keys, defaults and units. One for each room.

Values are converted here, once: sizes are bytes, durations are seconds.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
)

from mesh.cli import quantities as q
from mesh.cli.quantities import GIB, KIB, MIB

# The kinds of values; a dump has them in the units that people write.

Text = Annotated[str, AfterValidator(q.check_text)]
Name = Annotated[str, AfterValidator(q.check_name)]
Address = Annotated[str, AfterValidator(q.check_address)]
AddressOrOff = Annotated[str, AfterValidator(q.check_address_or_off)]
Size = Annotated[int, BeforeValidator(q.parse_size), PlainSerializer(q.format_size)]
Seconds = Annotated[float, BeforeValidator(q.parse_seconds), PlainSerializer(q.format_seconds)]
MaxAge = Annotated[float, BeforeValidator(q.parse_max_age), PlainSerializer(q.format_max_age)]
AbsolutePath = Annotated[Path, AfterValidator(q.check_absolute)]
Endpoint = Annotated[str, AfterValidator(q.check_endpoint)]
Pem = Annotated[
    Path | None, BeforeValidator(q.check_pem), PlainSerializer(lambda path: str(path or ""))
]


# The sections


class Section(BaseModel):
    """A table of the file; an unknown key in it is a mistake."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ClusterPeer(Section):
    """A peer as all the others know it."""

    name: Name
    address: Address
    zone: Text = ""
    """Copies go to peers of different zones while there are any."""
    weight: Annotated[float, BeforeValidator(q.number(0.25, 4))] = 1.0
    """Its share of the blocks, relative to the others'."""


class Cluster(Section):
    """Who is in the mesh, or how to find out; the same on every node."""

    name: Name
    seeds: tuple[Address, ...] = ()
    """Where some peers can be met (their peer.gossip); a name may have many addresses."""
    key: SecretStr = SecretStr("")
    """Seals what peers say about each other: 32 bytes in base64, as `mesh keygen` prints."""
    etcd: tuple[Endpoint, ...] = ()
    """URLs of an etcd that keeps the list of peers."""
    peers: tuple[ClusterPeer, ...] = ()
    """All peers, where nobody else joins."""
    grace: Seconds = 60.0
    """For so long a peer that is gone keeps its blocks' place: nothing moves."""
    slow_start: Seconds = 30.0
    """In so long an empty peer takes its full weight when others have blocks already."""
    repair: Annotated[Size, AfterValidator(q.at_least(MIB))] = 64 * MIB
    """Bytes a second that a peer copies from others, to have what the ring says is its."""


class PeerSection(Section):
    """This node's peer."""

    name: Name
    """Its own, for people; one of cluster.peers where those are listed."""
    listen: Address = ""
    """Where it listens for the others; its address in cluster.peers unless set."""
    address: Address = ""
    """Where the others reach it; peer.listen unless set."""
    gossip: Address = ""
    """Where it hears who is in the mesh, TCP and UDP; the port after peer.listen unless set."""
    zone: Text = ""
    """Copies go to peers of different zones while there are any."""
    weight: Annotated[float, BeforeValidator(q.number(0.25, 4))] = 1.0
    """Its share of the blocks, relative to the others'."""
    metrics: AddressOrOff = ""
    """Where Prometheus finds it; nowhere when empty."""
    socket: AbsolutePath = Path()
    """Where the mounts of this host find it; peer.sock in store.directory unless set."""
    memory: Annotated[Size, AfterValidator(q.at_least(64 * MIB))] = 512 * MIB
    """Bytes in flight, all together."""
    check_under_stores: bool = True
    """Whether to refuse to start when an under-store cannot be reached."""


class StoreSection(Section):
    """Where blocks live on this node, and how many of them."""

    directory: AbsolutePath
    capacity: Annotated[Size, AfterValidator(q.at_least(64 * MIB))] = 100 * GIB
    """Eviction keeps the bytes of all blocks below this."""
    free_space_ratio: Annotated[float, BeforeValidator(q.number(0, 0.9))] = 0.1
    """Eviction also keeps this part of the disk free for everyone else."""


class S3Section(Section):
    """How to reach an S3 under-store."""

    endpoint: Annotated[str, AfterValidator(q.check_endpoint)] = ""
    """AWS when empty."""
    region: Text = "us-east-1"
    path_style: bool = Field(default_factory=lambda s3: bool(s3.get("endpoint")))
    """Whether the bucket is in the path; so with an endpoint, and not with AWS, unless set."""
    anonymous: bool = False
    access_key: SecretStr = SecretStr("")
    """Empty keys: those of the environment or of AWS's usual places."""
    secret_key: SecretStr = SecretStr("")
    session_token: SecretStr = SecretStr("")


class Mount(Section):
    """What appears under one path, and how it is read."""

    url: Annotated[str, AfterValidator(q.check_url)]
    block: Annotated[Size, AfterValidator(q.power_of_two(64 * KIB, 64 * MIB))] = 4 * MIB
    max_age: MaxAge = 60.0
    """How long an entry is believed without asking the under-store; inf for ever."""
    concurrency: Annotated[int, BeforeValidator(q.whole_number(1, 256))] = 16
    """Requests to the under-store at a time."""
    request: Annotated[Size, AfterValidator(q.power_of_two(64 * KIB, GIB))] = 4 * MIB
    """Bytes of one request to the under-store."""
    timeout: Annotated[Seconds, AfterValidator(q.more_than_nothing)] = 30.0
    """Deadline of one request to the under-store."""
    s3: S3Section = Field(default_factory=S3Section)


class FuseSection(Section):
    """How a mount talks with the kernel."""

    allow_other: bool = False
    read_ahead: Size = 4 * MIB
    attr_cache: Seconds = 60.0
    entry_cache: Seconds = 60.0
    negative_entry_cache: Seconds = 1.0
    buffer: Size = 64 * MIB
    """Bytes of blocks that a mount holds while its own peer is down."""
    metrics: AddressOrOff = ""


class SecuritySection(Section):
    """TLS between peers: all three files, or none."""

    insecure: bool = False
    """Whether peers may talk in the clear beyond this host."""
    ca: Pem = None
    certificate: Pem = None
    key: Pem = None


class LogSection(Section):
    """What is logged, and how it looks."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"
