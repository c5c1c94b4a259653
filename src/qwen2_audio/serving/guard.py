"""Who may come in: host names, pages of other sites, keys. `protect` puts this and the bounds around an application.

From outside to inside: the log, with an id for each request; host names; browsers' cross-origin rules; keys; how many, how
large and how long (`bounds.py`).
"""

from __future__ import annotations

import base64
import hashlib
import hmac

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen2_audio.serving.bounds import API, Bodies, Bounds, refuse
from qwen2_audio.serving.errors import Problem
from qwen2_audio.serving.logs import AccessLog
from qwen2_audio.serving.settings import Settings

OPEN = ("/health", "/ready")
"""Paths that need no key."""
_SOCKET_KEY = "openai-insecure-api-key."
"""How OpenAI's clients in browsers, which cannot set headers on a WebSocket, give their key: as a subprotocol."""
_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"no-referrer"),
)
_API_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
)


def protect(app: Starlette, settings: Settings) -> None:
    """Put every guard around an application; those added last are outermost."""
    app.add_middleware(Bodies, settings=settings)
    app.add_middleware(Bounds, settings=settings)
    app.add_middleware(Keys, settings=settings)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=("X-Request-ID", "Retry-After"),
        )
    app.add_middleware(Names, settings=settings)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(AccessLog, settings=settings)


class SecurityHeaders:
    """Headers with which browsers take fewer liberties; an application's own go before them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wanted = (*_HEADERS, *_API_HEADERS) if scope["path"].startswith(API) else _HEADERS

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message.get("headers", ())}
                extra = [(name, value) for name, value in wanted if name not in there]
                message = {**message, "headers": [*message.get("headers", ()), *extra]}
            await send(message)

        await self._app(scope, receive, sending)


class Names:
    """Answers only to the host names that the settings allow.

    A page can have its name point at this machine and so look as if it were of the same site as the server (DNS rebinding);
    its requests then carry that name.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._hosts = app, settings.hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket") and self._hosts:
            host = _host_of(Headers(scope=scope).get("host", ""))
            if host not in self._hosts:
                message = f"this server does not answer to the host name {host[:80]!r}; name it in allowed_hosts"
                await refuse(Problem(421, message, code="unknown_host"), scope, receive, send)
                return
        await self._app(scope, receive, send)


class Keys:
    """Lets in who carries a key, and no page of another site that makes a visitor's browser come.

    A key comes as `Authorization: Bearer KEY`; from a browser's own dialogue as the password of Basic; on a WebSocket also
    as the subprotocol `openai-insecure-api-key.KEY`. Only hashes are kept, and compared in constant time.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._hashes = [_hash(key.get_secret_value()) for key in settings.api_keys]
        self._origins = settings.allowed_origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        key, by_itself = _given_key(headers, scope["type"] == "websocket")
        number = self._number(key)
        if self._hashes and number is None:
            await refuse(_no_key(key), scope, receive, send)
        elif by_itself and self._is_foreign(scope, headers):
            message = "a page of another site may not call this server; name its origin in allowed_origins"
            problem = Problem(403, message, "authentication_error", code="foreign_origin")
            await refuse(problem, scope, receive, send)
        else:
            scope.setdefault("state", {})["key"] = number
            await self._app(scope, receive, send)

    def _number(self, key: str | None) -> int | None:
        """Which of the keys it is."""
        given, found = _hash(key or ""), None
        for number, known in enumerate(self._hashes):
            if hmac.compare_digest(given, known):
                found = number
        return found

    def _is_foreign(self, scope: Scope, headers: Headers) -> bool:
        """Whether a page of another site makes a browser send this, and it would do something."""
        origin = headers.get("origin")
        if origin is None or (scope["type"] == "http" and scope["method"] in _SAFE_METHODS):
            return False
        if origin in self._origins or "*" in self._origins:
            return False
        return origin.partition("://")[2].lower() != headers.get("host", "").lower()


def _given_key(headers: Headers, socket: bool) -> tuple[str | None, bool]:
    """The key, and whether a browser may have sent it by itself, without the page that made it knowing the key."""
    scheme, _, value = headers.get("authorization", "").partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer" and value:
        return value, False
    if scheme.lower() == "basic" and value:
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2], True
        except ValueError:
            return None, True
    if socket:
        for offered in headers.get("sec-websocket-protocol", "").split(","):
            if offered.strip().startswith(_SOCKET_KEY):
                return offered.strip().removeprefix(_SOCKET_KEY), True
    return None, True


def _no_key(given: str | None) -> Problem:
    wrong = "the key is not one of this server's" if given else "no key was given"
    message = f"{wrong}; send it as Authorization: Bearer KEY"
    code = "invalid_api_key" if given else "missing_api_key"
    asks = {"WWW-Authenticate": 'Bearer, Basic realm="qwen2-audio: any name, the key as password", charset="UTF-8"'}
    return Problem(401, message, "authentication_error", code=code, headers=asks)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def _host_of(header: str) -> str:
    """A Host header without its port, in lower case."""
    host = header.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
