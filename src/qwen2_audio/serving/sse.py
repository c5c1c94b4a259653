"""Server-sent events: an answer that is told while it is written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.serving.disconnect import gone
from qwen2_audio.serving.errors import problem_of

DONE = "[DONE]"
_LOG = logging.getLogger(__name__)
_KEEP_ALIVE = b": keep-alive\n\n"


class EventStream(Response):
    """Sends each text of `events` as an event, and a comment where there was nothing to say for `keep_alive` seconds.

    An error before the first event is raised as it is, so that the client gets its status; a later one becomes an event
    {"error": ...}, the last. When the client goes away, or whoever sends is cancelled, `events` is closed at once.
    """

    def __init__(self, events: AsyncGenerator[str, None], keep_alive: float) -> None:
        super().__init__(
            media_type="text/event-stream", headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        )
        del self.headers["content-length"]
        self._events = events
        self._keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(gone(receive))
        try:
            await asyncio.wait((sending, leaving), return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
        finally:
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
            await self._events.aclose()

    async def _send(self, send: Send) -> None:
        started = False

        async def put(data: bytes, *, more: bool = True) -> None:
            nonlocal started
            if not started:
                started = True
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await send({"type": "http.response.body", "body": data, "more_body": more})

        upcoming = asyncio.ensure_future(anext(self._events, None))
        try:
            while True:
                done, _ = await asyncio.wait((upcoming,), timeout=self._keep_alive)
                if not done:
                    await put(_KEEP_ALIVE)
                    continue
                try:
                    text = upcoming.result()
                except Exception as error:
                    if not started:
                        raise
                    if not isinstance(error, Qwen2AudioError):
                        _LOG.error("a stream ended in a mistake of ours", exc_info=error)
                    await put(frame(problem_of(error).text))
                    break
                if text is None:
                    break
                await put(frame(text))
                upcoming = asyncio.ensure_future(anext(self._events, None))
            await put(b"", more=False)
        finally:
            upcoming.cancel()
            await asyncio.gather(upcoming, return_exceptions=True)


def frame(text: str) -> bytes:
    """An event; `text` has no line breaks (JSON has none)."""
    return f"data: {text}\n\n".encode()
