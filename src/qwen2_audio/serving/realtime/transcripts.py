"""Writing down what the user says, beside the answers: turn by turn, long turns piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from qwen2_audio.longform.listening import TRANSCRIBE, Question, transcribe_in
from qwen2_audio.longform.segments import join_texts
from qwen2_audio.processing.speech_windows import Window
from qwen2_audio.processing.windows import split_at_pauses
from qwen2_audio.serving.backend import Delta, Job, ModelCard, OverloadedError
from qwen2_audio.serving.errors import problem_of
from qwen2_audio.serving.realtime.items import Item
from qwen2_audio.serving.realtime.outputs import Generate

_KEY = "transcript of "
_MOST_WAITING = 16
"""Turns; one is heard at a time, so that no connection fills the engine's queue."""
_EVENT = "conversation.item.input_audio_transcription"


@dataclass(slots=True)
class _Turn:
    """A turn that is being written down: windows still to be heard, and what was heard."""

    question: Question
    seconds: float
    windows: list[Window]
    texts: list[str] = field(default_factory=list)


class Transcripts:
    """The turns that are being written down, one after the other."""

    def __init__(self, card: ModelCard) -> None:
        self._card = card
        self._turns: dict[str, _Turn] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._turns

    def __bool__(self) -> bool:
        return bool(self._turns)

    def ask(self, item: Item, language: str = "") -> Iterator[dict[str, Any] | Generate]:
        """Begin with an item's recording, once those before it are done; `language` by its code, where it was said."""
        key = _KEY + item.id
        if len(self._turns) >= _MOST_WAITING:
            yield self._failure(key, OverloadedError("too many turns wait to be written down"))
            return
        sound = next(item.sounds)
        samples = sound.samples.astype(np.float32) / np.float32(32768)
        pieces = split_at_pauses(samples, self._card.transcription_window)
        question = Question(transcribe_in(language) if language else TRANSCRIBE)
        self._turns[key] = _Turn(question, sound.seconds, [Window(0, piece, (0, len(piece)), 1.0) for piece in pieces])
        if len(self._turns) == 1:
            yield self._next()

    def _next(self) -> Generate:
        """The next piece of the first turn."""
        key, turn = next(iter(self._turns.items()))
        window = turn.windows.pop(0)
        turn.texts.append("")
        return Generate(
            key, Job(turn.question.conversation(window), turn.question.options_for(window), self._card.name)
        )

    def push(self, key: str, delta: Delta) -> Iterator[dict[str, Any] | Generate]:
        """What comes of more of an answer: events, or the next piece to be heard."""
        turn = self._turns[key]
        place = {"item_id": key.removeprefix(_KEY), "content_index": 0}
        shown = join_texts(turn.texts)
        turn.texts[-1] += delta.text
        if piece := join_texts(turn.texts)[len(shown) :]:
            yield {"type": f"{_EVENT}.delta", **place, "delta": piece}
        if delta.finish_reason is None:
            return
        if not turn.windows:
            del self._turns[key]
            usage = {"type": "duration", "seconds": round(turn.seconds, 3)}
            yield {"type": f"{_EVENT}.completed", **place, "transcript": join_texts(turn.texts), "usage": usage}
        if self._turns:
            yield self._next()

    def failed(self, key: str, error: Exception) -> Iterator[dict[str, Any] | Generate]:
        """What comes of one that ended in an error."""
        del self._turns[key]
        yield self._failure(key, error)
        if self._turns:
            yield self._next()

    @staticmethod
    def _failure(key: str, error: Exception) -> dict[str, Any]:
        problem = problem_of(error)
        told = {"type": problem.type, "code": problem.code, "message": problem.message}
        return {"type": f"{_EVENT}.failed", "item_id": key.removeprefix(_KEY), "content_index": 0, "error": told}
