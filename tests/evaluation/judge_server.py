"""A judge for tests: a real HTTP server on this machine that speaks chat/completions and misbehaves to order."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from qwen2_audio.evaluation.judge import ALONE, Judge, Request

KEY = "sk-this-is-a-secret"


@dataclass(frozen=True)
class Status:
    """Not 200, or not what 200 should hold."""

    code: int
    body: str = '{"error": {"message": "so it is"}}'
    headers: Mapping[str, str] = field(default_factory=dict)


class Hang:
    """No reply until the server is closed."""


class Drop:
    """The connection is closed without a word."""


def refusal(text: str) -> Status:
    """A completion without content, as hosted models refuse."""
    return Status(200, json.dumps({"choices": [{"message": {"content": None, "refusal": text}}]}))


Action = str | Status | type[Hang] | type[Drop]
"""A text is a reply as it should be."""


class JudgeServer:
    """
    Args:
        script: what is done with a prompt; its second argument is how often the prompt was asked before.
    """

    def __init__(self, script: Callable[[str, int], Action]) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._asked: Counter[str] = Counter()
        self._script = script
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"] for body in self.bodies]

    def __enter__(self) -> JudgeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        judge = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                prompt = body["messages"][0]["content"]
                with judge._lock:
                    judge.bodies.append(body)
                    judge.keys.append(self.headers["Authorization"])
                    times = judge._asked[prompt]
                    judge._asked[prompt] += 1
                    judge._at_once += 1
                    judge.most_at_once = max(judge.most_at_once, judge._at_once)
                try:
                    action = Status(404) if self.path != "/v1/chat/completions" else judge._script(prompt, times)
                finally:
                    with judge._lock:
                        judge._at_once -= 1
                self._act(action)

            def _act(self, action: Action) -> None:
                if action is Hang:
                    judge._closed.wait(30)
                if not isinstance(action, str | Status):
                    self.close_connection = True
                    return
                if isinstance(action, str):
                    action = Status(200, json.dumps({"choices": [{"message": {"content": action}}]}))
                content = action.body.encode()
                self.send_response(action.code)
                for name, value in {**action.headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Nothing."""

        return Handler


def quick(server: JudgeServer, **options: object) -> Judge:
    """A judge at that server who does not wait long."""
    return replace(Judge("a-judge", server.url, attempts=3, pause=0.01, timeout=5.0), **options)


def requests(*prompts: str) -> list[Request]:
    return [Request(f"sample {number}", ALONE, prompt) for number, prompt in enumerate(prompts)]
