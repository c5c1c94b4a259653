"""A question to a backend whose engines are elsewhere, and what comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.serving.backend import Delta, Job
from qwen2_audio.serving.upstream import UpstreamBackend
from tests.remote.scripted import ScriptedServer

T = TypeVar("T")
LIMIT = 30.0
GREEDY = GenerationOptions(max_new_tokens=16)


def job(text: str = "Hello", *, model: str = "mini", options: GenerationOptions = GREEDY) -> Job:
    return Job(Conversation().user(text), options, model)


def using(
    servers: list[ScriptedServer] | list[str], act: Callable[[UpstreamBackend], Awaitable[T]], **options: Any
) -> T:
    """What `act` returns, given a backend over the servers that has started."""
    urls = [server if isinstance(server, str) else server.url for server in servers]

    async def run() -> T:
        backend = UpstreamBackend(urls, **{"health_interval": 0.05, "start_timeout": 5.0, **options})
        await backend.start()
        try:
            return await act(backend)
        finally:
            await backend.close()

    return asyncio.run(asyncio.wait_for(run(), LIMIT))


async def answer(backend: UpstreamBackend, asked: Job) -> list[Delta]:
    return [delta async for delta in backend.generate(asked)]


def text_of(deltas: list[Delta]) -> str:
    return "".join(delta.text for delta in deltas)


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not true():
            await asyncio.sleep(0.01)
