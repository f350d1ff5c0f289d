"""protobuf <-> dataclasses for blocks, nodes and the catalog; see `basics`.

Each RPC is one `Method`: its path and the two pairs of functions that turn its
messages into bytes and back.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Any

from mesh.blocks import FileVersion
from mesh.wire import messages as m
from mesh.wire.basics import (
    Method,
    file_of,
    file_to,
    path_bytes,
    path_text,
)
from mesh.wire.catalog import stat_reply_of, stat_reply_to
from mesh.wire.gen import mesh_pb2 as pb


def _encode_block_request(value: m.BlockRequest) -> bytes:
    return pb.BlockRequest(
        file=file_to(value.file),
        index=value.index,
        first_piece=value.first_piece,
        is_relayed=value.is_relayed,
    ).SerializeToString()


def _decode_block_request(data: bytes) -> m.BlockRequest:
    value = pb.BlockRequest.FromString(data)
    return m.BlockRequest(file_of(value.file), value.index, value.first_piece, value.is_relayed)


# protobuf would copy the megabyte of a piece twice on each side. Its fields are
# written in this order: crc32c (fixed32, tag 0x0d), number (varint, tag 0x10),
# data (bytes, tag 0x1a); readers of the format may rely on nothing but the tags,
# and so does `decode_piece` when it is not what we wrote.
_CRC_TAG, _NUMBER_TAG, _DATA_TAG = 0x0D, 0x10, 0x1A


def encode_piece(value: m.Piece) -> bytes:
    """Return a message that protobuf reads as this piece, with one copy of the data."""
    head = bytearray((_CRC_TAG,)) + value.crc.to_bytes(4, "little")
    head += bytes((_NUMBER_TAG,)) + _varint(value.number)
    head += bytes((_DATA_TAG,)) + _varint(len(value.data))
    return b"".join((head, value.data))


def decode_piece(data: bytes) -> m.Piece:
    """Return the piece; its data is a view into *data*, not a copy."""
    if len(data) > 8 and data[0] == _CRC_TAG and data[5] == _NUMBER_TAG:
        number, position = _read_varint(data, 6)
        if data[position] == _DATA_TAG:
            length, position = _read_varint(data, position + 1)
            if position + length == len(data):
                crc = int.from_bytes(data[1:5], "little")
                return m.Piece(number, crc, memoryview(data)[position:])
    value = pb.Piece.FromString(data)
    return m.Piece(value.number, value.crc32c, value.data)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7


def bitmap_of(indexes: Iterable[int]) -> bytes:
    """Set bit i % 8 of byte i / 8 for each i."""
    bits = bytearray()
    for index in indexes:
        if index // 8 >= len(bits):
            bits.extend(bytes(index // 8 + 1 - len(bits)))
        bits[index // 8] |= 1 << index % 8
    return bytes(bits)


def indexes_of(bitmap: bytes) -> frozenset[int]:
    return frozenset(i for i in range(len(bitmap) * 8) if bitmap[i // 8] >> i % 8 & 1)


def _encode_fetch_request(value: m.FetchRequest) -> bytes:
    return pb.FetchRequest(
        file=file_to(value.file),
        index=value.index,
        start_bytes=value.start_bytes,
        size_bytes=value.size_bytes,
        is_ahead=value.is_ahead,
        is_suspect=value.is_suspect,
    ).SerializeToString()


def _decode_fetch_request(data: bytes) -> m.FetchRequest:
    value = pb.FetchRequest.FromString(data)
    return m.FetchRequest(
        file_of(value.file),
        value.index,
        value.start_bytes,
        value.size_bytes,
        value.is_ahead,
        value.is_suspect,
    )


def _encode_fetch_reply(value: m.FetchReply) -> bytes:
    return pb.FetchReply(
        inode=value.inode, lease_s=value.lease_s, origin=value.origin
    ).SerializeToString()


def _decode_fetch_reply(data: bytes) -> m.FetchReply:
    value = pb.FetchReply.FromString(data)
    return m.FetchReply(value.inode, value.lease_s, value.origin)


def _encode_report(value: m.MountReport) -> bytes:
    return pb.MountReport(
        mountpoint=value.mountpoint,
        pid=value.pid,
        read_bytes=value.read_bytes,
        read_blocks=value.read_blocks,
        used_versions=value.used_versions,
        epoch=value.epoch,
    ).SerializeToString()


def _decode_report(data: bytes) -> m.MountReport:
    value = pb.MountReport.FromString(data)
    return m.MountReport(
        value.mountpoint,
        value.pid,
        dict(value.read_bytes),
        dict(value.read_blocks),
        tuple(value.used_versions),
        value.epoch,
    )


def _description(value: m.Description) -> pb.Description:
    return pb.Description(**{f.name: getattr(value, f.name) for f in fields(value)})


def _description_of(value: pb.Description) -> m.Description:
    found: dict[str, Any] = {}
    for field in fields(m.Description):
        got = getattr(value, field.name)
        if field.name in ("read_bytes", "read_blocks", "peer_bytes"):
            got = dict(got)
        elif field.name == "mountpoints":
            got = tuple(got)
        found[field.name] = got
    return m.Description(**found)


def _encode_overview(value: m.Overview) -> bytes:
    return pb.OverviewReply(
        cluster=value.cluster, epoch=value.epoch, peers=[_description(p) for p in value.peers]
    ).SerializeToString()


def _decode_overview(data: bytes) -> m.Overview:
    value = pb.OverviewReply.FromString(data)
    return m.Overview(value.cluster, value.epoch, tuple(_description_of(p) for p in value.peers))


def _encode_location(value: m.Location) -> bytes:
    return pb.LocateReply(
        found=stat_reply_to(value.found),
        owners=[pb.Owners(peers=peers) for peers in value.owners],
        held={peer: bitmap_of(indexes) for peer, indexes in value.held.items()},
        unreachable=value.unreachable,
    ).SerializeToString()


def _decode_location(data: bytes) -> m.Location:
    value = pb.LocateReply.FromString(data)
    return m.Location(
        stat_reply_of(value.found),
        tuple(tuple(owners.peers) for owners in value.owners),
        {peer: indexes_of(bitmap) for peer, bitmap in value.held.items()},
        tuple(value.unreachable),
    )


def _encode_inventory(value: m.InventoryReply) -> bytes:
    stock = [pb.Stock(file=file_to(file), bitmap=bitmap_of(kept)) for file, kept in value.stock]
    return pb.InventoryReply(stock=stock, is_last=value.is_last).SerializeToString()


def _decode_inventory(data: bytes) -> m.InventoryReply:
    value = pb.InventoryReply.FromString(data)
    stock = tuple((file_of(one.file), indexes_of(one.bitmap)) for one in value.stock)
    return m.InventoryReply(stock, value.is_last)


def _files_of(files: Iterable[pb.File]) -> tuple[FileVersion, ...]:
    return tuple(file_of(file) for file in files)


def _decode_bulk(data: bytes) -> m.BulkReply:
    value = pb.BulkReply.FromString(data)
    return m.BulkReply(value.port, value.token)


def _encode_nothing(value: m.Nothing) -> bytes:
    return b""


def _decode_nothing(data: bytes) -> m.Nothing:
    return m.Nothing()


# RPCs

SERVE: Method[m.BlockRequest, m.Piece] = Method(
    "mesh.v1.Blocks",
    "Serve",
    _encode_block_request,
    _decode_block_request,
    encode_piece,
    decode_piece,
)
PEEK: Method[m.BlockRequest, m.Piece] = Method(
    "mesh.v1.Blocks",
    "Peek",
    _encode_block_request,
    _decode_block_request,
    encode_piece,
    decode_piece,
)
HELD: Method[m.HeldRequest, m.HeldReply] = Method(
    "mesh.v1.Blocks",
    "Held",
    lambda q: pb.HeldRequest(file=file_to(q.file)).SerializeToString(),
    lambda data: m.HeldRequest(file_of(pb.HeldRequest.FromString(data).file)),
    lambda a: pb.HeldReply(bitmap=bitmap_of(a.indexes)).SerializeToString(),
    lambda data: m.HeldReply(indexes_of(pb.HeldReply.FromString(data).bitmap)),
)
INVENTORY: Method[m.InventoryRequest, m.InventoryReply] = Method(
    "mesh.v1.Blocks",
    "Inventory",
    lambda q: pb.InventoryRequest(after=q.after).SerializeToString(),
    lambda data: m.InventoryRequest(pb.InventoryRequest.FromString(data).after),
    _encode_inventory,
    _decode_inventory,
)
HELLO: Method[m.Nothing, m.HelloReply] = Method(
    "mesh.v1.Node",
    "Hello",
    _encode_nothing,
    _decode_nothing,
    lambda a: pb.HelloReply(member=a.member).SerializeToString(),
    lambda data: m.HelloReply(pb.HelloReply.FromString(data).member),
)
MEMBERS: Method[m.Nothing, m.MembersReply] = Method(
    "mesh.v1.Node",
    "Members",
    _encode_nothing,
    _decode_nothing,
    lambda a: pb.MembersReply(view=a.view).SerializeToString(),
    lambda data: m.MembersReply(pb.MembersReply.FromString(data).view),
)
BULK: Method[m.Nothing, m.BulkReply] = Method(
    "mesh.v1.Node",
    "Bulk",
    _encode_nothing,
    _decode_nothing,
    lambda a: pb.BulkReply(port=a.port, token=a.token).SerializeToString(),
    _decode_bulk,
)
SERVE_SMALL: Method[m.SmallRequest, m.SmallReply] = Method(
    "mesh.v1.Blocks",
    "ServeSmall",
    lambda q: pb.SmallRequest(files=[file_to(file) for file in q.files]).SerializeToString(),
    lambda data: m.SmallRequest(_files_of(pb.SmallRequest.FromString(data).files)),
    lambda a: pb.SmallReply(
        files=[pb.SmallFile(crc32c=crc, data=content) for crc, content in a.files]
    ).SerializeToString(),
    lambda data: m.SmallReply(
        tuple((file.crc32c, file.data) for file in pb.SmallReply.FromString(data).files)
    ),
)
GATHER: Method[m.GatherRequest, m.GatherReply] = Method(
    "mesh.v1.Local",
    "Gather",
    lambda q: pb.GatherRequest(files=[file_to(file) for file in q.files]).SerializeToString(),
    lambda data: m.GatherRequest(_files_of(pb.GatherRequest.FromString(data).files)),
    lambda a: pb.GatherReply(here=a.here).SerializeToString(),
    lambda data: m.GatherReply(pb.GatherReply.FromString(data).here),
)
FETCH: Method[m.FetchRequest, m.FetchReply] = Method(
    "mesh.v1.Local",
    "Fetch",
    _encode_fetch_request,
    _decode_fetch_request,
    _encode_fetch_reply,
    _decode_fetch_reply,
)
REPORT: Method[m.MountReport, m.MembersReply] = Method(
    "mesh.v1.Local",
    "Report",
    _encode_report,
    _decode_report,
    lambda a: pb.ReportReply(view=a.view).SerializeToString(),
    lambda data: m.MembersReply(pb.ReportReply.FromString(data).view),
)
DESCRIBE: Method[m.Nothing, m.Description] = Method(
    "mesh.v1.Node",
    "Describe",
    _encode_nothing,
    _decode_nothing,
    lambda a: _description(a).SerializeToString(),
    lambda data: _description_of(pb.Description.FromString(data)),
)
OVERVIEW: Method[m.Nothing, m.Overview] = Method(
    "mesh.v1.Node",
    "Overview",
    _encode_nothing,
    _decode_nothing,
    _encode_overview,
    _decode_overview,
)
LOCATE: Method[m.LocateRequest, m.Location] = Method(
    "mesh.v1.Node",
    "Locate",
    lambda q: pb.LocateRequest(path=path_bytes(q.path)).SerializeToString(),
    lambda data: m.LocateRequest(path_text(pb.LocateRequest.FromString(data).path)),
    _encode_location,
    _decode_location,
)
