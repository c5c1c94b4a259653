"""`Prompts`: what is sent to engines elsewhere, encoded once for all its answers, and no more than so much of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

from qwen2_audio.processing.audio import load_part
from qwen2_audio.processing.chat_template import render_base
from qwen2_audio.processing.conversation import AudioPart, Conversation, TextPart
from qwen2_audio.remote.wire import Dialect, bare_fields, chat_messages
from qwen2_audio.serving.backend import BarePrompt, OverloadedError

ENGINE = "the engine behind this server"
_MIB = 1 << 20
_ENCODED_AT_ONCE = 2
"""Prompts; on the way from samples to JSON each takes a multiple of what it takes in the end."""


class Prompts:
    """The prompts of all jobs of which nothing has been answered yet. One event loop uses it.

    Args:
        nbytes: how large they may be together; a single one may always.
    """

    def __init__(self, nbytes: int) -> None:
        self._room = nbytes
        self._held: dict[int, _Held] = {}
        self._turns = asyncio.Semaphore(_ENCODED_AT_ONCE)

    @property
    def nbytes(self) -> int:
        """How large all of them are, encoded or not."""
        return sum(held.nbytes for held in self._held.values())

    def hold(self, prompt: Conversation | BarePrompt) -> Place:
        """Hold a prompt until the with-block ends or `release` is called.

        Raises:
            OverloadedError: there is no room for it.
        """
        held = self._held.get(id(prompt))
        if held is None:
            held = _Held(prompt, _size_of(prompt))
            waiting = self.nbytes
            if waiting and waiting + held.nbytes > self._room:
                message = f"{waiting / _MIB:.0f} MiB of recordings are waiting already; try again later"
                raise OverloadedError(message, retry_after=2)
            self._held[id(prompt)] = held
        held.users += 1
        return Place(self, held)

    async def encoded(self, held: _Held, dialect: Dialect) -> bytes:
        """A prompt as the fields of a request, without the brace at the end."""
        if not held.is_chat and not dialect.bare_prompts:
            return await asyncio.to_thread(_encode, held.prompt, dialect)  # text alone, or refused
        async with held.turn:  # the first one encodes it, the others wait for that
            if held.data is None:
                async with self._turns:
                    held.data = await asyncio.to_thread(_encode, held.prompt, dialect)
            return held.data

    def drop(self, held: _Held) -> None:
        """One user less."""
        held.users -= 1
        if not held.users:
            del self._held[id(held.prompt)]


class _Held:
    def __init__(self, prompt: Conversation | BarePrompt, nbytes: int) -> None:
        self.prompt, self.nbytes = prompt, nbytes
        self.is_chat = isinstance(prompt, Conversation)
        self.users = 0
        self.turn = asyncio.Lock()
        self.data: bytes | None = None


class Place:
    """A prompt that is held for one job."""

    def __init__(self, prompts: Prompts, held: _Held) -> None:
        self._prompts = prompts
        self._held: _Held | None = held

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def release(self) -> None:
        """It will not be sent again."""
        held, self._held = self._held, None
        if held is not None:
            self._prompts.drop(held)

    async def body(self, fields: Mapping[str, Any], dialect: Dialect) -> Body:
        """The body of a request: the prompt, and `fields` beside it.

        Raises:
            UsageError, ConversationError, AudioError: an engine of that kind cannot be asked so.
        """
        if self._held is None:
            raise RuntimeError("the prompt was released")
        prompt = await self._prompts.encoded(self._held, dialect)
        return Body(prompt, b"," + json.dumps(fields, ensure_ascii=False).encode()[1:])


class Body:
    """JSON in pieces, of which the large one belongs to several requests; it can be sent once.

    Attributes:
        headers: what must be said of it.
    """

    def __init__(self, *pieces: bytes) -> None:
        self._pieces = list(pieces)
        self.headers = {"Content-Type": "application/json", "Content-Length": str(sum(map(len, pieces)))}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while self._pieces:  # what was sent is kept by nobody
            yield self._pieces.pop(0)


def _size_of(prompt: Conversation | BarePrompt) -> int:
    """About how many bytes it has when it is encoded; 16 bits a sample, 4 characters of base64 for 3 bytes."""
    if isinstance(prompt, BarePrompt):
        parts: list[AudioPart | TextPart] = [*prompt.audios, TextPart(prompt.text)]
    else:
        parts = [part for message in prompt.messages for part in message.parts]
    texts = sum(len(part.text) for part in parts if isinstance(part, TextPart))
    sources = [part.source for part in parts if isinstance(part, AudioPart)]
    return texts + sum(len(source[0]) * 8 // 3 for source in sources if isinstance(source, tuple))


def _encode(prompt: Conversation | BarePrompt, dialect: Dialect) -> bytes:
    if isinstance(prompt, BarePrompt):
        render_base(len(prompt.audios), prompt.text)  # complains about what cannot be a prompt
        fields = bare_fields([load_part(part) for part in prompt.audios], prompt.text, dialect, ENGINE)
    else:
        fields = {"messages": chat_messages(prompt)}
    return json.dumps(fields, ensure_ascii=False).encode()[:-1]
