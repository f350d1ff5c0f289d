"""The sections of mesh.toml: their keys, defaults and units. One for each room.

Values are converted here, once: sizes are bytes, durations are seconds.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

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
from mesh.understore.understore import Durability

# The kinds of values; a dump has them in the units that people write.

Text = Annotated[str, AfterValidator(q.check_text)]
Name = Annotated[str, AfterValidator(q.check_name)]
Address = Annotated[str, AfterValidator(q.check_address)]
BulkPort = Annotated[int | None, BeforeValidator(q.port_or_word), PlainSerializer(q.port_word)]
AddressOrOff = Annotated[str, AfterValidator(q.check_address_or_off)]
Size = Annotated[int, BeforeValidator(q.parse_size), PlainSerializer(q.format_size)]
Seconds = Annotated[float, BeforeValidator(q.parse_seconds), PlainSerializer(q.format_seconds)]
MaxAge = Annotated[float, BeforeValidator(q.parse_max_age), PlainSerializer(q.format_max_age)]
AbsolutePath = Annotated[Path, AfterValidator(q.check_absolute)]
Endpoint = Annotated[str, AfterValidator(q.check_endpoint)]
Pem = Annotated[
    Path | None, BeforeValidator(q.check_pem), PlainSerializer(lambda path: str(path or ""))
]


Mode = Annotated[int, BeforeValidator(q.parse_mode), PlainSerializer(q.format_mode)]
Id = Annotated[
    int | None,
    BeforeValidator(q.parse_id),
    PlainSerializer(lambda number: "" if number is None else number),
]
PathOrNone = Annotated[str, AfterValidator(q.check_absolute_or_empty)]
EndpointOrNone = Annotated[str, AfterValidator(q.check_endpoint)]


def _option(written: object) -> object:
    """Any text may be a secret: nobody here knows the words of somebody else's library."""
    value = q.check_option(written)
    return SecretStr(value) if isinstance(value, str) else value


