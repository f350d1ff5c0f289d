"""How large the parts of an object are: it has few of them, and the largest object fits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.blocks import GIB
from mesh.understore.writable import PART_BYTES_MAX, PART_BYTES_MIN, PARTS_MAX, part_bytes

TIB = 1024 * GIB


@given(st.integers(0, 5 * TIB))
def test_a_file_of_known_size_has_few_parts_of_one_size(size_bytes: int) -> None:
    part = part_bytes(0, size_bytes)
    assert all(part_bytes(n, size_bytes) == part for n in (1, 999, 9999))
    assert PART_BYTES_MIN <= part <= PART_BYTES_MAX
    assert -(-size_bytes // part) <= PARTS_MAX
    assert part == PART_BYTES_MIN or size_bytes > PARTS_MAX * PART_BYTES_MIN - GIB


def test_parts_grow_so_that_the_largest_object_fits() -> None:
    sizes = [part_bytes(number, None) for number in range(PARTS_MAX)]
    assert sizes[:1000] == [PART_BYTES_MIN] * 1000
    assert sizes == sorted(sizes)
    assert max(sizes) <= PART_BYTES_MAX
    assert sum(sizes) >= 5 * TIB
