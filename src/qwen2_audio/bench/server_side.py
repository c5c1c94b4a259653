"""A server with an OpenAI-compatible address, whatever engine is behind it."""

from __future__ import annotations

import base64
import io
import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from qwen2_audio.bench.figures import Times
from qwen2_audio.bench.scenarios import Scenario
from qwen2_audio.bench.sides import Wave, joined, noise, question
from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import UsageError

_PATIENCE = 600.0  # seconds for an answer


class Server:
    """Streams answers from `url`, such as `http://127.0.0.1:8000/v1`; every stream is a request of its own."""

    def __init__(self, url: str, name: str) -> None:
        try:
            import httpx
        except ImportError:
            raise UsageError('asking a server needs the package httpx: pip install "qwen2-audio[serve]"') from None
        self.name = name
        self._client = httpx.Client(base_url=url.rstrip("/") + "/", timeout=_PATIENCE)
        self._failures: tuple[type[Exception], ...] = (httpx.HTTPError, ValueError, LookupError)
        try:
            self._model: str = self._client.get("models").raise_for_status().json()["data"][0]["id"]
        except self._failures as error:
            raise UsageError(
                f"{url} does not list its models ({error!r:.120}); give an address ending in /v1"
            ) from error

    def run(self, scenario: Scenario, fresh: int = 0) -> Times:
        """See `Side`. Of several streams at once there is no step: a stream's pieces of text are not its tokens, so how many
        came after the last first one cannot be counted."""
        if scenario.kind in ("batch", "crowd"):
            waves = [noise(seconds, i, fresh) for i, seconds in enumerate(scenario.seconds)]
            started = time.perf_counter()
            chats = [[_turn(0, wave)] for wave in waves]
            with ThreadPoolExecutor(len(chats)) as pool:
                ends = list(pool.map(lambda chat: self._ask(chat, scenario.tokens), chats))
            first, last = max(end[0] for end in ends), max(end[1] for end in ends)
            step = (last - first) / max(scenario.tokens - 1, 1) if len(chats) == 1 else None
            return Times(first - started, step, last - started)
        messages: list[dict[str, Any]] = []
        runs = []
        for turn in range(len(scenario.seconds)):
            heard = turn == 0 or scenario.kind == "shared"
            message = _turn(turn, noise(scenario.seconds[0], fresh=fresh) if heard else None)
            messages = [*messages, message] if scenario.kind == "turns" else [message]
            started = time.perf_counter()
            first, last, text = self._ask(messages, scenario.tokens)
            runs.append(Times(first - started, (last - first) / max(scenario.tokens - 1, 1), last - started))
            messages = [*messages, {"role": "assistant", "content": text}]
        return joined(runs)

    def _ask(self, messages: list[dict[str, Any]], tokens: int) -> tuple[float, float, str]:
        """When the first and the last text came, and the whole text."""
        body = {
            "model": self._model,
            "messages": messages,
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        first, text, came, broken = 0.0, [], tokens, None
        try:
            with self._client.stream("POST", "chat/completions", json=body) as response:
                response.raise_for_status()
                for line in response.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    event = json.loads(line[6:])
                    broken = broken or event.get("error")
                    came = (event.get("usage") or {}).get("completion_tokens", came)
                    for choice in event.get("choices", ()):
                        text.append(choice.get("delta", {}).get("content") or "")
                        if text[-1] and not first:
                            first = time.perf_counter()
        except self._failures as error:
            raise UsageError(f"{self.name} gave no answer ({error!r:.200}); see that server's log") from error
        last = time.perf_counter()
        if broken:
            raise UsageError(f"{self.name} broke an answer off ({broken!r:.200}); see that server's log")
        if came != tokens:
            raise UsageError(
                f"{self.name} wrote {came} tokens where {tokens} were asked for; its times cannot be compared"
            )
        return first or last, last, "".join(text)


def _turn(turn: int, wave: Wave | None) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": question(turn)}]
    if wave is not None:
        import soundfile

        file = io.BytesIO()
        soundfile.write(file, wave, SAMPLE_RATE, format="WAV")
        data = base64.b64encode(file.getvalue()).decode()
        content.insert(0, {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
    return {"role": "user", "content": content}
