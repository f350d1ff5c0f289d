"""Files that are written, on the wire: dataclasses, and protobuf <-> them.

`proto/mesh/v1/writes.proto` says what each field means.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from mesh.blocks import Attributes, staged_tag
from mesh.wire.basics import Method, path_bytes, path_text
from mesh.wire.catalog import kept_of, kept_to, stat_reply_of, stat_reply_to
from mesh.wire.codec import decode_piece, encode_piece
from mesh.wire.gen import mesh_pb2
from mesh.wire.gen import writes_pb2 as pb
from mesh.wire.messages import Kept, Nothing, Piece, StatReply

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


@dataclass(frozen=True, slots=True)
class AlterReply:
    found: StatReply | None = None
    is_mode_kept: bool = False


@dataclass(frozen=True, slots=True)
class StagedFile:
    """A file that its holders alone have."""

    token: str
    path: str
    size_bytes: int
    over: str
    mode: int
    mtime_ns: int
    holders: tuple[str, ...]
    queued_s: float
    digest: bytes = b""
    """Of its size and the CRCs of its pieces."""

    formers: tuple[bytes, ...] = ()
    """Digests of what was staged at its path before, and may have been persisted since: the
    mesh's own, although nobody heard what the under-store calls it."""

    @property
    def attributes(self) -> Attributes:
        """What everybody sees of it."""
        tag = staged_tag(self.token, self.holders)
        return Attributes(
            is_directory=False,
            size_bytes=self.size_bytes,
            mtime_ns=self.mtime_ns,
            tag=tag,
            mode=self.mode,
        )


@dataclass(frozen=True, slots=True)
class TurnRequest:
    path: str
    token: str
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class AssertReply:
    is_ended: bool
    over: str = ""
    path: str = ""
    """Where it went, if it was renamed while the holder did not hear of it."""

    formers: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class HoldRequest:
    file: StagedFile
    asker: str
    stable_bytes: int
    draft: str
    is_final: bool = False
    is_anew: bool = False


@dataclass(frozen=True, slots=True)
class PullRequest:
    draft: str
    first_piece: int
    stop_bytes: int


@dataclass(frozen=True, slots=True)
class RetargetRequest:
    token: str
    path: str = ""
    over: str = ""
    is_over: bool = False


@dataclass(frozen=True, slots=True)
class RetargetReply:
    over: str


@dataclass(frozen=True, slots=True)
class Waiting:
    file: StagedFile
    peer: str
    sent_bytes: int = 0
    tries: int = 0
    reason: str = ""
    bytes_per_s: float = 0.0


@dataclass(frozen=True, slots=True)
class UploadsReply:
    waiting: tuple[Waiting, ...]


@dataclass(frozen=True, slots=True)
class FlushRequest:
    path: str
    timeout_s: float


@dataclass(frozen=True, slots=True)
class FlushReply:
    waiting: int


@dataclass(frozen=True, slots=True)
class AnnounceRequest:
    asker: str
    kept: tuple[Kept, ...] = ()
    staged: tuple[StagedFile, ...] = ()
    is_copy: bool = False
    is_persisted: bool = False
    moved_to: str = ""
    ended: str = ""


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
    ).SerializeToString()


def _decode_alter(data: bytes) -> AlterRequest:
    value = pb.AlterRequest.FromString(data)
    return AlterRequest(
        Verb(value.verb),
        path_text(value.path),
        path_text(value.target),
        value.is_exclusive,
        value.mode,
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
    )


def staged_to(value: StagedFile) -> pb.StagedFile:
    return pb.StagedFile(
        token=value.token,
        path=path_bytes(value.path),
        size_bytes=value.size_bytes,
        over=value.over,
        mode=value.mode,
        mtime_ns=value.mtime_ns,
        holders=value.holders,
        queued_s=value.queued_s,
        digest=value.digest,
        formers=value.formers,
    )


def staged_of(value: pb.StagedFile) -> StagedFile:
    return StagedFile(
        value.token,
        path_text(value.path),
        value.size_bytes,
        value.over,
        value.mode,
        value.mtime_ns,
        tuple(value.holders),
        value.queued_s,
        value.digest,
        tuple(value.formers),
    )


def encode_staged(value: StagedFile) -> bytes:
    """Return a staged file as it is sent, and journaled."""
    return staged_to(value).SerializeToString()


def decode_staged(data: bytes) -> StagedFile:
    return staged_of(pb.StagedFile.FromString(data))


