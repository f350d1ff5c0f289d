"""The under-store of a run: a real S3 server on a host of its own, behind our `origin`."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path
from types import TracebackType
from typing import Self

from chaos.config import S3Place
from chaos.daemons import Daemon, end
from chaos.network import Host
from chaos.orders import Orders
from chaos.place import run
from mesh.testing.servers import SeaweedS3

ORIGIN_PORT = 9000
BUCKET = "truth"
UPLOAD_WITHIN_S = 120.0


class Weed(SeaweedS3):
    """The S3 server of the tests, on a host of ours."""

    def __init__(self, directory: Path, host: Host) -> None:
        super().__init__(directory)
        self._command = host.command(*self._command)

    def is_ready(self) -> bool:
        """Do not wait: whoever puts the first object does."""
        return True

    @property
    def address(self) -> str:
        return self.endpoint.removeprefix("http://")


class UnderStore:
    """The server and the proxy before it; egress is what left the proxy."""

    def __init__(self, host: Host, directory: Path, *, seed: int) -> None:
        directory.mkdir()
        self._host = host
        self._weed = Weed(directory / "weed", host)
        self._directory = directory
        self.orders = Orders(directory / "o")
        self.place = S3Place(
            f"http://{host.ip}:{ORIGIN_PORT}", BUCKET, self._weed.access_key, self._weed.secret_key
        )
        self.origin = Daemon(
            "origin",
            host,
            [
                *(sys.executable, "-m", "chaos.origin", "--seed", str(seed)),
                *("--listen", f"{host.ip}:{ORIGIN_PORT}", "--upstream", self._weed.address),
                *("--control", str(directory / "o"), "--log", str(directory / "requests.jsonl")),
            ],
            log=directory / "origin.log",
        )

    def __enter__(self) -> Self:
        self._weed.__enter__()
        try:
            self.origin.start()
            self.origin.wait_until(self.orders.is_listening)
        except BaseException:
            self._weed.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        end([self.origin])
        os.kill(self._weed.pid, signal.SIGKILL)  # it takes its time over a SIGTERM
        self._weed.stop()

    def put(self, folder: Path) -> None:
        """Make all files of a folder objects."""
        place = self.place
        words = (self._weed.endpoint, BUCKET, place.access_key, place.secret_key, str(folder))
        put = self._host.command(sys.executable, "-m", "chaos.put", *words)
        run("env", f"--chdir={Path(__file__).parent.parent}", *put, timeout_s=UPLOAD_WITHIN_S)

    @property
    def egress_bytes(self) -> int:
        """Bytes of objects that have left so far."""
        return self.orders.counts()["object_bytes"]

    def keep_log(self, path: Path) -> None:
        shutil.copy(self._directory / "requests.jsonl", path)
