"""What readers of one version say to each other.

Plain frozen dataclasses; encoded by `proto/mesh/v1/swarm.proto`.
"""

from __future__ import annotations

from dataclasses import dataclass

from mesh.blocks import FileVersion
from mesh.wire.basics import Method, file_of, file_to, path_bytes, path_text
from mesh.wire.codec import decode_piece, encode_piece
from mesh.wire.gen import swarm_pb2 as pb
from mesh.wire.messages import Nothing, Piece

SERVICE = "mesh.v1.Swarm"


@dataclass(frozen=True, slots=True)
class JoinRequest:
    file: FileVersion
    asker: str
    zone: str = ""
    done: float = 0.0
    """The part of the file that is here."""

    known: tuple[str, ...] = ()
    """The neighbors that it has."""

    gone: tuple[str, ...] = ()
    """Those of them that do not answer."""

    is_leaving: bool = False


@dataclass(frozen=True, slots=True)
class JoinReply:
    neighbors: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Have:
    version: bytes
    bitmap: bytes
    """Blocks that came since it was said last (`mesh.swarm.bits.to_bytes`)."""

    is_greeting: bool = False
    """Whether it wants to hear all that the other one has."""

    is_leaving: bool = False


@dataclass(frozen=True, slots=True)
class NewsRequest:
    asker: str
    zone: str = ""
    have: tuple[Have, ...] = ()
    free_slots: int = 0


@dataclass(frozen=True, slots=True)
class TakeRequest:
    file: FileVersion
    index: int
    first_piece: int
    asker: str
    is_urgent: bool = False
    is_owner: bool = False


@dataclass(frozen=True, slots=True)
class ShowRequest:
    files: tuple[FileVersion, ...]


@dataclass(frozen=True, slots=True)
class Reader:
    name: str
    done: float
    neighbors: int


@dataclass(frozen=True, slots=True)
class Source:
    name: str
    received_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, slots=True)
class ShowReply:
    readers: tuple[Reader, ...] = ()
    held_bytes: int = 0
    is_reading: bool = False
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True, slots=True)
class Shown:
    """What one peer says."""

    name: str
    reply: ShowReply = ShowReply()
    reason: str = ""
    """Why it says nothing."""


@dataclass(frozen=True, slots=True)
class ShowAllReply:
    peers: tuple[Shown, ...]


@dataclass(frozen=True, slots=True)
class DistributeRequest:
    path: str
    peers: tuple[str, ...] = ()
    """Who is to have it; none: all that are there."""

    is_plan: bool = False
    """Say what it would be, and bring nothing."""


@dataclass(frozen=True, slots=True)
class DistributeReply:
    files: tuple[FileVersion, ...]
    peers: tuple[str, ...]
    failures: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class WantRequest:
    files: tuple[FileVersion, ...]


def _encode_join(value: JoinRequest) -> bytes:
    return pb.JoinRequest(
        file=file_to(value.file),
        asker=value.asker,
        zone=value.zone,
        done=value.done,
        known=value.known,
        gone=value.gone,
        is_leaving=value.is_leaving,
    ).SerializeToString()


def _decode_join(data: bytes) -> JoinRequest:
    value = pb.JoinRequest.FromString(data)
    return JoinRequest(
        file_of(value.file),
        value.asker,
        value.zone,
        value.done,
        tuple(value.known),
        tuple(value.gone),
        value.is_leaving,
    )


def _encode_news(value: NewsRequest) -> bytes:
    have = [
        pb.Have(
            version=one.version,
            bitmap=one.bitmap,
            is_greeting=one.is_greeting,
            is_leaving=one.is_leaving,
        )
        for one in value.have
    ]
    news = pb.NewsRequest(
        asker=value.asker, zone=value.zone, have=have, free_slots=value.free_slots
    )
    return news.SerializeToString()


def _decode_news(data: bytes) -> NewsRequest:
    value = pb.NewsRequest.FromString(data)
    have = (Have(h.version, h.bitmap, h.is_greeting, h.is_leaving) for h in value.have)
    return NewsRequest(value.asker, value.zone, tuple(have), value.free_slots)


def _encode_take(value: TakeRequest) -> bytes:
    return pb.TakeRequest(
        file=file_to(value.file),
        index=value.index,
        first_piece=value.first_piece,
        asker=value.asker,
        is_urgent=value.is_urgent,
        is_owner=value.is_owner,
    ).SerializeToString()


