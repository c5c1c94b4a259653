"""A live server in a thread, on a free port of this machine, as `qwen2-audio serve` runs it."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx
import numpy as np
import openai
import soundfile

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.serving.app import create_app
from qwen2_audio.serving.backend import Backend
from qwen2_audio.serving.server import Server, listen, serve, url_of
from qwen2_audio.serving.settings import Settings
from tests.tiny import sound

PATIENCE = 60.0
"""Seconds after which a test gives up."""
QUIET = {"port": 0, "access_log": False}


class HttpServer:
    """Serves a backend while the `with` lasts."""

    def __init__(self, backend: Backend, **settings: object) -> None:
        self.settings = Settings.read({**QUIET, **settings})
        self.app = create_app(backend, self.settings)
        self._listener = listen(self.settings)
        self.url = url_of(self._listener)
        self.server = Server(self.app, self.settings)
        self.ready = threading.Event()
        self.failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="http-server")

    def _run(self) -> None:
        try:
            asyncio.run(serve(self.server, self.app, self._listener, self.ready.set))
        except BaseException as error:
            self.failure = error

    def __enter__(self) -> Self:
        self._thread.start()
        eventually(lambda: self.ready.is_set() or self.failure is not None)
        if self.failure is not None:
            raise self.failure
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        self._thread.join(PATIENCE)
        if self._thread.is_alive():
            raise TimeoutError("the server did not end")

    def client(self, **options: Any) -> openai.OpenAI:
        """OpenAI's client, which does not try again."""
        given = {"timeout": PATIENCE, "max_retries": 0, **options}
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", **given)

    def http(self) -> httpx.Client:
        """A plain client."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE)


def eventually(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError("it did not come about")
        time.sleep(0.005)


def cut_ogg(samples: np.ndarray) -> bytes:
    """A file that lacks its last page, as a broken download does."""
    out = io.BytesIO()
    soundfile.write(out, samples, SAMPLE_RATE, format="OGG", subtype="VORBIS")
    return out.getvalue()[: out.getvalue().rindex(b"OggS")]


def wav(seconds: float) -> bytes:
    """A recording of that length, as a file."""
    file = io.BytesIO()
    soundfile.write(file, sound(seconds), SAMPLE_RATE, format="WAV")
    return file.getvalue()


def base64_of(data: bytes) -> str:
    """As it stands in a request."""
    return base64.b64encode(data).decode()


def heard(seconds: float) -> dict[str, Any]:
    """A part of a message: a recording of that length."""
    return {"type": "input_audio", "input_audio": {"data": base64_of(wav(seconds)), "format": "wav"}}


def said(*content: Any, role: str = "user") -> dict[str, Any]:
    """A message: a text, or several parts."""
    parts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]
    return {"role": role, "content": content[0] if len(content) == 1 and isinstance(content[0], str) else parts}
