"""The disk of one host fails under its peer."""

from __future__ import annotations

from chaos.faults.base import Fault
from chaos.faults.storage import DiskErrors, FlippedBytes, FullDisk, PowerLoss, SlowSync
from chaos.run import Run
from chaos.scenario import MIB, Mesh, scenario
from chaos.scenarios.timing import add_dip
from chaos.workload import Load

OWN_DISK = Mesh(disk_bytes=160 * MIB)


def _during(run: Run, fault: Fault, *, for_s: float = 5.0) -> None:
    run.warm()
    run.steady()
    with run.fault(fault):
        run.hold(for_s)
    run.hold(2)
    add_dip(run)


@scenario(
    "power-loss",
    "a host goes dark: its disk forgets what was not synced; it comes back and is read",
    proof="the disk took no more writes; the peer had just sent bytes, and readers were waiting",
    mesh=OWN_DISK,
    in_set=True,
)
def power_loss(run: Run) -> None:
    victim = run.victim()
    others = run.cluster.others(victim)
    run.warm(others)
    run.steady(others)
    with run.fault(PowerLoss(victim, run.workload)):
        run.hold(3)
    run.hold(1)
    verify = Load(files=run.files, threads=2, pattern="sequential", passes=1)
    readers = run.workload.start([victim.view], verify)
    run.workload.wait(readers, within_s=60)
    kept = victim.metric("mesh_store_used_bytes")
    run.expect("it is read again after the power is back", f"it keeps {kept:,.0f} bytes",
               holds=sum(r.size_bytes for r in readers[0].reads()) >= run.data_bytes)  # fmt: skip
    add_dip(run)


@scenario(
    "full-disk",
    "somebody else's file takes all room on the disk of one store, three times",
    proof="statvfs: under 1 MiB was free",
    mesh=OWN_DISK,
)
def full_disk(run: Run) -> None:
    run.warm()
    run.steady()
    fault = FullDisk(run.victim())
    with run.fault(fault):
        for _ in range(3):
            run.hold(2)
            fault.fill()
    run.hold(2)
    add_dip(run)


@scenario(
    "disk-errors",
    "every third pread and pwrite of one peer fails with EIO for 5 s",
    proof="strace marked the calls that it failed",
)
def disk_errors(run: Run) -> None:
    _during(run, DiskErrors(run.victim(), run.cluster.place))


@scenario(
    "slow-fsync",
    "every sync of one peer takes 300 ms more for 5 s",
    proof="strace marked the calls that it delayed",
)
def slow_fsync(run: Run) -> None:
    _during(run, SlowSync(run.victim(), run.cluster.place))


def _flip(run: Run, *, pattern: str) -> None:
    run.warm()
    run.steady(pattern=pattern)
    with run.fault(FlippedBytes(run.victim(), run.dice)):
        run.hold(6)
    run.hold(2)
    add_dip(run, lost=0)


@scenario(
    "flip",
    "one byte of each MiB that one peer keeps is flipped on its disk; read in sequence",
    proof="the peer counted corrupt blocks",
    in_set=True,
)
def flip(run: Run) -> None:
    _flip(run, pattern="sequential")


@scenario(
    "flip-random",
    "the same, read in pieces of 256 KiB here and there",
    proof="the peer counted corrupt blocks",
)
def flip_random(run: Run) -> None:
    _flip(run, pattern="random")
