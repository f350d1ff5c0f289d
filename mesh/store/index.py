"""What this node has, in LMDB: tables, records, and the one thread that writes them.

The index may lose its last seconds in a power cut (commits are not synced, a
sync follows each second): it says what a cache has, and the cache can always be
thrown away. Readers may be in any process; the writer is one thread of the peer.

    table    key                          value
    files    version (16)                 FileRecord: size, block size, last use, name
    blocks   version (16) + index (u32)   BlockRecord: length, flags, stamp, inode, CRCs of
                                          the pieces (u32 each), CRCs of the grains
    inline   version (16)                 the bytes of a version of up to 64 KiB
    meta     b"trusted_since"             u64: stamps below it are not believed

A stamp is (start of the peer << 40 | count) and never given twice. A record whose
stamp is older than `trusted_since` was written before an unclean stop: its bytes
are checked against their CRCs before anybody sees them, and then it is stamped
anew. A reader outside the peer looks at the record before and after it reads the
bytes; the same stamp both times means that no one punched them away in between,
because a record is always deleted before its bytes are.

Between nodes a piece of 1 MiB is checked as one. Who reads 4 KiB from the disk would
have to read all of it for that, so a record has the CRCs of its grains of 64 KiB too.
"""

from __future__ import annotations

import queue
import shutil
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import lmdb
import msgspec
import structlog
from crc32c import crc32c

from mesh.blocks import (
    GIB,
    KIB,
    PIECE_BYTES,
    BlockKey,
    FileVersion,
    piece_count,
    version_of,
)
from mesh.clock import Clock, monotonic_s
from mesh.errors import StoreFull
from mesh.store.eviction import Rank
from mesh.store.journal import Boot
from mesh.store.spare import is_disk_full

log = structlog.get_logger()

GRAIN_BYTES = 64 * KIB
"""What a mount reads at least, so as to check it. A piece is so many whole ones."""

MAP_BYTES = 64 * GIB
"""Address space, not disk: enough for a billion blocks; the file grows as needed."""

OPS_PER_COMMIT = 1000
QUEUED_OPS_MAX = 100_000
SYNC_EVERY_S = 1.0
READER_CHECK_EVERY_S = 60.0
"""A mount that was killed leaves its slot in the table of readers behind."""

RANK_BITS = 3
"""Of the flags: which `eviction.Rank` the block has."""

T = TypeVar("T")

_BLOCK = struct.Struct(">IBQQ")
_FILE = struct.Struct(">QIQ")
_U64 = struct.Struct(">Q")


