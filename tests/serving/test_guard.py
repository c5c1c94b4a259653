"""The guards: keys, host names, other sites' pages, sizes, times, numbers; each over a small application, or raw sockets."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from qwen2_audio.serving.connections import protocol
from qwen2_audio.serving.guard import protect
from qwen2_audio.serving.logs import ACCESS, JsonLines, log_to
from qwen2_audio.serving.settings import Settings

KEY, OTHER = "sesame-open", "second-sesame"
BASE = "http://127.0.0.1"
LIMIT = 20.0
ALL = [
    "/health",
    "/ready",
    "/v1/models",
    "/v1/echo",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/tokenize",
    "/",
    "/nothing",
]


async def echo(request: Request) -> Response:
    """The length of the body."""
    return JSONResponse({"size": len(await request.body()), "id": request.state.request_id})


async def swallow(request: Request) -> Response:
    """An application that turns every failure of its body into an answer of its own."""
    try:
        await request.body()
    except Exception:
        return JSONResponse({"error": "parsing"}, 400)
    return JSONResponse({})


async def slow(request: Request) -> Response:
    await asyncio.sleep(30)
    return Response("late")


async def stream(request: Request) -> Response:
    async def events():  # type: ignore[no-untyped-def]
        yield b"data: 1\n\n"
        await asyncio.sleep(30)

    return StreamingResponse(events(), media_type="text/event-stream")


async def flood(request: Request) -> Response:
    async def much():  # type: ignore[no-untyped-def]
        request.app.state.open += 1
        try:
            while True:
                yield bytes(65536)
                await asyncio.sleep(0)  # writing to a client that is gone takes no time
        finally:
            request.app.state.open -= 1

    return StreamingResponse(much())


async def broken(request: Request) -> Response:
    raise RuntimeError("a mistake")


async def told(request: Request) -> Response:
    request.state.model, request.state.completion_tokens = "mini", 7
    request.state.prompt_text = "what is said?"
    return JSONResponse({})


async def talk(socket: WebSocket) -> None:
    await socket.accept(subprotocol="realtime" if "realtime" in socket.scope["subprotocols"] else None)
    await socket.send_text("hello")
    await socket.receive()


def application(**given: object) -> Starlette:
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ALL[:-1]]
    routes += [
        Route(f"/v1/{f.__name__}", f, methods=["GET", "POST"]) for f in (slow, stream, flood, broken, told, swallow)
    ]
    routes += [Route("/v1/audio/transcriptions", echo, methods=["POST"]), WebSocketRoute("/v1/realtime", talk)]
    app = Starlette(routes=routes)
    app.state.open = 0
    protect(app, Settings(**given))  # type: ignore[arg-type]
    return app


def asked(app: Starlette, work: Callable[[httpx.AsyncClient], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=BASE) as client, asyncio.timeout(LIMIT):
            return await work(client)

    return asyncio.run(run())


def get(app: Starlette, path: str = "/v1/models", **headers: str) -> httpx.Response:
    return asked(app, lambda client: client.get(path, headers={k.replace("_", "-"): v for k, v in headers.items()}))


def post(app: Starlette, path: str = "/v1/echo", content: Any = b"{}", **headers: str) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asked(app, lambda client: client.post(path, content=content, headers=named))


def problem(response: httpx.Response, status: int, code: str | None) -> str:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code
    assert ";" in error["message"] and KEY not in error["message"]
    return str(error["message"])


# keys


@pytest.mark.parametrize("path", ALL)
def test_every_route_but_health_wants_a_key(path: str) -> None:
    app = application(api_keys=(KEY,))
    if path in ("/health", "/ready"):
        assert get(app, path).status_code == 200
    else:
        problem(get(app, path), 401, "missing_api_key")
        assert "Bearer" in get(app, path).headers["WWW-Authenticate"]
        problem(get(app, path, authorization="Bearer wrong-wrong"), 401, "invalid_api_key")


@pytest.mark.parametrize(
    "path", ["/health/", "//health", "/health/../v1/models", "/HEALTH", "/healthx", "/v1/models?/health"]
)
def test_paths_that_look_like_health(path: str) -> None:
    assert get(application(api_keys=(KEY,)), path).status_code == 401


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (f"Bearer {KEY}", 200),
        (f"bearer {OTHER}", 200),
        (f"Bearer   {KEY}  ", 200),
        ("Basic " + b64encode(f"anyone:{KEY}".encode()).decode(), 200),
        (KEY, 401),
        ("Bearer", 401),
        (f"Bearer {KEY}x", 401),
        (f"Bearer {KEY[:-1]}", 401),
        (f"Bearer {KEY},{OTHER}", 401),
        (f"Bearer {KEY.upper()}", 401),
        ("Bearer \xff", 401),
        ("Basic %%%", 401),
        ("Basic " + b64encode(b"\xff\xfe").decode(), 401),
        ("Basic " + b64encode(KEY.encode()).decode(), 401),
    ],
)
def test_ways_to_give_a_key(given: str, status: int) -> None:
    app = application(api_keys=(KEY, OTHER))
    response = asked(app, lambda client: client.get("/v1/models", headers={"Authorization": given.encode("latin-1")}))
    assert response.status_code == status


def test_without_keys_all_may_come() -> None:
    assert get(application()).status_code == 200
    assert get(application(), authorization="Bearer any").status_code == 200


# host names and other sites' pages


def test_a_name_that_was_made_to_point_here_is_not_answered() -> None:
    for host in ("127.0.0.1", "127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000"):
        assert get(application(), host=host).status_code == 200
    for host in ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        problem(get(application(), host=host), 421, "unknown_host")
    assert get(application(host="0.0.0.0"), host="any.example").status_code == 200
    assert get(application(host="0.0.0.0", allowed_hosts=("a.example",)), host="b.example").status_code == 421


def test_a_page_of_another_site_cannot_make_a_browser_ask() -> None:
    app = application()
    problem(post(app, origin="http://evil.example"), 403, "foreign_origin")
    problem(post(app, origin="null"), 403, "foreign_origin")
    problem(post(app, origin="http://127.0.0.1:81"), 403, "foreign_origin")
    assert post(app, origin="http://127.0.0.1").status_code == 200  # our own page
    assert "access-control-allow-origin" not in get(app, origin="http://evil.example").headers
    keyed = application(api_keys=(KEY,))
    basic = "Basic " + b64encode(f"a:{KEY}".encode()).decode()
    problem(post(keyed, origin="http://evil.example", authorization=basic), 403, "foreign_origin")
    assert post(keyed, origin="http://evil.example", authorization=f"Bearer {KEY}").status_code == 200  # knows the key


def test_cross_origin_requests_are_off_unless_listed() -> None:
    def preflight(app: Starlette, origin: str) -> httpx.Response:
        headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-a"}
        return asked(app, lambda client: client.options("/v1/echo", headers=headers))

    page = "https://page.example"
    assert "access-control-allow-origin" not in preflight(application(), page).headers
    app = application(api_keys=(KEY,), allowed_origins=(page,))
    assert preflight(app, page).headers["access-control-allow-origin"] == page
    assert "access-control-allow-origin" not in preflight(app, "https://evil.example").headers
    assert post(app, origin=page, authorization=f"Bearer {KEY}").headers["access-control-allow-origin"] == page
    assert post(app, origin=page).status_code == 401


def test_headers_for_browsers() -> None:
    headers = get(application()).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "content-security-policy" not in get(application(), "/docs").headers


# sizes


def test_bodies_that_are_too_large() -> None:
    app = application(max_body_mib=1, max_upload_mib=2)
    assert post(app, content=bytes(1 << 20)).json()["size"] == 1 << 20
    assert problem(post(app, content=bytes((1 << 20) + 1)), 413, "request_too_large")
    assert post(app, "/v1/audio/transcriptions", bytes(2 << 20)).status_code == 200
    problem(post(app, "/v1/audio/transcriptions", bytes(4 << 20)), 413, "request_too_large")
    problem(post(app, content=b"", content_length=str(3 << 30)), 413, "request_too_large")
    problem(post(app, content=b"", content_length="9" * 5000), 413, "request_too_large")
    problem(post(app, content=b"", content_length="-1"), 400, "bad_request")


@pytest.mark.parametrize("path", ["/v1/echo", "/v1/swallow"])
def test_endless_bodies_are_stopped_as_they_come(path: str) -> None:
    sent = 0

    async def endless():  # type: ignore[no-untyped-def]
        nonlocal sent
        while True:
            sent += 65536
            yield bytes(65536)

    problem(post(application(max_body_mib=1), path, endless()), 413, "request_too_large")
    assert sent < 2 << 20


@pytest.mark.parametrize("path", ["/v1/echo", "/v1/swallow"])
def test_bodies_that_do_not_come(path: str) -> None:
    async def trickle():  # type: ignore[no-untyped-def]
        while True:
            yield b"x"
            await asyncio.sleep(0.05)

    message = problem(post(application(receive_timeout=0.3), path, trickle()), 408, "timeout")
    assert "does not come" in message


def test_all_bodies_together() -> None:
    app = application(max_body_mib=2, max_buffered_mib=2)

    async def work(client: httpx.AsyncClient) -> list[httpx.Response]:
        gate = asyncio.Event()

        async def held():  # type: ignore[no-untyped-def]
            yield bytes(3 << 19)
            await gate.wait()

        first = asyncio.create_task(client.post("/v1/echo", content=held()))
        await asyncio.sleep(0.1)
        second = await client.post("/v1/echo", content=bytes(3 << 19))
        gate.set()
        third = await client.post("/v1/echo", content=bytes(3 << 19)) if (await first).status_code == 200 else second
        return [await first, second, third]

    first, second, third = asked(app, work)
    problem(second, 503, "overloaded")
    assert second.headers["retry-after"] == "2"
    assert (first.status_code, third.status_code) == (200, 200)


# how many, how long


def test_more_requests_than_allowed_get_429() -> None:
    app = application(max_requests=2)

    async def work(client: httpx.AsyncClient) -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        running = [asyncio.create_task(client.get("/v1/slow")) for _ in range(2)]
        await asyncio.sleep(0.1)
        full, health = await client.get("/v1/models"), await client.get("/health")
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return full, health, await client.get("/v1/models")

    full, health, after = asked(app, work)
    problem(full, 429, "rate_limit_exceeded")
    assert full.headers["retry-after"] == "1"
    assert (health.status_code, after.status_code) == (200, 200)


def test_answers_that_take_too_long() -> None:
    app = application(request_timeout=0.2)
    problem(get(app, "/v1/slow"), 504, "timeout")
    first, second = get(app, "/v1/stream").text.strip().split("\n\n")
    assert first == "data: 1"
    assert json.loads(second.removeprefix("data: "))["error"]["code"] == "timeout"


# the log


@contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonLines().format(record)))

    logger, handler = logging.getLogger(ACCESS), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_line_of_json_a_request_without_secrets_or_texts() -> None:
    app = application(api_keys=(OTHER, KEY))
    with logged() as lines:
        response = post(app, "/v1/told?token=secret", authorization=f"Bearer {KEY}", x_request_id="abc-1")
        post(app, "/v1/secret-path", x_request_id="bad id\x7f")
        get(app, "/v1/broken", authorization=f"Bearer {KEY}")
    assert response.headers["x-request-id"] == "abc-1"
    first, second, third = lines
    wanted = {"id": "abc-1", "method": "POST", "status": 200, "model": "mini", "completion_tokens": 7, "key": 1}
    assert first | wanted == first
    assert (second["status"], third["status"]) == (401, 500)
    assert second["id"].isalnum() and len(second["id"]) == 32
    text = json.dumps(lines)
    assert not [word for word in (KEY, OTHER, "secret", "what is said") if word in text]
    with logged() as lines:
        post(application(log_text=True), "/v1/told")
    assert lines[0]["prompt_text"] == "what is said?"
    with logged() as lines:
        post(application(access_log=False), "/v1/told")
    assert lines == []


def test_all_logs_are_lines_of_json_even_with_line_breaks_in_them() -> None:
    names = ("qwen2_audio", "uvicorn", "uvicorn.access", "uvicorn.error", "python_multipart")
    loggers = [logging.getLogger(name) for name in names]
    kept = [(logger, {**vars(logger), "handlers": list(logger.handlers)}) for logger in loggers]
    stream = io.StringIO()
    try:
        log_to(stream)
        logging.getLogger("qwen2_audio.serving").warning("two\nlines \ud800")
        logging.getLogger("uvicorn.error").info("WebSocket /v1/realtime?key=secret")
        try:
            raise RuntimeError("a mistake")
        except RuntimeError as error:
            logging.getLogger("uvicorn.error").error("it failed", exc_info=error)
    finally:
        for logger, state in kept:
            vars(logger).update(state)
            logger.manager._clear_cache()  # type: ignore[attr-defined]
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first | {"level": "warning", "logger": "qwen2_audio.serving", "message": "two\nlines \ud800"} == first
    assert "a mistake" in second["trace"]


# a live server and raw sockets


@contextmanager
def live(**given: object) -> Iterator[tuple[Starlette, int]]:
    app, settings = application(**given), Settings(**given)  # type: ignore[arg-type]
    config = uvicorn.Config(app, http=protocol(settings), log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
    thread.start()
    try:
        until(lambda: server.started)
        yield app, listener.getsockname()[1]
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
