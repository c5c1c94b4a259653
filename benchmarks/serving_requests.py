"""Requests for the load test of `serving.py`: clips made on the spot, and a client that times what comes back."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE = 16_000
Samples = NDArray[np.float32]
CHAT, TRANSCRIPTION = "/chat/completions", "/audio/transcriptions"
QUESTIONS = ("What is said?", "Transcribe the speech.", "Who is speaking, a man or a woman?", "What is this about?")
TEXTS = ("What is the capital of France?", "Name three colours.", "Say hello.", "How many days has a week?")


def read_recordings(folders: Sequence[Path], most: int = 200) -> list[Samples]:
    """Recordings of up to 30 s below some folders, at 16 kHz."""
    files = sorted(file for folder in folders for file in folder.rglob("*") if file.suffix in (".flac", ".wav"))
    found = []
    for file in files[:: max(1, len(files) // most)]:
        samples, rate = soundfile.read(file, dtype="float32", always_2d=True)
        if 0.5 * rate < len(samples) <= 30 * rate:
            found.append(soxr.resample(samples.mean(axis=1), rate, RATE).astype(np.float32))
    return found


@dataclass(frozen=True)
class Case:
    """One question.

    Attributes:
        wav: the recording as a file, or None.
        text: what is asked about it, or None.
        path: the route.
    """

    path: str
    wav: bytes | None
    text: str | None


class Mix:
    """Draws requests. Half of them come from a fixed list, as popular clips do; the others nobody has asked before."""

    def __init__(self, recordings: Sequence[Samples], known: int) -> None:
        self._recordings = recordings
        self.known = [self.fresh(-1 - number) for number in range(known)]

    def draw(self, seed: int) -> tuple[Case, int | None]:
        """A request, and its place in `known` if it is one of these."""
        rng = np.random.default_rng((1, abs(seed)))
        if rng.random() < 0.5:
            place = int(rng.integers(len(self.known)))
            return self.known[place], place
        return self.fresh(seed), None

    def fresh(self, seed: int) -> Case:
        """A request that depends on its seed alone."""
        rng = np.random.default_rng((2, int(seed < 0), abs(seed)))
        kind = rng.random()
        if kind < 0.1:
            return Case(CHAT, None, str(rng.choice(TEXTS)) + " " * int(rng.integers(3)))
        wav = as_wav(self._clip(rng))
        if kind < 0.4:
            return Case(TRANSCRIPTION, wav, None)
        return Case(CHAT, wav, None if kind < 0.7 else str(rng.choice(QUESTIONS)))

    def of_length(self, seed: int, seconds: float) -> Case:
        """A chat about a clip of exactly so many seconds."""
        rng = np.random.default_rng((3, seed))
        count, parts = round(seconds * RATE), [self._clip(rng)]
        while sum(map(len, parts)) < count:
            parts.append(self._clip(rng))
        return Case(CHAT, as_wav(np.concatenate(parts)[:count]), str(rng.choice(QUESTIONS)))

    def _clip(self, rng: np.random.Generator) -> Samples:
        """One or two recordings, cut at both ends, at another speed and loudness; at most 12 s."""
        parts = []
        for _ in range(int(rng.integers(1, 3))):
            samples = self._recordings[int(rng.integers(len(self._recordings)))]
            start, end = int(rng.uniform(0, 0.2) * len(samples)), int(rng.uniform(0.6, 1) * len(samples))
            parts.append(soxr.resample(samples[start:end], RATE, round(RATE * float(rng.uniform(0.85, 1.2)))))
        return (np.concatenate(parts)[: 12 * RATE] * rng.uniform(0.5, 1.0)).astype(np.float32)


def as_wav(samples: Samples) -> bytes:
    """A file of 16-bit samples."""
    file = io.BytesIO()
    soundfile.write(file, samples, RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


@dataclass
class Outcome:
    """What came of a request; times in seconds.

    Attributes:
        first: until the first text of a stream; gaps: between its pieces.
        error: what went wrong, or None.
    """

    place: int | None = None
    seed: int = 0
    seconds: float = 0.0
    text: str = ""
    tokens: int = 0
    first: float | None = None
    gaps: list[float] = field(default_factory=list)
    cancelled: bool = False
    error: str | None = None


class Client:
    """Asks one server."""

    def __init__(self, url: str, model: str, key: str | None, lengths: tuple[int, int], most: int) -> None:
        """
        Args:
            lengths: tokens of a chat's answer, at least and at most.
            most: connections at once.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx.Limits(max_connections=most, max_keepalive_connections=most)
        self._http = httpx.AsyncClient(headers=headers, timeout=httpx.Timeout(300.0), limits=limits)
        self._url, self._model, self._lengths = url.rstrip("/"), model, lengths

    async def close(self) -> None:
        await self._http.aclose()

    async def ask(self, case: Case, *, stream: bool, cancel_after: int | None = None) -> Outcome:
        """One request; after so many pieces of its stream the client goes away."""
        outcome = Outcome()
        began = last = time.perf_counter()
        try:
            async with self._http.stream("POST", self._url + case.path, **self._body(case, stream)) as response:
                if response.status_code != 200:
                    raise httpx.HTTPError(f"{response.status_code} {(await response.aread()).decode()[:300]}")
                if not stream:
                    outcome.text, outcome.tokens = _whole(json.loads(await response.aread()))
                else:
                    pieces = 0
                    async for piece, tokens in _events(response):
                        outcome.tokens += tokens
                        if not piece:
                            continue
                        now, pieces = time.perf_counter(), pieces + 1
                        if outcome.first is None:
                            outcome.first = now - began
                        else:
                            outcome.gaps.append(now - last)
                        last = now
                        outcome.text += piece
                        if cancel_after is not None and pieces >= cancel_after:
                            outcome.cancelled = True
                            break
        except (httpx.HTTPError, ValueError, KeyError) as error:
            outcome.error = f"{type(error).__name__}: {error}"
        outcome.seconds = time.perf_counter() - began
        return outcome

    def _body(self, case: Case, stream: bool) -> dict[str, Any]:
        if case.path == TRANSCRIPTION:
            form = {"model": self._model, "temperature": "0", "stream": "true" if stream else "false"}
            return {"data": form, "files": {"file": ("clip.wav", case.wav, "audio/wav")}}
        content: list[dict[str, Any]] = []
        if case.wav is not None:
            data = base64.b64encode(case.wav).decode()
            content.append({"type": "input_audio", "input_audio": {"data": data, "format": "wav"}})
        if case.text is not None:
            content.append({"type": "text", "text": case.text})
        body: dict[str, Any] = {"model": self._model, "messages": [{"role": "user", "content": content}]}
        least, most = self._lengths
        body |= {"temperature": 0, "max_tokens": most, "stream": stream} | ({"min_tokens": least} if least else {})
        return {"json": body | ({"stream_options": {"include_usage": True}} if stream else {})}


