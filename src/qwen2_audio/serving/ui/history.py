"""A conversation as a file of the visitor's own, recordings included, and back."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Sequence
from typing import Any

from qwen2_audio.errors import ConversationError
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.ui.chat import Turn
from qwen2_audio.serving.ui.clips import Clips, new_clip

_MOST_SECONDS = 3600.0
"""Of all recordings together: a small file can hold days of silence."""
KIND = "qwen2-audio conversation"


def written(turns: Sequence[Turn]) -> str:
    """The conversation as JSON."""
    entries = [
        {
            "text": turn.text,
            "answer": turn.answer,
            "recordings": [{"name": clip.name, "flac": base64.b64encode(clip.flac()).decode()} for clip in turn.clips],
        }
        for turn in turns
        if turn.answer and not turn.gone and (turn.text or turn.clips)
    ]
    return json.dumps({"kind": KIND, "version": 1, "turns": entries}, ensure_ascii=False, indent=1)


_MOST_VALUES = 1_000_000
"""Commas; recordings have none. More would take seconds to read, in which nothing else is done."""


async def read(text: str, media: Media, clips: Clips) -> list[Turn]:
    """The turns of a saved conversation; its recordings pass the same limits as any other.

    Raises:
        ConversationError: the file is something else, or damaged.
        AudioError, TooLargeError: a recording in it cannot be heard.
    """
    if text.count(",") > _MOST_VALUES:
        raise ConversationError("it holds more than any conversation does")
    try:
        saved = json.loads(text)
        if saved["kind"] != KIND or saved["version"] != 1:
            raise ConversationError("it was written by another program, or by a later version of this one")
        entries = [_entry(entry) for entry in saved["turns"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        if isinstance(error, ConversationError):
            raise
        raise ConversationError("it is damaged, or no conversation") from error
    turns, seconds = [], 0.0
    for question, answer, recordings in entries:
        held = []
        for name, data in recordings:
            part = await media.from_base64(data, "flac")
            clip = clips.add(await asyncio.to_thread(new_clip, part, name))
            seconds += clip.seconds
            if seconds > _MOST_SECONDS:
                raise ConversationError("its recordings are longer than an hour together")
            held.append(clip)
        turns.append(Turn(question, tuple(held), answer))
    return turns


def _entry(entry: Any) -> tuple[str, str, list[tuple[str, str]]]:
    recordings = [(str(each["name"])[:200], str(each["flac"])) for each in entry["recordings"]]
    text, answer = entry["text"], entry["answer"]
    if not isinstance(text, str) or not isinstance(answer, str) or not (text or recordings):
        raise ConversationError("a turn of it is empty")
    "".join((text, answer, *(name for name, _ in recordings))).encode()  # a ValueError where it holds half a character
    return text, answer, recordings
