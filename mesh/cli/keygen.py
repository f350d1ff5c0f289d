"""`mesh keygen`: a key for a cluster."""

from __future__ import annotations

import base64
import secrets

KEY_BYTES = 32


def keygen() -> None:
    """Print a new key for cluster.key: 32 random bytes in base64."""
    print(base64.b64encode(secrets.token_bytes(KEY_BYTES)).decode())
