"""An OpenAI-compatible server that follows a script: what it lists, what it answers, what goes wrong with it."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import soundfile


@dataclass(frozen=True)
class Say:
    """An answer.

    Attributes:
        pieces: a chunk each.
        broken_after: the connection closes after so many pieces.
        error_after: an error comes after so many pieces.
        error: that error.
        pause: seconds before each piece.
        reason: why it ended.
        silent_usage: no usage is told.
    """

    pieces: Sequence[str] = ("Hel", "lo", "!")
    broken_after: int | None = None
    error_after: int | None = None
    error: Mapping[str, Any] = field(default_factory=lambda: {"message": "the engine died", "code": 500})
    pause: float = 0.0
    reason: str = "stop"
    silent_usage: bool = False


@dataclass(frozen=True)
class Refuse:
    """A status and a body instead of an answer."""

    status: int
    message: str = "no"
    headers: dict[str, str] = field(default_factory=dict)
    code: str | None = None


class ScriptedServer(ThreadingHTTPServer):
    """Answers by `script`, an entry a question, and by `usual` when that is used up.

    Attributes:
        asked: path, headers and body of every POST.
        hung_up: answers whose reader went away.
        healthy: whether all that is looked at is there; `lists`: whether its models are, even if not.
        front: whether there is nothing but /v1.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, owner: str = "vllm", models: Sequence[str] = ("mini",), port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.owner, self.models = owner, list(models)
        self.extra: dict[str, Any] = {"max_model_len": 2048}
        self.script: list[Say | Refuse] = []
        self.usual: Say | Refuse = Say()
        self.healthy = True
        self.lists = self.front = False
        self.key = ""
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.looked: list[str] = []
        self.hung_up = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [body for _, _, body in self.asked]


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_GET(self) -> None:
        self.server.looked.append(self.path)
        if self.server.key and self.headers.get("Authorization") != f"Bearer {self.server.key}":
            self._json(401, {"error": {"message": f"bad key {self.headers.get('Authorization')}"}})
        elif self.server.front and not self.path.startswith("/v1/"):
            self._json(404, {"error": {"message": "no such page"}})
        elif not (self.server.healthy or (self.server.lists and self.path.endswith("/models"))):
            self._json(503, {"error": {"message": "not now"}})
        elif self.path.endswith("/models"):
            entries = [{"id": name, "owned_by": self.server.owner, **self.server.extra} for name in self.server.models]
            self._json(200, {"object": "list", "data": entries})
        else:
            self._json(200, {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append((self.path, dict(self.headers), body))
            step = self.server.script.pop(0) if self.server.script else self.server.usual
        if isinstance(step, Refuse):
            self._json(step.status, {"error": {"message": step.message, "code": step.code}}, step.headers)
        elif self.path == "/tokenize":
            self._json(200, {"tokens": [1, 2, 3], "count": 3, "max_model_len": 2048})
        elif not body.get("stream"):
            message = {"role": "assistant", "content": "".join(step.pieces)}
            self._json(200, {"choices": [{"message": message, "finish_reason": step.reason}]})
        else:
            try:
                self._stream(step, body)
            except OSError:
                with self.server.lock:
                    self.server.hung_up += 1

    def _stream(self, say: Say, body: dict[str, Any]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        counts = body.get("stream_options", {}).get("continuous_usage_stats")
        bare = self.path.endswith("/v1/completions")

        def usage(tokens: int) -> dict[str, Any]:
            details = {"cached_tokens": 4}
            return {"prompt_tokens": 11, "completion_tokens": tokens, "prompt_tokens_details": details}

        for index, piece in enumerate(say.pieces):
            if index == say.broken_after:
                return
            if index == say.error_after:
                self._event({"error": dict(say.error)})
                return
            time.sleep(say.pause)
            choice: dict[str, Any] = {"text": piece} if bare else {"delta": {"content": piece}}
            if bare and "logprobs" in body:
                top = [{piece: -0.5}] if body["logprobs"] else None
                choice["logprobs"] = {"tokens": [piece], "token_logprobs": [-0.5], "top_logprobs": top}
            elif body.get("logprobs"):
                entry = {"token": piece, "logprob": -0.5, "bytes": list(piece.encode())}
                choice["logprobs"] = {"content": [{**entry, "top_logprobs": [entry]}]}
            self._event({"choices": [choice], **({"usage": usage(index + 1)} if counts else {})})
        if say.broken_after is not None:
            return
        end: dict[str, Any] = {"text": ""} if bare else {"delta": {}}
        self._event({"choices": [{**end, "finish_reason": say.reason}]})
        if not say.silent_usage:
            self._event({"choices": [], "usage": usage(len(say.pieces) + 1)})
        self._write(b"data: [DONE]\n\n")

    def _event(self, value: dict[str, Any]) -> None:
        self._write(b": a comment\r\ndata: " + json.dumps(value, ensure_ascii=False).encode() + b"\r\n\r\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)
        self.wfile.flush()

    def _json(self, status: int, value: dict[str, Any], headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def running(server: ScriptedServer) -> Iterator[ScriptedServer]:
    """The server, while it listens."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def lengths(body: dict[str, Any]) -> list[int]:
    """Samples of every recording in a question's messages, in order."""
    found = []
    for message in body["messages"]:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "input_audio":
                data = base64.b64decode(part["input_audio"]["data"])
                found.append(len(soundfile.read(io.BytesIO(data), dtype="int16")[0]))
    return found
