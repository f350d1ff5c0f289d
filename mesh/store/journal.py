"""What a node must not forget: whose data directory this is, and how it was left.

A second LMDB environment, small and durable (every commit is synced).

    key        value
    identity   JSON: schema, cluster, peer id
    boot       JSON: number of this start, and whether the last stop was clean

`notes` has two tables of its own here.

`claim` takes a data directory or says in one line why it can't, and changes
nothing before it is sure.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID, uuid4

import lmdb
import msgspec

from mesh.blocks import MIB
from mesh.errors import Unusable
from mesh.store.spare import Spare

SCHEMA = 2
"""Of the data directory. A newer one is refused. 2 names the path of each version, which
1 did not; what 1 wrote is read as it is."""

FREE_BYTES_MIN = 64 * MIB
"""Under this a node cannot keep even its tables."""

MAP_BYTES = 1024 * MIB
TABLES_MAX = 8


class Identity(msgspec.Struct, frozen=True):
    """Whose data directory it is."""

    schema: int
    cluster: str
    peer: str


class Boot(msgspec.Struct, frozen=True):
    """How often it was started, and how it was left the last time."""

    number: int
    clean: bool


@dataclass(frozen=True)
class Claim:
    """A data directory that is ours until `release`."""

    directory: Path
    identity: Identity
    boot: Boot
    """`number` of this start; `clean` tells how the one before it ended."""

    env: lmdb.Environment
    lock_fd: int

    def release(self) -> None:
        """Leave the mark of a clean stop and let the directory go."""
        with self.env.begin(write=True) as txn:
            txn.put(b"boot", msgspec.json.encode(Boot(self.boot.number, clean=True)))
        self.env.close()
        os.close(self.lock_fd)

    def abandon(self) -> None:
        """Let the directory go as a crash would."""
        self.env.close()
        os.close(self.lock_fd)


def claim(directory: Path, *, cluster: str, peer_id: UUID | None) -> Claim:
    """Take *directory* for this peer; Unusable with the reason when it can't be had.

    Without *peer_id* the peer is who the directory says, or somebody new if it is empty.
    """
    _check_room(directory)
    if not directory.exists():
        directory.mkdir(mode=0o700, parents=True)
    elif any(directory.iterdir()) and not (directory / "journal").exists():
        raise Unusable(
            f"store.directory {directory} holds files that are not mesh's; "
            "name an empty or new directory"
        )
    lock_fd = _lock(directory)
    try:
        known = _check_identity(directory, cluster, peer_id)
        identity = Identity(SCHEMA, cluster, str(peer_id or known or uuid4()))
        return _take(directory, lock_fd, identity)
    except BaseException:
        os.close(lock_fd)
        raise


def _check_room(directory: Path) -> None:
    existing = next(path for path in (directory, *directory.parents) if path.exists())
    if not existing.is_dir():
        raise Unusable(f"store.directory {directory}: {existing} is a file; name a directory")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise Unusable(f"store.directory {directory} is not writable; give this user the right")
    free_bytes = shutil.disk_usage(existing).free
    if free_bytes < FREE_BYTES_MIN and (directory / "journal").exists():
        Spare(directory).give()  # what is here can be read, and evicted, in any case
        return
    if free_bytes < FREE_BYTES_MIN:
        raise Unusable(
            f"store.directory {directory}: the disk is full ({free_bytes // MIB} MiB free, "
            f"need {FREE_BYTES_MIN // MIB} MiB); make room or name another disk"
        )


def _lock(directory: Path) -> int:
    fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        raise Unusable(
            f"store.directory {directory} is in use by another peer (pid {holder}); "
            "give each peer a directory of its own"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _check_identity(directory: Path, cluster: str, peer_id: UUID | None) -> UUID | None:
    """Look, without changing anything, whether the directory is this peer's; say whose."""
    journal = directory / "journal"
    if not (journal / "data.mdb").exists():
        return None
    env = lmdb.open(str(journal), readonly=True, lock=False, map_size=MAP_BYTES)
    with env, env.begin() as txn:
        value = txn.get(b"identity")
    if value is None:
        return None
    found = msgspec.json.decode(value, type=Identity)
    if found.schema > SCHEMA:
        raise Unusable(
            f"store.directory {directory} has schema {found.schema}, this mesh knows {SCHEMA}; "
            "install the newer mesh or name another directory"
        )
    if found.cluster != cluster:
        raise Unusable(
            f'store.directory {directory} belongs to cluster "{found.cluster}", not "{cluster}"; '
            "name another directory or mend cluster.name"
        )
    if peer_id is not None and found.peer != str(peer_id):
        raise Unusable(
            f"store.directory {directory} belongs to another peer ({found.peer}); "
            "give each peer a directory of its own or mend peer.name"
        )
    return UUID(found.peer)


def _take(directory: Path, lock_fd: int, identity: Identity) -> Claim:
    journal = directory / "journal"
    journal.mkdir(mode=0o700, exist_ok=True)
    env = lmdb.open(
        str(journal), map_size=MAP_BYTES, mode=0o600, max_spare_txns=0, max_dbs=TABLES_MAX
    )
    env.reader_check()
    with env.begin(write=True) as txn:
        value = txn.get(b"boot")
        last = Boot(0, clean=True) if value is None else msgspec.json.decode(value, type=Boot)
        txn.put(b"identity", msgspec.json.encode(identity))
        txn.put(b"boot", msgspec.json.encode(Boot(last.number + 1, clean=False)))
    return Claim(directory, identity, Boot(last.number + 1, last.clean), env, lock_fd)
