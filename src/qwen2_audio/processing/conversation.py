"""`Conversation`: the one currency of data, training, inference, evaluation and serving."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Number
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias
from urllib.parse import unquote, urlsplit

from qwen2_audio.errors import ConversationError, advice

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

AudioSource: TypeAlias = "str | os.PathLike[str] | bytes | BinaryIO | tuple[NDArray[np.generic], int]"
"""A path, http(s) or data URL, the bytes of a file, an open binary file, or (samples, rate)."""


@dataclass(frozen=True, slots=True)
class TextPart:
    text: str


@dataclass(frozen=True, slots=True)
class AudioPart:
    """A recording, or a stretch of it.

    Attributes:
        start, end: in seconds; None is the end of the recording.
    """

    source: AudioSource = field(repr=False)
    start: float = 0.0
    end: float | None = None


Part: TypeAlias = TextPart | AudioPart


@dataclass(frozen=True, slots=True)
class Message:
    """One turn: who speaks, and text and audio in the order given."""

    role: Role
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise ConversationError(f"unknown role {self.role!r}; use one of {', '.join(ROLES)}")

    @property
    def text(self) -> str:
        """The text parts, joined."""
        return "".join(part.text for part in self.parts if isinstance(part, TextPart))


@dataclass(frozen=True, slots=True)
class Conversation:
    """Messages in order. The default system message is added by the renderer, not here."""

    messages: tuple[Message, ...] = ()

    @classmethod
    def parse(cls, messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Read the original's list-of-dicts form.

        A message is {"role": ..., "content": str or list}; a content entry is {"type": "text", "text": ...} or
        {"type": "audio", "audio_url" | "audio" | "path" | "url": ...}.

        Raises:
            ConversationError: anything else. Nothing is dropped silently.
        """
        if isinstance(messages, str | Mapping) or not isinstance(messages, Sequence):
            raise ConversationError(f"a conversation is a list of messages, got {type(messages).__name__}")
        return cls(tuple(_parse_message(message, index) for index, message in enumerate(messages)))

    def add(self, role: Role, *parts: Part) -> Conversation:
        """A longer conversation; this one stays as it is."""
        return Conversation((*self.messages, Message(role, parts)))

    def user(self, *parts: AudioSource | Part) -> Conversation:
        """Add a user message; see `user_parts` for what a bare `str` means."""
        return self.add("user", *user_parts(parts))

    def assistant(self, text: str) -> Conversation:
        """Add an answer."""
        return self.add("assistant", TextPart(text))

    def system(self, text: str) -> Conversation:
        """Add a system message; it must come first."""
        return self.add("system", TextPart(text))

    @property
    def audios(self) -> tuple[AudioSource, ...]:
        """All recordings in order."""
        return tuple(p.source for message in self.messages for p in message.parts if isinstance(p, AudioPart))


Item: TypeAlias = "AudioSource | Part"
Input: TypeAlias = "Item | Sequence[Item] | Conversation"
"""One thing to say or show, several in order, or a whole conversation."""


def as_conversation(message: Input, system: str | None = None) -> Conversation:
    """A message as a conversation; a list of dicts is read as the original's conversation form, a tuple of two whose second
    is a number as (samples, rate)."""
    if isinstance(message, Conversation):
        conversation = message
    elif isinstance(message, list) and message and all(isinstance(item, dict) for item in message):
        conversation = Conversation.parse(message)
    else:
        items: Sequence[Any] = message if isinstance(message, list | tuple) and not is_wave(message) else [message]
        conversation = Conversation().user(*items)
    if system is None:
        return conversation
    if conversation.messages and conversation.messages[0].role == "system":
        raise ConversationError("a system message is given twice: in the conversation and as system=")
    return Conversation((*Conversation().system(system).messages, *conversation.messages))


def is_wave(item: object) -> bool:
    """Whether this is a recording as (samples, rate) rather than several items: a tuple of two whose second is a number."""
    return isinstance(item, tuple) and len(item) == 2 and isinstance(item[1], Number)


def as_audio(audio: AudioSource | Part) -> AudioPart:
    """What is to be transcribed, as a part."""
    if isinstance(audio, TextPart):
        raise ConversationError(f"there is nothing to transcribe in a text: {audio.text!r:.60}")
    return audio if isinstance(audio, AudioPart) else AudioPart(audio)


AUDIO_SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .m4a .aac .webm .mp4 .mov .mkv .wma .aif .aiff .aifc .au .amr .3gp".split()
)


def user_parts(items: Sequence[AudioSource | Part]) -> tuple[Part, ...]:
    """Turn what a person would write into parts.

    A `str` is a recording when it is a data:audio URL, an http(s) URL, a path with an audio suffix, a path by its looks
    (`/x`, `./x`, `../x`, `~/x`, no space in it) or that of an existing file, and text otherwise; wrap it in `TextPart` or
    `AudioPart` to be explicit. Anything else that is not text (bytes, Path, file object, (samples, rate)) is a recording.
    """
    if not items:
        raise ConversationError("an empty message: give at least one recording or text")
    return tuple(item if isinstance(item, TextPart | AudioPart) else _guess(item) for item in items)


def _guess(item: AudioSource) -> Part:
    if not isinstance(item, str):
        return AudioPart(item)
    return AudioPart(item) if looks_like_audio(item) else TextPart(item)


def looks_like_audio(text: str) -> bool:
    """Whether a bare string names a recording rather than being something to say; see `user_parts`."""
    if text.startswith(("data:audio/", "data:video/", "data:application/")):
        return True
    if "\n" in text or len(text) > 4096:
        return False
    if text.startswith(("http://", "https://")):
        return " " not in text
    if " " not in text and text.startswith(("/", "./", "../", "~/")):
        return True
    return os.path.splitext(text)[1].lower() in AUDIO_SUFFIXES or os.path.isfile(text)


def url_path(address: str) -> str:
    """The path of a URL, unquoted; the whole address where it is malformed, so that fetching it says what is wrong."""
    try:
        return unquote(urlsplit(address).path)
    except ValueError:
        return address


_SOURCE_KEYS = ("audio_url", "audio", "path", "url")


def _refuse_unknown_keys(given: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise ConversationError(f"{where}: unknown key {key!r}; {advice(str(key), known)}")


def _parse_message(message: Any, index: int) -> Message:
    if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
        raise ConversationError(f'message {index} must be a dict with "role" and "content", got {message!r:.100}')
    _refuse_unknown_keys(message, ("role", "content"), f"message {index}")
    content = message["content"]
    if isinstance(content, str):
        return Message(message["role"], (TextPart(content),))
    if not isinstance(content, Sequence):
        raise ConversationError(f"message {index}: content must be text or a list, got {type(content).__name__}")
    return Message(message["role"], tuple(_parse_part(part, index) for part in content))


def _parse_part(part: Any, index: int) -> Part:
    if isinstance(part, str):
        return TextPart(part)
    if isinstance(part, Mapping):
        _refuse_unknown_keys(part, ("type", "text", *_SOURCE_KEYS), f"message {index}, content entry {part!r:.100}")
        kind, text = part.get("type"), part.get("text")
        sources = [part[key] for key in _SOURCE_KEYS if part.get(key) is not None]
        if kind == "text" and isinstance(text, str) and not sources:
            return TextPart(text)
        if kind in ("audio", "audio_url", None) and len(sources) == 1 and text is None:
            return AudioPart(sources[0])
    raise ConversationError(
        f'message {index}: cannot read the content entry {part!r:.100}; use {{"type": "text", "text": ...}} '
        'or {"type": "audio", "audio_url": ...}'
    )
