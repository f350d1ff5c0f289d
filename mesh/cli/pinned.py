"""What is pinned, as this host's peer knows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mesh.cli.ask import LOOK_UP_TIMEOUT_S, HostPeer
from mesh.wire.care import SET_PINS, Pin, SetPinsRequest


@dataclass(frozen=True, slots=True)
class Pinned:
    """The paths that are pinned now."""

    pins: tuple[Pin, ...]

    def over(self, path: str) -> str | None:
        """Return the pinned path that *path* is, or lies below; None if there is none."""
        pinned = {pin.path.rstrip("/") for pin in self.pins}
        at = path.rstrip("/")
        while at not in pinned:
            if not at:
                return None
            at = at.rpartition("/")[0]
        return at or "/"


async def pinned_after(peer: HostPeer, paths: Sequence[str] = (), *, is_pinned: bool) -> Pinned:
    """Pin or unpin paths; return what is pinned then. Without paths it only does the latter."""
    request = SetPinsRequest(tuple(paths), is_pinned)
    said = (await peer.ask(SET_PINS, request, timeout_s=LOOK_UP_TIMEOUT_S)).pins
    return Pinned(tuple(pin for pin in said if pin.is_pinned))
