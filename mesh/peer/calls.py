"""What calls to other peers look like to those who make them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol, TypeVar

from mesh.wire.basics import Method
from mesh.wire.messages import Piece

Q = TypeVar("Q")
A = TypeVar("A")


class Wire(Protocol):
    """Calls to an address."""

    async def call(
        self, address: str, method: Method[Q, A], request: Q, *, timeout_s: float = ...
    ) -> A: ...

    def pieces(
        self, address: str, method: Method[Q, Piece], request: Q
    ) -> AsyncIterator[Piece]: ...

    async def push(self, address: str, method: Method[Q, A], values: AsyncIterator[Q]) -> None: ...
