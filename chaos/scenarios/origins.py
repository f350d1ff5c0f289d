"""The under-store is away, slow, or too busy."""

from __future__ import annotations

import time
from errno import errorcode

from chaos import checks
from chaos.cluster import Node
from chaos.faults.base import Fault
from chaos.faults.origins import Away, Busy, Slow
from chaos.report import row
from chaos.run import Run
from chaos.scenario import MIB, Mesh, scenario, steady_files

UNCACHED_WITHIN_S = 12.0
"""A failed look-up and a failed read, each with the mount's timeout of 5 s, and air."""
RECOVERS_WITHIN_S = 10.0


def _with_fresh(peers: int) -> dict[str, int]:
    return steady_files(peers) | {"fresh-1": MIB, "fresh-2": MIB}


def _cold_model(_: int) -> dict[str, int]:
    return {"model": 64 * MIB}


def _uncached_fails(run: Run, node: Node, file: str) -> None:
    """What nobody has ends with an error, soon, and is no hang."""
    start_s = time.monotonic()
    reads = run.probe(node, file)
    took_s = time.monotonic() - start_s
    names = [errorcode.get(read.errno, "answered") for read in reads]
    failed = bool(reads) and all(read.errno for read in reads)
    run.expect("an uncached read fails", ", ".join(names), holds=failed)
    run.report.rows.append(
        row("an uncached read failed after", took_s, "s", at_most=UNCACHED_WITHIN_S)
    )


def _uncached_recovers(run: Run, node: Node, file: str) -> None:
    """It works again by itself, right, soon after the under-store does."""
    start_s = time.monotonic()
    reads = run.probe(node, file)
    while any(read.errno for read in reads) and time.monotonic() - start_s < RECOVERS_WITHIN_S:
        time.sleep(0.3)
        reads = run.probe(node, file)
    took_s = time.monotonic() - start_s
    right = bool(reads) and not any(read.errno or read.wrong_bytes for read in reads)
    run.expect("the same read works again by itself", f"after {took_s:.1f} s", holds=right)


def _away(run: Run, fault: Fault) -> None:
    run.warm()
    run.steady()
    node = run.victim()
    with run.fault(fault):
        run.hold(1)
        _uncached_fails(run, node, "fresh-1")
        run.hold(1)
    _uncached_recovers(run, node, "fresh-1")
    _uncached_recovers(run, node, "fresh-2")
    run.hold(1)


@scenario(
    "under-store-down",
    "connections to the under-store are refused; what is cached is read on",
    proof="the proxy before it counted the connections that it refused",
    mesh=Mesh(files=_with_fresh),
    in_set=True,
)
def under_store_down(run: Run) -> None:
    _away(run, Away(run.cluster.under_store))


@scenario(
    "under-store-503",
    "the under-store answers 503 to everything; what is cached is read on",
    proof="the proxy before it counted its 503",
    mesh=Mesh(files=_with_fresh),
)
def under_store_503(run: Run) -> None:
    _away(run, Busy(run.cluster.under_store, share=1.0))


def _cold_under(run: Run, fault: Fault) -> None:
    run.inject(fault)
    readers = run.start_cold()
    took_s = run.workload.wait(readers, within_s=120)
    run.prove(fault)
    run.heal(fault)
    run.stop()
    run.report.rows.append(row("the cold read by all took", took_s, "s"))
    ratio = run.cluster.under_store.egress_bytes / run.data_bytes
    most = checks.EGRESS_RATIO_MAX
    run.report.rows.append(row("under-store egress of all", ratio, "x data", at_most=most))
    run.check(checks.egress_at_most(ratio, most=checks.EGRESS_HEDGED_RATIO_MAX))


@scenario(
    "under-store-slow",
    "a cold read by all while each request takes 500 ms more",
    proof="the proxy counted the requests that it delayed",
    mesh=Mesh(files=_cold_model, capacity="160MiB"),
)
def under_store_slow(run: Run) -> None:
    _cold_under(run, Slow(run.cluster.under_store))


@scenario(
    "under-store-busy",
    "a cold read by all while the under-store answers 503 to 20 % of the requests",
    proof="the proxy counted its 503",
    mesh=Mesh(files=_cold_model, capacity="160MiB"),
    in_set=True,
)
def under_store_busy(run: Run) -> None:
    _cold_under(run, Busy(run.cluster.under_store, share=0.2))


@scenario(
    "under-store-blink",
    "the under-store is away for 2 s in the middle of a cold read by all",
    proof="the proxy counted the connections that it refused",
    mesh=Mesh(files=_cold_model, capacity="160MiB", link_bytes_s=10e6),
)
def under_store_blink(run: Run) -> None:
    readers = run.start_cold()
    run.until_read(run.data_bytes // 2)
    with run.excuse():
        with run.fault(Away(run.cluster.under_store)):
            run.hold(2)
        run.hold(1)
    run.workload.wait(readers, within_s=120)
