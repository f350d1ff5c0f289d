"""What is encoded is what is decoded, and protobuf reads it as the same."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh import errors
from mesh.blocks import Attributes, DirectoryEntry, FileVersion, version_of
from mesh.wire import basics, catalog, codec, pages
from mesh.wire import messages as m
from mesh.wire.gen import mesh_pb2 as pb

paths = st.text(st.characters(blacklist_categories=["Cs"]), max_size=40) | st.just("caf\udce9")
files = st.builds(
    version_of,
    source=st.just("s3://bucket/prefix"),
    path=paths,
    size_bytes=st.integers(0, 2**50),
    tag=st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
    block_bytes=st.sampled_from([65536, 4 << 20, 64 << 20]),
)
attributes = st.builds(
    Attributes,
    is_directory=st.booleans(),
    size_bytes=st.integers(0, 2**60),
    mtime_ns=st.integers(-(2**40), 2**62),
    tag=st.just("etag"),
    mode=st.integers(0, 0o777),
)


@given(number=st.integers(0, 300), crc=st.integers(0, 2**32 - 1), data=st.binary(max_size=300))
def test_a_piece_is_a_protobuf_message_written_by_hand(number: int, crc: int, data: bytes) -> None:
    piece = m.Piece(number, crc, data)
    theirs = pb.Piece.FromString(codec.encode_piece(piece))
    assert (theirs.number, theirs.crc32c, theirs.data) == (number, crc, data)

    for encoded in (codec.encode_piece(piece), theirs.SerializeToString()):
        again = codec.decode_piece(encoded)
        assert (again.number, again.crc, bytes(again.data)) == (number, crc, data)


def test_a_piece_with_fields_in_another_order_is_read_too() -> None:
    data = pb.Piece(data=b"x" * 200).SerializeToString() + pb.Piece(number=3).SerializeToString()
    again = codec.decode_piece(data)
    assert (again.number, bytes(again.data)) == (3, b"x" * 200)


@given(file=files, index=st.integers(0, 2**31), first=st.integers(0, 63))
def test_block_requests(file: FileVersion, index: int, first: int) -> None:
    request = m.BlockRequest(file, index, first)
    assert codec.SERVE.decode_request(codec.SERVE.encode_request(request)) == request


@given(file=files, attributes=attributes, stale=st.booleans())
def test_stat_replies(file: FileVersion, attributes: Attributes, stale: bool) -> None:
    for about in (file, None):
        reply = m.StatReply(attributes, about, is_stale=stale, fresh_s=float("inf"))
        assert catalog.STAT.decode_reply(catalog.STAT.encode_reply(reply)) == reply


@given(names=st.lists(paths, max_size=5), attributes=attributes)
def test_list_replies(names: list[str], attributes: Attributes) -> None:
    page = pages.packed((name, attributes) for name in names)
    reply = m.ListReply(page, is_last=True, entry_count=7, fresh_s=float("inf"), age_s=1.5)
    again = catalog.LIST.decode_reply(catalog.LIST.encode_reply(reply))
    assert again == reply
    entries = tuple(DirectoryEntry(name, attributes) for name in names)
    assert pages.entries_of(again.page) == entries


@given(path=paths, names=st.lists(paths, max_size=3), file=files, attributes=attributes)
def test_what_owners_are_asked_and_tell(
    path: str, names: list[str], file: FileVersion, attributes: Attributes
) -> None:
    answers = (m.StatReply(attributes, file, age_s=1.5), errors.NotFound("x: no such file"), None)
    lookup = m.LookupReply(answers)
    again = catalog.LOOKUP.decode_reply(catalog.LOOKUP.encode_reply(lookup))
    assert (again.answers[0], again.answers[2]) == (answers[0], None)
    assert isinstance(again.answers[1], errors.NotFound)
    change = m.Change("memory://x", path, tuple(names), is_all=True, is_listing=True)
    kept = (m.Kept(path, attributes, 1.5), m.Kept(path, None, 0.5))
    requests = [
        (catalog.LOOKUP, m.LookupRequest(tuple(names), "one", refresh=True, only_known=True)),
        (catalog.LIST, m.ListRequest(path, "after", "one", refresh=True, is_ahead=True)),
        (catalog.INVALIDATE, m.InvalidateRequest((change,))),
        (catalog.KEEP, m.KeepRequest("one", kept, tuple(names))),
        (catalog.REFRESH, m.RefreshRequest(path, is_recursive=True)),
        (catalog.WATCH, m.WatchRequest(1 << 60)),
    ]
    for method, request in requests:
        assert method.decode_request(method.encode_request(request)) == request
    watched = m.WatchReply(1 << 60, (change,))
    assert catalog.WATCH.decode_reply(catalog.WATCH.encode_reply(watched)) == watched


@given(indexes=st.frozensets(st.integers(0, 500)))
def test_held_blocks_are_a_bitmap(indexes: frozenset[int]) -> None:
    reply = m.HeldReply(indexes)
    assert codec.HELD.decode_reply(codec.HELD.encode_reply(reply)) == reply


@given(file=files)
def test_the_other_messages(file: FileVersion) -> None:
    fetch = m.FetchRequest(file, 3, 10, 20, is_ahead=True, is_suspect=True)
    assert codec.FETCH.decode_request(codec.FETCH.encode_request(fetch)) == fetch
    fetched = m.FetchReply(12, 5.0, "peer")
    assert codec.FETCH.decode_reply(codec.FETCH.encode_reply(fetched)) == fetched
    report = m.MountReport("/mnt", 12, {"local": 5}, {"local": 1}, (b"v" * 16,))
    assert codec.REPORT.decode_request(codec.REPORT.encode_request(report)) == report
    about = m.Description(name="a", address="b:1", read_bytes={"peer": 3}, mountpoints=("/x",))
    assert codec.DESCRIBE.decode_reply(codec.DESCRIBE.encode_reply(about)) == about
    overview = m.Overview("c", 2**63 + 1, (about, about))
    assert codec.OVERVIEW.decode_reply(codec.OVERVIEW.encode_reply(overview)) == overview
    found = m.StatReply(Attributes(is_directory=False, size_bytes=3, mtime_ns=4), file)
    location = m.Location(found, (("a", "b"), ()), {"a": frozenset({0, 9})}, ("b",))
    assert codec.LOCATE.decode_reply(codec.LOCATE.encode_reply(location)) == location


ALL_ERRORS = [
    errors.NotFound("x"),
    errors.Refused("x"),
    errors.NotADirectory("x"),
    errors.IsADirectory("x"),
    errors.Stale("x"),
    errors.ListingGone("x"),
    errors.BlockCorrupt("x"),
    errors.UnderStoreUnavailable("x"),
    errors.NotEmpty("x"),
    errors.StoreFull("x"),
    errors.Exists("x"),
    errors.ReadOnly("x"),
    errors.Elsewhere("x"),
    errors.Unavailable("x"),
]


class Failure:
    """What grpc.aio raises, as far as it is looked at."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        self._code, self._details = code, details

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return self._details


@pytest.mark.parametrize("error", ALL_ERRORS, ids=lambda e: type(e).__name__)
def test_an_error_comes_out_as_it_went_in(error: errors.MeshError) -> None:
    code, details = basics.status_of(error)
    again = basics.error_of("peer", Failure(code, details))  # type: ignore[arg-type]
    assert type(again) is type(error)
    assert str(again) == "x"
    assert code is not grpc.StatusCode.UNKNOWN


def test_an_error_about_a_name_that_is_not_utf8_can_be_sent() -> None:
    assert basics.named(errors.NotFound("caf\udce9")).encode() == b"NotFound: caf\\udce9"


def test_a_failure_that_is_not_ours_means_that_the_peer_is_away() -> None:
    failure = Failure(grpc.StatusCode.UNAVAILABLE, "failed to connect")
    error = basics.error_of("10.0.0.1:7000", failure)  # type: ignore[arg-type]
    assert isinstance(error, errors.PeerUnavailable)
    assert "10.0.0.1:7000" in str(error)
