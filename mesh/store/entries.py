"""The catalog's tables: what the under-store said of paths, and when.

    table        key                           value
    entries      directory (16) + name         EntryRecord
    directories  directory (16)                DirectoryRecord
    meta         b"catalog_boot"               boot id (8) + generation (u16)

A directory's key is a digest of where it is in its under-store, which is also its place
on the ring. A listing has no list of its own: it is the entries of the directory whose
`scan` is that of its last whole scan or later, in the order of their names. So a listing
of ten million names is read page by page, can be gone on with after any name, and shows
nothing of a scan that failed half-way.

Times are those of the clock that all processes of a host share until it boots; what was
written before it booted has another generation, and is not fresh.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from math import inf
from pathlib import Path
from typing import Any

import lmdb
import msgspec

from mesh.blocks import WRITTEN, Attributes, identity_of, under_store_tag

NEGATIVE_S = 0.5
"""For so long it is believed that a path does not exist."""

DOUBTFUL = 0
"""The generation of what somebody said has changed; its time is that of the word."""

LATE_MS = 10_000
"""Longer than anything that one peer sends another can be on its way."""

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
KEY_BYTES = 16

_ABSENT, _FILE, _DIRECTORY = 0, 1, 2
_NO_TAG, _HEX, _MTIME, _TEXT = 0, 4, 8, 12
_KIND_BITS, _TAG_BITS = 3, 12
_ENTRY = struct.Struct(">BHHIqQq")
_BOOT = struct.Struct(">8sH")


@dataclass(frozen=True, slots=True)
class EntryRecord:
    """What the under-store said of one name."""

    attributes: Attributes | None
    """None: that there is no such name."""

    asked_ms: int
    """By this host's clock; before 0 if another host has known it for longer than this one runs."""

    generation: int
    scan: int = 0
    """The last scan of the directory that showed it, or was under way when it was seen."""

    def pack(self) -> bytes:
        about = self.attributes
        if about is None:
            return _ENTRY.pack(_ABSENT, 0, self.generation, self.scan, self.asked_ms, 0, 0)
        form, tag = _packed_tag(about)
        flags = form | (_DIRECTORY if about.is_directory else _FILE)
        head = (flags, about.mode, self.generation, self.scan, self.asked_ms)
        return _ENTRY.pack(*head, about.size_bytes, about.mtime_ns) + tag

    @classmethod
    def unpack(cls, value: bytes) -> EntryRecord:
        flags, mode, generation, scan, asked_ms, size_bytes, mtime_ns = _ENTRY.unpack_from(value)
        kind = flags & _KIND_BITS
        if kind == _ABSENT:
            return cls(None, asked_ms, generation, scan)
        tag = _unpacked_tag(flags & _TAG_BITS, value[_ENTRY.size :], mtime_ns)
        about = Attributes(kind == _DIRECTORY, size_bytes, mtime_ns, tag, mode)
        return cls(about, asked_ms, generation, scan)


def _packed_tag(about: Attributes) -> tuple[int, bytes]:
    tag = about.tag
    if not tag:
        return _NO_TAG, b""
    if tag == str(about.mtime_ns):
        return _MTIME, b""
    if len(tag) == 32 and tag == tag.lower():
        try:
            return _HEX, bytes.fromhex(tag)
        except ValueError:
            pass
    return _TEXT, tag.encode("utf-8", "surrogateescape")


def _unpacked_tag(form: int, packed: bytes, mtime_ns: int) -> str:
    if form == _NO_TAG:
        return ""
    if form == _MTIME:
        return str(mtime_ns)
    if form == _HEX:
        return packed.hex()
    return packed.decode("utf-8", "surrogateescape")


