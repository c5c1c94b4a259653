"""What a server says while it answers: server-sent events to chunks. Bytes in, values out; no sockets here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from qwen2_audio.generation.loops import repeated_tail
from qwen2_audio.generation.sequence import FinishReason

LONGEST_EVENT = 4 * 1024 * 1024
"""Bytes; a server that sends more without an end of line is none."""
_LINE = re.compile(rb"\r\n|\n|\r(?=.)", re.DOTALL)
"""Where a line ends: JSON may hold other characters that Unicode calls line ends."""
_ENDS = frozenset(b"\r\n")
_WORD = re.compile(r"[a-zA-Z0-9À-ɏ']+|\S")


class BadStreamError(Exception):
    """A server's bytes are no chat completion."""


class SseDecoder:
    """Bytes of a `text/event-stream`, cut anywhere, to the data of its events."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._data: list[str] = []

    def feed(self, piece: bytes) -> Iterator[str]:
        """The data of the events that are now complete."""
        self._rest += piece
        if len(self._rest) + sum(map(len, self._data)) > LONGEST_EVENT:
            raise BadStreamError(f"an event of more than {LONGEST_EVENT} bytes")
        if not _ENDS.intersection(piece):
            return
        *lines, self._rest = map(bytearray, _LINE.split(self._rest))
        for line in lines:
            if not line and self._data:
                yield "\n".join(self._data)
                self._data = []
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" ").decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens, as the server counts them."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Logprob:
    """A token, and the likeliest in its place as (text, bytes, log-probability)."""

    token: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...]


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of an answer.

    Attributes:
        error: what went wrong in the middle, as the server says it; nothing follows it.
        code, kind: of that error, where the server names them: 400 or "overloaded", and "BadRequestError".
    """

    text: str = ""
    finish_reason: FinishReason | None = None
    usage: Usage | None = None
    logprobs: tuple[Logprob, ...] = ()
    error: str = ""
    code: str = ""
    kind: str = ""
    aborted: bool = False


def read_chunk(data: str) -> Chunk:
    """An event's data as a chunk of a chat completion or of a text completion.

    Raises:
        BadStreamError: it is neither.
    """
    try:
        event = json.loads(data)
        if isinstance(event, dict) and event.get("error"):
            return _failure(event["error"])
        usage = _usage(event.get("usage"))
        if not event["choices"]:
            return Chunk(usage=usage)
        choice = event["choices"][0]
        text = choice["text"] if "text" in choice else (choice.get("delta") or {}).get("content")
        reason = choice.get("finish_reason")
        return Chunk(
            text or "",
            None if reason is None else "length" if reason == "length" else "stop",
            usage,
            _logprobs(choice.get("logprobs")),
            aborted=reason in ("abort", "error"),
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadStreamError(f"no chat completion chunk: {data:.200}") from error


def _failure(error: Any) -> Chunk:
    if not isinstance(error, dict):
        return Chunk(error=str(error))
    code, kind = error.get("code"), error.get("type")
    return Chunk(error=str(error.get("message", error)), code=str(code or ""), kind=str(kind or ""))


def _usage(value: Mapping[str, Any] | None) -> Usage | None:
    if not value:
        return None
    details = value.get("prompt_tokens_details") or {}
    return Usage(
        int(value["prompt_tokens"]), int(value.get("completion_tokens") or 0), int(details.get("cached_tokens") or 0)
    )


def _logprobs(value: Mapping[str, Any] | None) -> tuple[Logprob, ...]:
    def read(entry: Mapping[str, Any]) -> tuple[str, bytes, float]:
        raw = entry.get("bytes")
        return entry["token"], entry["token"].encode() if raw is None else bytes(raw), float(entry["logprob"])

    if value and value.get("tokens"):
        return _completion_logprobs(value)
    if not value or not value.get("content"):
        return ()
    return tuple(Logprob(*read(entry), tuple(map(read, entry.get("top_logprobs") or ()))) for entry in value["content"])


def _completion_logprobs(value: Mapping[str, Any]) -> tuple[Logprob, ...]:
    """The same in the form of text completions, which knows no bytes."""
    alternatives = value.get("top_logprobs") or [{}] * len(value["tokens"])
    return tuple(
        Logprob(token, token.encode(), float(logprob), tuple((t, t.encode(), float(p)) for t, p in (top or {}).items()))
        for token, logprob, top in zip(value["tokens"], value["token_logprobs"], alternatives, strict=True)
    )


class LoopWatch:
    """Notices in the text of an answer that a model goes round in circles, where only the server knows the tokens."""

    def __init__(self) -> None:
        self._text = ""

    def push(self, text: str) -> bool:
        """Add text; whether its words now end in a loop (see `repeated_tail`, by whose rule words count as tokens)."""
        self._text = (self._text + text)[-4096:]
        numbers: dict[str, int] = {}
        return repeated_tail([numbers.setdefault(word, len(numbers)) for word in _WORD.findall(self._text)]) > 0
