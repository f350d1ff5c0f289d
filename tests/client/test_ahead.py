"""Sequential readers are read ahead of; random ones pay nothing."""

from random import Random

from mesh.blocks import KIB, MIB
from mesh.client.ahead import WINDOW_BYTES_MAX, ReadAhead

BLOCK = 4 * MIB
SIZE = 1024 * MIB


def test_a_sequential_reader_has_every_block_asked_for_once_and_before_it_comes() -> None:
    ahead = ReadAhead(size_bytes=SIZE, block_bytes=BLOCK)
    asked: list[int] = []
    late = 0
    for offset in range(0, 256 * MIB, MIB):
        if offset % BLOCK == 0 and offset >= 32 * MIB and offset // BLOCK not in asked:
            late += 1
        asked.extend(ahead.note(offset, MIB))
    assert len(asked) == len(set(asked))
    assert asked == sorted(asked)
    assert late == 0
    assert max(asked) * BLOCK <= 256 * MIB + WINDOW_BYTES_MAX


def test_the_window_grows_and_stops_growing() -> None:
    ahead = ReadAhead(size_bytes=SIZE, block_bytes=BLOCK)
    reach = []
    highest = 0
    for offset in range(0, 128 * MIB, MIB):
        highest = max([highest, *ahead.note(offset, MIB)])
        reach.append((highest + 1) * BLOCK - offset)
    assert reach[2] < reach[10] < reach[40]
    assert max(reach) <= WINDOW_BYTES_MAX + 2 * BLOCK


def test_a_random_reader_is_not_charged() -> None:
    random = Random(1)
    ahead = ReadAhead(size_bytes=SIZE, block_bytes=BLOCK)
    asked = [
        index
        for _ in range(2000)
        for index in ahead.note(random.randrange(0, SIZE - 4 * KIB, 256 * MIB // 10), 4 * KIB)
    ]
    assert len(asked) < 2000 * 0.2


def test_eight_streams_through_one_handle_are_eight_streams() -> None:
    """A loader shares one descriptor among its threads."""
    ahead = ReadAhead(size_bytes=SIZE, block_bytes=BLOCK)
    asked: set[int] = set()
    for step in range(32):
        for stream in range(8):
            asked.update(ahead.note(stream * 128 * MIB + step * MIB, MIB))
    for stream in range(8):
        first = stream * 128 * MIB // BLOCK
        assert {first + 5, first + 6, first + 7} <= asked


def test_a_backward_reader_gets_nothing_and_the_end_is_the_end() -> None:
    ahead = ReadAhead(size_bytes=10 * MIB, block_bytes=BLOCK)
    assert not any(ahead.note(offset, MIB) for offset in range(9 * MIB, 0, -3 * MIB))
    ahead = ReadAhead(size_bytes=10 * MIB, block_bytes=BLOCK)
    asked = [index for offset in range(0, 10 * MIB, MIB) for index in ahead.note(offset, MIB)]
    assert max(asked) == 2
