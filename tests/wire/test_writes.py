"""What mounts and peers say of writes is decoded as it was encoded."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import Attributes, FileVersion, version_of, written_tag
from mesh.wire import staged as g
from mesh.wire import writes as w
from mesh.wire.basics import Method
from mesh.wire.gen import writes_pb2 as pb
from mesh.wire.local import METHODS
from mesh.wire.messages import Kept, Nothing, StatReply

texts = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40)
paths = texts | st.just("caf\udce9")
tokens = st.text("0123456789abcdef", min_size=32, max_size=32)
sizes = st.integers(0, 2**63)
modes = st.integers(0, 0o777)
tags = texts | st.builds(written_tag, tokens, texts)
attributes = st.builds(
    Attributes,
    is_directory=st.booleans(),
    size_bytes=st.integers(0, 2**60),
    mtime_ns=st.integers(-(2**40), 2**62),
    tag=tags,
    mode=modes,
)
files = st.builds(
    version_of,
    source=st.just("s3://bucket/prefix"),
    path=paths,
    size_bytes=st.integers(0, 2**50),
    tag=tags,
    block_bytes=st.sampled_from([65536, 4 << 20, 64 << 20]),
)
replies = st.builds(
    StatReply,
    attributes,
    files | st.none(),
    st.booleans(),
    st.floats(0, allow_nan=False),
    st.floats(0, allow_nan=False),
)

staged = st.builds(
    g.StagedFile,
    tokens,
    paths,
    sizes,
    texts,
    modes,
    st.integers(-(2**40), 2**62),
    st.lists(texts, max_size=3).map(tuple),
    st.floats(0, 1e10),
    st.binary(max_size=16),
    st.lists(st.binary(min_size=16, max_size=16), max_size=3).map(tuple),
    paths,
)
waiting = st.builds(
    g.UploadsReply,
    st.lists(
        st.builds(
            g.Waiting, staged, texts, sizes, st.integers(0, 2**31), paths, st.floats(0, 1e12)
        ),
        max_size=3,
    ).map(tuple),
)

REQUESTS: list[tuple[Method[Any, Any], st.SearchStrategy[object]]] = [
    (w.GROW, st.builds(w.GrowRequest, tokens, paths, sizes, modes)),
    (
        w.PUBLISH,
        st.builds(
            w.PublishRequest,
            draft=tokens,
            path=paths,
            size_bytes=sizes,
            over=tags,
            is_rewritten=st.booleans(),
            is_exclusive=st.booleans(),
            mode=modes,
            is_again=st.booleans(),
        ),
    ),
    (w.RETIRE, st.builds(w.RetireRequest, tokens, st.booleans())),
    (
        w.ALTER,
        st.builds(
            w.AlterRequest,
            st.sampled_from(w.Verb),
            paths,
            paths,
            st.booleans(),
            modes,
            st.booleans(),
            sizes,
            tags,
        ),
    ),
    (
        w.ANNOUNCE,
        st.builds(
            w.AnnounceRequest,
            texts,
            st.lists(
                st.builds(Kept, paths, attributes | st.none(), st.floats(0, 1e9)), max_size=3
            ).map(tuple),
            st.lists(staged, max_size=3).map(tuple),
            st.booleans(),
            st.booleans(),
            paths,
            tokens,
        ),
    ),
    (g.ASSERT, st.builds(g.AssertRequest, staged, st.booleans(), st.booleans())),
    (g.HAVE, st.builds(g.HaveRequest, st.lists(tokens, max_size=3).map(tuple))),
    (
        g.HOLD,
        st.builds(g.HoldRequest, staged, texts, sizes, tokens, st.booleans(), st.booleans()),
    ),
    (g.PULL, st.builds(g.PullRequest, tokens, st.integers(0, 2**31), sizes)),
    (g.RETARGET, st.builds(g.RetargetRequest, tokens, paths, texts, st.booleans(), modes)),
    (g.FLUSH, st.builds(g.FlushRequest, paths, st.floats(0, 1e9))),
]
REPLIES: list[tuple[Method[Any, Any], st.SearchStrategy[object]]] = [
    (w.GROW, st.just(Nothing())),
    (w.PUBLISH, replies),
    (w.RETIRE, st.just(Nothing())),
    (w.ALTER, st.builds(w.AlterReply, replies | st.none(), st.booleans())),
    (w.ANNOUNCE, st.just(Nothing())),
    (
        g.ASSERT,
        st.builds(
            g.AssertReply,
            st.booleans(),
            texts,
            paths,
            st.lists(st.binary(max_size=16), max_size=3).map(tuple),
            st.binary(max_size=16),
            st.booleans(),
            st.lists(texts, max_size=2).map(tuple),
        ),
    ),
    (g.HOLD, st.just(Nothing())),
    (g.RETARGET, st.builds(g.RetargetReply, texts)),
    (g.UPLOADS, waiting),
    (g.ALL_UPLOADS, waiting),
    (g.FLUSH, st.builds(g.FlushReply, st.integers(0, 2**31))),
]

FILE = version_of(source="s3://b", path="p", size_bytes=7, tag="mesh-1=2", block_bytes=65536)
ABOUT = Attributes(is_directory=True, size_bytes=7, mtime_ns=8, tag="mesh-1=2", mode=0o640)
STAGED = g.StagedFile(
    "t", "p", 5, "over", 0o640, 7, ("a", "b"), 1.5, b"d", (b"e", b"f"), "q", True, 2.5
)
FULL: list[tuple[Method[Any, Any], Any]] = [
    (w.GROW, w.GrowRequest("d", "p", 5, 0o640)),
    (w.PUBLISH, w.PublishRequest("d", "p", 5, "t", True, True, 0o640, True)),
    (w.RETIRE, w.RetireRequest("d", True)),
    (w.ALTER, w.AlterRequest(w.Verb.RENAME, "p", "q", True, 0o640, True, 5, "t")),
    (
        w.ANNOUNCE,
        w.AnnounceRequest(
            "me",
            (Kept("p", ABOUT, 1.5), Kept("q", None, 0.5)),
            (STAGED,),
            True,
            True,
            "r",
            "t",
            1.5,
        ),
    ),
    (g.ASSERT, g.AssertRequest(STAGED, True, True)),
    (g.RECALL, g.RecallRequest("me", True)),
    (g.HAVE, g.HaveRequest(("t", "u"))),
    (g.HOLD, g.HoldRequest(STAGED, "me", 7, "d", True, True)),
    (g.PULL, g.PullRequest("d", 3, 9)),
    (g.RETARGET, g.RetargetRequest("t", "p", "over", True, 0o640, 2.5, (b"d",))),
    (w.TURN, w.TurnRequest("p", "t", True)),
    (g.FLUSH, g.FlushRequest("p", 1.5)),
]


def named(method: Method[Any, Any]) -> str:
    return method.name


@pytest.mark.parametrize(("method", "request_"), FULL, ids=lambda each: getattr(each, "name", ""))
def test_no_field_of_a_request_is_left_behind(method: Method[Any, Any], request_: Any) -> None:
    """None is as it is when nobody sets it, so that one that is not sent shows."""
    for field in fields(request_):
        assert getattr(request_, field.name), f"{field.name}: set it"
    again = method.decode_request(method.encode_request(request_))
    assert again == request_
    assert type(again) is type(request_)


def test_no_field_of_a_reply_is_left_behind() -> None:
    waiting_ = g.UploadsReply((g.Waiting(STAGED, "me", 5, 2, "away", 1.5),))
    assert g.UPLOADS.decode_reply(g.UPLOADS.encode_reply(waiting_)) == waiting_
    had = g.HaveReply(("t",), ("u",))
    assert g.HAVE.decode_reply(g.HAVE.encode_reply(had)) == had
    recalled = g.RecallReply((STAGED,), {b"k": b"v"}, ("p", "caf\udce9"), (Kept("q", ABOUT, 0.5),))
    assert g.RECALL.decode_reply(g.RECALL.encode_reply(recalled)) == recalled
    asserted = g.AssertReply(True, "over", "p", (b"e",), b"d", True, ("n",))
    assert g.ASSERT.decode_reply(g.ASSERT.encode_reply(asserted)) == asserted
    found = StatReply(ABOUT, FILE, True, 1.5, 2.5)
    assert w.PUBLISH.decode_reply(w.PUBLISH.encode_reply(found)) == found
    altered = w.AlterReply(found, True)
    assert w.ALTER.decode_reply(w.ALTER.encode_reply(altered)) == altered


@given(data=st.data())
@pytest.mark.parametrize("which", range(len(REQUESTS)), ids=[named(m) for m, _ in REQUESTS])
def test_requests(data: st.DataObject, which: int) -> None:
    method, strategy = REQUESTS[which]
    request = data.draw(strategy)
    assert method.decode_request(method.encode_request(request)) == request


@given(data=st.data())
@pytest.mark.parametrize("which", range(len(REPLIES)), ids=[named(m) for m, _ in REPLIES])
def test_replies(data: st.DataObject, which: int) -> None:
    method, strategy = REPLIES[which]
    reply = data.draw(strategy)
    assert method.decode_reply(method.encode_reply(reply)) == reply


@given(file=files)
def test_a_version_that_was_written_has_its_name_anywhere(file: FileVersion) -> None:
    """Who is told of a publication names its blocks as the writer does."""
    reply = w.PUBLISH.decode_reply(w.PUBLISH.encode_reply(StatReply(ABOUT, file)))
    assert reply.file.id == file.id


def test_verbs_are_those_of_the_protocol() -> None:
    theirs = {name: number for name, number in pb.AlterRequest.Verb.items() if name != "NONE"}
    assert {verb.name: verb.value for verb in w.Verb} == theirs


def test_a_verb_of_a_newer_mesh_is_no_other_verb() -> None:
    with pytest.raises(ValueError, match="0 is not a valid Verb"):
        w.ALTER.decode_request(pb.AlterRequest(path=b"p").SerializeToString())


def test_mounts_may_ask_for_all_of_it_but_announce_nothing() -> None:
    asked = {method.name for method in METHODS if method is not None}
    assert {"Grow", "Publish", "Retire", "Alter"} <= asked
    for method in (w.ANNOUNCE, g.ASSERT, g.RECALL, g.HAVE, g.HOLD, g.PULL, g.RETARGET):
        assert method.name not in asked


@given(file=staged)
def test_what_is_journaled_is_found_again(file: g.StagedFile) -> None:
    assert g.decode_staged(g.encode_staged(file)) == file
