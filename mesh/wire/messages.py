"""What is said on the wire, as the rest of mesh sees it: plain dataclasses.

`proto/mesh/v1/mesh.proto` says what each field means; `codec` turns one into
the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mesh.blocks import Attributes, FileVersion
from mesh.errors import MeshError


@dataclass(frozen=True, slots=True)
class BlockRequest:
    file: FileVersion
    index: int
    first_piece: int = 0
    is_relayed: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a block; without data it only says that the sender is at work."""

    number: int
    crc: int
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class HeldRequest:
    file: FileVersion


@dataclass(frozen=True, slots=True)
class HeldReply:
    indexes: frozenset[int]


@dataclass(frozen=True, slots=True)
class InventoryRequest:
    after: bytes = b""


@dataclass(frozen=True, slots=True)
class InventoryReply:
    stock: tuple[tuple[FileVersion, frozenset[int]], ...]
    is_last: bool


@dataclass(frozen=True, slots=True)
class HelloReply:
    member: bytes
    """JSON of a `membership.view.Member`."""


@dataclass(frozen=True, slots=True)
class BulkReply:
    port: int
    """On the host of the peer's address; 0 for nowhere."""

    token: bytes


@dataclass(frozen=True, slots=True)
class MembersReply:
    view: bytes
    """JSON of a `membership.view.View`; empty when the asker has this one."""


@dataclass(frozen=True, slots=True)
class StatRequest:
    path: str
    refresh: bool = False


@dataclass(frozen=True, slots=True)
class StatReply:
    attributes: Attributes
    file: FileVersion | None
    """None for a directory."""

    is_stale: bool = False
    fresh_s: float = 0.0
    age_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ListRequest:
    path: str
    after: str = ""
    """The last name of the page before; "" begins."""

    asker: str = ""
    refresh: bool = False
    is_ahead: bool = False
    waited_s: float = 0.0
    is_copy: bool = False


@dataclass(frozen=True, slots=True)
class ListReply:
    page: bytes
    """Entries by name, as `wire.pages` packs them."""

    is_last: bool
    entry_count: int = 0
    fresh_s: float = 0.0
    age_s: float = 0.0
    is_stale: bool = False
    is_pending: bool = False


@dataclass(frozen=True, slots=True)
class LookupRequest:
    paths: tuple[str, ...]
    asker: str
    refresh: bool = False
    only_known: bool = False


@dataclass(frozen=True, slots=True)
class LookupReply:
    answers: tuple[StatReply | MeshError | None, ...]
    """None: not known, or not in time."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is not as it was in one directory."""

    source: str
    path: str
    """Of the directory, below the source."""

    names: tuple[str, ...] = ()
    is_all: bool = False
    is_listing: bool = False
    is_passed_on: bool = False
    is_tree: bool = False


@dataclass(frozen=True, slots=True)
class InvalidateRequest:
    changes: tuple[Change, ...]


@dataclass(frozen=True, slots=True)
class Kept:
    path: str
    attributes: Attributes | None
    age_s: float


@dataclass(frozen=True, slots=True)
class KeepRequest:
    asker: str
    kept: tuple[Kept, ...] = ()
    directories: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RefreshRequest:
    path: str
    is_recursive: bool = False


@dataclass(frozen=True, slots=True)
class RefreshReply:
    looked_at: int


@dataclass(frozen=True, slots=True)
class WatchRequest:
    since: int


@dataclass(frozen=True, slots=True)
class WatchReply:
    last: int
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True, slots=True)
class SmallRequest:
    files: tuple[FileVersion, ...]


@dataclass(frozen=True, slots=True)
class SmallReply:
    files: tuple[tuple[int, bytes], ...]
    """CRC-32C and bytes; no bytes for one that is not to be had like this."""


@dataclass(frozen=True, slots=True)
class GatherRequest:
    files: tuple[FileVersion, ...]


@dataclass(frozen=True, slots=True)
class GatherReply:
    here: int


@dataclass(frozen=True, slots=True)
class FetchRequest:
    file: FileVersion
    index: int
    start_bytes: int
    size_bytes: int
    is_ahead: bool = False
    is_suspect: bool = False


@dataclass(frozen=True, slots=True)
class FetchReply:
    inode: int
    lease_s: float
    origin: str


@dataclass(frozen=True, slots=True)
class MountReport:
    mountpoint: str
    pid: int
    read_bytes: dict[str, int] = field(default_factory=dict)
    read_blocks: dict[str, int] = field(default_factory=dict)
    used_versions: tuple[bytes, ...] = ()
    epoch: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """How one peer is; `is_up` false and zeros for one that did not answer."""

    name: str
    address: str
    zone: str = ""
    weight: float = 1.0
    is_up: bool = True
    release: str = ""
    uptime_s: float = 0.0
    used_bytes: int = 0
    capacity_bytes: int = 0
    block_count: int = 0
    read_bytes: dict[str, int] = field(default_factory=dict)
    read_blocks: dict[str, int] = field(default_factory=dict)
    peer_bytes: dict[str, int] = field(default_factory=dict)
    served_bytes: int = 0
    fill_bytes: int = 0
    fills: int = 0
    evicted_bytes: int = 0
    corrupt_blocks: int = 0
    failovers: int = 0
    errors: int = 0
    in_flight_bytes: int = 0
    mountpoints: tuple[str, ...] = ()
    ring_share: float = 0.0
    pid: int = 0
    state: str = ""
    id: str = ""
    epoch: int = 0
    hedges: int = 0
    bypass_bytes: int = 0
    repair_pending_blocks: int = 0
    repaired_bytes: int = 0
    portion: float = 1.0
    staged_bytes: int = 0
    staged_files: int = 0
    staged_age_s: float = 0.0
    upload_failures: int = 0


@dataclass(frozen=True, slots=True)
class Overview:
    cluster: str
    epoch: int
    peers: tuple[Description, ...]


@dataclass(frozen=True, slots=True)
class LocateRequest:
    path: str


@dataclass(frozen=True, slots=True)
class Location:
    """Where the blocks of a file are."""

    found: StatReply
    owners: tuple[tuple[str, ...], ...]
    """By block, nearest first."""

    held: dict[str, frozenset[int]]
    """By peer, the blocks that it has."""

    unreachable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Nothing:
    """A message without fields."""
