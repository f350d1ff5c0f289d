"""Talks to our proxies (`origin`, `relay`): one line of JSON there, one back."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any


class Orders:
    """The control socket of one proxy."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def give(self, **told: Any) -> dict[str, int]:
        """Give an order; return the counts at that moment."""
        return self._exchange(told)

    def counts(self) -> dict[str, int]:
        return self._exchange({})

    def is_listening(self) -> bool:
        try:
            self.counts()
        except OSError:
            return False
        return True

    def _exchange(self, told: dict[str, Any]) -> dict[str, int]:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5.0)
            connection.connect(str(self._path))
            connection.sendall(json.dumps(told).encode() + b"\n")
            with connection.makefile("rb") as answers:
                counts: dict[str, int] = json.loads(answers.readline())
                return counts