def _decode_asserted(data: bytes) -> AssertReply:
    value = pb.AssertReply.FromString(data)
    return AssertReply(value.is_ended, value.over, path_text(value.path), tuple(value.formers))


def _encode_hold(value: HoldRequest) -> bytes:
    return pb.HoldRequest(
        file=staged_to(value.file),
        asker=value.asker,
        stable_bytes=value.stable_bytes,
        is_final=value.is_final,
        is_anew=value.is_anew,
        draft=value.draft,
    ).SerializeToString()


def _decode_hold(data: bytes) -> HoldRequest:
    value = pb.HoldRequest.FromString(data)
    return HoldRequest(
        staged_of(value.file),
        value.asker,
        value.stable_bytes,
        value.draft,
        value.is_final,
        value.is_anew,
    )


def _decode_pull(data: bytes) -> PullRequest:
    value = pb.PullRequest.FromString(data)
    return PullRequest(value.draft, value.first_piece, value.stop_bytes)


def _encode_retarget(value: RetargetRequest) -> bytes:
    return pb.RetargetRequest(
        token=value.token, path=path_bytes(value.path), over=value.over, is_over=value.is_over
    ).SerializeToString()


def _decode_retarget(data: bytes) -> RetargetRequest:
    value = pb.RetargetRequest.FromString(data)
    return RetargetRequest(value.token, path_text(value.path), value.over, value.is_over)


def _encode_uploads(value: UploadsReply) -> bytes:
    waiting = [
        pb.Waiting(
            file=staged_to(one.file),
            peer=one.peer,
            sent_bytes=one.sent_bytes,
            tries=one.tries,
            reason=path_bytes(one.reason),
            bytes_per_s=one.bytes_per_s,
        )
        for one in value.waiting
    ]
    return pb.UploadsReply(waiting=waiting).SerializeToString()


def _decode_uploads(data: bytes) -> UploadsReply:
    return UploadsReply(
        tuple(
            Waiting(
                staged_of(one.file),
                one.peer,
                one.sent_bytes,
                one.tries,
                path_text(one.reason),
                one.bytes_per_s,
            )
            for one in pb.UploadsReply.FromString(data).waiting
        )
    )


def _decode_flush(data: bytes) -> FlushRequest:
    value = pb.FlushRequest.FromString(data)
    return FlushRequest(path_text(value.path), value.timeout_s)


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
ASSERT: Method[StagedFile, AssertReply] = Method(
    SERVICE,
    "Assert",
    encode_staged,
    decode_staged,
    lambda a: pb.AssertReply(
        is_ended=a.is_ended, over=a.over, path=path_bytes(a.path), formers=a.formers
    ).SerializeToString(),
    _decode_asserted,
)
HOLD: Method[HoldRequest, Nothing] = Method(
    SERVICE, "Hold", _encode_hold, _decode_hold, lambda a: b"", lambda data: Nothing()
)
PULL: Method[PullRequest, Piece] = Method(
    SERVICE,
    "Pull",
    lambda q: pb.PullRequest(
        draft=q.draft, first_piece=q.first_piece, stop_bytes=q.stop_bytes
    ).SerializeToString(),
    _decode_pull,
    encode_piece,
    decode_piece,
)
RETARGET: Method[RetargetRequest, RetargetReply] = Method(
    SERVICE,
    "Retarget",
    _encode_retarget,
    _decode_retarget,
    lambda a: pb.RetargetReply(over=a.over).SerializeToString(),
    lambda data: RetargetReply(pb.RetargetReply.FromString(data).over),
)
UPLOADS: Method[Nothing, UploadsReply] = Method(
    SERVICE, "Uploads", lambda q: b"", lambda data: Nothing(), _encode_uploads, _decode_uploads
)
ALL_UPLOADS: Method[Nothing, UploadsReply] = Method(
    SERVICE, "AllUploads", lambda q: b"", lambda data: Nothing(), _encode_uploads, _decode_uploads
)
FLUSH: Method[FlushRequest, FlushReply] = Method(
    SERVICE,
    "Flush",
    lambda q: pb.FlushRequest(path=path_bytes(q.path), timeout_s=q.timeout_s).SerializeToString(),
    _decode_flush,
    lambda a: pb.FlushReply(waiting=a.waiting).SerializeToString(),
    lambda data: FlushReply(pb.FlushReply.FromString(data).waiting),
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
