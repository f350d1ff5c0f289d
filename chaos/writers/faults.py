"""What goes wrong under writers, and the lanes in which it does."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from chaos.cluster import Node
from chaos.disks import MIB
from chaos.faults.base import Fault
from chaos.faults.storage import FullDisk
from chaos.place import take_away
from chaos.plan import Planned
from chaos.writers.verdict import Trouble

TEND_EVERY_S = 0.2
ROOM_BYTES = 64 * MIB
"""With less than that a peer refuses to start."""


class KillPeer(Fault):
    """SIGKILL of a peer; its mounts stay."""

    def __init__(self, node: Node, hands: threading.Lock) -> None:
        """Have *hands* from the death to the end of the start."""
        self.label = f"kill {node.name}"
        self._node, self._hands = node, hands
        self._staged_bytes = 0.0

    def inject(self) -> None:
        self._hands.acquire()
        self._staged_bytes = self._node.metric("mesh_staged_bytes")
        self._node.peer.kill()

    def heal(self) -> None:
        try:
            self._start()
        finally:
            self._hands.release()

    def _start(self) -> None:
        start_again(self._node)

    def evidence(self) -> str | None:
        code = self._node.peer.exit_code
        return f"exit code {code}, {self._staged_bytes:,.0f} bytes staged there" if code else None


class KillHost(KillPeer):
    """SIGKILL of a peer and of the mount beside it."""

    def __init__(self, node: Node, hands: threading.Lock) -> None:
        super().__init__(node, hands)
        self.label = f"kill {node.name} and its mount"

    def inject(self) -> None:
        super().inject()
        kill_mount(self._node)

    def _start(self) -> None:
        super()._start()
        self._node.start_mount()


def start_again(node: Node) -> None:
    """Start a peer as its supervisor does: again, while its disk is too full for it to begin."""
    while True:
        assert node.disk is not None
        is_full = node.disk.free_bytes() < ROOM_BYTES
        try:
            node.start_peer()
            return
        except RuntimeError:
            if not is_full:
                raise
        time.sleep(TEND_EVERY_S)


def kill_mount(node: Node) -> None:
    """Kill a mount as the end of its host would: no process waits for it any more.

    A thread of it that tells the kernel to forget a name waits in there for whoever changes
    the directory, who waits for the mount: without the abort it would never end.
    """
    node.mount.signal(signal.SIGKILL)
    take_away(node.view)
    node.mount.kill()


class Away(Fault):
    """The directory that is the under-store is not there."""

    label = "under-store away"

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._elsewhere = directory.with_name(f"{directory.name}-away")

    def inject(self) -> None:
        self._directory.rename(self._elsewhere)

    def heal(self) -> None:
        if self._elsewhere.exists():
            self._elsewhere.rename(self._directory)

    def evidence(self) -> str | None:
        return None if self._directory.exists() else "nothing is there"


class Lane(threading.Thread):
    """Faults one after the other, each at its time or when the one before is mended."""

    def __init__(
        self,
        plan: Sequence[Planned],
        make: Callable[[Planned], Fault],
        *,
        start_s: float,
        over: threading.Event,
    ) -> None:
        """Go on until *over* is set: then mend what is broken, and end."""
        super().__init__(name=f"lane-{plan[0].kind}", daemon=True)
        self.troubles: list[Trouble] = []
        self.fired: list[str] = []
        self.failure: BaseException | None = None
        self._plan, self._make = plan, make
        self._start_s, self._over = start_s, over

    def run(self) -> None:
        try:
            for planned in self._plan:
                at_s = self._start_s + planned.at_s
                if self._over.wait(max(0.0, at_s - time.monotonic())):
                    return
                self._have(self._make(planned), planned.for_s)
        except BaseException as error:
            self.failure = error

    def _have(self, fault: Fault, for_s: float) -> None:
        from_s = time.monotonic()
        until_s = from_s + for_s
        print(f"  {from_s - self._start_s:5.1f} s  {fault.label} for {for_s:g} s", flush=True)
        try:
            fault.inject()
            words = fault.evidence()
            while not self._over.wait(max(0.0, min(TEND_EVERY_S, until_s - time.monotonic()))):
                if time.monotonic() >= until_s:
                    break
                if isinstance(fault, FullDisk):
                    fault.fill()
            assert words is not None, f"{fault.label} did not fire"
            self.fired.append(f"{fault.label}: {words}")
        finally:
            fault.heal()
            self.troubles.append(Trouble(from_s, time.monotonic(), fault.label))
