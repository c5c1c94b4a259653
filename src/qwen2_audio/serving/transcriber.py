"""Long recordings through any backend: windows are asked as jobs, a few at a time, and come out in order."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.longform.listening import Heard, Question, kept_text
from qwen2_audio.longform.segments import Segment
from qwen2_audio.processing.speech_windows import Window, WindowCutter
from qwen2_audio.serving.answering import deltas
from qwen2_audio.serving.backend import Backend, EngineLostError, Job, ModelCard, OverloadedError, TokenLogprob

WINDOWS_AT_ONCE = 8
"""Of one recording; more would keep others waiting."""
_ATTEMPTS = 4
"""For one window, while none of the recording is being answered."""
_RESTART_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Transcribed:
    """A segment, and the tokens of its answer where log-probabilities were asked for."""

    segment: Segment
    logprobs: tuple[TokenLogprob, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    heard: Heard
    logprobs: tuple[TokenLogprob, ...]


class ServedTranscriber:
    """One recording.

    Attributes:
        prompt_tokens, completion_tokens: what it has taken so far.
    """

    def __init__(self, backend: Backend, card: ModelCard, question: Question) -> None:
        self.prompt_tokens = self.completion_tokens = 0
        self._backend, self._card, self._question = backend, card, question
        self._cutter = WindowCutter(card.transcription_window)
        self._asked = self._answered = False
        self._in_flight = 0
        self._ended = asyncio.Event()  # set when a window was heard or given up; then it is a new one

    @property
    def samples(self) -> int:
        """How much of the recording has come, in samples at 16 kHz."""
        return self._cutter.samples

    async def segments(self, blocks: AsyncIterable[NDArray[np.float32]]) -> AsyncGenerator[Transcribed, None]:
        """What is said, in order, as it becomes certain. Closing this ends all jobs at once.

        Args:
            blocks: float32 [samples] at 16 kHz; read no faster than windows are answered.

        Raises:
            AudioError: the recording cannot be heard, perhaps after some segments.
            OverloadedError, EngineLostError: for the first window at once, for others after a few attempts; while windows
                are being answered, others wait for a place.
        """
        before = ""
        async with aclosing(self._in_order(blocks)) as answered:
            async for window, answer in answered:
                found, before = await self._settled(window, answer, before)
                for transcribed in found:
                    yield transcribed

    async def _in_order(
        self, blocks: AsyncIterable[NDArray[np.float32]]
    ) -> AsyncGenerator[tuple[Window, _Answer], None]:
        """Windows with their answers; while one is waited for, the next ones are asked."""
        asked: deque[tuple[Window, asyncio.Task[_Answer]]] = deque()
        try:
            async with aclosing(self._windows(blocks)) as windows:
                async for window in windows:
                    asked.append((window, asyncio.create_task(self._hear(window))))
                    if len(asked) == WINDOWS_AT_ONCE:
                        yield asked[0][0], await asked[0][1]
                        asked.popleft()
            while asked:
                yield asked[0][0], await asked[0][1]
                asked.popleft()
        finally:
            await _cancel([task for _, task in asked])

    async def _windows(self, blocks: AsyncIterable[NDArray[np.float32]]) -> AsyncGenerator[Window, None]:
        async for block in blocks:
            for window in await asyncio.to_thread(self._cut, block):
                yield window
        for window in await asyncio.to_thread(self._cut, None):
            yield window

    def _cut(self, block: NDArray[np.float32] | None) -> list[Window]:
        """In a thread: the windows that are certain with one more block; None: nothing follows."""
        return list(self._cutter.finish() if block is None else self._cutter.push(block))

    async def _settled(self, window: Window, answer: _Answer, before: str) -> tuple[list[Transcribed], str]:
        """What became of an answer or of those that took its place, and the text of the last one."""
        outcome = self._question.settle(window, answer.heard, before)
        if isinstance(outcome, Segment):
            found = [Transcribed(outcome, answer.logprobs if outcome.text else ())]
            return found, kept_text(answer.heard, outcome)
        tasks = [asyncio.create_task(self._hear(half)) for half in outcome]
        try:
            answers = [await task for task in tasks]
        finally:
            await _cancel(tasks)
        if kept := self._question.confirmed(window, answer.heard, before, [again.heard for again in answers]):
            return [Transcribed(kept, answer.logprobs)], kept_text(answer.heard, kept)
        found = []
        before = before if window.joined else ""
        for half, again in zip(outcome, answers, strict=True):
            settled, before = await self._settled(half, again, before)
            found += settled
        return found, before

    async def _hear(self, window: Window) -> _Answer:
        """Ask until there is an answer, or no hope of one; those who wait for a place then try again."""
        try:
            return await self._persistently(window)
        finally:
            ended, self._ended = self._ended, asyncio.Event()
            ended.set()

    async def _persistently(self, window: Window) -> _Answer:
        """Ask; again where the engine is busy or was lost, unless that befalls the first window of all."""
        first, self._asked = not self._asked, True
        attempts = 0
        while True:
            try:
                return await self._ask(window)
            except (OverloadedError, EngineLostError) as error:
                if first and not self._answered:
                    raise
                busy = isinstance(error, OverloadedError)
                if busy and self._in_flight:  # the recording's own windows take the places
                    await self._ended.wait()
                    continue
                attempts += 1
                if attempts == _ATTEMPTS:
                    raise
                await asyncio.sleep(error.retry_after if isinstance(error, OverloadedError) else _RESTART_SECONDS)

    async def _ask(self, window: Window) -> _Answer:
        """Ask once."""
        self._in_flight += 1
        try:
            answer = await self._answer(window)
        finally:
            self._in_flight -= 1
        self._answered = True
        return answer

    async def _answer(self, window: Window) -> _Answer:
        question = self._question
        job = Job(question.conversation(window), question.options_for(window), self._card.name)
        text, logprobs, finish = "", list[TokenLogprob](), None
        async with aclosing(deltas(self._backend, [job])) as stream:
            async for _, delta in stream:
                text += delta.text
                logprobs += delta.logprobs
                finish = delta.finish_reason or finish
                self.completion_tokens += delta.tokens
        self.prompt_tokens += delta.prompt_tokens
        mean = sum(token.logprob for token in logprobs) / len(logprobs) if logprobs else None
        return _Answer(Heard(text, finish or "stop", (), delta.prompt_tokens, mean), tuple(logprobs))


async def _cancel(tasks: Sequence[asyncio.Task[_Answer]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
