"""Files that are written, on the wire: dataclasses, and protobuf <-> them.

`proto/mesh/v1/writes.proto` says what each field means.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mesh.wire.basics import Method, path_bytes, path_text
from mesh.wire.catalog import kept_of, kept_to, stat_reply_of, stat_reply_to
from mesh.wire.gen import mesh_pb2
from mesh.wire.gen import writes_pb2 as pb
from mesh.wire.messages import Kept, Nothing, StatReply
from mesh.wire.staged import StagedFile, staged_of, staged_to

SERVICE = "mesh.v1.Writes"


@dataclass(frozen=True, slots=True)
class GrowRequest:
    draft: str
    path: str
    stable_bytes: int
    mode: int = 0


@dataclass(frozen=True, slots=True)
class PublishRequest:
    draft: str
    path: str
    size_bytes: int
    over: str = ""
    is_rewritten: bool = False
    is_exclusive: bool = False
    mode: int = 0
    is_again: bool = False


@dataclass(frozen=True, slots=True)
class RetireRequest:
    draft: str
    is_published: bool


class Verb(IntEnum):
    """What is done to a name."""

    REMOVE = pb.AlterRequest.REMOVE
    MAKE_DIRECTORY = pb.AlterRequest.MAKE_DIRECTORY
    REMOVE_DIRECTORY = pb.AlterRequest.REMOVE_DIRECTORY
    RENAME = pb.AlterRequest.RENAME
    SET_MODE = pb.AlterRequest.SET_MODE


@dataclass(frozen=True, slots=True)
class AlterRequest:
    verb: Verb
    path: str
    target: str = ""
    is_exclusive: bool = False
    mode: int = 0
    is_again: bool = False
    """Asked before, without an answer: it may be done already."""

    size_bytes: int = 0
    tag: str = ""
    """What the mount knows of the source of a rename."""


@dataclass(frozen=True, slots=True)
class AlterReply:
    found: StatReply | None = None
    is_mode_kept: bool = False


@dataclass(frozen=True, slots=True)
class TurnRequest:
    path: str
    token: str
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class AnnounceRequest:
    asker: str
    kept: tuple[Kept, ...] = ()
    staged: tuple[StagedFile, ...] = ()
    is_copy: bool = False
    is_persisted: bool = False
    moved_to: str = ""
    ended: str = ""
    there_s: float = 0.0
    """Since when what is persisted was what its path means (`StagedFile.there_s`)."""


def _decode_grow(data: bytes) -> GrowRequest:
    value = pb.GrowRequest.FromString(data)
    return GrowRequest(value.draft, path_text(value.path), value.stable_bytes, value.mode)


def _encode_publish(value: PublishRequest) -> bytes:
    return pb.PublishRequest(
        draft=value.draft,
        path=path_bytes(value.path),
        size_bytes=value.size_bytes,
        over=value.over,
        is_rewritten=value.is_rewritten,
        is_exclusive=value.is_exclusive,
        mode=value.mode,
        is_again=value.is_again,
    ).SerializeToString()


def _decode_publish(data: bytes) -> PublishRequest:
    value = pb.PublishRequest.FromString(data)
    return PublishRequest(
        value.draft,
        path_text(value.path),
        value.size_bytes,
        value.over,
        value.is_rewritten,
        value.is_exclusive,
        value.mode,
        value.is_again,
    )


def _decode_retire(data: bytes) -> RetireRequest:
    value = pb.RetireRequest.FromString(data)
    return RetireRequest(value.draft, value.is_published)


def _encode_alter(value: AlterRequest) -> bytes:
    return pb.AlterRequest(
        verb=pb.AlterRequest.Verb.Value(value.verb.name),
        path=path_bytes(value.path),
        target=path_bytes(value.target),
        is_exclusive=value.is_exclusive,
        mode=value.mode,
        is_again=value.is_again,
        size_bytes=value.size_bytes,
        tag=value.tag,
    ).SerializeToString()


def _decode_alter(data: bytes) -> AlterRequest:
    value = pb.AlterRequest.FromString(data)
    return AlterRequest(
        Verb(value.verb),
        path_text(value.path),
        path_text(value.target),
        value.is_exclusive,
        value.mode,
        value.is_again,
        value.size_bytes,
        value.tag,
    )


def _encode_altered(value: AlterReply) -> bytes:
    found = None if value.found is None else stat_reply_to(value.found)
    return pb.AlterReply(found=found, is_mode_kept=value.is_mode_kept).SerializeToString()


def _decode_altered(data: bytes) -> AlterReply:
    value = pb.AlterReply.FromString(data)
    found = stat_reply_of(value.found) if value.HasField("found") else None
    return AlterReply(found, value.is_mode_kept)


def _encode_announce(value: AnnounceRequest) -> bytes:
    return pb.AnnounceRequest(
        asker=value.asker,
        kept=map(kept_to, value.kept),
        staged=map(staged_to, value.staged),
        is_copy=value.is_copy,
        is_persisted=value.is_persisted,
        moved_to=path_bytes(value.moved_to),
        ended=value.ended,
        there_s=value.there_s,
    ).SerializeToString()


def _decode_announce(data: bytes) -> AnnounceRequest:
    value = pb.AnnounceRequest.FromString(data)
    return AnnounceRequest(
        value.asker,
        tuple(map(kept_of, value.kept)),
        tuple(map(staged_of, value.staged)),
        value.is_copy,
        value.is_persisted,
        path_text(value.moved_to),
        value.ended,
        value.there_s,
    )


def _decode_turn(data: bytes) -> TurnRequest:
    value = pb.TurnRequest.FromString(data)
    return TurnRequest(path_text(value.path), value.token, value.is_over)


TURN: Method[TurnRequest, Nothing] = Method(
    SERVICE,
    "Turn",
    lambda q: pb.TurnRequest(
        path=path_bytes(q.path), token=q.token, is_over=q.is_over
    ).SerializeToString(),
    _decode_turn,
    lambda a: b"",
    lambda data: Nothing(),
)
GROW: Method[GrowRequest, Nothing] = Method(
    SERVICE,
    "Grow",
    lambda q: pb.GrowRequest(
        draft=q.draft, path=path_bytes(q.path), stable_bytes=q.stable_bytes, mode=q.mode
    ).SerializeToString(),
    _decode_grow,
    lambda a: b"",
    lambda data: Nothing(),
)
PUBLISH: Method[PublishRequest, StatReply] = Method(
    SERVICE,
    "Publish",
    _encode_publish,
    _decode_publish,
    lambda a: stat_reply_to(a).SerializeToString(),
    lambda data: stat_reply_of(mesh_pb2.StatReply.FromString(data)),
)
RETIRE: Method[RetireRequest, Nothing] = Method(
    SERVICE,
    "Retire",
    lambda q: pb.RetireRequest(draft=q.draft, is_published=q.is_published).SerializeToString(),
    _decode_retire,
    lambda a: b"",
    lambda data: Nothing(),
)
ALTER: Method[AlterRequest, AlterReply] = Method(
    SERVICE, "Alter", _encode_alter, _decode_alter, _encode_altered, _decode_altered
)
ANNOUNCE: Method[AnnounceRequest, Nothing] = Method(
    SERVICE,
    "Announce",
    _encode_announce,
    _decode_announce,
    lambda a: b"",
    lambda data: Nothing(),
)
