"""A fetch through the public internet of one machine: what comes of it, or why it is refused."""

from __future__ import annotations

import asyncio

import pytest

from qwen2_audio.errors import AudioError
from qwen2_audio.serving.fetch import Fetcher
from qwen2_audio.serving.settings import Settings
from tests.serving.loopback import Names, ToLoopback


def settings(**given: object) -> Settings:
    return Settings(max_clip_mib=2, **given)  # type: ignore[arg-type]


def fetch(url: str, port: int = 9, names: Names | None = None, **given: object) -> tuple[bytes, ToLoopback, Names]:
    """What comes from an address, what was sent on the way, and which names were asked for."""
    transport, names = ToLoopback(port), names or Names()

    async def run() -> bytes:
        fetcher = Fetcher(settings(**given), names, transport)
        try:
            async with asyncio.timeout(20):
                return await fetcher.fetch(url)
        finally:
            await fetcher.close()

    return asyncio.run(run()), transport, names


def refused(url: str, *words: str, port: int = 9, names: Names | None = None, **given: object) -> str:
    with pytest.raises(AudioError) as caught:
        fetch(url, port, names, **given)
    message = str(caught.value)
    assert "\n" not in message and ";" in message
    assert all(word in message for word in words), message
    return message
