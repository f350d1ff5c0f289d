"""A real etcd for tests: one member, on free ports, its data gone with it.

It needs the program: `apt-get install etcd-server`. Debian's package also sets up a
service, which tests neither use nor need: `systemctl disable --now etcd`.
"""

from __future__ import annotations

import http.client
import os
import shutil
import signal
from pathlib import Path

from mesh.testing.servers import HOST, ServerProcess, free_ports


def etcd_program() -> str | None:
    """Return where etcd is installed, or None."""
    return shutil.which("etcd") or shutil.which("etcd", path="/usr/sbin:/usr/local/bin")


class EtcdServer(ServerProcess):
    """An etcd of one member, from start to certain death; `with` runs it."""

    def __init__(self, directory: Path) -> None:
        """Keep the data, and the log, under *directory*."""
        program = etcd_program()
        if program is None:
            raise FileNotFoundError("etcd is not installed: apt-get install etcd-server")
        self._port, peer_port = free_ports(2)
        self.endpoint = f"http://{HOST}:{self._port}"
        peer = f"http://{HOST}:{peer_port}"
        command = [
            program,
            f"--data-dir={directory / 'data'}",
            f"--listen-client-urls={self.endpoint}",
            f"--advertise-client-urls={self.endpoint}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        ]
        super().__init__(command, directory)

    def is_ready(self) -> bool:
        connection = http.client.HTTPConnection(HOST, self._port, timeout=2.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def lose_data(self) -> None:
        """Forget everything, while it is stopped."""
        shutil.rmtree(self.directory / "data")

    def freeze(self) -> None:
        """Let it answer nothing, and hang up on nobody."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)
