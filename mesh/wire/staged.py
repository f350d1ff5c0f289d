"""What peers say of files that they have and the under-store does not have yet.

Plain frozen dataclasses; encoded by `proto/mesh/v1/writes.proto`, as what `wire.writes` has.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.blocks import Attributes, staged_tag
from mesh.wire.basics import Method, path_bytes, path_text
from mesh.wire.catalog import kept_of, kept_to
from mesh.wire.codec import decode_piece, encode_piece
from mesh.wire.gen import writes_pb2 as pb
from mesh.wire.messages import Kept, Nothing, Piece

SERVICE = "mesh.v1.Writes"


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

    moved_from: str = ""
    """Where it was before it was renamed, until the owners there are known to have heard."""

    may_be_there: bool = False
    """Whether the under-store may have it although nobody heard that it has."""

    named_s: float = 0.0
    """When it was renamed to its path, by the wall clock; 0.0 if it was written there."""

    @property
    def there_s(self) -> float:
        """Since when it is what its path means: of two files there, the later one is."""
        return self.named_s or self.queued_s

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
class AssertRequest:
    file: StagedFile
    is_doubted: bool = False
    """Its writer is there and does not have it."""

    is_copy: bool = False
    """Another owner asks: say what is known, and note nothing."""


@dataclass(frozen=True, slots=True)
class HaveRequest:
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class HaveReply:
    tokens: tuple[str, ...]
    pending: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AssertReply:
    is_ended: bool
    over: str = ""
    path: str = ""
    """Where it went, if it was renamed while the holder did not hear of it."""

    formers: tuple[bytes, ...] = ()
    digest: bytes = b""
    is_unknown: bool = False
    noted: tuple[str, ...] = ()
    """What the under-store has there, as far as the mesh has put it there itself."""


@dataclass(frozen=True, slots=True)
class RecallRequest:
    asker: str
    is_heard: bool = False
    """Whether what was told last is kept, and need not be told again."""


@dataclass(frozen=True, slots=True)
class RecallReply:
    staged: tuple[StagedFile, ...]
    ended: dict[bytes, bytes]
    """As the journal has it."""

    missed: tuple[str, ...] = ()
    """Paths of which the asker could not be told; "" for all."""

    kept: tuple[Kept, ...] = ()
    """The same, with what is there now."""


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
    mode: int = 0
    named_s: float = 0.0
    formers: tuple[bytes, ...] = ()


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
        moved_from=path_bytes(value.moved_from),
        may_be_there=value.may_be_there,
        named_s=value.named_s,
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
        path_text(value.moved_from),
        value.may_be_there,
        value.named_s,
    )


def encode_staged(value: StagedFile) -> bytes:
    """Return a staged file as it is sent, and journaled."""
    return staged_to(value).SerializeToString()


def decode_staged(data: bytes) -> StagedFile:
    return staged_of(pb.StagedFile.FromString(data))


def _encode_assert(value: AssertRequest) -> bytes:
    return pb.AssertRequest(
        file=staged_to(value.file), is_doubted=value.is_doubted, is_copy=value.is_copy
    ).SerializeToString()


def _decode_assert(data: bytes) -> AssertRequest:
    value = pb.AssertRequest.FromString(data)
    return AssertRequest(staged_of(value.file), value.is_doubted, value.is_copy)


def _encode_asserted(value: AssertReply) -> bytes:
    return pb.AssertReply(
        is_ended=value.is_ended,
        over=value.over,
        path=path_bytes(value.path),
        formers=value.formers,
        digest=value.digest,
        is_unknown=value.is_unknown,
        noted=value.noted,
    ).SerializeToString()


def _decode_asserted(data: bytes) -> AssertReply:
    value = pb.AssertReply.FromString(data)
    return AssertReply(
        value.is_ended,
        value.over,
        path_text(value.path),
        tuple(value.formers),
        value.digest,
        value.is_unknown,
        tuple(value.noted),
    )


def _decode_recall(data: bytes) -> RecallRequest:
    value = pb.RecallRequest.FromString(data)
    return RecallRequest(value.asker, value.is_heard)


def _encode_recalled(value: RecallReply) -> bytes:
    return pb.RecallReply(
        staged=map(staged_to, value.staged),
        ended_keys=value.ended,
        ended=value.ended.values(),
        missed=map(path_bytes, value.missed),
        kept=map(kept_to, value.kept),
    ).SerializeToString()


def _decode_recalled(data: bytes) -> RecallReply:
    value = pb.RecallReply.FromString(data)
    ended = dict(zip(value.ended_keys, value.ended, strict=True))
    missed = tuple(map(path_text, value.missed))
    kept = tuple(map(kept_of, value.kept))
    return RecallReply(tuple(map(staged_of, value.staged)), ended, missed, kept)


def _decode_have(data: bytes) -> HaveRequest:
    return HaveRequest(tuple(pb.HaveRequest.FromString(data).tokens))


def _decode_had(data: bytes) -> HaveReply:
    value = pb.HaveReply.FromString(data)
    return HaveReply(tuple(value.tokens), tuple(value.pending))


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
        token=value.token,
        path=path_bytes(value.path),
        over=value.over,
        is_over=value.is_over,
        mode=value.mode,
        named_s=value.named_s,
        formers=value.formers,
    ).SerializeToString()


def _decode_retarget(data: bytes) -> RetargetRequest:
    value = pb.RetargetRequest.FromString(data)
    return RetargetRequest(
        value.token,
        path_text(value.path),
        value.over,
        value.is_over,
        value.mode,
        value.named_s,
        tuple(value.formers),
    )


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


ASSERT: Method[AssertRequest, AssertReply] = Method(
    SERVICE, "Assert", _encode_assert, _decode_assert, _encode_asserted, _decode_asserted
)
RECALL: Method[RecallRequest, RecallReply] = Method(
    SERVICE,
    "Recall",
    lambda q: pb.RecallRequest(asker=q.asker, is_heard=q.is_heard).SerializeToString(),
    _decode_recall,
    _encode_recalled,
    _decode_recalled,
)
HAVE: Method[HaveRequest, HaveReply] = Method(
    SERVICE,
    "Have",
    lambda q: pb.HaveRequest(tokens=q.tokens).SerializeToString(),
    _decode_have,
    lambda a: pb.HaveReply(tokens=a.tokens, pending=a.pending).SerializeToString(),
    _decode_had,
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
