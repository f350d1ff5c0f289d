"""The inodes that the kernel knows of.

A node is one path at one version. When a path gets a new version it gets a new
node, and the kernel is told that the old one is stale: so the pages that it keeps
of a node are always those of one version, and an open handle never reads a mix.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING

from mesh.blocks import Attributes, FileVersion, identity_of
from mesh.store.entries import is_same

if TYPE_CHECKING:
    from mesh.client.draft import Draft

ROOT = 1


@dataclass(slots=True)
class Node:
    """A path that the kernel holds a reference to."""

    number: int
    path: str
    attributes: Attributes
    file: FileVersion | None = None
    """The version; None for a directory, and for a file seen only in a listing: then the
    first look-up says it."""

    fresh_s: float = 0.0
    """For so long the kernel may believe the attributes, counted from the look-up."""

    noted_s: float = 0.0
    """When that was."""

    lookups: int = 0
    """References of the kernel; at 0 the node is forgotten."""

    opens: int = 0
    writers: int = 0
    draft: Draft | None = None
    """What is written to it here; then that is what everybody reads here."""

    @property
    def is_begun(self) -> bool:
        """Whether it was made here and nobody else sees it yet."""
        return self.draft is not None and not self.draft.over

    def is_fresh(self, now_s: float) -> bool:
        """Whether the last look-up still holds."""
        return now_s < self.noted_s + self.fresh_s


class Nodes:
    """The nodes by number and by path."""

    def __init__(self) -> None:
        root = Node(ROOT, "", Attributes(is_directory=True, size_bytes=0, mtime_ns=0))
        root.lookups = 1
        self._by_number = {ROOT: root}
        self._by_path = {"": root}

    def __len__(self) -> int:
        return len(self._by_number)

    def node(self, number: int) -> Node:
        return self._by_number[number]

    def at(self, path: str) -> Node | None:
        """Return the node that the path has now."""
        return self._by_path.get(path)

    def note(
        self,
        path: str,
        attributes: Attributes,
        file: FileVersion | None,
        *,
        fresh_s: float,
        now_s: float,
    ) -> Node:
        """Return the node of a path at this version, a new one if it has changed."""
        node = self._by_path.get(path)
        if node is not None and _is_same(node, attributes, file):
            node.attributes = attributes
            node.file = node.file or file
            node.fresh_s, node.noted_s = fresh_s, now_s
            return node
        node = Node(self._free_number(path, attributes), path, attributes, file, fresh_s, now_s)
        self._by_number[node.number] = self._by_path[path] = node
        return node

    def take_over(self, node: Node) -> bool:
        """Let a path have a former node again, at the version that it has now; False if
        somebody has the present one open."""
        other = self._by_path.get(node.path)
        if other is None or other.opens or other.attributes.is_directory:
            return False
        node.attributes, node.file = other.attributes, other.file
        node.fresh_s, node.noted_s = other.fresh_s, other.noted_s
        self._by_path[node.path] = node
        return True

    def leave(self, node: Node) -> None:
        """Let a path have another node from now on."""
        if self._by_path.get(node.path) is node and node.number != ROOT:
            del self._by_path[node.path]

    def forget(self, number: int, lookups: int) -> None:
        """Take back references of the kernel."""
        node = self._by_number[number]
        node.lookups -= lookups
        if node.lookups <= 0 and number != ROOT:
            del self._by_number[number]
            self.leave(node)

    def rename(self, path: str, target: str) -> None:
        """Let what is known of *path*, and of all below it, be known of *target*."""
        moved = [
            node
            for known, node in self._by_path.items()
            if known == path or known.startswith(f"{path}/")
        ]
        for node in moved:
            del self._by_path[node.path]
        for node in moved:
            node.path = f"{target}{node.path[len(path) :]}"
            node.fresh_s = 0.0
            if node.draft is not None:
                node.draft.path = node.path
            self._by_path[node.path] = node

    def drafts_below(self, path: str) -> bool:
        """Whether something that nobody else sees yet is being written in a directory."""
        return any(
            node.draft is not None and known.startswith(f"{path}/")
            for known, node in self._by_path.items()
        )

    def open_below(self, path: str) -> list[Node]:
        """Return the nodes below a directory that somebody has open."""
        return [
            node
            for known, node in self._by_path.items()
            if node.opens and known.startswith(f"{path}/")
        ]

    def drafts_in(self, path: str) -> list[Node]:
        """Return the nodes in a directory that are being written."""
        return [node for node in self.below(path) if node.draft is not None]

    def below(self, path: str) -> list[Node]:
        """Return the nodes that lie directly in a directory, by looking at all."""
        return [
            node
            for node in self._by_path.values()
            if node.number != ROOT and node.path.rpartition("/")[0] == path
        ]

    def _free_number(self, path: str, about: Attributes) -> int:
        """Return a number that other mounts give to the same path and version, if it is free."""
        version = "" if about.is_directory else f"\0{about.size_bytes}\0{identity_of(about.tag)}"
        name = (path + version).encode("utf-8", "surrogateescape")
        number = int.from_bytes(blake2b(name, digest_size=8).digest(), "big") >> 1
        while number <= ROOT or number in self._by_number:
            number += 1
        return number


def _is_same(node: Node, attributes: Attributes, file: FileVersion | None) -> bool:
    if node.file is not None and file is not None:
        return node.file.id == file.id
    return is_same(node.attributes, attributes)
