"""What visitors send, as `Media` reads it: a file on the disk, or the body of a request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path


class Opened:
    """A file on the disk, read off the event loop.

    Attributes:
        read_bytes: how much of it has been read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.read_bytes = 0

    async def __aenter__(self) -> Opened:
        self._file = await asyncio.to_thread(self._path.open, "rb")
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._file.close)

    async def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes."""
        data = await asyncio.to_thread(self._file.read, size)
        self.read_bytes += len(data)
        return data


class Streamed:
    """The body of a request, read like a file."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._left = b""

    async def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes (-1: all that are left); b"" at the end."""
        while size < 0 or len(self._left) < size:
            block = await anext(self._body, None)
            if block is None:
                break
            self._left += block
        cut = len(self._left) if size < 0 else size
        taken, self._left = self._left[:cut], self._left[cut:]
        return taken
