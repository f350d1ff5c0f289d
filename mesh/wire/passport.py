"""What every call carries besides its request: of which mesh the caller is, and its epoch.

    mesh-cluster    who has another one is refused, in words that name both
    mesh-key        a fingerprint of the cluster's key, for the same reason
    mesh-protocol   likewise
    mesh-epoch      of the caller's view; an answer under another one says so

Who comes to the bulk channel of a peer shows a digest of the first three, for that peer and
this run of it: whoever has its port still knows that it is not another one's by now.

The fingerprint tells a mistake from a match. It proves nothing to somebody who can
read the wire: that is what TLS is for.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256

import msgspec

PROTOCOL = "1"
TOKEN_BYTES = 16
CLUSTER, KEY, SPOKEN, EPOCH = "mesh-cluster", "mesh-key", "mesh-protocol", "mesh-epoch"


@dataclass(frozen=True, slots=True)
class Passport:
    """Of which mesh this process is."""

    cluster: str
    fingerprint: str
    epoch: Callable[[], int]
    """Of the view that it has now."""

    def words(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata of a call."""
        return (
            (CLUSTER, _ascii(self.cluster)),
            (KEY, self.fingerprint),
            (SPOKEN, PROTOCOL),
            (EPOCH, f"{self.epoch():016x}"),
        )

    def objection(self, words: Mapping[str, str]) -> str:
        """Return why a caller with this metadata is refused; "" if it is not.

        A caller that shows nothing at all (grpcurl, a health check) is let through.
        """
        if SPOKEN not in words:
            return ""
        if words[SPOKEN] != PROTOCOL:
            return f"protocol {words[SPOKEN]} is not ours, {PROTOCOL}; run the same release"
        theirs = words.get(CLUSTER, "")
        if theirs != _ascii(self.cluster):
            return f'cluster "{theirs}" is not ours, "{self.cluster}"; mend cluster.name'
        if not hmac.compare_digest(words.get(KEY, ""), self.fingerprint):
            return "its cluster.key is not ours; give all peers of the mesh the same"
        return ""

    def bulk_token(self, peer_id: str, run: int) -> bytes:
        """Return the 16 bytes that open the bulk channel of a run of a peer."""
        whose = msgspec.json.encode((self.cluster, PROTOCOL, peer_id, run))
        return hmac.new(self.fingerprint.encode(), whose, sha256).digest()[:TOKEN_BYTES]

    def other_epoch(self, words: Mapping[str, str]) -> int | None:
        """Return the epoch that these words name, if it is not ours."""
        try:
            named = int(words.get(EPOCH, ""), 16)
        except ValueError:
            return None
        return None if named == self.epoch() else named


def fingerprint_of(cluster: str, key: str) -> str:
    """Return 16 hex digits that say whether two have the same key; "" for no key."""
    return hmac.new(key.encode(), cluster.encode(), sha256).hexdigest()[:16] if key else ""


def words_of(metadata: Iterable[tuple[str, str | bytes]] | None) -> dict[str, str]:
    """Return metadata of gRPC as text by key; what is not text is left out."""
    return {key: value for key, value in metadata or () if isinstance(value, str)}


def _ascii(text: str) -> str:
    """Return *text* as metadata may have it."""
    return text.encode("ascii", "backslashreplace").decode()
