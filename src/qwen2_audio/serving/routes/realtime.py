"""`/v1/realtime`: voice turns over a WebSocket. What is said when is decided in `realtime/session.py`; here are the sockets."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Iterable
from contextlib import aclosing, suppress
from typing import Any

from fastapi import APIRouter, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.processing.vad import VoiceActivity
from qwen2_audio.serving.answering import as_generator
from qwen2_audio.serving.backend import Backend, EngineLostError, Job
from qwen2_audio.serving.convert import card_of
from qwen2_audio.serving.errors import problem_of
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.realtime.config import Bounds
from qwen2_audio.serving.realtime.fields import EventError
from qwen2_audio.serving.realtime.outputs import Generate, Output, Send, Stop
from qwen2_audio.serving.realtime.session import RealtimeSession
from qwen2_audio.serving.settings import Settings

_LOG = logging.getLogger("qwen2_audio.serving.realtime")
_SUBPROTOCOL = "realtime"
_NORMAL, _GOING_AWAY, _UNSUPPORTED, _POLICY, _TOO_BIG, _BROKEN = 1000, 1001, 1003, 1008, 1009, 1011


def router(backend: Backend, settings: Settings, _media: Media) -> APIRouter:
    """The route."""
    routes = APIRouter()

    @routes.websocket("/v1/realtime")
    async def realtime(socket: WebSocket) -> None:
        await Connection(socket, backend, settings).run()

    return routes


class _GoneError(Exception):
    """The client is there no more, or takes nothing."""


class _OverError(Exception):
    """The connection has to end."""

    def __init__(self, code: int, message: str, reason: str) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason


class Connection:
    """One client."""

    def __init__(self, socket: WebSocket, backend: Backend, settings: Settings) -> None:
        self._socket, self._backend, self._settings = socket, backend, settings
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._turn = asyncio.Lock()  # the session is a machine: one thing goes in at a time, and out comes what it says
        self._gone = asyncio.Event()

    async def run(self) -> None:
        """Serve it until one of the two has enough; then nothing is generated for it any more."""
        offered = self._socket.headers.get("sec-websocket-protocol", "")
        realtime = _SUBPROTOCOL in (name.strip() for name in offered.split(","))
        await self._socket.accept(_SUBPROTOCOL if realtime else None)
        try:
            await self._serve()
        except _OverError as over:
            await self._say_why(over)
        except _GoneError:
            pass
        except Qwen2AudioError as error:
            code = _POLICY if not isinstance(error, EngineLostError) else _BROKEN
            await self._say_why(_OverError(code, str(error), problem_of(error).code or "unavailable"))
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self) -> None:
        query, settings = self._socket.query_params, self._settings
        if query.get("intent") not in (None, "conversation"):
            raise _OverError(
                _POLICY, "intent is conversation; transcription is at /v1/audio/transcriptions", "unsupported"
            )
        card = card_of(self._backend, query.get("model"))
        bounds = Bounds(
            2 * settings.realtime_max_turns,
            settings.max_request_seconds,
            min(settings.max_clip_seconds, settings.max_request_seconds),
            settings.max_text_chars,
        )
        session = RealtimeSession(card, bounds, VoiceActivity, _new_id)
        async with self._turn:
            await self._do(session, session.opened())
        reading, gone = asyncio.create_task(self._read(session)), asyncio.create_task(self._gone.wait())
        try:
            await asyncio.wait(
                {reading, gone}, timeout=settings.realtime_max_seconds, return_when=asyncio.FIRST_COMPLETED
            )
            if reading.done():
                await reading
            if not gone.done():
                minutes = settings.realtime_max_seconds / 60
                raise _OverError(_NORMAL, f"a connection lasts {minutes:g} minutes at most", "session_expired")
        finally:
            reading.cancel()
            gone.cancel()
            await asyncio.gather(reading, gone, return_exceptions=True)

    async def _read(self, session: RealtimeSession) -> None:
        """Take in what the client sends, event by event."""
        while True:
            event = await self._next_event(session)
            async with self._turn:
                if isinstance(event, EventError):
                    outputs = session.refused(event)
                elif isinstance(event, dict) and event.get("type") == "input_audio_buffer.append":
                    outputs = await asyncio.to_thread(session.receive, event)  # it listens, which takes a while
                else:
                    outputs = session.receive(event)
                await self._do(session, outputs)

    async def _next_event(self, session: RealtimeSession) -> Any:
        """The next event, or the error that stands for what is none."""
        most = self._settings.max_event_kib * 1024
        while True:
            try:
                async with asyncio.timeout(self._settings.realtime_idle_timeout):
                    message = await self._socket.receive()
                break
            except TimeoutError:
                if not session.busy:
                    why = f"nothing came for {self._settings.realtime_idle_timeout:g} s"
                    raise _OverError(_NORMAL, f"{why}; connect anew", "idle_timeout") from None
        if message["type"] == "websocket.disconnect":
            raise _GoneError
        text = message.get("text")
        if text is None:
            raise _OverError(
                _UNSUPPORTED, "events are JSON in text messages; audio stands in them in base64", "binary_message"
            )
        if len(text) > most:
            raise _OverError(
                _TOO_BIG, f"an event may have {self._settings.max_event_kib} KiB; send less at once", "too_large"
            )
        try:
            event = json.loads(text)
            if "\\ud" in text.lower():  # what could not be sent back is not taken in
                json.dumps(event, ensure_ascii=False).encode()
            return event
        except UnicodeEncodeError:
            return EventError("the message holds half a character (a lone surrogate); repair the text", "invalid_json")
        except (ValueError, RecursionError):
            return EventError("the message is no JSON", "invalid_json")

    async def _do(self, session: RealtimeSession, outputs: Iterable[Output]) -> None:
        """Carry out what the session wants, in its order."""
        for output in outputs:
            if isinstance(output, Send):
                await self._send(output.event)
            elif isinstance(output, Generate):
                self._tasks[output.key] = asyncio.create_task(self._generate(session, output.key, output.job))
            elif isinstance(output, Stop) and output.key in self._tasks:
                self._tasks.pop(output.key).cancel()

    async def _generate(self, session: RealtimeSession, key: str, job: Job) -> None:
        """Bring a job's deltas into the session."""
        try:
            async with aclosing(as_generator(self._backend.generate(job))) as deltas:
                async for delta in deltas:
                    async with self._turn:
                        await self._do(session, session.pushed(key, delta))
                    if delta.finish_reason is not None:
                        return
            raise EngineLostError("the answer was broken off by the engine; try again")
        except _GoneError:
            self._gone.set()
        except Exception as error:
            if not isinstance(error, Qwen2AudioError):
                _LOG.error("an answer ended in an error of ours", exc_info=error)
            try:
                async with self._turn:
                    await self._do(session, session.failed(key, error))
            except _GoneError:
                self._gone.set()
        finally:
            if self._tasks.get(key) is asyncio.current_task():
                del self._tasks[key]

    async def _send(self, event: dict[str, Any]) -> None:
        try:
            async with asyncio.timeout(self._settings.send_timeout):
                await self._socket.send_text(json.dumps(event, ensure_ascii=False))
        except (TimeoutError, RuntimeError, OSError, WebSocketDisconnect) as error:
            raise _GoneError from error

    async def _say_why(self, over: _OverError) -> None:
        """Tell why the connection ends, and end it."""
        told = {
            "type": "invalid_request_error",
            "code": over.reason,
            "message": str(over),
            "param": None,
            "event_id": None,
        }
        with suppress(_GoneError, WebSocketDisconnect, RuntimeError, TimeoutError):
            if self._socket.application_state is WebSocketState.CONNECTED:
                await self._send({"type": "error", "event_id": _new_id("event"), "error": told})
                async with asyncio.timeout(self._settings.send_timeout):
                    await self._socket.close(over.code, over.reason)


def _new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:24]}"
