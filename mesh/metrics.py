"""What a daemon counts: one field each, exported by prometheus-client.

Names and units follow Prometheus's conventions (base units, `_total` for
counters). Labels are bounded: `source` is one of SOURCES, `op` a FUSE verb.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

LOCAL = "local"
PEER = "peer"
UNDER_STORE = "under_store"
SOURCES = (LOCAL, PEER, UNDER_STORE)

PEERS_NAMED_MAX = 64
"""Peers that a metric tells apart; all further ones are "others"."""

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


def _counter(name: str, text: str, *labels: str) -> Counter:
    return Counter(name, text, labels, namespace="mesh", registry=None)


def _gauge(name: str, text: str, *labels: str) -> Gauge:
    return Gauge(name, text, labels, namespace="mesh", registry=None)


def _histogram(name: str, text: str, *labels: str) -> Histogram:
    return Histogram(name, text, labels, namespace="mesh", registry=None, buckets=_SECONDS)


@dataclass(frozen=True)
class Metrics:
    """The counters of one daemon; each instance counts for itself."""

    read_blocks: Counter = field(
        default_factory=lambda: _counter(
            "read_blocks", "Blocks read for this host, by where they came from", "source"
        )
    )
    read_bytes: Counter = field(
        default_factory=lambda: _counter(
            "read_bytes", "Bytes read for this host, by where they came from", "source"
        )
    )
    swarm_bytes: Counter = field(
        default_factory=lambda: _counter(
            "swarm_received_bytes", "Bytes that other readers sent, by peer", "peer"
        )
    )
    written_bytes: Counter = field(
        default_factory=lambda: _counter("written_bytes", "Bytes sent to under-stores")
    )
    written_files: Counter = field(
        default_factory=lambda: _counter("written_files", "Versions published by this host")
    )
    conflicts: Counter = field(
        default_factory=lambda: _counter(
            "write_conflicts", "Files that were changed elsewhere, and kept beside"
        )
    )
    upload_failures: Counter = field(
        default_factory=lambda: _counter(
            "upload_failures", "Tries to persist a staged file in vain"
        )
    )
    takeovers: Counter = field(
        default_factory=lambda: _counter(
            "upload_takeovers", "Files persisted here because their writer was gone"
        )
    )
    staged_files: Gauge = field(
        default_factory=lambda: _gauge("staged_files", "Files here that wait to be persisted")
    )
    staged_age_s: Gauge = field(
        default_factory=lambda: _gauge(
            "staged_age_seconds", "How long the oldest of them has waited"
        )
    )
    staged_bytes: Gauge = field(
        default_factory=lambda: _gauge("staged_bytes", "Bytes here that wait to be persisted")
    )
    peer_bytes: Counter = field(
        default_factory=lambda: _counter(
            "peer_read_bytes", "Bytes read from other peers, by peer", "peer"
        )
    )
    served_blocks: Counter = field(
        default_factory=lambda: _counter("served_blocks", "Blocks sent to other peers")
    )
    served_bytes: Counter = field(
        default_factory=lambda: _counter("served_bytes", "Bytes sent to other peers")
    )
    fills: Counter = field(
        default_factory=lambda: _counter("fills", "Blocks brought from the under-store")
    )
    fill_bytes: Counter = field(
        default_factory=lambda: _counter("fill_bytes", "Bytes brought from the under-store")
    )
    evicted_blocks: Counter = field(
        default_factory=lambda: _counter("evicted_blocks", "Blocks dropped to make room")
    )
    evicted_bytes: Counter = field(
        default_factory=lambda: _counter("evicted_bytes", "Bytes dropped to make room")
    )
    corrupt_blocks: Counter = field(
        default_factory=lambda: _counter(
            "corrupt_blocks", "Blocks dropped because their bytes did not match their checksum"
        )
    )
    failovers: Counter = field(
        default_factory=lambda: _counter(
            "failovers", "Reads that went on to another source, by reason", "reason"
        )
    )
    hedges: Counter = field(
        default_factory=lambda: _counter(
            "hedges", "Second peers asked because the first one was silent"
        )
    )
    bypass_bytes: Counter = field(
        default_factory=lambda: _counter(
            "bypass_bytes", "Bytes of blocks of others, filled here because no owner could"
        )
    )
    repaired_blocks: Counter = field(
        default_factory=lambda: _counter(
            "repaired_blocks", "Blocks fetched because the ring made this peer their owner"
        )
    )
    repaired_bytes: Counter = field(
        default_factory=lambda: _counter(
            "repaired_bytes", "Bytes fetched because the ring made this peer their owner"
        )
    )
    repair_pending_blocks: Gauge = field(
        default_factory=lambda: _gauge(
            "repair_pending_blocks", "Blocks that this peer should have by the ring, and has not"
        )
    )
    errors: Counter = field(
        default_factory=lambda: _counter("errors", "Errors that reached a reader, by kind", "kind")
    )
    read_seconds: Histogram = field(
        default_factory=lambda: _histogram(
            "read_seconds", "Time until the wanted bytes of a block were here", "source"
        )
    )
    under_store_seconds: Histogram = field(
        default_factory=lambda: _histogram(
            "under_store_request_seconds", "Time of one request to an under-store", "op"
        )
    )
    fuse_seconds: Histogram = field(
        default_factory=lambda: _histogram("fuse_op_seconds", "Time of one FUSE request", "op")
    )
    in_flight_bytes: Gauge = field(
        default_factory=lambda: _gauge(
            "in_flight_bytes", "Bytes of blocks on their way, by group", "group"
        )
    )
    store_used_bytes: Gauge = field(
        default_factory=lambda: _gauge("store_used_bytes", "Bytes of blocks kept on this node")
    )
    store_capacity_bytes: Gauge = field(
        default_factory=lambda: _gauge("store_capacity_bytes", "Bytes that may be kept")
    )
    catalog_requests: Counter = field(
        default_factory=lambda: _counter(
            "catalog_requests", "Look-ups of paths, by how they were answered", "answer"
        )
    )
    catalog_calls: Counter = field(
        default_factory=lambda: _counter(
            "catalog_calls", "Calls to owners of directories, each about many names"
        )
    )
    invalidations: Counter = field(
        default_factory=lambda: _counter(
            "invalidations", "Changes of directories that peers tell each other of", "outcome"
        )
    )

    jobs_unended: Gauge = field(
        default_factory=lambda: _gauge("jobs_unended", "Jobs of this peer that go on or wait")
    )
    jobs_left_bytes: Gauge = field(
        default_factory=lambda: _gauge(
            "jobs_left_bytes", "Bytes that running jobs have planned and not yet seen to"
        )
    )
    jobs_ended: Counter = field(
        default_factory=lambda: _counter("jobs_ended", "Jobs that ended, by how", "state")
    )

    def registry(self) -> CollectorRegistry:
        """Return a registry that exports all of these."""
        registry = CollectorRegistry()
        for collector in vars(self).values():
            registry.register(collector)
        return registry


def total(counter: Counter | Gauge, **labels: str) -> int:
    """Return the value of a counter now, summed over the labels that are not given."""
    samples = (s for metric in counter.collect() for s in metric.samples)
    wanted = labels.items()
    return int(
        sum(
            s.value
            for s in samples
            if not s.name.endswith("_created") and wanted <= s.labels.items()
        )
    )


def by_label(counter: Counter, label: str) -> dict[str, int]:
    """Return the values of a counter now, by one of its labels."""
    samples = (s for metric in counter.collect() for s in metric.samples)
    return {s.labels[label]: int(s.value) for s in samples if s.name.endswith("_total")}


class PeerCounter:
    """What is counted of each peer; beyond `PEERS_NAMED_MAX` peers, of all others."""

    def __init__(self, counter: Counter) -> None:
        """Count in *counter*, whose one label is the peer."""
        self._counter = counter
        self._named: dict[str, Counter] = {}

    def add(self, peer: str, amount: float) -> None:
        counted = self._named.get(peer)
        if counted is None and len(self._named) < PEERS_NAMED_MAX:
            counted = self._named[peer] = self._counter.labels(peer)
        (counted or self._counter.labels("others")).inc(amount)
