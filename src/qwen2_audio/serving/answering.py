"""From jobs to answers, one at a time or several together; streamed and whole answers come from the same deltas."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import cast

from qwen2_audio import __version__
from qwen2_audio.serving.backend import Backend, Delta, EngineLostError, Job, TokenLogprob
from qwen2_audio.serving.convert import Asked
from qwen2_audio.serving.replies import Alternative, ChatLogprobs, ChosenToken, Finish, PromptDetails, Usage

FINGERPRINT = f"qwen2-audio-{__version__}"
_AHEAD = 16
"""Deltas of several answers that may wait for a slow reader."""


def new_id(kind: str) -> tuple[str, int]:
    """A name for an answer, and the time."""
    return f"{kind}-{uuid.uuid4().hex}", int(time.time())


async def deltas(backend: Backend, jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, Delta], None]:
    """What is new, with the index of the job it belongs to. Closing this ends all jobs at once.

    Raises:
        EngineLostError: an answer has no end.
        Qwen2AudioError: whatever the backend raises for any of the jobs.
    """
    if len(jobs) == 1:
        async with aclosing(_whole(backend, jobs[0])) as stream:
            async for delta in stream:
                yield 0, delta
        return
    queue: asyncio.Queue[tuple[int, Delta | Exception]] = asyncio.Queue(_AHEAD)
    tasks = [asyncio.create_task(_pump(backend, job, index, queue)) for index, job in enumerate(jobs)]
    left = len(tasks)
    try:
        while left:
            index, item = await queue.get()
            if isinstance(item, Exception):
                raise item
            left -= item.finish_reason is not None
            yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _pump(backend: Backend, job: Job, index: int, queue: asyncio.Queue[tuple[int, Delta | Exception]]) -> None:
    try:
        async with aclosing(_whole(backend, job)) as stream:
            async for delta in stream:
                await queue.put((index, delta))
    except Exception as error:
        await queue.put((index, error))


async def _whole(backend: Backend, job: Job) -> AsyncGenerator[Delta, None]:
    """The deltas of one job up to its end."""
    async with aclosing(as_generator(backend.generate(job))) as stream:
        async for delta in stream:
            if delta.finish_reason == "cancelled":
                break
            yield delta
            if delta.finish_reason:
                return
    raise EngineLostError("the answer was broken off by the engine; try again")


def as_generator(stream: AsyncIterator[Delta]) -> AsyncGenerator[Delta, None]:
    """Backends promise that closing what they return frees everything, so it can be closed."""
    return cast("AsyncGenerator[Delta, None]", stream)


@dataclass(slots=True)
class Answer:
    """One answer as far as it has come."""

    texts: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: int = 0
    finish_reason: Finish | None = None

    def add(self, delta: Delta) -> None:
        """Take in what is new."""
        self.texts.append(delta.text)
        self.logprobs += delta.logprobs
        self.tokens += delta.tokens
        self.finish_reason = finish_of(delta)

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(self.texts)

    @property
    def ended(self) -> Finish:
        """Why it is over."""
        if self.finish_reason is None:
            raise EngineLostError("the answer has no end; try again")
        return self.finish_reason


def finish_of(delta: Delta) -> Finish | None:
    """In OpenAI's words."""
    return "length" if delta.finish_reason == "length" else "stop" if delta.finish_reason else None


class Answers:
    """The answers to a request as far as they have come, and what they took."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.answers = [Answer() for _ in asked.jobs]
        self._prompts = [0] * asked.prompts
        self._cached: list[int | None] = [None] * asked.prompts

    def add(self, index: int, delta: Delta) -> None:
        """Take in what is new in the answer to the job `index`."""
        self.answers[index].add(delta)
        prompt = index // self.asked.choices
        self._prompts[prompt] = delta.prompt_tokens
        known = self._cached[prompt]
        self._cached[prompt] = delta.cached_tokens if known is None else min(known, delta.cached_tokens)

    @property
    def usage(self) -> Usage:
        """So far. What the first of several answers brought into the cache does not count as cached for the others."""
        prompt = sum(self._prompts)
        completion = sum(answer.tokens for answer in self.answers)
        cached = sum(count or 0 for count in self._cached)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptDetails(cached_tokens=cached, audio_tokens=self.asked.audio_tokens),
        )


async def answer_all(backend: Backend, answers: Answers) -> None:
    """Bring all answers to their end."""
    async with aclosing(deltas(backend, answers.asked.jobs)) as stream:
        async for index, delta in stream:
            answers.add(index, delta)


def chat_logprobs(tokens: Sequence[TokenLogprob]) -> ChatLogprobs:
    """In the form of chat completions."""
    return ChatLogprobs(
        content=[
            ChosenToken(
                token=token.token,
                logprob=finite(token.logprob),
                bytes=list(token.data),
                top_logprobs=[
                    Alternative(token=text, logprob=finite(logprob), bytes=list(data))
                    for text, data, logprob in token.top
                ],
            )
            for token in tokens
        ]
    )


def finite(logprob: float) -> float:
    """JSON has no infinity; OpenAI writes -9999 for what is impossible."""
    return max(logprob, -9999.0)
