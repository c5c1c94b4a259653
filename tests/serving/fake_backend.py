"""A backend that follows a script: no model, no torch, everything that was asked of it on record."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.stopping import StopMatcher
from qwen2_audio.processing.conversation import AudioPart, Conversation, Part
from qwen2_audio.serving.backend import (
    BarePrompt,
    Delta,
    Job,
    ModelCard,
    TokenLogprob,
    UnknownModelError,
)

CARDS = (
    ModelCard("mini", 2048, 12.0, GenerationOptions(max_new_tokens=64)),
    ModelCard("digits", 2048, 12.0, GenerationOptions(max_new_tokens=64), root="mini"),
)
Answer = Callable[[Job], Sequence[str]]


def parts_of(prompt: Conversation | BarePrompt) -> list[Part | str]:
    """Everything in a prompt in order."""
    if isinstance(prompt, BarePrompt):
        return [*prompt.audios, prompt.text]
    return [part for message in prompt.messages for part in message.parts]


def seconds_of(part: AudioPart) -> float:
    """Duration of a decoded recording."""
    samples, rate = part.source  # type: ignore[misc]
    return len(samples) / float(rate)  # type: ignore[arg-type]


def echo(job: Job) -> list[str]:
    """The last message (or the bare prompt) said again, a word a token, recordings as `[1.5 s]`."""
    prompt = job.prompt
    parts = parts_of(prompt) if isinstance(prompt, BarePrompt) else prompt.messages[-1].parts
    words: list[str] = []
    for part in parts:
        if isinstance(part, AudioPart):
            words.append(f"[{seconds_of(part):.1f} s]")
        else:
            words += (part if isinstance(part, str) else part.text).split()
    return [word if index == 0 else f" {word}" for index, word in enumerate(words)]


@dataclass
class FakeBackend:
    """Answers with the pieces that `answer` gives, one token each.

    Attributes:
        cards: what is served.
        answer: a job to the pieces of its answer.
        delay: seconds before each piece.
        error: raised when `error_after` pieces are out.
        cached_tokens: what every delta claims.
        endless: answers stop without a finish reason.
        holding: while it is True, no piece comes; may be set from any thread.
        jobs: all that was asked, in order.
        running, most_running, cancelled, finished: counts of jobs.
    """

    cards: tuple[ModelCard, ...] = CARDS
    answer: Answer = echo
    delay: float = 0.0
    error: Exception | None = None
    error_after: int = 0
    cached_tokens: int = 0
    is_ready: bool = True
    endless: bool = False
    holding: bool = False
    jobs: list[Job] = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    cancelled: int = 0
    finished: int = 0
    started: bool = False
    closed: bool = False

    @property
    def models(self) -> tuple[ModelCard, ...]:
        return self.cards

    @property
    def ready(self) -> bool:
        return self.is_ready

    async def generate(self, job: Job) -> AsyncIterator[Delta]:
        self._refuse_unknown(job.model)
        self.jobs.append(job)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        done = False
        try:
            prompt_tokens = len(self._ids(job.prompt))
            async for delta in self._deltas(job, prompt_tokens):
                done = delta.finish_reason is not None
                self.finished += done
                yield delta
        finally:
            self.running -= 1
            self.cancelled += not done

    async def _deltas(self, job: Job, prompt_tokens: int) -> AsyncIterator[Delta]:
        pieces, options = list(self.answer(job)), job.options
        stops, limit = StopMatcher(options.stop), options.max_new_tokens or len(pieces) + 1
        for index in range(min(len(pieces) + 1, limit)):
            if self.error and index == self.error_after:
                raise self.error
            if self.delay:
                await asyncio.sleep(self.delay)
            while self.holding:
                await asyncio.sleep(0.005)
            over = index == len(pieces)
            if over and self.endless:
                return
            text = stops.push("" if over else pieces[index])
            finish = "stop" if over or stops.stopped else "length" if index == limit - 1 else None
            text += stops.finish() if finish and not stops.stopped else ""
            logprobs = () if options.logprobs is None or over else (_logprob(pieces[index], options.logprobs),)
            yield Delta(text, 1, prompt_tokens, finish, logprobs, self.cached_tokens)  # type: ignore[arg-type]
            if finish:
                return

    def _refuse_unknown(self, model: str) -> None:
        if model not in {card.name for card in self.cards}:
            raise UnknownModelError(f"no model {model!r} is served here")

    def _ids(self, prompt: Conversation | BarePrompt) -> list[int]:
        """A token for each word and 25 a second of a recording, numbered through."""
        count = 0
        for part in parts_of(prompt):
            if isinstance(part, AudioPart):
                count += int(seconds_of(part) * 25)
            else:
                count += len((part if isinstance(part, str) else part.text).split())
        return list(range(count))

    async def tokenize(self, prompt: Conversation | BarePrompt, model: str) -> tuple[list[int], int]:
        self._refuse_unknown(model)
        return self._ids(prompt), self.cards[0].context_length

    def gauges(self) -> dict[str, float]:
        return {"requests_running": self.running, "requests_waiting": 0, "cache_usage": 0.25, "engine_restarts": 0}

    async def start(self) -> None:
        self.started = True

    async def close(self) -> None:
        self.closed = True


def _logprob(token: str, count: int) -> TokenLogprob:
    top = tuple((f"{token}{'?' * rank}", f"{token}{'?' * rank}".encode(), -0.5 - rank) for rank in range(count))
    return TokenLogprob(token, token.encode(), -0.5, top)
