"""Where the truth lives: what mesh needs of an under-store, and no more.

Every implementation passes `tests/contracts/test_understore.py`. Paths are below
the root of the under-store, "" is the root itself, and there is no leading slash.

All methods raise `UnderStoreUnavailable` when there was no answer within the
deadline, and `Refused` when the answer was that we may not.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from mesh.blocks import MIB, Attributes, DirectoryEntry
from mesh.understore.writable import Writable

PAGE_ENTRIES = 1000

Durability = Literal["through", "copies", "local"]


class UnderStore(Writable, Protocol):
    """A tree of files that the mesh caches, and changes if it can."""

    async def prepare(self) -> None:
        """Load what is slow to load, so that no reader waits for it."""
        ...

    async def stat(self, path: str) -> Attributes:
        """Say what *path* is now; `NotFound` when it is nothing."""
        ...

    def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        """Yield the entries of a directory in pages of at most PAGE_ENTRIES.

        Raises `NotFound` or `NotADirectory`; an error in the middle means that
        what was yielded is no listing.
        """
        ...

    def read(
        self, path: str, about: Attributes, offset_bytes: int, size_bytes: int
    ) -> AsyncIterator[bytes | memoryview]:
        """Yield the range in order, in runs of at most `request_bytes`.

        A run may be a `memoryview` of a library's own memory instead of bytes.
        All bytes are those of the content that *about* names: `Stale` is raised
        instead of a run when the file has changed or has gone.
        """
        ...

    async def aclose(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Settings:
    """How to reach an S3 server."""

    endpoint: str = ""
    """URL; "" is AWS's own for the region."""

    region: str = "us-east-1"
    path_style: bool = True
    anonymous: bool = False
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)

    profile: str = ""
    """A section of ~/.aws/config; "" is AWS_PROFILE, or the usual places."""

    role_arn: str = ""
    web_identity_token_file: str = ""
    """With `role_arn`: the role is taken with the token in this file."""

    checksum: Literal["auto", "off"] = "auto"
    """auto: the checksum headers of newer SDKs are sent to AWS's own servers alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HdfsSettings:
    """How to reach HDFS; what is "" is left to hdfs-native and its environment."""

    config_dir: str = ""
    """The directory of core-site.xml and hdfs-site.xml; "" is HADOOP_CONF_DIR."""

    kerberos_principal: str = ""
    kerberos_keytab: str = ""
    options: tuple[tuple[str, str], ...] = ()
    """Keys of hdfs-site.xml, such as the NameNodes of a nameservice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcsSettings:
    """How to reach Google Cloud Storage; credentials are Google's default ones."""

    endpoint: str = ""
    anonymous: bool = False
    project: str = ""
    target_service_account: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AzureSettings:
    """How to reach Azure Blob Storage; without keys, by Azure's default credential."""

    account: str = ""
    """"" when the URL names it: abfs://container@account.dfs.core.windows.net."""

    account_key: str = field(default="", repr=False)
    sas_token: str = field(default="", repr=False)
    tenant_id: str = ""
    client_id: str = ""
    client_secret: str = field(default="", repr=False)
    endpoint: str = ""
    """URL of another server, such as an emulator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FsspecSettings:
    """What the implementation is given besides the URL."""

    options: tuple[tuple[str, Any], ...] = field(default=(), repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UnderStoreSettings:
    """One line of the mount table."""

    url: str
    """Such as file:///path or s3://bucket/prefix; `mesh.understore.open` has all kinds."""

    block_bytes: int = 4 * MIB
    max_age_s: float = 60.0
    """How long a path's attributes may be believed; inf: for ever, 0: never."""

    concurrency: int = 16
    """Requests under way at once, at most: fewer while it says that we are too fast."""

    request_bytes: int = 4 * MIB
    """The most that one request asks for."""

    timeout_s: float = 30.0
    """Deadline of one request, with all that it takes to repeat it."""

    uid: int | None = None
    """Owner of everything; None is whoever mounts it."""

    gid: int | None = None
    file_mode: int = 0o644
    """For under-stores that keep no permission bits."""

    directory_mode: int = 0o755
    umask: int = 0
    """Taken away from all modes, also from those that the under-store keeps."""

    read_only: bool = False
    durability: Durability = "through"
    """What has a file when its writer is told that it is safe; see `COPIES` in peer/writer."""

    durabilities: tuple[tuple[str, Durability], ...] = ()
    """Of what lies below these paths, below the root of the under-store; the longest wins."""

    s3: S3Settings = field(default_factory=S3Settings)
    hdfs: HdfsSettings = field(default_factory=HdfsSettings)
    gcs: GcsSettings = field(default_factory=GcsSettings)
    azure: AzureSettings = field(default_factory=AzureSettings)
    fsspec: FsspecSettings = field(default_factory=FsspecSettings)
