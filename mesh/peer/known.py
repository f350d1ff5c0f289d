"""What this peer knows of a name by itself, and what of it may be said to whom."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import inf

import structlog

from mesh.blocks import DIRECTORY, Attributes, is_staged
from mesh.clock import Clock
from mesh.errors import NotFound
from mesh.metrics import Metrics
from mesh.paths import Spot
from mesh.store.entry_store import EntryStore, age_s
from mesh.understore.table import MountTable
from mesh.wire.messages import StatReply

log = structlog.get_logger()


class Known:
    """The names in the table of one peer."""

    def __init__(
        self,
        table: MountTable,
        entries: EntryStore,
        owns: Callable[[bytes], bool],
        metrics: Metrics,
        clock: Clock,
    ) -> None:
        self._table = table
        self._entries = entries
        self._owns = owns
        self._metrics = metrics
        self._clock = clock
        self.staged: Callable[[bytes], Mapping[str, Attributes]] = lambda directory: {}
        """By name: what holders speak of in a directory."""

        self.began_s = clock()
        self.sure_since_s = self.began_s
        """What was learned before may have changed while this peer was away."""

    def fresh(self, spot: Spot) -> StatReply | None:
        """Return what may be believed of a path; raises `NotFound` if that it does not exist."""
        record, since_s = self._entries.look(spot.directory, spot.name)
        if record is None:
            return None
        about, now_s = record.attributes, self._clock()
        fresh_s = spot.fresh_s(about, since_s, now_s)
        if not fresh_s or (about and not about.is_directory and not about.tag):
            return None
        is_ours = about and is_staged(about.tag) and self._owns(spot.directory)
        if is_ours and spot.name not in self.staged(spot.directory):
            return None  # no holder speaks of it any more
        if about is None and not self._table.names_below(spot.path):
            self._metrics.catalog_requests.labels("cached").inc()
            raise NotFound(f"{spot.path}: no such file")
        self._metrics.catalog_requests.labels("cached").inc()
        return spot.reply(about or DIRECTORY, known_s=age_s(since_s, now_s), fresh_s=fresh_s)

    def last(self, spot: Spot, reason: str) -> StatReply | None:
        """Return what was known last, marked as stale; `NotFound` if an owner knows that it was
        not there: so a file can be made, and staged, while its under-store does not answer."""
        record, since_s = self._entries.look(spot.directory, spot.name)
        about = None if record is None else record.attributes
        listed_s = self._entries.listed_s(spot.directory)
        is_sure = listed_s is not None and listed_s >= self.sure_since_s
        if about is None and spot.name and is_sure and self._owns(spot.directory):
            raise NotFound(f"{spot.path}: no such file, as far as was known last")
        if about is None or not (about.is_directory or about.tag):
            return None
        log.warning("stale answer", path=spot.path, reason=reason)
        self._metrics.catalog_requests.labels("stale").inc()
        return spot.reply(about, known_s=age_s(since_s, self._clock()), fresh_s=0.0, is_stale=True)

    def told(self, spot: Spot) -> StatReply | None:
        """Return what another owner may take for the last word, if it is later than his own;
        raises `NotFound` if it became nothing since this peer was started."""
        record, since_s = self._entries.look(spot.directory, spot.name)
        if record is None or since_s > self._clock() or since_s == -inf:
            return None
        about = record.attributes
        if about is None and since_s >= self.began_s:
            raise NotFound(f"{spot.path}: no such file, as far as was known last")
        if about is None or not (about.is_directory or about.tag):
            return None
        return spot.reply(about, known_s=self._clock() - since_s, fresh_s=0.0, is_stale=True)
