"""Where a path is: in its under-store, in the catalog's tables, and on the ring.

Both a peer and the mounts of its host read those tables, so both need this.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

from mesh.blocks import Attributes
from mesh.store.entries import NEGATIVE_S, directory_key, split
from mesh.store.entry_store import age_s
from mesh.understore.table import MountTable, Place
from mesh.wire.messages import StatReply


@dataclass(frozen=True, slots=True)
class Spot:
    """A path, seen as a name in its directory."""

    path: str
    """In the mesh, without a leading slash."""

    place: Place
    parent: str
    """Its directory, below the source."""

    name: str
    directory: bytes
    """The key of that directory."""

    @property
    def source(self) -> str:
        return self.place.settings.url

    def fresh_s(self, about: Attributes | None, since_s: float, now_s: float) -> float:
        """Return for how long what is known since then may still be believed; 0: not any more."""
        max_age_s = self.place.settings.max_age_s
        limit_s = max_age_s if about is not None else min(NEGATIVE_S, max_age_s)
        known_s = age_s(since_s, now_s)
        return limit_s - known_s if known_s < limit_s else 0.0

    def reply(
        self, about: Attributes, *, known_s: float, fresh_s: float, is_stale: bool = False
    ) -> StatReply:
        """Return what a mount is told."""
        file = None if about.is_directory else self.place.version(about)
        return StatReply(about, file, is_stale, fresh_s, 0.0 if known_s == inf else known_s)


def spot_of(table: MountTable, path: str) -> Spot:
    """Return where *path* is; `NotFound` when no mount is over it."""
    place = table.place(path)
    parent, name = split(place.path)
    return Spot(path, place, parent, name, directory_key(place.settings.url, parent))
