"""A conversation on the page, and answers to it as they are written. Knows nothing of Gradio."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import Conversation, Part, TextPart
from qwen2_audio.serving.answering import as_generator
from qwen2_audio.serving.backend import Backend, Job
from qwen2_audio.serving.ui.clips import Clip

State = Literal["writing", "done", "stopped", "failed"]

_BEAT_SECONDS = 0.5
"""A stream says at least so often that it is alive, so that whoever went away is noticed before the first token."""
_PAUSE_SECONDS = 0.04
"""Tokens that come quicker than this are shown together."""
_numbers = count(1)


@dataclass(frozen=True, slots=True)
class Speed:
    """How quick an answer was.

    Attributes:
        first: seconds until its first text.
        tokens: of the answer.
        rate: tokens a second after the first.
    """

    first: float
    tokens: int
    rate: float


@dataclass(eq=False)
class Turn:
    """What was asked, and the answer as far as it has been written.

    Attributes:
        text: written beside the recordings; may be empty.
        problem: why there is no (more) answer.
        cut: whether the answer ended because it had grown too long.
        gone: its recordings are no longer kept; nothing can be asked about them.
        number: of its answer; another one each time it is asked.
    """

    text: str
    clips: tuple[Clip, ...] = ()
    answer: str = ""
    state: State = "done"
    problem: str = ""
    cut: bool = False
    speed: Speed | None = None
    gone: bool = False
    number: int = 0

    @property
    def seconds(self) -> float:
        """Of all its recordings."""
        return sum(clip.seconds for clip in self.clips)

    def let_go(self) -> None:
        """Keep its recordings no longer."""
        self.gone = self.gone or bool(self.clips)
        self.clips = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """The user's message."""
        text = (TextPart(self.text),) if self.text else ()
        return (*(clip.part for clip in self.clips), *text)


@dataclass(eq=False)
class Chat:
    """One visitor's conversation."""

    turns: list[Turn] = field(default_factory=list)
    running: asyncio.Task[None] | None = None

    def conversation(self, turn: Turn, system: str) -> Conversation:
        """Everything up to and with the question of `turn`; without turns that have no answer, or no recordings any more."""
        conversation = Conversation().system(system) if system.strip() else Conversation()
        for earlier in self.turns[: self.turns.index(turn)]:
            if earlier.answer and earlier.parts and not earlier.gone:
                conversation = conversation.add("user", *earlier.parts).assistant(earlier.answer)
        return conversation.add("user", *turn.parts)

    def bound(self, most: float) -> None:
        """Keep recordings of at most `most` seconds together.

        Those of turns without an answer go first, then the oldest; the last turn's stay in any case.
        """
        seconds = sum(turn.seconds for turn in self.turns)
        for turn in sorted(self.turns[:-1], key=lambda turn: bool(turn.answer)):
            if seconds <= most:
                return
            seconds -= turn.seconds
            turn.let_go()

    def stop(self) -> None:
        """End the answer that is being written, if any; its work is freed at once."""
        if self.running is not None:
            self.running.cancel()

    def clear(self) -> None:
        """Forget everything."""
        self.stop()
        self.turns.clear()

    async def answer(
        self, backend: Backend, turn: Turn, *, system: str, options: GenerationOptions, model: str
    ) -> AsyncGenerator[bool, None]:
        """Write the answer of `turn`. Yields whether there is something new, at least twice a second.

        Whatever goes wrong stands in the turn afterwards. Closing the iterator, or `stop`, frees the work.
        """
        self.stop()
        turn.answer, turn.problem, turn.speed, turn.cut, turn.state = "", "", None, False, "writing"
        turn.number = next(_numbers)
        news = asyncio.Event()
        task = asyncio.create_task(_write(backend, Job(self.conversation(turn, system), options, model), turn, news))
        task.add_done_callback(lambda _: news.set())
        self.running = task
        try:
            while not task.done():
                with suppress(TimeoutError):
                    await asyncio.wait_for(news.wait(), _BEAT_SECONDS)
                yield news.is_set()
                news.clear()
                if not task.done():
                    await asyncio.sleep(_PAUSE_SECONDS)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            if turn.state == "writing":
                turn.state = "stopped"
            if self.running is task:
                self.running = None


async def _write(backend: Backend, job: Job, turn: Turn, news: asyncio.Event) -> None:
    began = time.perf_counter()
    first, tokens = 0.0, 0
    try:
        async with aclosing(as_generator(backend.generate(job))) as deltas:
            async for delta in deltas:
                tokens += delta.tokens
                turn.answer += delta.text
                now = time.perf_counter() - began
                if delta.text.strip() and not first:
                    first = now
                if first and tokens:  # some servers count at the end only
                    turn.speed = Speed(first, tokens, (tokens - 1) / (now - first) if now > first else 0.0)
                if delta.finish_reason:
                    turn.cut = delta.finish_reason == "length"
                news.set()
        turn.state = "done"
    except asyncio.CancelledError:
        turn.state = "stopped"
        raise
    except Qwen2AudioError as error:
        turn.state, turn.problem = "failed", str(error)
    except Exception:  # whatever it is, the visitor gets an answer, and the log the reason
        logging.getLogger(__name__).exception("an answer failed")
        turn.state, turn.problem = "failed", "something went wrong on the server; its log says what"