@dataclass(frozen=True, slots=True)
class BlockRecord:
    """What is known of one block that is here."""

    length_bytes: int
    flags: int
    stamp: int
    inode: int
    """Of the extent file that has the bytes; 0 for an inline version."""

    crcs: tuple[int, ...]
    """CRC-32C of each piece, as the peer that filled the block computed them."""

    grains: bytes = b""
    """CRC-32C of each grain as `grain_crcs` packs them, computed where the bytes were
    written; b"" for an inline version, and in records of older meshes."""

    @property
    def rank(self) -> Rank:
        return Rank(self.flags & RANK_BITS)

    @property
    def checked_bytes(self) -> int:
        """What has a CRC of its own: a grain; without those a piece."""
        return GRAIN_BYTES if self.grains else PIECE_BYTES

    def crc(self, number: int) -> int:
        """Return the CRC-32C of that run of `checked_bytes`; the last one can be short."""
        if self.grains:
            return int.from_bytes(self.grains[4 * number : 4 * number + 4], "big")
        return self.crcs[number]

    def pack(self) -> bytes:
        head = _BLOCK.pack(self.length_bytes, self.flags, self.stamp, self.inode)
        return head + struct.pack(f">{len(self.crcs)}I", *self.crcs) + self.grains

    @classmethod
    def unpack(cls, value: bytes) -> BlockRecord:
        length_bytes, flags, stamp, inode = _BLOCK.unpack_from(value)
        count = min(piece_count(length_bytes), (len(value) - _BLOCK.size) // 4)
        crcs = struct.unpack_from(f">{count}I", value, _BLOCK.size)
        return cls(length_bytes, flags, stamp, inode, crcs, value[_BLOCK.size + 4 * count :])


def grain_crcs(data: bytes | memoryview) -> bytes:
    """Return the CRC-32C of each grain, big-endian, one after the other.

    A MiB that was just written or checked takes 50 µs, one from cold memory 120 µs.
    """
    view = memoryview(data)
    starts = range(0, len(view), GRAIN_BYTES)
    return b"".join(crc32c(view[at : at + GRAIN_BYTES]).to_bytes(4, "big") for at in starts)


@dataclass(frozen=True, slots=True)
class FileRecord:
    """What is known of a version that has blocks here."""

    size_bytes: int
    block_bytes: int
    used_s: int
    """When it was last read, on the wall clock; decides only the order of eviction."""

    source: str = ""
    path: str = ""
    tag: str = ""
    """With the sizes, all that names a version; "" in records of older meshes."""

    def pack(self) -> bytes:
        head = _FILE.pack(self.size_bytes, self.block_bytes, self.used_s)
        parts = (part.encode("utf-8", "surrogateescape") for part in self._name)
        return head + msgspec.msgpack.encode(tuple(parts))

    @classmethod
    def unpack(cls, value: bytes) -> FileRecord:
        head = _FILE.unpack_from(value)
        if len(value) == _FILE.size:
            return cls(*head)
        parts = msgspec.msgpack.decode(value[_FILE.size :], type=tuple[bytes, bytes, bytes])
        return cls(*head, *(part.decode("utf-8", "surrogateescape") for part in parts))

    def version(self) -> FileVersion | None:
        """Return the version that this is a record of; None if it does not say so."""
        if not self.source:
            return None
        return version_of(
            source=self.source,
            path=self.path,
            size_bytes=self.size_bytes,
            tag=self.tag,
            block_bytes=self.block_bytes,
        )

    @property
    def _name(self) -> tuple[str, str, str]:
        return self.source, self.path, self.tag


def block_key(key: BlockKey) -> bytes:
    return key.version + key.index.to_bytes(4, "big")


class Index:
    """The tables, open. Reading is synchronous: 1 to 3 µs each."""

    def __init__(self, env: lmdb.Environment, *, writable: bool) -> None:
        self.env = env
        self._files = env.open_db(b"files", create=writable)
        self._blocks = env.open_db(b"blocks", create=writable)
        self._inline = env.open_db(b"inline", create=writable)
        self._meta = env.open_db(b"meta", create=writable)

    def block(self, key: BlockKey) -> BlockRecord | None:
        """Return the record of a block, believed or not, or None."""
        with self.env.begin(db=self._blocks) as txn:
            value = txn.get(block_key(key))
        return None if value is None else BlockRecord.unpack(value)

    def trusted_block(self, key: BlockKey) -> BlockRecord | None:
        """Return the record of a block whose bytes may be believed, or None."""
        with self.env.begin() as txn:
            value = txn.get(block_key(key), db=self._blocks)
            if value is None:
                return None
            record = BlockRecord.unpack(value)
            since = txn.get(b"trusted_since", db=self._meta)
        return record if since is None or record.stamp >= _U64.unpack(since)[0] else None

    def inline(self, version: bytes) -> bytes | None:
        """Return the bytes of a small version, or None."""
        with self.env.begin(db=self._inline) as txn:
            value: bytes | None = txn.get(version)
        return value

    def file(self, version: bytes) -> FileRecord | None:
        with self.env.begin(db=self._files) as txn:
            value = txn.get(version)
        return None if value is None else FileRecord.unpack(value)

    def files(self) -> list[tuple[bytes, FileRecord]]:
        """Return all versions that have blocks here."""
        with self.env.begin(db=self._files) as txn:
            return [(bytes(k), FileRecord.unpack(v)) for k, v in txn.cursor()]

    def files_after(self, version: bytes, count: int) -> list[tuple[bytes, FileRecord]]:
        """Return so many versions that have blocks here, those after *version* by id."""
        found: list[tuple[bytes, FileRecord]] = []
        with self.env.begin(db=self._files) as txn, txn.cursor() as cursor:
            more = cursor.set_range(version + b"\0" if version else b"")
            while more and len(found) < count:
                found.append((bytes(cursor.key()), FileRecord.unpack(cursor.value())))
                more = cursor.next()
        return found

    def blocks(self, version: bytes) -> list[tuple[int, BlockRecord]]:
        """Return the blocks that are here of one version, by index."""
        found: list[tuple[int, BlockRecord]] = []
        with self.env.begin(db=self._blocks) as txn, txn.cursor() as cursor:
            more = cursor.set_range(version)
            while more and cursor.key()[:16] == version:
                index = int.from_bytes(cursor.key()[16:], "big")
                found.append((index, BlockRecord.unpack(cursor.value())))
                more = cursor.next()
        return found

    def usage(self) -> tuple[int, int]:
        """Return the number of blocks here and their bytes, by looking at each."""
        count = used_bytes = 0
        with self.env.begin(db=self._blocks) as txn:
            for value in txn.cursor().iternext(keys=False, values=True):
                count += 1
                used_bytes += _BLOCK.unpack_from(value)[0]
        return count, used_bytes

    # What follows runs in the writer's thread, inside its transaction.

    def put_block(self, txn: Any, key: BlockKey, record: BlockRecord, file: FileRecord) -> bool:
        """Put a block; say whether it is new here."""
        is_new = txn.get(block_key(key), db=self._blocks) is None
        txn.put(block_key(key), record.pack(), db=self._blocks)
        txn.put(key.version, file.pack(), db=self._files)
        return is_new

    def put_inline(self, txn: Any, version: bytes, data: bytes) -> None:
        txn.put(version, data, db=self._inline)

    def stamp_block(self, txn: Any, key: BlockKey, record: BlockRecord) -> bool:
        """Put *record* if the block still has one; say whether."""
        if txn.get(block_key(key), db=self._blocks) is None:
            return False
        return bool(txn.put(block_key(key), record.pack(), db=self._blocks))

    def delete_block(self, txn: Any, key: BlockKey) -> int:
        """Forget a block; return how many bytes it had, 0 if it was not here."""
        value = txn.pop(block_key(key), db=self._blocks)
        if key.index == 0:
            txn.delete(key.version, db=self._inline)
        return 0 if value is None else int(_BLOCK.unpack_from(value)[0])

    def delete_file_if_empty(self, txn: Any, version: bytes) -> bool:
        """Forget a version none of whose blocks are left; say whether that was so."""
        with txn.cursor(db=self._blocks) as cursor:
            if cursor.set_range(version) and cursor.key()[:16] == version:
                return False
        txn.delete(version, db=self._files)
        return True

    def touch_file(self, txn: Any, version: bytes, used_s: int) -> None:
        value = txn.get(version, db=self._files)
        if value is not None:
            old = FileRecord.unpack(value)
            txn.put(version, replace(old, used_s=used_s).pack(), db=self._files)

    def trust_since(self, txn: Any, stamp: int) -> None:
        txn.put(b"trusted_since", _U64.pack(stamp), db=self._meta)

    def trusted_since(self) -> int | None:
        with self.env.begin(db=self._meta) as txn:
            value = txn.get(b"trusted_since")
        return None if value is None else int(_U64.unpack(value)[0])


def open_index(directory: Path) -> Index:
    """Open the tables for the peer that owns them; lmdb.Error when they are broken."""
    env = lmdb.open(
        str(directory),
        map_size=MAP_BYTES,
        max_dbs=8,
        max_readers=512,
        mode=0o600,
        sync=False,
        metasync=False,
        max_spare_txns=0,
    )
    env.reader_check()
    return Index(env, writable=True)


def open_tables(directory: Path, boot: Boot) -> Index:
    """Open the index of a store; a broken one is set aside with the bytes that it spoke of."""
    for name in ("index", "data", "drafts", "staged"):
        (directory / name).mkdir(mode=0o700, exist_ok=True)
    try:
        index = open_index(directory / "index")
        index.usage()
    except lmdb.Error as error:
        log.warning("index rebuilt", reason=str(error), lost="all cached blocks")
        for name in ("index", "data"):
            shutil.rmtree(directory / name)
            (directory / name).mkdir(mode=0o700)
        index = open_index(directory / "index")
    if index.trusted_since() is None or not boot.clean:
        with index.env.begin(write=True) as txn:
            index.trust_since(txn, boot.number << 40)
    return index


def read_index(directory: Path) -> Index:
    """Open the tables for reading in another process than the peer's."""
    env = lmdb.open(
        str(directory),
        readonly=True,
        map_size=MAP_BYTES,  # or what the peer adds later would be beyond this map
        max_dbs=8,
        max_readers=512,
        max_spare_txns=0,
    )
    return Index(env, writable=False)


class Writer:
    """The one thread that writes an LMDB environment, many operations a commit."""

    def __init__(
        self,
        env: lmdb.Environment,
        *,
        make_room: Callable[[], bool] = lambda: False,
        clock: Clock = monotonic_s,
    ) -> None:
        """Commit what is submitted; on a full disk once more if *make_room* says that it did."""
        self._env = env
        self._make_room = make_room
        self._clock = clock
        self._ops: queue.Queue[tuple[Callable[[Any], Any], Future[Any]] | None]
        self._ops = queue.Queue(QUEUED_OPS_MAX)
        self._thread = threading.Thread(target=self._run, name="index-writer", daemon=True)
        self._thread.start()

    def submit(self, op: Callable[[Any], T]) -> Future[T]:
        """Run *op* on a write transaction; the future is done after the commit.

        Cancelled before its turn it is not run; later it can't be cancelled.
        """
        done: Future[T] = Future()
        self._ops.put_nowait((op, done))
        return done

    def close(self) -> None:
        """Commit what was submitted, sync, and end the thread."""
        self._ops.put(None)
        self._thread.join()

    def _run(self) -> None:
        ending = False
        checked_s = self._clock()
        sync_at_s: float | None = None  # None: all that was committed is synced
        while not ending:
            if self._clock() - checked_s > READER_CHECK_EVERY_S:
                checked_s = self._clock()
                self._env.reader_check()
            batch: list[tuple[Callable[[Any], Any], Future[Any]]] = []
            wait_s = SYNC_EVERY_S if sync_at_s is None else sync_at_s - self._clock()
            for item in self._drain(wait_s):
                if item is None:
                    ending = True
                else:
                    batch.append(item)
            if batch:
                self._commit(batch)
                if sync_at_s is None:
                    sync_at_s = self._clock() + SYNC_EVERY_S
            # However much more comes in: waiting for a pause would be waiting for ever.
            if sync_at_s is not None and (ending or self._clock() >= sync_at_s):
                sync_at_s = None if self._sync() else self._clock() + SYNC_EVERY_S

    def _sync(self) -> bool:
        """Sync what was committed; False when the disk failed to, which ends nothing."""
        try:
            self._env.sync(True)  # noqa: FBT003
        except lmdb.Error as error:
            log.warning("index not synced", reason=str(error))
            return False
        return True

    def _drain(self, wait_s: float) -> Iterator[tuple[Callable[[Any], Any], Future[Any]] | None]:
        """Wait so long for a first operation, then take all that wait behind it."""
        try:
            yield self._ops.get(timeout=max(0.0, wait_s))
            for _ in range(OPS_PER_COMMIT - 1):
                yield self._ops.get_nowait()
        except queue.Empty:
            return

    def _commit(self, batch: list[tuple[Callable[[Any], Any], Future[Any]]]) -> None:
        # Who was cancelled before this is left out; who is from now on can't stop it, and
        # giving a result to a cancelled future would end this thread.
        self._carry_out([(op, done) for op, done in batch if done.set_running_or_notify_cancel()])

    def _carry_out(self, batch: list[tuple[Callable[[Any], Any], Future[Any]]]) -> None:
        try:
            try:
                results = self._committed(batch)
            except lmdb.Error as error:
                if not (is_disk_full(error) and self._make_room()):
                    raise
                results = self._committed(batch)
        except Exception as error:  # each submitter gets it; none of them was committed
            if len(batch) > 1 and not isinstance(error, lmdb.Error):
                for one in batch:  # what one of them can't do is no failure of the others
                    self._carry_out([one])
                return
            is_disk = is_disk_full(error)
            for _, done in batch:
                done.set_exception(StoreFull(f"index: {error}") if is_disk else error)
        else:
            for (_, done), result in zip(batch, results, strict=True):
                done.set_result(result)

    def _committed(self, batch: list[tuple[Callable[[Any], Any], Future[Any]]]) -> list[Any]:
        with self._env.begin(write=True) as txn:
            return [op(txn) for op, _ in batch]
