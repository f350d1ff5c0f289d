"""What is said about jobs, pins and holdings is what is heard."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import version_of
from mesh.wire import care as c
from mesh.wire.basics import Method
from mesh.wire.messages import Nothing

FILE = version_of(
    source="s3://b", path="d/\udce9", size_bytes=9 << 20, tag='"e"', block_bytes=4 << 20
)
JOB = c.Job(
    number=7,
    kind="warm",
    paths=("/\udce9", "/b"),
    path_count=12,
    state="failed",
    stage="verifying",
    ordered_s=1.5,
    began_s=2.5,
    ended_s=3.5,
    resumed=2,
    tally=c.Tally(*range(8), True, *range(8, 15), True, *range(15, 21)),
    failures=(("/\udce9", "it is \udce9"), ("/c", "gone")),
    error="no \udce9",
    files_at_once=3,
    replicas=2,
    peers=("one", "two"),
    bytes_per_s=1 << 40,
)
PINS = c.PinList((c.Pin("/\udce9", 1.25, is_pinned=True), c.Pin("/b", 2.0, is_pinned=False)))
ORDER = c.JobOrder(
    kind="warm",
    paths=("/\udce9",),
    files_at_once=9,
    replicas=2,
    peers=("all",),
    bytes_per_s=5,
    number=4,
    is_open=True,
)


@pytest.mark.parametrize(
    ("method", "request_", "reply"),
    [
        (
            c.HOLDINGS,
            c.HoldingsRequest((FILE, FILE)),
            c.HoldingsReply((0, 1 << 70), (0, 0b101)),
        ),
        (
            c.WARM,
            c.WarmRequest((c.WarmItem(FILE, 0b110, "one"), c.WarmItem(FILE, 1)), 8),
            c.WarmReply(1, 2, 3, (c.WarmFailure(1, 0b10, "Stale: \udce9"),)),
        ),
        (
            c.DROP,
            c.DropRequest("s3://b", "d/\udce9", b"\xff" * 16),
            c.DropReply(1, 2, 3, 4, 5, b"\x01" * 16, is_last=True),
        ),
        (c.SHARE_PINS, PINS, PINS),
        (c.SET_PINS, c.SetPinsRequest(("/\udce9",), is_pinned=True), PINS),
        (c.START_JOB, ORDER, JOB),
        (c.LIST_JOBS, Nothing(), c.JobList((JOB, JOB))),
        (c.SHOW_JOB, c.JobRequest(7), JOB),
        (c.CANCEL_JOB, c.JobRequest(7), JOB),
    ],
    ids=lambda value: value.name if isinstance(value, Method) else "",
)
def test_both_ways(method: Method[Any, Any], request_: Any, reply: Any) -> None:
    assert method.decode_request(method.encode_request(request_)) == request_
    assert method.decode_reply(method.encode_reply(reply)) == reply
    assert c.decode_job(c.encode_job(JOB)) == JOB


@given(mask=st.integers(0, 1 << 200))
def test_masks(mask: int) -> None:
    assert c.mask_of(c.mask_bytes(mask)) == mask


def test_what_is_sure_is_what_is_not_doubtful() -> None:
    assert c.HoldingsReply((0b1110, 0), (0b0100, 0)).sure == (0b1010, 0)
