"""What every message is made of: RPCs, errors and the shapes that many messages share.

protobuf <-> dataclasses is done here, in `codec` and in `care`, and nowhere else; so is
gRPC status <-> errors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import grpc

from mesh import errors
from mesh.blocks import Attributes, FileVersion, version_of
from mesh.errors import MeshError, PeerUnavailable
from mesh.wire.gen import mesh_pb2 as pb

Q = TypeVar("Q")
A = TypeVar("A")


@dataclass(frozen=True)
class Method(Generic[Q, A]):
    """One RPC, for its servers and its callers."""

    service: str
    name: str
    encode_request: Callable[[Q], bytes]
    decode_request: Callable[[bytes], Q]
    encode_reply: Callable[[A], bytes]
    decode_reply: Callable[[bytes], A]

    @property
    def path(self) -> str:
        return f"/{self.service}/{self.name}"


STALL_S = 5.0
"""A sender that has nothing yet says so at once and every `channels.HEARTBEAT_S`; what is
silent for so long is stuck, even if other streams of its peer are not. That nothing at all
comes from a peer shows much sooner (`hedged.Signs`)."""

# Errors

_CODES: list[tuple[type[MeshError], grpc.StatusCode]] = [
    # First match wins, so subclasses stand above their bases.
    (errors.NotFound, grpc.StatusCode.NOT_FOUND),
    (errors.Refused, grpc.StatusCode.PERMISSION_DENIED),
    (errors.NotADirectory, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.IsADirectory, grpc.StatusCode.INVALID_ARGUMENT),
    (errors.NotEmpty, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Exists, grpc.StatusCode.ALREADY_EXISTS),
    (errors.ReadOnly, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Elsewhere, grpc.StatusCode.FAILED_PRECONDITION),
    (errors.Stale, grpc.StatusCode.ABORTED),
    (errors.ListingGone, grpc.StatusCode.OUT_OF_RANGE),
    (errors.BlockCorrupt, grpc.StatusCode.DATA_LOSS),
    (errors.StoreFull, grpc.StatusCode.RESOURCE_EXHAUSTED),
    (errors.Busy, grpc.StatusCode.UNAVAILABLE),
    (errors.Unavailable, grpc.StatusCode.UNAVAILABLE),
]
_KINDS: list[type[MeshError]] = [kind for kind, _ in _CODES]
_KINDS.append(errors.UnderStoreUnavailable)
_BY_NAME = {kind.__name__: kind for kind in _KINDS}


def named(error: MeshError) -> str:
    """Return an error in words that `error_named` reads; names that are not UTF-8 escaped."""
    words = f"{type(error).__name__}: {error}"
    return words.encode("utf-8", "backslashreplace").decode()


def error_named(peer: str, words: str) -> MeshError:
    """Return the error that *peer* raised, or `PeerUnavailable` if it is none of ours."""
    name, _, text = words.partition(": ")
    if name in _BY_NAME:
        return _BY_NAME[name](text)
    return PeerUnavailable(peer, words)


def status_of(error: MeshError) -> tuple[grpc.StatusCode, str]:
    """Return the code and the details that tell a caller of ours what happened."""
    code = next((c for kind, c in _CODES if isinstance(error, kind)), grpc.StatusCode.UNKNOWN)
    return code, named(error)


def error_of(peer: str, failure: grpc.aio.AioRpcError) -> MeshError:
    """Return the error that *peer* raised, or `PeerUnavailable` if it raised none of ours."""
    details = failure.details() or ""
    if details.partition(": ")[0] in _BY_NAME:
        return error_named(peer, details)
    return PeerUnavailable(peer, f"{failure.code().name.lower()}: {details}")


# Messages


def path_bytes(value: str) -> bytes:
    return value.encode("utf-8", "surrogateescape")


def path_text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def file_to(file: FileVersion) -> pb.File:
    return pb.File(
        source=file.source,
        path=path_bytes(file.path),
        size_bytes=file.size_bytes,
        tag=file.tag,
        block_bytes=file.block_bytes,
    )


def file_of(file: pb.File) -> FileVersion:
    # The id is not sent but computed: who asks for a block under a false name
    # gets the block of that name, and can't put other bytes in its place.
    return version_of(
        source=file.source,
        path=path_text(file.path),
        size_bytes=file.size_bytes,
        tag=file.tag,
        block_bytes=max(1, file.block_bytes),
    )


def attributes_to(value: Attributes) -> pb.Attributes:
    return pb.Attributes(
        is_directory=value.is_directory,
        size_bytes=value.size_bytes,
        mtime_ns=value.mtime_ns,
        tag=value.tag,
        mode=value.mode,
    )


def attributes_of(value: pb.Attributes) -> Attributes:
    return Attributes(value.is_directory, value.size_bytes, value.mtime_ns, value.tag, value.mode)
