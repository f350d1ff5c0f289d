"""Time that tests can own.

Rooms that decide by time take a `Clock`; `mesh.testing` has one that stands
still until a test moves it. Times are seconds on a monotonic clock, never the
wall's, so a jump of the wall clock moves nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds on a clock that never goes back."""

monotonic_s: Clock = time.monotonic
