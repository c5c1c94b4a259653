"""`Backend`: whatever answers jobs. The engine of this machine (`local.py`) and servers elsewhere (`upstream.py`) are two."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Protocol

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sequence import FinishReason
from qwen2_audio.processing.conversation import AudioPart, Conversation


class OverloadedError(Qwen2AudioError):
    """The queue is full or a wait took too long; the same request may succeed later.

    Attributes:
        retry_after: seconds after which to try again.
    """

    def __init__(self, message: str, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class EngineLostError(Qwen2AudioError):
    """The engine died or cannot be reached while it answered; the same request may succeed later."""


class UnknownModelError(Qwen2AudioError, LookupError):
    """A job names a model that is not served here."""


@dataclass(frozen=True, slots=True)
class BarePrompt:
    """The base model's form: recordings, then text, without a chat.

    Attributes:
        audios: decoded recordings, sources (float32 [samples], 16000).
        text: what follows them.
    """

    audios: tuple[AudioPart, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Job:
    """One answer that is wanted.

    Attributes:
        prompt: a conversation or a bare prompt whose recordings are decoded: every audio part's source is
            (float32 [samples], 16000). Those over 30 s become windows when the prompt is rendered.
        options: how to choose tokens, when to stop, whether log-probabilities or JSON are wanted.
        model: a name of `Backend.models`.
    """

    prompt: Conversation | BarePrompt
    options: GenerationOptions
    model: str


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A chosen token with its log-probability, and the likeliest alternatives.

    Attributes:
        token: its text (broken characters replaced); `data`: its bytes.
        top: the likeliest tokens at this place, best first, as (text, bytes, log-probability).
    """

    token: str
    data: bytes
    logprob: float
    top: tuple[tuple[str, bytes, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Delta:
    """What is new in an answer.

    Attributes:
        text: text that is now certain, often "".
        tokens: how many tokens were chosen for it.
        prompt_tokens: of the whole prompt; the same in every delta of an answer, 0 before an engine elsewhere says it.
        finish_reason: set in the last delta, and only there.
        logprobs: of the tokens, where they were asked for.
        cached_tokens: how many of the prompt's tokens were known from earlier requests.
    """

    text: str
    tokens: int
    prompt_tokens: int
    finish_reason: FinishReason | None = None
    logprobs: tuple[TokenLogprob, ...] = field(default=())
    cached_tokens: int = 0


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model or adapter that can be asked for by name.

    Attributes:
        root: of an adapter: the model it belongs to.
        context_length: tokens of prompt and answer together.
        transcription_window: seconds of the longest piece in which it transcribes well.
    """

    name: str
    context_length: int
    transcription_window: float
    defaults: GenerationOptions
    root: str | None = None


class Backend(Protocol):
    """What the routes, the transcriber and the page ask for answers."""

    @property
    def models(self) -> tuple[ModelCard, ...]:
        """All that can be asked for; the first is the default."""
        ...

    @property
    def ready(self) -> bool:
        """Whether a job given now would be worked on."""
        ...

    def generate(self, job: Job) -> AsyncIterator[Delta]:
        """Answer a job. Closing the iterator, or cancelling the task that reads it, frees everything at once.

        Raises:
            UnknownModelError, ContextLengthError, ConversationError, AudioError: the job makes no sense.
            OverloadedError: too much is waiting.
            EngineLostError: the engine died or cannot be reached.
        """
        ...

    async def tokenize(self, prompt: Conversation | BarePrompt, model: str) -> tuple[list[int], int]:
        """The ids of a prompt and the context length; an upstream server that cannot say raises `UsageError`."""
        ...

    def gauges(self) -> dict[str, float]:
        """What is going on, for `/metrics`: requests_running, requests_waiting, cache_usage (0 to 1), engine_restarts."""
        ...

    async def start(self) -> None:
        """Load, connect, and return when jobs can be answered."""
        ...

    async def close(self) -> None:
        """End everything; jobs still running end with `EngineLostError`."""
        ...
