"""Server-sent events as they lie on the wire, and what happens when either side stops."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from qwen2_audio.serving.backend import EngineLostError
from qwen2_audio.serving.sse import EventStream
from tests.serving.fake_backend import FakeBackend
from tests.serving.http_server import HttpServer, eventually, said

CHAT = "/v1/chat/completions"
STREAM: dict[str, Any] = {"messages": [said("one two three")], "stream": True}


def test_events_are_lines_of_data(http: httpx.Client, fake: FakeBackend) -> None:
    response = http.post(CHAT, json=STREAM)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    assert chunks[0]["choices"][0] == {
        "index": 0,
        "delta": {"role": "assistant", "content": ""},
        "logprobs": None,
        "finish_reason": None,
    }
    assert "usage" not in chunks[-1]
    assert chunks[-1]["choices"][0]["delta"] == {}


def test_comments_keep_the_connection_alive(http: httpx.Client, fake: FakeBackend) -> None:
    fake.holding = True
    with http.stream("POST", CHAT, json=STREAM) as response:
        lines = response.iter_lines()
        assert next(lines) == ": keep-alive"
        fake.holding = False
        assert any(line == "data: [DONE]" for line in lines)


def test_an_error_ends_the_stream(http: httpx.Client, fake: FakeBackend) -> None:
    fake.error, fake.error_after = EngineLostError("the engine died; try again"), 1
    events = http.post(CHAT, json=STREAM).text.strip().split("\n\n")
    error = json.loads(events[-1].removeprefix("data: "))["error"]
    assert (error["code"], error["message"]) == ("engine_lost", "the engine died; try again")


def test_an_answer_without_an_end_is_an_error(http: httpx.Client, fake: FakeBackend) -> None:
    fake.endless = True
    response = http.post(CHAT, json={**STREAM, "stream": False})
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_lost")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_vanishes_frees_the_slot(server: HttpServer, fake: FakeBackend, stream: bool) -> None:
    fake.answer, fake.delay = (lambda _job: ["word "] * 1000), 0.01
    body = json.dumps({**STREAM, "stream": stream, "max_tokens": 1000, "n": 2}).encode()
    address = urlsplit(server.url)
    with socket.create_connection((address.hostname, address.port or 0), timeout=30) as connection:
        head = (
            f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        )
        connection.sendall(head.encode() + b"\r\n\r\n" + body)
        eventually(lambda: fake.running == 2)
    eventually(lambda: fake.running == 0)
    assert (fake.cancelled, fake.finished) == (2, 0)


def test_closing_the_response_closes_the_events() -> None:
    """Cancelled before anything was sent, while something is sent, or while something is waited for."""
    closed = []

    async def events() -> AsyncGenerator[str, None]:
        try:
            yield "first"
            await asyncio.sleep(60)
            yield "never"
        finally:
            closed.append(True)

    async def run() -> None:
        sent = asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                sent.set()

        async def receive() -> Any:
            await asyncio.sleep(60)

        response = EventStream(events(), keep_alive=10)
        task = asyncio.create_task(response({"type": "http"}, receive, send))
        await asyncio.wait_for(sent.wait(), 10)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())
    assert closed == [True]


def test_what_runs_is_finished_before_the_server_ends() -> None:
    backend = FakeBackend(answer=lambda _job: ["word "] * 20, delay=0.02)
    with HttpServer(backend) as server, server.http() as http, http.stream("POST", CHAT, json=STREAM) as response:
        eventually(lambda: backend.running == 1)
        server.server.should_exit = True
        assert response.read().endswith(b"data: [DONE]\n\n")
    assert (backend.finished, backend.closed) == (1, True)


def test_what_takes_too_long_is_ended() -> None:
    backend = FakeBackend(holding=True)
    served = HttpServer(backend, drain_timeout=0.2, keep_alive_interval=0.1)
    with served as server, server.http() as http, http.stream("POST", CHAT, json=STREAM):
        eventually(lambda: backend.running == 1)
        server.server.should_exit = True
        eventually(lambda: backend.running == 0)
    assert (backend.cancelled, backend.closed) == (1, True)
