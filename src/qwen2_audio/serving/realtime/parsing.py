"""Sound and items as clients send them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from qwen2_audio.config import MIN_SAMPLES, SAMPLE_RATE
from qwen2_audio.processing.chat_template import check
from qwen2_audio.processing.conversation import Conversation, TextPart
from qwen2_audio.serving.realtime.fields import EventError, Fields
from qwen2_audio.serving.realtime.items import History, Item, Sound

_MOST_PARTS = 64
_LONGEST_ID = 64


@dataclass(frozen=True, slots=True)
class Reader:
    """What items are read by.

    Attributes:
        rate: of their recordings.
        longest: seconds of a recording.
        new_id: names an item that has no name.
    """

    rate: int
    longest: float
    new_id: Callable[[str], str]


def read_pcm(fields: Fields) -> NDArray[np.int16]:
    """The field `audio`: samples of 16 bits, little-endian, one channel, in base64."""
    try:
        data = base64.b64decode(fields.text("audio", longest=1 << 30), validate=True)
    except ValueError:  # binascii.Error is one; so is what letters beyond ASCII raise
        raise EventError(f"{fields.path('audio')} is no base64", "invalid_audio", fields.path("audio")) from None
    if len(data) % 2:
        message = f"{fields.path('audio')} holds {len(data)} bytes, which are no whole 16-bit samples"
        raise EventError(message, "invalid_audio", fields.path("audio"))
    return np.frombuffer(data, "<i2").astype(np.int16)


def read_input(given: Fields, history: History, reader: Reader) -> list[Item]:
    """The items that an answer is to: those of the conversation, or the `input` of its own."""
    own = given.given.get("input")
    if own is None:
        return history.items
    if not isinstance(own, list) or not 1 <= len(own) <= _MOST_PARTS:
        raise given.wrong("input", f"a list of 1 to {_MOST_PARTS} items", own)
    items = []
    for index, entry in enumerate(own):
        fields = Fields(entry, f"{given.path('input')}[{index}]")
        if fields.given.get("type") == "item_reference":
            items.append(history.find(fields.text("id"), fields.path("id")))
        else:
            items.append(read_item(fields, reader))
    if history.is_too_much(items):
        message = f"{given.path('input')} holds more sound or text than a conversation may; leave some out"
        raise EventError(message, "too_long", given.path("input"))
    return items


def read_item(fields: Fields, reader: Reader) -> Item:
    """An item of a conversation, with what it holds."""
    fields.only(
        ("type", "id", "role", "content"), {"object": ("realtime.item",), "status": ("completed", "incomplete")}
    )
    fields.one_of("type", ("message",))
    role = fields.one_of("role", ("user", "assistant", "system"))
    if role == "system":
        message = "a system message stands first and there is one; give it as session.instructions"
        raise EventError(message, "unsupported", fields.path("role"))
    content = fields.given.get("content")
    if not isinstance(content, list) or not 1 <= len(content) <= _MOST_PARTS:
        raise fields.wrong("content", f"a list of 1 to {_MOST_PARTS} parts", content)
    parts = tuple(
        _read_part(Fields(part, f"{fields.path('content')}[{index}]"), role, reader)
        for index, part in enumerate(content)
    )
    id = fields.text("id", "", longest=_LONGEST_ID) or reader.new_id("item")
    return Item(id, "user" if role == "user" else "assistant", parts)


def _read_part(fields: Fields, role: str, reader: Reader) -> str | Sound:
    texts = ("input_text", "text") if role == "user" else ("output_text", "text")
    kind = fields.one_of("type", (*texts, "input_audio") if role == "user" else texts)
    if kind != "input_audio":
        fields.only(("type", "text"))
        text = fields.text("text")
        check(Conversation().add("user" if role == "user" else "assistant", TextPart(text)))
        return text
    fields.only(("type", "audio", "transcript"))
    pcm, rate, longest = read_pcm(fields), reader.rate, reader.longest
    if len(pcm) > longest * rate:
        message = f"{fields.path('audio')} lasts {len(pcm) / rate:.1f} s; at most {longest:g} s are heard at once"
        raise EventError(message, "audio_too_long", fields.path("audio"))
    samples = pcm if rate == SAMPLE_RATE else np.asarray(soxr.resample(pcm, rate, SAMPLE_RATE), dtype=np.int16)
    if len(samples) < MIN_SAMPLES:
        raise EventError(f"{fields.path('audio')} is too short to be heard", "audio_too_short", fields.path("audio"))
    return Sound(samples, fields.text("transcript", "") or None)


def read_metadata(fields: Fields) -> dict[str, str] | None:
    """Up to 16 texts that come back with the answer."""
    value: Any = fields.given.get("metadata")
    if value is None:
        return None
    texts = isinstance(value, dict) and len(value) <= 16
    if not texts or not all(isinstance(v, str) and len(k) <= 64 and len(v) <= 512 for k, v in value.items()):
        raise fields.wrong("metadata", "an object of at most 16 short texts", value)
    return dict(value)
