"""What of Gradio's application can be reached: what the page needs, and nothing that was uploaded."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

_OPEN = (
    "/assets/",
    "/static/",
    "/gradio_api/queue/",
    "/gradio_api/run/",
    "/gradio_api/heartbeat/",
    "/gradio_api/upload",
)
_EXACT = frozenset(
    "/ /config /theme.css /favicon.ico /robots.txt /manifest.json /gradio_api/info /gradio_api/app_id "
    "/gradio_api/startup-events /gradio_api/cancel /gradio_api/reset /gradio_api/component_server".split()
)
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio writes its configuration into the page
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "media-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "frame-ancestors 'self'",
    )
)
_HEADERS = [
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=(self)"),
]


class Locked:
    """Gradio's application behind a list of the addresses that the page uses.

    Everything else is not found: above all `file=`, which would hand uploads to whoever knows their name, and the proxy. The
    policy that comes with every answer forbids the browser to load anything from elsewhere.
    """

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(
        self,
        scope: Message,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Answer a request of the page."""
        if scope["type"] == "http":
            path = "/" + str(scope["path"]).removeprefix(str(scope.get("root_path", ""))).lstrip("/")
            if not _is_open(path):
                await _not_found(send)
                return
            send = _with_headers(send)
        await self._app(scope, receive, send)


def _is_open(path: str) -> bool:
    return ".." not in path and (path in _EXACT or path.startswith(_OPEN))


def _with_headers(send: Callable[[Message], Awaitable[None]]) -> Callable[[Message], Awaitable[None]]:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *_HEADERS]}
        await send(message)

    return sending


async def _not_found(send: Callable[[Message], Awaitable[None]]) -> None:
    body = b'{"error": {"message": "there is nothing at this address", "type": "invalid_request_error", "code": null}}'
    await send(
        {"type": "http.response.start", "status": 404, "headers": [(b"content-type", b"application/json"), *_HEADERS]}
    )
    await send({"type": "http.response.body", "body": body})
