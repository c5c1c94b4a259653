"""What visitors upload, as `Media` reads it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from qwen2_audio.errors import AudioError


class Opened:
    """A file on the disk, read off the event loop.

    Attributes:
        read_bytes: how much of it has been read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.read_bytes = 0

    async def __aenter__(self) -> Opened:
        try:
            self._file = await asyncio.to_thread(self._path.open, "rb")
        except OSError as error:  # it waited too long, or was asked about before
            raise AudioError(f"{self._path.name} is no longer here; attach it again") from error
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._file.close)

    async def read(self, size: int = -1, /) -> bytes:
        """The next `size` bytes."""
        data = await asyncio.to_thread(self._file.read, size)
        self.read_bytes += len(data)
        return data
