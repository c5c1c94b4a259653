"""What was said on a connection: items in order, and the conversation that they make."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import MAX_SAMPLES, SAMPLE_RATE, audio_tokens, mel_frames
from qwen2_audio.processing.conversation import AudioPart, Conversation, Part, TextPart
from qwen2_audio.processing.windows import cut_windows
from qwen2_audio.serving.realtime.fields import EventError

_TOKENS_A_SECOND = 25
"""Of sound."""
_MOST_CHARACTERS = 8
"""Of text in a token, on average of an item: more than there are in any usual one."""
Status = Literal["in_progress", "completed", "incomplete"]


@dataclass(frozen=True, slots=True)
class Sound:
    """A recording, int16 [samples] at 16 kHz."""

    samples: NDArray[np.int16] = field(repr=False)
    transcript: str | None = None

    @property
    def seconds(self) -> float:
        """Duration."""
        return len(self.samples) / SAMPLE_RATE


@dataclass(frozen=True, slots=True)
class Item:
    """A turn, or a part of one."""

    id: str
    role: Literal["user", "assistant"]
    content: tuple[str | Sound, ...]
    status: Status = "completed"

    def as_json(self) -> dict[str, Any]:
        """In OpenAI's form, without the sound itself."""
        kind = "input_text" if self.role == "user" else "output_text"
        return {
            "id": self.id,
            "object": "realtime.item",
            "type": "message",
            "status": self.status,
            "role": self.role,
            "content": [
                {"type": "input_audio", "transcript": part.transcript}
                if isinstance(part, Sound)
                else {"type": kind, "text": part}
                for part in self.content
            ],
        }

    @property
    def text(self) -> str:
        """Its texts, joined."""
        return "".join(part for part in self.content if isinstance(part, str))

    @property
    def sounds(self) -> Iterator[Sound]:
        """Its recordings."""
        return (part for part in self.content if isinstance(part, Sound))


class History:
    """Items in order, never more than so many, or of so much sound or text.

    Args:
        most_items, most_seconds, most_characters: what is beyond is forgotten, oldest first.
    """

    def __init__(self, most_items: int, most_seconds: float, most_characters: int) -> None:
        self.items: list[Item] = []
        self._most = (most_items, most_seconds, most_characters)

    def find(self, id: str, param: str = "item_id") -> Item:
        """The item of that name.

        Raises:
            EventError: there is none.
        """
        found = next((item for item in self.items if item.id == id), None)
        if found is None:
            raise EventError(f"there is no item {id!r:.80} in the conversation", "item_not_found", param)
        return found

    def add(self, item: Item, after: str | None = None) -> str | None:
        """Insert an item behind another ("root": first of all; None: last); returns the id of the one before it."""
        if any(known.id == item.id for known in self.items):
            raise EventError(f"there is an item {item.id!r:.80} already", "item_exists", "item.id")
        if after is None:
            place = len(self.items)
        elif after == "root":
            place = 0
        else:
            place = self.items.index(self.find(after, "previous_item_id")) + 1
        self.items.insert(place, item)
        return self.items[place - 1].id if place else None

    def put(self, item: Item) -> None:
        """Replace the item of the same id, if it is still there."""
        self.items = [item if known.id == item.id else known for known in self.items]

    def delete(self, id: str) -> None:
        """Take an item out."""
        self.items.remove(self.find(id))

    def overflow(self, keep: Collection[str]) -> list[Item]:
        """Forget the oldest items until the rest is within bounds, but none of `keep`; returns what was forgotten."""
        gone: list[Item] = []
        for item in [item for item in self.items if item.id not in keep]:
            if not self.is_too_much(self.items):
                break
            self.items.remove(item)
            gone.append(item)
        return gone

    def is_too_much(self, items: Collection[Item]) -> bool:
        """Whether items are more, or hold more sound or text, than a conversation may."""
        sounds = [sound for item in items for sound in item.sounds]
        characters = sum(len(item.text) for item in items) + sum(len(sound.transcript or "") for sound in sounds)
        held = len(items), sum(sound.seconds for sound in sounds), characters
        return any(have > most for have, most in zip(held, self._most, strict=True))

    def forget_oldest(self, keep: str, room: int) -> list[Item]:
        """Forget the oldest turn: items up to the next one of the user's; [] where only `keep` and what follows is left.

        Args:
            room: tokens of the context; as long as the rest must be more, further turns are forgotten.
        """
        gone: list[Item] = []
        left = sum(map(_least_tokens, self.items))
        while self.items and self.items[0].id != keep:
            if gone and self.items[0].role == "user" and left < room:
                break
            gone.append(self.items.pop(0))
            left -= _least_tokens(gone[-1])
        return gone


def conversation_of(items: list[Item], instructions: str) -> Conversation:
    """What the model is asked; answers of which nothing was said are left out."""
    conversation = Conversation().system(instructions) if instructions else Conversation()
    for item in items:
        parts = tuple(_part(part) for part in item.content if isinstance(part, Sound) or part)
        if parts:
            conversation = conversation.add(item.role, *parts)
    return conversation


def audio_tokens_of(items: list[Item]) -> int:
    """How many tokens their recordings are to the model."""
    return sum(_tokens_of_sound(sound) for item in items for sound in item.sounds)


def _tokens_of_sound(sound: Sound) -> int:
    lengths = [len(sound.samples)]
    if lengths[0] > MAX_SAMPLES:
        lengths = [len(window) for window in cut_windows(wave_of(sound))]
    return sum(audio_tokens(mel_frames(length)) for length in lengths)


def _least_tokens(item: Item) -> int:
    """About how many tokens an item is at least."""
    heard = sum(len(sound.samples) for sound in item.sounds) * _TOKENS_A_SECOND // SAMPLE_RATE
    return heard + len(item.text) // _MOST_CHARACTERS


def wave_of(sound: Sound) -> NDArray[np.float32]:
    """As the model's side takes it, float32 [samples]."""
    return sound.samples.astype(np.float32) / np.float32(32768)


def _part(part: str | Sound) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    return AudioPart((wave_of(part), SAMPLE_RATE))


def with_transcript(item: Item, transcript: str) -> Item:
    """The item, its recordings with what is said in them."""
    content = tuple(replace(part, transcript=transcript) if isinstance(part, Sound) else part for part in item.content)
    return replace(item, content=content)