def _decode_take(data: bytes) -> TakeRequest:
    value = pb.TakeRequest.FromString(data)
    return TakeRequest(
        file_of(value.file),
        value.index,
        value.first_piece,
        value.asker,
        value.is_urgent,
        value.is_owner,
    )


def _shown_to(value: ShowReply) -> pb.ShowReply:
    readers = [pb.Reader(name=r.name, done=r.done, neighbors=r.neighbors) for r in value.readers]
    sources = [
        pb.Source(name=s.name, received_bytes=s.received_bytes, bytes_per_s=s.bytes_per_s)
        for s in value.sources
    ]
    return pb.ShowReply(
        readers=readers,
        held_bytes=value.held_bytes,
        is_reading=value.is_reading,
        sources=sources,
    )


def _shown_of(value: pb.ShowReply) -> ShowReply:
    readers = (Reader(r.name, r.done, r.neighbors) for r in value.readers)
    sources = (Source(s.name, s.received_bytes, s.bytes_per_s) for s in value.sources)
    return ShowReply(tuple(readers), value.held_bytes, value.is_reading, tuple(sources))


def _encode_all(value: ShowAllReply) -> bytes:
    peers = (
        pb.Shown(name=one.name, reply=_shown_to(one.reply), reason=one.reason)
        for one in value.peers
    )
    return pb.ShowAllReply(peers=peers).SerializeToString()


def _decode_all(data: bytes) -> ShowAllReply:
    peers = pb.ShowAllReply.FromString(data).peers
    return ShowAllReply(tuple(Shown(p.name, _shown_of(p.reply), p.reason) for p in peers))


def _decode_order(data: bytes) -> DistributeRequest:
    value = pb.DistributeRequest.FromString(data)
    return DistributeRequest(path_text(value.path), tuple(value.peers), value.is_plan)


def _encode_distributed(value: DistributeReply) -> bytes:
    return pb.DistributeReply(
        files=map(file_to, value.files), peers=value.peers, failures=value.failures
    ).SerializeToString()


def _decode_distributed(data: bytes) -> DistributeReply:
    value = pb.DistributeReply.FromString(data)
    files = tuple(map(file_of, value.files))
    return DistributeReply(files, tuple(value.peers), tuple(value.failures))


JOIN: Method[JoinRequest, JoinReply] = Method(
    SERVICE,
    "Join",
    _encode_join,
    _decode_join,
    lambda value: pb.JoinReply(neighbors=value.neighbors).SerializeToString(),
    lambda data: JoinReply(tuple(pb.JoinReply.FromString(data).neighbors)),
)
NEWS: Method[NewsRequest, Nothing] = Method(
    SERVICE, "News", _encode_news, _decode_news, lambda _: b"", lambda _: Nothing()
)
TAKE: Method[TakeRequest, Piece] = Method(
    SERVICE, "Take", _encode_take, _decode_take, encode_piece, decode_piece
)
SHOW: Method[ShowRequest, ShowReply] = Method(
    SERVICE,
    "Show",
    lambda value: pb.ShowRequest(files=map(file_to, value.files)).SerializeToString(),
    lambda data: ShowRequest(tuple(map(file_of, pb.ShowRequest.FromString(data).files))),
    lambda value: _shown_to(value).SerializeToString(),
    lambda data: _shown_of(pb.ShowReply.FromString(data)),
)
SHOW_ALL: Method[ShowRequest, ShowAllReply] = Method(
    SERVICE,
    "ShowAll",
    lambda value: pb.ShowAllRequest(files=map(file_to, value.files)).SerializeToString(),
    lambda data: ShowRequest(tuple(map(file_of, pb.ShowAllRequest.FromString(data).files))),
    _encode_all,
    _decode_all,
)
DISTRIBUTE: Method[DistributeRequest, DistributeReply] = Method(
    SERVICE,
    "Distribute",
    lambda value: pb.DistributeRequest(
        path=path_bytes(value.path), peers=value.peers, is_plan=value.is_plan
    ).SerializeToString(),
    _decode_order,
    _encode_distributed,
    _decode_distributed,
)
WANT: Method[WantRequest, Nothing] = Method(
    SERVICE,
    "Want",
    lambda value: pb.WantRequest(files=map(file_to, value.files)).SerializeToString(),
    lambda data: WantRequest(tuple(map(file_of, pb.WantRequest.FromString(data).files))),
    lambda _: b"",
    lambda _: Nothing(),
)
