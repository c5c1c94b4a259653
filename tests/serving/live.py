"""A backend on an event loop of its own, so that many tests share one engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, Self, TypeVar

from qwen2_audio.serving.backend import Delta, Job
from qwen2_audio.serving.local import LocalBackend

T = TypeVar("T")
LIMIT = 120.0
"""Seconds for anything to happen; the machine may be busy."""


class Live:
    """A context in which the backend runs."""

    def __init__(self, backend: LocalBackend) -> None:
        self.backend = backend
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="live-backend", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.run(self.backend.start())
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self.backend.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT)
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The result of a coroutine on the backend's loop."""
        return asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, LIMIT), self._loop).result(LIMIT + 5)

    def deltas(self, job: Job) -> list[Delta]:
        """A whole answer."""
        return self.run(deltas(self.backend, job))

    def all(self, jobs: list[Job]) -> list[list[Delta]]:
        """Whole answers to jobs that run together."""

        async def gather() -> list[list[Delta]]:
            return await asyncio.gather(*(deltas(self.backend, job) for job in jobs))

        return self.run(gather())


async def deltas(backend: LocalBackend, job: Job) -> list[Delta]:
    """All that comes for a job."""
    return [delta async for delta in backend.generate(job)]


def text_of(answer: list[Delta]) -> str:
    """The text of all deltas."""
    return "".join(delta.text for delta in answer)