Option = Annotated[
    Any,
    BeforeValidator(_option),
    PlainSerializer(lambda v: str(v) if isinstance(v, SecretStr) else v),
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
    bulk: BulkPort = 0
    """The port where the others get blocks without gRPC: "any" that is free, or "off"."""
    swarm: bool = True
    """Whether large files are read with the help of the other readers, not of owners alone."""
    egress_limit: Annotated[Size, AfterValidator(q.at_least(0))] = 0
    """What is given to other readers each second, so that training traffic lives; 0: no limit."""
    check_under_stores: bool = True
    """Whether to refuse to start when an under-store cannot be reached."""


class StoreSection(Section):
    """Where blocks live on this node, and how many of them."""

    directory: AbsolutePath
    capacity: Annotated[Size, AfterValidator(q.at_least(64 * MIB))] = 100 * GIB
    """Eviction keeps the bytes of all blocks below this."""
    free_space_ratio: Annotated[float, BeforeValidator(q.number(0, 0.9))] = 0.1
    """Eviction also keeps this part of the disk free for everyone else."""
    staging: Annotated[Size, AfterValidator(q.at_least(0))] = 50 * GIB
    """What may wait here for the under-store, at most half of the capacity."""
    upload_limit: Annotated[Size, AfterValidator(q.at_least(0))] = 0
    """Of that, so many bytes go into the under-store each second; 0 for no limit."""


class S3Section(Section):
    """How to reach an S3 under-store."""

    endpoint: EndpointOrNone = ""
    """AWS when empty."""
    region: Text = "us-east-1"
    path_style: bool = Field(default_factory=lambda s3: bool(s3.get("endpoint")))
    """Whether the bucket is in the path; so with an endpoint, and not with AWS, unless set."""
    anonymous: bool = False
    access_key: SecretStr = SecretStr("")
    """Empty keys: those of the environment or of AWS's usual places."""
    secret_key: SecretStr = SecretStr("")
    session_token: SecretStr = SecretStr("")
    profile: Text = ""
    """A section of ~/.aws/config, which may name a role as well."""
    role_arn: Text = ""
    """A role to take with the token in web_identity_token_file."""
    web_identity_token_file: PathOrNone = ""
    checksum: Literal["auto", "off"] = "auto"
    """auto: checksums as headers for AWS, none for others; off: none."""


class HdfsSection(Section):
    """How to reach an HDFS under-store."""

    config_dir: PathOrNone = ""
    """Of core-site.xml and hdfs-site.xml; HADOOP_CONF_DIR when empty."""
    kerberos_principal: Text = ""
    kerberos_keytab: PathOrNone = ""
    options: dict[str, Text] = Field(default_factory=dict)
    """Keys of hdfs-site.xml, in quotes."""


class GcsSection(Section):
    """How to reach an under-store in Google Cloud Storage."""

    endpoint: EndpointOrNone = ""
    anonymous: bool = False
    project: Text = ""
    target_service_account: Text = ""


class AzureSection(Section):
    """How to reach an under-store in Azure Blob Storage."""

    account: Text = ""
    """Needed unless the url names it."""
    account_key: SecretStr = SecretStr("")
    """No key, token or client: Azure's default credential."""
    sas_token: SecretStr = SecretStr("")
    tenant_id: Text = ""
    client_id: Text = ""
    client_secret: SecretStr = SecretStr("")
    endpoint: EndpointOrNone = ""


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
    read_only: bool = False
    durability: Durability = "through"
    """What has a file when close and fsync return."""
    durabilities: dict[str, Durability] = Field(default_factory=dict)
    """The same for what lies below a path, seen from this mount."""
    uid: Id = None
    """Owner of everything; whoever mounts it unless set."""
    gid: Id = None
    file_mode: Mode = 0o644
    """Of files in under-stores that keep no modes."""
    dir_mode: Mode = 0o755
    umask: Mode = 0
    """Taken away from all modes."""
    s3: S3Section = Field(default_factory=S3Section)
    hdfs: HdfsSection = Field(default_factory=HdfsSection)
    gcs: GcsSection = Field(default_factory=GcsSection)
    azure: AzureSection = Field(default_factory=AzureSection)
    fsspec: dict[str, Option] = Field(default_factory=dict)
    """Whatever the implementation takes."""

    @property
    def kind(self) -> str:
        """The name of the section that is about this under-store; "" where none is."""
        scheme = self.url.partition("://")[0].partition("+")[0]
        kinds = {"s3": "s3", "hdfs": "hdfs", "gs": "gcs", "fsspec": "fsspec"}
        return kinds.get(scheme, "azure" if scheme in ("abfs", "abfss") else "")


KINDS = {
    "s3": "s3://",
    "hdfs": "hdfs://",
    "gcs": "gs://",
    "azure": "abfs:// or abfss://",
    "fsspec": "fsspec+",
}


def mount_contradictions(mount: Mount) -> Iterator[tuple[tuple[str, ...], str, str]]:
    """Yield key, rule and mend of what is wrong between the keys of a mount."""
    for kind, scheme in KINDS.items():
        if kind in mount.model_fields_set and kind != mount.kind:
            yield (kind,), f"set for a url that is not {scheme}", "remove this section"
    for key, rule, mend in _s3_contradictions(mount.s3):
        yield ("s3", key), rule, mend
    for key, rule, mend in _azure_contradictions(mount):
        yield ("azure", key), rule, mend
    hdfs = mount.hdfs
    if bool(hdfs.kerberos_principal) != bool(hdfs.kerberos_keytab):
        given, missing = "kerberos_principal", "kerberos_keytab"
        if not hdfs.kerberos_principal:
            given, missing = missing, given
        yield ("hdfs", missing), f"missing beside {given}", "set both or neither"


def _s3_contradictions(s3: S3Section) -> Iterator[tuple[str, str, str]]:
    for one, other in (("access_key", "secret_key"), ("role_arn", "web_identity_token_file")):
        if bool(getattr(s3, one)) != bool(getattr(s3, other)):
            given, missing = (one, other) if getattr(s3, one) else (other, one)
            yield missing, f"missing beside {given}", "set both or neither"
    has_keys = bool(s3.access_key or s3.secret_key)
    if s3.session_token and not has_keys:
        mend = "set access_key and secret_key too"
        yield "session_token", "set without the keys it belongs to", mend
    if s3.anonymous and (has_keys or s3.session_token):
        yield "anonymous", "set beside keys", "remove the keys, or this"
    ways = {"keys": has_keys, "profile": bool(s3.profile), "role_arn": bool(s3.role_arn)}
    first, *others = [way for way, is_set in ways.items() if is_set] or [""]
    for way in others:
        yield way, f"set beside {first}", "keep one way to credentials"
    if s3.anonymous and first and first != "keys":
        yield "anonymous", f"set beside {first}", f"remove {first}, or this"


def _azure_contradictions(mount: Mount) -> Iterator[tuple[str, str, str]]:
    azure = mount.azure
    if mount.kind == "azure" and not azure.account and "@" not in mount.url:
        yield "account", "missing", 'add account = "name", or name it in the url'
    if azure.account and "@" in mount.url:
        yield "account", "set beside a url that names one", "remove it here, or there"
    if azure.account_key and azure.sas_token:
        yield "sas_token", "set beside account_key", "keep one way to credentials"
    if azure.client_secret and not (azure.tenant_id and azure.client_id):
        mend = "set tenant_id and client_id too"
        yield "client_secret", "set without the client it belongs to", mend


class FuseSection(Section):
    """How a mount talks with the kernel."""

    allow_other: bool = False
    read_ahead: Size = 4 * MIB
    attr_cache: Seconds = 60.0
    entry_cache: Seconds = 60.0
    negative_entry_cache: Seconds = 0.5
    xattr: bool = True
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