async def _events(response: httpx.Response) -> AsyncIterator[tuple[str, int]]:
    """Pieces of text and, once, how many tokens they were."""
    ended = False
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            ended = True
            continue
        event = json.loads(data)
        if "error" in event:
            raise ValueError(str(event["error"]))
        ended |= event.get("type") == "transcript.text.done"
        piece = event.get("delta") or ""
        for choice in event.get("choices", ()):
            piece += choice["delta"].get("content") or ""
        yield piece, ((event.get("usage") or {}).get("completion_tokens") or 0)
    if not ended:
        raise ValueError("the stream was cut short")


def _whole(reply: dict[str, Any]) -> tuple[str, int]:
    if "choices" not in reply:
        return reply["text"], 0
    return reply["choices"][0]["message"]["content"], reply["usage"]["completion_tokens"]


async def load(client: Client, mix: Mix, clients: int, seconds: float, first_seed: int) -> list[Outcome]:
    """So many clients that ask one thing after another, for a while; each ends what it has begun."""
    outcomes: list[Outcome] = []
    end, seeds = time.perf_counter() + seconds, iter(range(first_seed, first_seed + 10_000_000))

    async def one() -> None:
        while time.perf_counter() < end:
            seed = next(seeds)
            case, place = mix.draw(seed)
            rng = np.random.default_rng((4, seed))
            stream, gives_up = rng.random() < 0.6, rng.random() < 0.15
            after = int(rng.integers(1, 8)) if stream and gives_up else None
            outcome = await client.ask(case, stream=stream, cancel_after=after)
            outcome.seed, outcome.place = seed, place
            outcomes.append(outcome)

    await asyncio.gather(*(one() for _ in range(clients)))
    return outcomes