class DirectoryRecord(msgspec.Struct, frozen=True, array_like=True):
    """What is known of a directory as a whole."""

    source: bytes
    path: bytes
    """Below the source."""

    scan: int = 0
    """The number of its last whole scan; 0 while there was none."""

    last_scan: int = 0
    """The number that the last scan was given, whole or not."""

    last_scan_ms: int = 0
    """When that began."""

    last_scan_generation: int = 0

    listed_ms: int = 0
    """When the last whole scan began."""

    listed_generation: int = 0
    entry_count: int = 0
    fresh_from_ms: int = 0
    """What was asked before is not fresh, whatever its age; 0: nothing was doubted."""

    heard_ms: int = 0
    """When it was last asked for: what nobody asks for is forgotten."""

    def scan_at(self, asked_ms: int, generation: int) -> int:
        """Return the last scan that what was asked then is as good as; 0 if none."""
        if generation == self.last_scan_generation and asked_ms >= self.last_scan_ms:
            return self.last_scan
        is_later = generation == self.listed_generation and asked_ms >= self.listed_ms
        return self.scan if is_later else 0

    def is_doubted(self, asked_ms: int) -> bool:
        """Whether what was asked then is not fresh, however young."""
        return self.fresh_from_ms != 0 and asked_ms < self.fresh_from_ms


_decode_directory = msgspec.msgpack.Decoder(DirectoryRecord).decode
_encode = msgspec.msgpack.Encoder().encode


@lru_cache(maxsize=16_384)
def directory_key(source: str, path: str) -> bytes:
    """Return the name of a directory in the tables and on the ring."""
    digest = blake2b(source.encode("utf-8", "surrogateescape"), digest_size=KEY_BYTES)
    digest.update(b"\0" + path.encode("utf-8", "surrogateescape"))
    return digest.digest()


def split(path: str) -> tuple[str, str]:
    """Return the directory and the name of a path; the root's are both empty."""
    directory, _, name = path.rpartition("/")
    return directory, name


