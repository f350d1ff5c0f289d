"""How fast what the ring gave to a peer is fetched: by arithmetic."""

from __future__ import annotations

import pytest

from mesh.blocks import MIB
from mesh.peer.throttle import Throttle


def test_so_many_bytes_a_second_and_no_burst_after_a_rest() -> None:
    throttle = Throttle(4 * MIB)
    assert throttle.wait_s(MIB, 10.0) == pytest.approx(0.25)
    assert throttle.wait_s(MIB, 10.25) == pytest.approx(0.25)
    assert throttle.wait_s(MIB, 10.3) == pytest.approx(0.45), "too early: it waits for both"
    assert throttle.wait_s(MIB, 1000.0) == pytest.approx(0.25), "an idle hour saves nothing up"
