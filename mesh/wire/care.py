"""Warm-up, eviction on demand and pins on the wire: dataclasses, and protobuf <-> them.

`proto/mesh/v1/care.proto` says what each field means. A mask is an int whose bit i
stands for block i.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

from mesh.blocks import FileVersion
from mesh.wire.basics import Method, file_of, file_to, path_bytes, path_text
from mesh.wire.gen import care_pb2 as pb
from mesh.wire.messages import Nothing

SERVICE = "mesh.v1.Care"


@dataclass(frozen=True, slots=True)
class HoldingsRequest:
    files: tuple[FileVersion, ...]


@dataclass(frozen=True, slots=True)
class HoldingsReply:
    masks: tuple[int, ...]
    doubtful: tuple[int, ...]

    @property
    def sure(self) -> tuple[int, ...]:
        """Of each file the blocks that may be believed."""
        pairs = zip(self.masks, self.doubtful, strict=True)
        return tuple(mask & ~doubt for mask, doubt in pairs)


@dataclass(frozen=True, slots=True)
class WarmItem:
    file: FileVersion
    mask: int
    holder: str = ""


@dataclass(frozen=True, slots=True)
class WarmRequest:
    items: tuple[WarmItem, ...]
    parallel: int


@dataclass(frozen=True, slots=True)
class WarmFailure:
    number: int
    mask: int
    words: str


@dataclass(frozen=True, slots=True)
class WarmReply:
    local_bytes: int = 0
    peer_bytes: int = 0
    under_store_bytes: int = 0
    failures: tuple[WarmFailure, ...] = ()


@dataclass(frozen=True, slots=True)
class DropRequest:
    source: str
    path: str
    after: bytes = b""


@dataclass(frozen=True, slots=True)
class DropReply:
    files: int
    blocks: int
    size_bytes: int
    pinned_files: int
    busy_blocks: int
    after: bytes
    is_last: bool


@dataclass(frozen=True, slots=True)
class Pin:
    """The last word on one path of the mesh."""

    path: str
    stamp_s: float
    """On the wall clock."""

    is_pinned: bool


@dataclass(frozen=True, slots=True)
class PinList:
    pins: tuple[Pin, ...]


@dataclass(frozen=True, slots=True)
class SetPinsRequest:
    paths: tuple[str, ...]
    is_pinned: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class JobOrder:
    kind: str
    paths: tuple[str, ...]
    files_at_once: int = 50
    replicas: int = 1
    peers: tuple[str, ...] = ()
    bytes_per_s: int = 0
    number: int = 0
    is_open: bool = False


@dataclass(frozen=True, slots=True)
class JobRequest:
    number: int


@dataclass(slots=True)
class Tally:
    """What a job has seen and done so far; the only message that changes."""

    directories: int = 0
    files: int = 0
    blocks: int = 0
    size_bytes: int = 0
    vanished_directories: int = 0
    here_files: int = 0
    here_blocks: int = 0
    here_bytes: int = 0
    is_planned: bool = False
    wanted_bytes: int = 0
    seen_to_bytes: int = 0
    peer_bytes: int = 0
    under_store_bytes: int = 0
    kept_files: int = 0
    kept_blocks: int = 0
    kept_bytes: int = 0
    is_verified: bool = False
    failed: int = 0
    dropped_files: int = 0
    dropped_blocks: int = 0
    dropped_bytes: int = 0
    pinned_files: int = 0
    busy_blocks: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as people see it, and as it is kept."""

    number: int
    kind: str
    paths: tuple[str, ...]
    path_count: int
    state: str
    stage: str = ""
    ordered_s: float = 0.0
    began_s: float = 0.0
    ended_s: float = 0.0
    resumed: int = 0
    tally: Tally = field(default_factory=Tally)
    failures: tuple[tuple[str, str], ...] = ()
    """Path and reason; `tally.failed` counts those that are not listed too."""

    error: str = ""
    files_at_once: int = 50
    replicas: int = 1
    peers: tuple[str, ...] = ()
    bytes_per_s: int = 0


