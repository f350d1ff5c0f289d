"""The arithmetic of versions, blocks, spans and pieces."""

from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import (
    INLINE_BYTES,
    PIECE_BYTES,
    Span,
    piece_count,
    piece_order,
    piece_range,
    pieces_of,
    spans,
    version_of,
)

KIB = 1024


def version(size_bytes: int = 10, **changes: object):
    about = {
        "source": "file:///a",
        "path": "b",
        "size_bytes": size_bytes,
        "tag": "t",
        "block_bytes": 4 * PIECE_BYTES,
    }
    return version_of(**(about | changes))


@given(
    offset=st.integers(0, 10**6),
    size=st.integers(0, 10**6),
    block=st.integers(1, 10**5).filter(lambda n: n > 100),
)
def test_spans_cover_a_read_without_gap_or_overlap(offset: int, size: int, block: int) -> None:
    position = offset
    for span in spans(offset, size, block_bytes=block):
        assert span.block_index * block + span.start_bytes == position
        assert 0 < span.size_bytes <= block - span.start_bytes
        position += span.size_bytes
    assert position == offset + size


def test_a_version_changes_with_everything_that_names_it() -> None:
    names = {
        version().id,
        version(size_bytes=11).id,
        version(source="file:///c").id,
        version(path="c").id,
        version(tag="u").id,
        version(block_bytes=PIECE_BYTES).id,
        # The parts do not run into each other.
        version(source="file:///ab", path="").id,
    }
    assert len(names) == 7
    assert {len(name) for name in names} == {16}
    assert version().id == version().id


def test_names_that_are_not_utf8_have_versions_too() -> None:
    assert version(path="caf\udce9").id != version(path="cafe").id


@given(size=st.integers(1, 20 * PIECE_BYTES))
def test_blocks_add_up_to_the_file(size: int) -> None:
    file = version(size)
    assert sum(file.length_bytes(i) for i in range(file.block_count)) == size
    assert file.is_inline == (size <= INLINE_BYTES)


def test_an_empty_file_has_no_blocks() -> None:
    assert version(0).block_count == 0


@given(length=st.integers(1, 6 * PIECE_BYTES))
def test_pieces_add_up_to_the_block(length: int) -> None:
    ranges = [piece_range(n, length_bytes=length) for n in range(piece_count(length))]
    position = 0
    for start, size in ranges:
        assert start == position
        assert 0 < size <= PIECE_BYTES
        position += size
    assert position == length


def test_a_span_touches_the_pieces_that_it_lies_in() -> None:
    assert list(pieces_of(Span(0, 0, 1))) == [0]
    assert list(pieces_of(Span(0, PIECE_BYTES - 1, 2))) == [0, 1]
    assert list(pieces_of(Span(0, PIECE_BYTES, PIECE_BYTES))) == [1]


@given(count=st.integers(1, 20), data=st.data())
def test_the_wanted_piece_comes_first_and_none_is_left_out(count: int, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, count - 1))
    order = list(piece_order(count, first=first))
    assert order[0] == first
    assert sorted(order) == list(range(count))
