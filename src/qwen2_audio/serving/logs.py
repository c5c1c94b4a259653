"""Logs as lines of JSON: who asked for what, how it ended, how long it took. Never keys or audio; texts only if wanted.

A route adds to its line by `request.state`: `model`, `prompt_tokens`, `completion_tokens`, `audio_seconds`, and, where the
setting `log_text` allows it, `prompt_text` and `completion_text`.
"""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qwen2_audio.serving.settings import Settings

ACCESS = "qwen2_audio.access"
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_FACTS = ("model", "prompt_tokens", "completion_tokens", "audio_seconds", "key")
_TEXTS = ("prompt_text", "completion_text")
_LONGEST_TEXT = 10_000


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time, level, logger, message, and the fields of `extra={"fields": {...}}`."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        line |= {"logger": record.name, "message": record.getMessage()} | getattr(record, "fields", {})
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)  # in ASCII: whatever a request held, a line stays a line


def log_to(stream: TextIO, level: int = logging.INFO) -> None:
    """Write all that the server and uvicorn log to a stream, in place of where they would; for the command line."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    for name in ("qwen2_audio", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(level)
        logger.propagate = False
    for name in ("uvicorn.access", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
    logging.getLogger("uvicorn.access").propagate = False  # ours says more, and no query
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)  # below that it tells queries of WebSockets
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of every broken form


class AccessLog:
    """Gives each request an id, the client's own where it has a sensible one, and logs how it ended."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._wanted = settings.access_log
        self._names = (*_FACTS, *_TEXTS) if settings.log_text else _FACTS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"x-request-id"), "")
        ident = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = ident
        began = time.perf_counter()
        status, ended = 0, False

        async def sending(message: Message) -> None:
            nonlocal status, ended
            if message["type"] in ("http.response.start", "websocket.http.response.start"):
                status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", ident.encode())]}
            elif message["type"] == "websocket.accept":
                status = 101
            await send(message)
            ended = ended or (message["type"] == "http.response.body" and not message.get("more_body", False))

        try:
            await self._app(scope, receive, sending)
        except Exception:
            status = status or 500  # which is sent from further outside
            raise
        finally:
            if self._wanted:
                state = "" if ended or scope["type"] == "websocket" else "unfinished"
                self._log(scope, ident, status, state, time.perf_counter() - began)

    def _log(self, scope: Scope, ident: str, status: int, state: str, seconds: float) -> None:
        known = scope.get("state", {})
        route = getattr(scope.get("route"), "path", None) or "unknown"  # a path that is none may hold anything
        line = {"id": ident, "method": scope.get("method", "WEBSOCKET"), "route": route, "status": status}
        line |= {"seconds": round(seconds, 4)} | ({"state": state} if state else {})
        line |= {name: _short(known[name]) for name in self._names if known.get(name) is not None}
        logging.getLogger(ACCESS).info("request", extra={"fields": line})


def _short(value: Any) -> Any:
    return value[:_LONGEST_TEXT] if isinstance(value, str) else value
