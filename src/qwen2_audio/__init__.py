"""Qwen2-Audio: an audio-language model that takes speech, sound, music and text and answers in text.

    from qwen2_audio import load
    print(load("mini").chat("question.wav"))

Importing this package does nothing but define names; torch is loaded with the first name that needs it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen2_audio.api import Assistant, ReplyStream, Session, load
    from qwen2_audio.config import Qwen2AudioConfig
    from qwen2_audio.errors import (
        AudioError,
        AudioWarning,
        CheckpointError,
        ContextLengthError,
        ConversationError,
        DownloadError,
        Qwen2AudioError,
        UsageError,
    )
    from qwen2_audio.generation.reply import Reply
    from qwen2_audio.processing.conversation import AudioPart, Conversation, Message, TextPart

__version__ = "0.1.0"

__all__ = [
    "Assistant",
    "AudioError",
    "AudioPart",
    "AudioWarning",
    "CheckpointError",
    "ContextLengthError",
    "Conversation",
    "ConversationError",
    "DownloadError",
    "Message",
    "Qwen2AudioConfig",
    "Qwen2AudioError",
    "Reply",
    "ReplyStream",
    "Session",
    "TextPart",
    "UsageError",
    "load",
]

_HOMES = {
    "qwen2_audio.api": ("Assistant", "ReplyStream", "Session", "load"),
    "qwen2_audio.generation.reply": ("Reply",),
    "qwen2_audio.config": ("Qwen2AudioConfig",),
    "qwen2_audio.processing.conversation": ("AudioPart", "Conversation", "Message", "TextPart"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'qwen2_audio' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF.get(name, "qwen2_audio.errors")), name)


def __dir__() -> list[str]:
    return __all__
