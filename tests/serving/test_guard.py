"""The guards: keys, host names, other sites' pages, sizes, times, numbers; over a small application."""

from __future__ import annotations

import asyncio
import json
from base64 import b64encode
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette

from tests.serving.guarded import ALL, KEY, OTHER, application, asked, get, post, problem

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
    for path in ("/page/speech", "/gradio_api/queue/join"):  # no files, whatever may be uploaded
        problem(post(application(), path, content_length=str(9 << 20), content=b""), 413, "request_too_large")
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
        problem(await client.post("/page/recordings"), 429, "rate_limit_exceeded")
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        return full, health, await client.get("/v1/models")

    full, health, after = asked(app, work)
    problem(full, 429, "rate_limit_exceeded")
    assert full.headers["retry-after"] == "1"
    assert (health.status_code, after.status_code) == (200, 200)


@pytest.mark.parametrize("path", ["/v1/slow", "/v1/stream"])
def test_answers_that_the_end_of_the_server_cuts_off(path: str) -> None:
    """uvicorn cancels what is not done in time; the client learns why, in the shape of all errors."""
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> None:
        app = application()
        scope = {
            "type": "http", "method": "GET", "path": path, "query_string": b"", "scheme": "http",
            "headers": [(b"host", b"127.0.0.1"), (b"content-length", b"0")],
        }  # fmt: skip
        task = asyncio.create_task(app(scope, receive, send))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(run())
    body = b"".join(message.get("body", b"") for message in sent)
    head, told = sent[0], json.loads(body.removeprefix(b"data: 1\n\ndata: "))
    assert told["error"]["code"] == "engine_lost" and not sent[-1].get("more_body", False)
    if path == "/v1/slow":
        assert head["status"] == 503 and (b"retry-after", b"1") in head["headers"]


def test_answers_that_take_too_long() -> None:
    app = application(request_timeout=0.2)
    problem(get(app, "/v1/slow"), 504, "timeout")
    first, second = get(app, "/v1/stream").text.strip().split("\n\n")
    assert first == "data: 1"
    assert json.loads(second.removeprefix("data: "))["error"]["code"] == "timeout"