def is_same(one: Attributes | None, other: Attributes | None) -> bool:
    """Whether two answers mean that nothing has changed."""
    if one is None or other is None:
        return one is other
    if one.is_directory or other.is_directory:
        return one.is_directory and other.is_directory
    if one.tag and other.tag:
        return (one.size_bytes, identity_of(one.tag)) == (other.size_bytes, identity_of(other.tag))
    return (one.size_bytes, one.mtime_ns // 10**9) == (other.size_bytes, other.mtime_ns // 10**9)


def as_written(old: Attributes | None, new: Attributes | None) -> Attributes | None:
    """Return *new*, which an under-store said, under the tag with which the mesh wrote it, if
    that is what is known of it."""
    if old is None or new is None or not old.tag.startswith(WRITTEN):
        return new
    said = (new.size_bytes, new.tag)
    return replace(new, tag=old.tag) if said == (old.size_bytes, under_store_tag(old.tag)) else new


def is_news(old: EntryRecord, new: EntryRecord, *, is_sure: bool) -> bool:
    """Whether what is said now is to replace what is known; not if it was asked before.

    Of a name that somebody said has changed (`doubt`), what was asked before that word came
    is news only if it *is_sure* that it was found out knowing the word.
    """
    if old.generation == DOUBTFUL:
        return is_sure or old.asked_ms < new.asked_ms
    return old.generation != new.generation or old.asked_ms <= new.asked_ms


class Entries:
    """The tables, open. Reading is synchronous: 2 to 4 µs for an entry."""

    def __init__(self, env: lmdb.Environment, *, writable: bool) -> None:
        self.env = env
        self._entries = env.open_db(b"entries", create=writable)
        self._directories = env.open_db(b"directories", create=writable)
        self._meta = env.open_db(b"meta", create=writable)
        self._boot = boot_digest()

    @property
    def generation(self) -> int:
        """Number of this boot of the host, from 1 on; 0 while no peer has run since it booted."""
        with self.env.begin(db=self._meta) as txn:
            return self._generation(txn)

    def _generation(self, txn: Any) -> int:
        value = txn.get(b"catalog_boot", db=self._meta)
        if value is None:
            return 0
        boot, generation = _BOOT.unpack(value)
        return int(generation) if boot == self._boot else 0

    def note_boot(self) -> None:
        """Begin a new generation if the host has booted since the last one."""
        with self.env.begin(write=True, db=self._meta) as txn:
            value = txn.get(b"catalog_boot")
            boot, generation = (b"", 0) if value is None else _BOOT.unpack(value)
            if boot != self._boot:
                txn.put(b"catalog_boot", _BOOT.pack(self._boot, generation % 0xFFFF + 1))

    def entry(self, directory: bytes, name: str) -> tuple[EntryRecord | None, float]:
        """Return what is known of a name, and since when, in seconds: -inf if before this
        boot, or before something made it doubtful."""
        with self.env.begin() as txn:
            value = txn.get(directory + _name(name), db=self._entries)
            if value is None:
                return None, -inf
            record = EntryRecord.unpack(value)
            if record.generation != self._generation(txn):
                return record, -inf
            about = txn.get(directory, db=self._directories)
        if about is not None and _decode_directory(about).is_doubted(record.asked_ms):
            return record, -inf
        return record, record.asked_ms / 1000

    def directory(self, directory: bytes) -> DirectoryRecord | None:
        with self.env.begin(db=self._directories) as txn:
            value = txn.get(directory)
        return None if value is None else _decode_directory(value)

    def listed_s(self, directory: bytes) -> float | None:
        """Return since when the whole listing is known, in seconds: -inf if before this boot
        or before something made it doubtful; None when there is none."""
        with self.env.begin() as txn:
            value = txn.get(directory, db=self._directories)
            if value is None:
                return None
            generation = self._generation(txn)
        record = _decode_directory(value)
        if not record.scan:
            return None
        if record.listed_generation != generation or record.is_doubted(record.listed_ms):
            return -inf
        return record.listed_ms / 1000

    def after(
        self, directory: bytes, name: str, count: int
    ) -> tuple[list[tuple[str, Attributes]], bool]:
        """Return so many entries of the whole listing, those after *name*, and whether they
        are the last."""
        found: list[tuple[str, Attributes]] = []
        with self.env.begin() as txn, txn.cursor(self._entries) as cursor:
            value = txn.get(directory, db=self._directories)
            scan = 1 if value is None else _decode_directory(value).scan
            more = cursor.set_range(directory + _name(name) + b"\0")
            for key, packed in cursor.iternext() if more else ():
                if key[:KEY_BYTES] != directory:
                    return found, True
                if len(found) == count:
                    return found, False
                record = EntryRecord.unpack(packed)
                if record.attributes is not None and record.scan >= scan:
                    found.append((_text(key[KEY_BYTES:]), record.attributes))
        return found, True

    def directories_after(
        self, directory: bytes, count: int
    ) -> list[tuple[bytes, DirectoryRecord]]:
        """Return so many directories that something is known of, by key."""
        found: list[tuple[bytes, DirectoryRecord]] = []
        with self.env.begin(db=self._directories) as txn, txn.cursor() as cursor:
            more = cursor.set_range(directory + b"\0" if directory else b"")
            while more and len(found) < count:
                found.append((bytes(cursor.key()), _decode_directory(cursor.value())))
                more = cursor.next()
        return found

    def usage(self) -> tuple[int, int]:
        """Return how many entries there are, and the bytes of their pages."""
        with self.env.begin() as txn:
            about = txn.stat(self._entries)
        pages = about["branch_pages"] + about["leaf_pages"] + about["overflow_pages"]
        return about["entries"], pages * about["psize"]

    # What follows runs in the writer's thread, inside its transaction.

    def put(
        self, txn: Any, directory: bytes, name: str, record: EntryRecord, *, is_sure: bool
    ) -> Attributes | None:
        """Put what was said of a name, unless more is known since; return what was known."""
        key = directory + _name(name)
        value = txn.get(key, db=self._entries)
        old = None if value is None else EntryRecord.unpack(value)
        if old is not None:
            record = replace(record, attributes=as_written(old.attributes, record.attributes))
        if old is not None and not is_news(old, record, is_sure=is_sure):
            if record.scan > old.scan:
                # A scan that began in the millisecond of a word lists what it saw, not what was
                # there before the word; but it is looked up again.
                is_as_late = old.generation == DOUBTFUL and record.asked_ms == old.asked_ms
                about = record.attributes if is_as_late else old.attributes
                listed = replace(old, attributes=about, scan=record.scan)
                txn.put(key, listed.pack(), db=self._entries)
            return old.attributes
        txn.put(key, record.pack(), db=self._entries)
        return None if old is None else old.attributes

    def put_directory(self, txn: Any, directory: bytes, record: DirectoryRecord) -> None:
        txn.put(directory, _encode(record), db=self._directories)

    def get_directory(self, txn: Any, directory: bytes) -> DirectoryRecord | None:
        value = txn.get(directory, db=self._directories)
        return None if value is None else _decode_directory(value)

    def doubt(self, txn: Any, directory: bytes, name: str, now_ms: int) -> None:
        """Have a name looked up again, whatever its age; one that is not known as well, for
        what was before the change may still be on its way here."""
        key = directory + _name(name)
        value = txn.get(key, db=self._entries)
        old = EntryRecord(None, 0, DOUBTFUL) if value is None else EntryRecord.unpack(value)
        doubtful = replace(old, asked_ms=now_ms, generation=DOUBTFUL)
        txn.put(key, doubtful.pack(), db=self._entries)

    def sweep(
        self, txn: Any, directory: bytes, name: str, scan: int, gone: EntryRecord, count: int
    ) -> tuple[list[str], int, str | None]:
        """Note as *gone* the names after *name* that a whole scan has not shown, among so many.

        Returns those that were there, how many of the others are, and after which name to
        go on; None at the end. What was noted as gone or doubtful long before is forgotten;
        not what was a moment before, nor since: a copy of what was there may still be on its
        way here.
        """
        names: list[str] = []
        kept = 0
        key = b""
        with txn.cursor(self._entries) as cursor:
            more = cursor.set_range(directory + _name(name) + b"\0")
            for _ in range(count):
                key = bytes(cursor.key()) if more else b""
                if key[:KEY_BYTES] != directory:
                    return names, kept, None
                record = EntryRecord.unpack(cursor.value())
                if record.attributes is None:
                    is_old = gone.asked_ms - record.asked_ms >= LATE_MS
                    if is_old or record.generation not in (DOUBTFUL, gone.generation):
                        cursor.delete()  # it stands on the next one then
                        more = bool(cursor.key())
                    else:
                        more = cursor.next()
                    continue
                if record.scan >= scan:
                    kept += 1
                else:
                    names.append(_text(key[KEY_BYTES:]))
                    cursor.put(key, gone.pack())
                more = cursor.next()
            return names, kept, _text(key[KEY_BYTES:])

    def forget(self, txn: Any, directory: bytes, count: int) -> bool:
        """Forget so many entries of a directory, and it itself with the last; say if it is."""
        with txn.cursor(self._entries) as cursor:
            for _ in range(count):
                if not cursor.set_range(directory) or cursor.key()[:KEY_BYTES] != directory:
                    txn.delete(directory, db=self._directories)
                    return True
                cursor.delete()
        return False


@lru_cache(maxsize=1)
def boot_digest() -> bytes:
    """Return what tells this boot of the host from others."""
    try:
        boot = BOOT_ID.read_bytes()
    except OSError:
        boot = b""
    return blake2b(boot, digest_size=8).digest()


def _name(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _text(name: bytes) -> str:
    return bytes(name).decode("utf-8", "surrogateescape")
