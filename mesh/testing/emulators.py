"""Emulators of Azure Blob Storage and of Google Cloud Storage, for tests.

Both keep all in memory. Azurite is Microsoft's own and checks signatures;
gcp-storage-emulator knows no credentials at all.
"""

from __future__ import annotations

import http.client
import socket
import venv
from pathlib import Path
from typing import Any
from urllib.parse import quote

from mesh.testing.fetched import fetched, needed_program, run
from mesh.testing.servers import HOST, ServerProcess, free_port

AZURITE = "3.35.0"
GCS_EMULATOR = "2026.7.19"

# It serves one connection after the other, and Google's library keeps several.
_MANY_AT_ONCE = """\
import http.server
http.server.HTTPServer = http.server.ThreadingHTTPServer
from gcp_storage_emulator.__main__ import main
main()
"""


class Azurite(ServerProcess):
    """Blobs of the account that every emulator has."""

    account = "devstoreaccount1"
    account_key = (  # published by Microsoft
        "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
    )

    def __init__(self, directory: Path) -> None:
        """Keep the log under *directory*; raises `NotToBeHad` without node or the package."""
        node = needed_program("node", "nodejs")
        place = fetched(f"azurite-{AZURITE}", _fetch_azurite)
        self._port = free_port()
        self.endpoint = f"http://{HOST}:{self._port}"
        program = place / "node_modules" / "azurite" / "dist" / "src" / "blob" / "main.js"
        flags = ["--skipApiVersionCheck", "--disableTelemetry", "--inMemoryPersistence"]
        where = ["--blobHost", HOST, "--blobPort", str(self._port)]
        super().__init__([node, str(program), "--silent", *flags, *where], directory)

    def is_ready(self) -> bool:
        return _listens(self._port)

    def filesystem(self) -> Any:
        """Return a `pyarrow.fs.AzureFileSystem` on this server."""
        from pyarrow.fs import AzureFileSystem

        authority = self.endpoint.removeprefix("http://")
        return AzureFileSystem(
            self.account,
            account_key=self.account_key,
            blob_storage_authority=authority,
            dfs_storage_authority=authority,
            blob_storage_scheme="http",
            dfs_storage_scheme="http",
        )


class GcsEmulator(ServerProcess):
    """Buckets of Google's, as far as its JSON interface is emulated."""

    def __init__(self, directory: Path) -> None:
        """Keep the log under *directory*; raises `NotToBeHad` without the package."""
        place = fetched(f"gcp-storage-emulator-{GCS_EMULATOR}", _fetch_gcs_emulator)
        self._port = free_port()
        self.endpoint = f"http://{HOST}:{self._port}"
        # A virtual environment that was moved: its programs still name the old place.
        python = str(place / "bin" / "python")
        flags = ["start", "--in-memory", f"--host={HOST}", f"--port={self._port}"]
        super().__init__([python, "-c", _MANY_AT_ONCE, *flags], directory)

    def is_ready(self) -> bool:
        return _listens(self._port)

    def put(self, bucket: str, key: str, data: bytes) -> None:
        """Write an object in one request, of which pyarrow takes several."""
        connection = http.client.HTTPConnection(HOST, self._port, timeout=10.0)
        where = f"/upload/storage/v1/b/{bucket}/o?uploadType=media&name={quote(key, safe='')}"
        connection.request("POST", where, data, {"Content-Type": "application/octet-stream"})
        answer = connection.getresponse()
        answer.read()
        connection.close()
        assert answer.status == 200, answer.status

    def filesystem(self) -> Any:
        """Return a `pyarrow.fs.GcsFileSystem` on this server."""
        from pyarrow.fs import GcsFileSystem

        authority = self.endpoint.removeprefix("http://")
        return GcsFileSystem(
            anonymous=True, scheme="http", endpoint_override=authority, project_id="mesh"
        )


def _fetch_azurite(place: Path) -> None:
    npm = needed_program("npm", "npm")
    quiet = ("--no-audit", "--no-fund", "--ignore-scripts")
    run(npm, "install", *quiet, "--prefix", place, f"azurite@{AZURITE}")


def _fetch_gcs_emulator(place: Path) -> None:
    venv.create(place, with_pip=True)
    # It asks setuptools for its own version.
    wanted = (f"gcp-storage-emulator=={GCS_EMULATOR}", "setuptools<80")
    run(place / "bin" / "python", "-m", "pip", "install", "-q", *wanted)


def _listens(port: int) -> bool:
    with socket.socket() as trying:
        return trying.connect_ex((HOST, port)) == 0
