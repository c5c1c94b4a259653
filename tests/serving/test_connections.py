"""Connections that misbehave: a live server and raw sockets."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from qwen2_audio.serving.connections import protocol, socket_protocol
from qwen2_audio.serving.settings import Settings
from tests.serving.guarded import BASE, KEY, LIMIT, application


@contextmanager
def live(**given: object) -> Iterator[tuple[Starlette, int]]:
    app, settings = application(**given), Settings(**given)  # type: ignore[arg-type]
    with listening(app, settings) as (_, port):
        yield app, port


@contextmanager
def listening(app: Any, settings: Settings) -> Iterator[tuple[uvicorn.Server, int]]:
    config = uvicorn.Config(
        app,
        http=protocol(settings),
        ws=socket_protocol(settings),
        log_config=None,
        access_log=False,
        lifespan="off",
    )
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        until(lambda: server.started)
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join(LIMIT)
        listener.close()
    assert not thread.is_alive()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)


def exchange(port: int, *sent: bytes, pause: float = 0.0) -> bytes:
    """All that comes back until the server closes."""
    with socket.create_connection(("127.0.0.1", port), LIMIT) as raw:
        try:
            for data in sent:
                raw.sendall(data)
                time.sleep(pause)
        except OSError:  # closed already
            pass
        answer = b""
        try:
            while piece := raw.recv(65536):
                answer += piece
        except ConnectionResetError:
            pass
        return answer


def test_a_client_that_reads_nothing_more_is_dropped() -> None:
    """A socket whose application has ended; and a response of which just enough was read to write the rest."""

    async def talkative(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            with suppress(TimeoutError):
                async with asyncio.timeout(0.3):
                    while True:
                        await send({"type": "websocket.send", "text": "x" * 100_000})
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(0.3):
                while True:
                    await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})

    key = b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\n" + key
    with listening(talkative, Settings(send_timeout=0.5)) as (server, port):
        for head in (upgrade, b""):
            with socket.create_connection(("127.0.0.1", port), LIMIT) as raw:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                raw.sendall(b"GET /v1/realtime HTTP/1.1\r\nHost: 127.0.0.1\r\n" + head + b"\r\n")
                until(lambda: len(server.server_state.connections) == 1)
                until(lambda: not server.server_state.connections)


HEAD = b"POST /v1/echo HTTP/1.1\r\nHost: 127.0.0.1\r\n"


def test_raw_sockets_that_misbehave() -> None:
    with live(header_timeout=0.5, receive_timeout=0.5, send_timeout=0.5, max_body_mib=1) as (app, port):
        assert exchange(port) == b""  # says nothing
        assert exchange(port, *(bytes([byte]) for byte in HEAD[:40]), pause=0.05) == b""  # a byte at a time, for ever
        answer = exchange(port, b"GARBAGE\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 400") and b'"code": "bad_request"' in answer
        assert exchange(port, b"\x16\x03\x01\x02\x00\x01" + bytes(100)).startswith(b"HTTP/1.1 400")  # TLS
        large = exchange(port, HEAD + b"Content-Length: 3221225472\r\n\r\n" + bytes(1000))
        assert large.startswith(b"HTTP/1.1 413") and b"connection: close" in large.lower()
        trickle = exchange(port, HEAD + b"Content-Length: 1000\r\n\r\n", *([b"x"] * 14), pause=0.05)
        assert trickle.startswith(b"HTTP/1.1 408")
        chunks = [b"10000\r\n" + bytes(65536) + b"\r\n"] * 40
        assert b" 413 " in exchange(port, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *chunks)[:20]
        kept = exchange(port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")  # and then nothing
        assert kept.startswith(b"HTTP/1.1 200")
        with socket.create_connection(("127.0.0.1", port), LIMIT) as vanishing:
            vanishing.sendall(HEAD + b"Content-Length: 1000\r\n\r\n{")
        with socket.create_connection(("127.0.0.1", port), LIMIT) as deaf:  # reads nothing of a flood
            deaf.sendall(b"GET /v1/flood HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            until(lambda: app.state.open == 1)
            until(lambda: app.state.open == 0)
        assert httpx.get(f"{BASE}:{port}/health", timeout=LIMIT).status_code == 200


def test_more_connections_than_allowed() -> None:
    with live(max_connections=2) as (_, port):
        held = [socket.create_connection(("127.0.0.1", port), LIMIT) for _ in range(2)]
        time.sleep(0.1)
        answer = exchange(port, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 503") and b"retry-after: 2" in answer.lower()
        for raw in held:
            raw.close()
        until(lambda: httpx.get(f"{BASE}:{port}/health", timeout=LIMIT).status_code == 200)


def test_websockets_want_a_key_and_no_foreign_page() -> None:
    def opened(port: int, **options: Any) -> int:
        try:
            with connect(f"ws://127.0.0.1:{port}/v1/realtime", open_timeout=LIMIT, proxy=None, **options) as talking:
                assert talking.recv(LIMIT) == "hello"
        except InvalidStatus as error:
            return error.response.status_code
        return 101

    bearer = {"Authorization": f"Bearer {KEY}"}
    with live(api_keys=(KEY,), max_websockets=1, header_timeout=0.5) as (_, port):
        assert opened(port) == 401
        assert opened(port, additional_headers={"Authorization": "Bearer wrong-wrong"}) == 401
        assert opened(port, additional_headers=bearer) == 101
        subprotocols = ["realtime", f"openai-insecure-api-key.{KEY}"]
        assert opened(port, subprotocols=subprotocols) == 101
        assert opened(port, subprotocols=subprotocols, origin="http://evil.example") == 403
        assert opened(port, subprotocols=subprotocols, origin=f"http://127.0.0.1:{port}") == 101
        with connect(f"ws://127.0.0.1:{port}/v1/realtime", additional_headers=bearer, proxy=None) as talking:
            talking.recv(LIMIT)
            assert opened(port, additional_headers=bearer) == 429
            time.sleep(0.8)  # longer than a connection without a request may last
            talking.send("still there")
    with live() as (_, port):
        assert opened(port) == 101
        assert opened(port, origin="http://evil.example") == 403
