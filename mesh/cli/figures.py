"""How numbers and paths look to people. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from mesh.metrics import LOCAL, PEER

NOTHING = "-"
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size_shown(size_bytes: float) -> str:
    """Return *size_bytes* to three or four places: "0 B", "86.7 MiB", "1000 GiB"."""
    unit = 0
    while abs(size_bytes) >= 1024 and unit < len(_UNITS) - 1:
        size_bytes /= 1024
        unit += 1
    places = 1 if unit and abs(size_bytes) < 99.95 else 0
    return f"{size_bytes:.{places}f} {_UNITS[unit]}"


def duration_shown(duration_s: float) -> str:
    """Return *duration_s* in its two largest units: "42s", "3m05s", "2h07m", "12d03h"."""
    whole_s = int(duration_s)
    for unit_s, smaller_s, unit, smaller in (
        (86400, 3600, "d", "h"),
        (3600, 60, "h", "m"),
        (60, 1, "m", "s"),
    ):
        if whole_s >= unit_s:
            return f"{whole_s // unit_s}{unit}{whole_s % unit_s // smaller_s:02}{smaller}"
    return f"{whole_s}s"


def percent_shown(ratio: float | None) -> str:
    """Return *ratio* as "93.1 %"; "-" for None."""
    return NOTHING if ratio is None else f"{100 * ratio:.1f} %"


def hit_ratio(read_bytes: Mapping[str, int]) -> float | None:
    """Return which part of what was read did not come from the under-store; None of nothing."""
    all_bytes = sum(read_bytes.values())
    if not all_bytes:
        return None
    return (read_bytes.get(LOCAL, 0) + read_bytes.get(PEER, 0)) / all_bytes


def text_shown(text: str) -> str:
    """Return *text* as it can be printed; a path may have bytes that are not UTF-8."""
    clean = text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "�" for c in clean)
