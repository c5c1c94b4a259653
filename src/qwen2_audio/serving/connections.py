"""Connections that say nothing, trickle, or do not read: uvicorn's protocols with limits on each.

uvicorn waits for ever for the head of a request and for a client to read its answer; either would let a handful of idle
clients hold every connection.
"""

from __future__ import annotations

import asyncio

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from qwen2_audio.serving.errors import Problem
from qwen2_audio.serving.settings import Settings

_TOLD = 64
"""Connections over the limit that still get an answer, which says so; more are dropped."""


def socket_protocol(settings: Settings) -> type[WebSocketsSansIOProtocol]:
    """The class to give to uvicorn as `ws`: a client that does not read what it is sent, or the end of it, is dropped."""

    class Timed(_TimedSocket):
        send_timeout = settings.send_timeout

    return Timed


def protocol(settings: Settings) -> type[H11Protocol]:
    """The class to give to uvicorn as `http`: `uvicorn.Config(app, http=protocol(settings))`."""

    class Timed(_Timed):
        header_timeout = settings.header_timeout
        send_timeout = settings.send_timeout
        max_connections = settings.max_connections

    return Timed


class _Timed(H11Protocol):
    header_timeout: float
    send_timeout: float
    max_connections: int
    _head_timer: asyncio.TimerHandle | None = None
    _reader_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        open_now = len(self.connections)
        if open_now > self.max_connections + _TOLD:
            transport.abort()
            return
        if open_now > self.max_connections:
            self.app = _full
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            _stop(self._head_timer)  # the head is there; `Bodies` watches over what follows

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.response_complete:  # else the next request has been there already
            self._expect_head()

    def handle_websocket_upgrade(self, event: h11.Request) -> None:
        _stop(self._head_timer)
        super().handle_websocket_upgrade(event)

    def connection_lost(self, exc: Exception | None) -> None:
        _stop(self._head_timer)
        _stop(self._reader_timer)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():  # else the rest must be read in time, too
            _stop(self._reader_timer)

    def send_400_response(self, msg: str) -> None:
        """What is no HTTP is answered in the shape of all errors."""
        body = Problem(400, "this is no HTTP request; send HTTP/1.1", code="bad_request").text.encode()
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Connection", "close")]
        events = (h11.Response(status_code=400, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):  # else an answer has begun
            self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self._give_up()

    def _expect_head(self) -> None:
        _stop(self._head_timer)
        self._head_timer = self.loop.call_later(self.header_timeout, self._give_up)

    def _give_up(self) -> None:
        """Close; what was not read within another while is dropped."""
        self.transport.close()
        self._abort_later()

    def _abort_later(self) -> None:
        _stop(self._reader_timer)
        self._reader_timer = self.loop.call_later(self.send_timeout, self.transport.abort)


class _TimedSocket(WebSocketsSansIOProtocol):
    send_timeout: float
    _reader_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._abort_later()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.transport.is_closing():
            _stop(self._reader_timer)

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self._abort_later()  # what is left is the end, which is not waited for any longer

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        _stop(self._reader_timer)

    def _abort_later(self) -> None:
        _stop(self._reader_timer)
        self._reader_timer = self.loop.call_later(self.send_timeout, self.transport.abort)


async def _full(scope: Scope, receive: Receive, send: Send) -> None:
    headers = {"Retry-After": "2", "Connection": "close"}
    message = "the server has too many connections open; try again in a moment"
    await Problem(503, message, "server_error", code="overloaded", headers=headers).response()(scope, receive, send)


def _stop(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