@dataclass(frozen=True, slots=True)
class JobList:
    jobs: tuple[Job, ...]


def mask_bytes(mask: int) -> bytes:
    """Return a mask as it is sent."""
    return mask.to_bytes(-(-mask.bit_length() // 8), "little")


def mask_of(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _encode_holdings_request(value: HoldingsRequest) -> bytes:
    files = [file_to(file) for file in value.files]
    return pb.HoldingsRequest(files=files).SerializeToString()


def _decode_holdings_request(data: bytes) -> HoldingsRequest:
    value = pb.HoldingsRequest.FromString(data)
    return HoldingsRequest(tuple(map(file_of, value.files)))


def _encode_holdings(value: HoldingsReply) -> bytes:
    return pb.HoldingsReply(
        masks=map(mask_bytes, value.masks), doubtful=map(mask_bytes, value.doubtful)
    ).SerializeToString()


def _decode_holdings(data: bytes) -> HoldingsReply:
    value = pb.HoldingsReply.FromString(data)
    return HoldingsReply(tuple(map(mask_of, value.masks)), tuple(map(mask_of, value.doubtful)))


def _encode_warm_request(value: WarmRequest) -> bytes:
    items = [
        pb.WarmItem(file=file_to(item.file), mask=mask_bytes(item.mask), holder=item.holder)
        for item in value.items
    ]
    return pb.WarmRequest(items=items, parallel=value.parallel).SerializeToString()


def _decode_warm_request(data: bytes) -> WarmRequest:
    value = pb.WarmRequest.FromString(data)
    items = (WarmItem(file_of(i.file), mask_of(i.mask), i.holder) for i in value.items)
    return WarmRequest(tuple(items), value.parallel)


def _encode_warm_reply(value: WarmReply) -> bytes:
    failures = [
        pb.WarmFailure(number=f.number, mask=mask_bytes(f.mask), words=path_bytes(f.words))
        for f in value.failures
    ]
    return pb.WarmReply(
        local_bytes=value.local_bytes,
        peer_bytes=value.peer_bytes,
        under_store_bytes=value.under_store_bytes,
        failures=failures,
    ).SerializeToString()


def _decode_warm_reply(data: bytes) -> WarmReply:
    value = pb.WarmReply.FromString(data)
    failures = (WarmFailure(f.number, mask_of(f.mask), path_text(f.words)) for f in value.failures)
    return WarmReply(value.local_bytes, value.peer_bytes, value.under_store_bytes, tuple(failures))


def _encode_drop_request(value: DropRequest) -> bytes:
    path = path_bytes(value.path)
    return pb.DropRequest(source=value.source, path=path, after=value.after).SerializeToString()


def _decode_drop_request(data: bytes) -> DropRequest:
    value = pb.DropRequest.FromString(data)
    return DropRequest(value.source, path_text(value.path), value.after)


def _encode_pins(value: PinList) -> bytes:
    pins = [
        pb.Pin(path=path_bytes(pin.path), stamp_s=pin.stamp_s, is_pinned=pin.is_pinned)
        for pin in value.pins
    ]
    return pb.PinList(pins=pins).SerializeToString()


def _decode_pins(data: bytes) -> PinList:
    value = pb.PinList.FromString(data)
    return PinList(tuple(Pin(path_text(p.path), p.stamp_s, p.is_pinned) for p in value.pins))


def _encode_order(value: JobOrder) -> bytes:
    found = _plain(value)
    found["paths"] = [path_bytes(path) for path in value.paths]
    return pb.JobOrder(**found).SerializeToString()


def _decode_order(data: bytes) -> JobOrder:
    value = pb.JobOrder.FromString(data)
    found = {f.name: getattr(value, f.name) for f in fields(JobOrder)}
    found["paths"] = tuple(map(path_text, value.paths))
    found["peers"] = tuple(value.peers)
    return JobOrder(**found)


def _job_to(value: Job) -> pb.Job:
    found = _plain(value)
    found["paths"] = [path_bytes(path) for path in value.paths]
    found["error"] = path_bytes(value.error)
    found["tally"] = pb.Tally(**_plain(value.tally))
    found["failures"] = [
        pb.Failure(path=path_bytes(path), reason=path_bytes(reason))
        for path, reason in value.failures
    ]
    return pb.Job(**found)


def _job_of(value: pb.Job) -> Job:
    found = {f.name: getattr(value, f.name) for f in fields(Job)}
    found["paths"] = tuple(map(path_text, value.paths))
    found["error"] = path_text(value.error)
    found["tally"] = Tally(**{f.name: getattr(value.tally, f.name) for f in fields(Tally)})
    found["failures"] = tuple((path_text(f.path), path_text(f.reason)) for f in value.failures)
    found["peers"] = tuple(value.peers)
    return Job(**found)


def encode_job(value: Job) -> bytes:
    """Return a job as it is sent, and kept."""
    return _job_to(value).SerializeToString()


def decode_job(data: bytes) -> Job:
    return _job_of(pb.Job.FromString(data))


def _plain(value: Any) -> dict[str, Any]:
    return {f.name: getattr(value, f.name) for f in fields(value)}


# RPCs

HOLDINGS: Method[HoldingsRequest, HoldingsReply] = Method(
    SERVICE,
    "Holdings",
    _encode_holdings_request,
    _decode_holdings_request,
    _encode_holdings,
    _decode_holdings,
)
WARM: Method[WarmRequest, WarmReply] = Method(
    SERVICE,
    "Warm",
    _encode_warm_request,
    _decode_warm_request,
    _encode_warm_reply,
    _decode_warm_reply,
)
DROP: Method[DropRequest, DropReply] = Method(
    SERVICE,
    "Drop",
    _encode_drop_request,
    _decode_drop_request,
    lambda a: pb.DropReply(**_plain(a)).SerializeToString(),
    lambda data: DropReply(
        **{f.name: getattr(pb.DropReply.FromString(data), f.name) for f in fields(DropReply)}
    ),
)
SHARE_PINS: Method[PinList, PinList] = Method(
    SERVICE, "SharePins", _encode_pins, _decode_pins, _encode_pins, _decode_pins
)
START_JOB: Method[JobOrder, Job] = Method(
    SERVICE, "StartJob", _encode_order, _decode_order, encode_job, decode_job
)
LIST_JOBS: Method[Nothing, JobList] = Method(
    SERVICE,
    "ListJobs",
    lambda q: b"",
    lambda data: Nothing(),
    lambda a: pb.JobList(jobs=map(_job_to, a.jobs)).SerializeToString(),
    lambda data: JobList(tuple(map(_job_of, pb.JobList.FromString(data).jobs))),
)
SHOW_JOB: Method[JobRequest, Job] = Method(
    SERVICE,
    "ShowJob",
    lambda q: pb.JobRequest(number=q.number).SerializeToString(),
    lambda data: JobRequest(pb.JobRequest.FromString(data).number),
    encode_job,
    decode_job,
)
CANCEL_JOB: Method[JobRequest, Job] = Method(
    SERVICE,
    "CancelJob",
    SHOW_JOB.encode_request,
    SHOW_JOB.decode_request,
    encode_job,
    decode_job,
)
SET_PINS: Method[SetPinsRequest, PinList] = Method(
    SERVICE,
    "SetPins",
    lambda q: pb.SetPinsRequest(
        paths=map(path_bytes, q.paths), is_pinned=q.is_pinned
    ).SerializeToString(),
    lambda data: SetPinsRequest(
        tuple(map(path_text, pb.SetPinsRequest.FromString(data).paths)),
        pb.SetPinsRequest.FromString(data).is_pinned,
    ),
    _encode_pins,
    _decode_pins,
)
