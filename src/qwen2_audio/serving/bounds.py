"""How many requests at a time, how large, how long: the same for every client, whatever it does or leaves undone."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from dataclasses import dataclass

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen2_audio.serving.errors import Problem
from qwen2_audio.serving.settings import MIB, Settings

API = ("/v1/", "/tokenize")
"""Beginnings of the paths behind which work is done; the others are for operation and for the page."""
_OF_THE_PAGE = ("/page/recordings", "/page/speech")
"""Those of the page behind which work is done, too."""
_UPLOADS = "/v1/audio/"
_FILES = ("/page/recordings", "/gradio_api/upload")
"""Ends of the paths by which files come in from the page."""
_TEXTS = 8 * MIB
"""What the page sends beside files: a message, a corrected transcript."""
_UPLOAD_TIMES = 6
"""How much longer a file to transcribe may take than an answer."""
_FORM = 1 * MIB
"""What a form may hold besides its file."""
_CLOSE = {"Connection": "close"}
_LAST_WORDS = 1.0
"""Seconds in which a client must take the news that the server ends."""


async def refuse(problem: Problem, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with a problem; a WebSocket is not opened."""
    if scope["type"] == "websocket" and "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": problem.message[:100]})
        return
    await problem.response()(scope, receive, send)


class Bounds:
    """At most so many requests to the API and the page's helpers at a time, each for at most so long."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._most = {"http": settings.max_requests, "websocket": settings.max_websockets}
        self._timeout = settings.request_timeout
        self._running = {"http": 0, "websocket": 0}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind not in self._most or not scope["path"].startswith((*API, *_OF_THE_PAGE)):
            await self._app(scope, receive, send)
            return
        if self._running[kind] >= self._most[kind]:
            await refuse(_too_many(self._running[kind]), scope, receive, send)
            return
        self._running[kind] += 1
        try:
            if kind == "websocket":
                await self._app(scope, receive, send)  # its route knows how long it may last
            else:
                await self._in_time(scope, receive, send)
        finally:
            self._running[kind] -= 1

    async def _in_time(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = _Answer(send)
        times = _UPLOAD_TIMES if scope["path"].startswith(_UPLOADS) else 1
        limit = asyncio.timeout(times * self._timeout)
        try:
            async with limit:
                await self._app(scope, receive, answer.send)
        except TimeoutError:
            if not limit.expired():  # somebody else's
                raise
            message = f"the answer was not ready within {times * self._timeout:g} s; ask for less at a time"
            await answer.end(Problem(504, message, "server_error", code="timeout", headers=_CLOSE), scope, receive)
        except asyncio.CancelledError:  # the server ends, and waits no longer
            with suppress(TimeoutError):
                async with asyncio.timeout(_LAST_WORDS):
                    await answer.end(_ending(), scope, receive)
            raise


class Bodies:
    """Counts a body while it comes: its size, its speed, and what all bodies take together.

    The application sees a client that has gone; what it answers to that is replaced by the reason.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(self._limit(scope["path"]), asyncio.get_running_loop().time())
        answer = _Answer(send)
        body.problem = self._announced(scope, body.limit)
        if body.problem is not None:
            await answer.end(body.problem, scope, receive)
            return

        async def receiving() -> Message:
            return await self._receive(body, receive)

        async def sending(message: Message) -> None:
            if body.problem is None:
                await answer.send(message)

        try:
            await self._app(scope, receiving, sending)
        except ClientDisconnect:  # while its body came; nobody is there to be told
            pass
        except Exception:
            if body.problem is None:
                raise
        finally:
            self._held -= body.size
        if body.problem is not None:
            await answer.end(body.problem, scope, receive)

    def _limit(self, path: str) -> int:
        if path.startswith(_UPLOADS) or path.endswith(_FILES):
            return self._settings.max_upload_mib * MIB + _FORM
        return self._settings.max_body_mib * MIB if path.startswith(API) else _TEXTS

    def _announced(self, scope: Scope, limit: int) -> Problem | None:
        """What is wrong with the head already."""
        given = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        if not given.isdigit():
            return Problem(
                400, "Content-Length is no number; leave it out, or count", code="bad_request", headers=_CLOSE
            )
        return _too_large(limit) if int(given[:20]) > limit else None

    async def _receive(self, body: _Body, receive: Receive) -> Message:
        if body.problem is not None:
            return {"type": "http.disconnect"}
        if body.complete:  # what comes now is the end of the connection, which may take its time
            return await receive()
        slowest = self._settings.receive_timeout + body.size / self._settings.min_receive_rate
        try:
            async with asyncio.timeout_at(body.began + slowest):
                message = await receive()
        except TimeoutError:
            text = f"the body does not come: {body.size} bytes in {slowest:.0f} s; send it in one go"
            body.problem = Problem(408, text, code="timeout", headers=_CLOSE)
            return {"type": "http.disconnect"}
        if message["type"] != "http.request":
            return message
        size = len(message.get("body", b""))
        body.size += size
        self._held += size
        body.complete = not message.get("more_body", False)
        if body.size > body.limit:
            body.problem = _too_large(body.limit)
        elif self._held > self._settings.max_buffered_mib * MIB and self._held > body.size:
            text = "the server has too many large requests at the moment; try again"
            body.problem = Problem(503, text, "server_error", code="overloaded", headers={**_CLOSE, "Retry-After": "2"})
        return message if body.problem is None else {"type": "http.disconnect"}


@dataclass(slots=True)
class _Body:
    limit: int
    began: float
    size: int = 0
    complete: bool = False
    problem: Problem | None = None


class _Answer:
    """Knows how far an answer has come, so that it can still be ended in order."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._started = self._ended = self._events = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._started = True
            types = [value for name, value in message.get("headers", ()) if name.lower() == b"content-type"]
            self._events = any(value.startswith(b"text/event-stream") for value in types)
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        await self._send(message)

    async def end(self, problem: Problem, scope: Scope, receive: Receive) -> None:
        """Answer with a problem, or say so in the stream that has begun; another answer breaks off, visibly unfinished."""
        if not self._started:
            await problem.response()(scope, receive, self._send)
        elif self._events and not self._ended:
            event = f"data: {json.dumps(problem.body)}\n\n".encode()
            await self._send({"type": "http.response.body", "body": event, "more_body": False})


def _ending() -> Problem:
    message = "the server was told to end before the answer was ready; try again in a moment"
    headers = {**_CLOSE, "Retry-After": "1"}
    return Problem(503, message, "server_error", code="engine_lost", headers=headers)


def _too_many(running: int) -> Problem:
    message = f"the server works on {running} requests already; try again in a moment"
    return Problem(429, message, "rate_limit_error", code="rate_limit_exceeded", headers={"Retry-After": "1"})


def _too_large(limit: int) -> Problem:
    message = f"the request is larger than {limit // MIB} MiB; send recordings as mp3 or opus, or cut them"
    return Problem(413, message, code="request_too_large", headers=_CLOSE)
