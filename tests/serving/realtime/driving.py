"""A session without a socket, driven as the route drives it."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import AudioPart
from qwen2_audio.processing.vad import CHUNK
from qwen2_audio.serving.backend import Delta, ModelCard
from qwen2_audio.serving.realtime.config import Bounds
from qwen2_audio.serving.realtime.outputs import Generate, Output, Send, Stop
from qwen2_audio.serving.realtime.session import RealtimeSession
from tests.serving.fake_backend import seconds_of
from tests.tiny import sound

CARD = ModelCard("mini", 2048, 12.0, GenerationOptions(max_new_tokens=64))
MS = 16


class Loudness:
    """Takes whatever is loud for speech."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        wave = np.concatenate([self._rest, samples])
        count = len(wave) // CHUNK
        self._rest = wave[count * CHUNK :]
        return (np.abs(wave[: count * CHUNK]).reshape(count, CHUNK).max(axis=1) > 0.05).astype(np.float32)

    def reset(self) -> None:
        self._rest = np.zeros(0, np.float32)


class Client:
    """A session, driven as the route drives it; what came out is kept."""

    def __init__(self, bounds: Bounds | None = None, card: ModelCard = CARD, **session: Any) -> None:
        self._count = 0
        self.session = RealtimeSession(card, bounds or Bounds(), Loudness, self._name)
        self.asked: dict[str, Generate] = {}
        self.stopped: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.take(self.session.opened())
        self.update(**{"audio": {"input": {"format": {"rate": 16_000}}}, **session})
        self.events.clear()

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"

    def take(self, outputs: list[Output]) -> list[dict[str, Any]]:
        new = []
        for output in outputs:
            if isinstance(output, Send):
                assert isinstance(output.event["event_id"], str)
                json.dumps(output.event)
                new.append(output.event)
            elif isinstance(output, Generate):
                self.asked[output.key] = output
            else:
                assert isinstance(output, Stop)
                self.stopped.append(output.key)
        self.events += new
        return new

    def send(self, type: str, **fields: Any) -> list[dict[str, Any]]:
        return self.take(self.session.receive({"type": type, **fields}))

    def update(self, **session: Any) -> list[dict[str, Any]]:
        return self.send("session.update", session={"type": "realtime", **session})

    def hear(self, seconds: float, *, loud: bool = True, step: int = 1600) -> list[dict[str, Any]]:
        samples = sound(seconds) if loud else np.zeros(int(seconds * 16_000), np.float32)
        pcm = np.rint(samples * 20_000).astype("<i2")
        found = []
        for at in range(0, len(pcm), step):
            found += self.send("input_audio_buffer.append", audio=b64(pcm[at : at + step]))
        return found

    def answer(self, *texts: str, key: str | None = None, finish: str = "stop") -> list[dict[str, Any]]:
        """Let the newest answer come."""
        key = key or list(self.asked)[-1]
        found = []
        for text in texts:
            found += self.take(self.session.pushed(key, Delta(text, 1, 400)))
        return found + self.take(self.session.pushed(key, Delta("", 1, 400, finish, cached_tokens=8)))  # type: ignore[arg-type]

    @property
    def conversation(self) -> list[tuple[str, list[str | float]]]:
        """What was asked last."""
        return [
            (message.role, [seconds_of(part) if isinstance(part, AudioPart) else part.text for part in message.parts])
            for message in list(self.asked.values())[-1].job.prompt.messages  # type: ignore[union-attr]
        ]


def by_hand(**more: Any) -> Client:
    """Without turn detection: the client says where its turns end."""
    return Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": None}}, **more)


def b64(pcm: NDArray[Any]) -> str:
    return base64.b64encode(pcm.tobytes()).decode()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def say(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def create(item: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": item}


def respond(response: Any) -> dict[str, Any]:
    return {"type": "response.create", "response": response}


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": session}


def hearing(**sound: Any) -> dict[str, Any]:
    return update(audio={"input": sound})


ANSWERED = [
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]
BEGUN = ["response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added"]
ITEM = ["conversation.item.added", "conversation.item.done"]
