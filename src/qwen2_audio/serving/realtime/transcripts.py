"""Writing down what the user says, beside the answers: turn by turn, long turns piece by piece."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from qwen2_audio.longform.listening import TRANSCRIBE, Question, transcribe_in
from qwen2_audio.longform.segments import join_texts
from qwen2_audio.processing.speech_windows import Window
from qwen2_audio.processing.windows import split_at_pauses
from qwen2_audio.serving.backend import Delta, Job, ModelCard, OverloadedError
from qwen2_audio.serving.errors import problem_of
from qwen2_audio.serving.realtime.items import Item, Sound, wave_of
from qwen2_audio.serving.realtime.outputs import Generate

_KEY = "transcript of "
_MOST_WAITING = 16
"""Turns; one is heard at a time, so that no connection fills the engine's queue."""
_EVENT = "conversation.item.input_audio_transcription"


@dataclass(slots=True)
class _Turn:
    """A turn that is being written down.

    Attributes:
        windows: still to be heard; None: its turn has not come, and its sound is not cut yet.
        texts: what was heard.
    """

    question: Question
    sound: Sound
    windows: list[Window] | None = None
    texts: list[str] = field(default_factory=list)


class Transcripts:
    """The turns that are being written down, one after the other.

    Args:
        most_seconds: of sound that waits; more is not written down. A single turn may always be that long.
    """

    def __init__(self, card: ModelCard, most_seconds: float) -> None:
        self._card, self._most_seconds = card, most_seconds
        self._turns: dict[str, _Turn] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._turns

    def __bool__(self) -> bool:
        return bool(self._turns)

    def ask(self, item: Item, language: str = "") -> Iterator[dict[str, Any] | Generate]:
        """Begin with an item's recording, once those before it are done; `language` by its code, where it was said."""
        key = _KEY + item.id
        sound = next(item.sounds)
        waiting = sum(turn.sound.seconds for turn in self._turns.values())
        if len(self._turns) >= _MOST_WAITING or (self._turns and waiting + sound.seconds > self._most_seconds):
            yield self._failure(key, OverloadedError("too many turns wait to be written down"))
            return
        self._turns[key] = _Turn(Question(transcribe_in(language) if language else TRANSCRIBE), sound)
        if len(self._turns) == 1:
            yield self._next()

    def _next(self) -> Generate:
        """The next piece of the first turn."""
        key, turn = next(iter(self._turns.items()))
        if turn.windows is None:
            pieces = split_at_pauses(wave_of(turn.sound), self._card.transcription_window)
            turn.windows = [Window(0, piece, (0, len(piece)), 1.0) for piece in pieces]
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
            usage = {"type": "duration", "seconds": round(turn.sound.seconds, 3)}
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
