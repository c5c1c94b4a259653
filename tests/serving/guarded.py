"""A small application behind the guards, asked in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from qwen2_audio.serving.guard import protect
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
