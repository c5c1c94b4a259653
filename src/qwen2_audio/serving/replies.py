"""Answers as they go out: OpenAI's objects."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field


def _absent(value: object) -> bool:
    return value is None


class ErrorDetail(BaseModel):
    """What was wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """Every answer that is no success."""

    error: ErrorDetail


class PromptDetails(BaseModel):
    """Of the prompt's tokens."""

    cached_tokens: int = Field(description="Known from earlier requests.")
    audio_tokens: int = Field(description="Of recordings, 25 a second.")


class CompletionDetails(BaseModel):
    """Of the answer's tokens; all of them are text."""

    audio_tokens: int = 0
    reasoning_tokens: int = 0


class Usage(BaseModel):
    """How many tokens a request took. The prompt counts once, however many answers were wanted."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails = CompletionDetails()


class Alternative(BaseModel):
    """A token that might have been chosen."""

    token: str
    logprob: float
    bytes: list[int]


class ChosenToken(Alternative):
    """A token of the answer."""

    top_logprobs: list[Alternative]


class ChatLogprobs(BaseModel):
    """The tokens of an answer, without the one that ended it."""

    content: list[ChosenToken]


class CompletionLogprobs(BaseModel):
    """The same in the form of text completions."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


Finish = Literal["stop", "length"]
Warnings = Annotated[
    list[str] | None,
    Field(exclude_if=_absent, description="What happened to recordings, for instance that one was heard in parts."),
]


class AnswerMessage(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class ChatChoice(BaseModel):
    """One of the answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish


class Reply(BaseModel):
    """What all answers carry."""

    id: str
    created: int = Field(description="Seconds since 1970.")
    model: str
    system_fingerprint: str


class ChatReply(Reply):
    """Answers to a conversation."""

    object: Literal["chat.completion"] = "chat.completion"
    choices: list[ChatChoice]
    usage: Usage
    warnings: Warnings = None


class ChatDelta(BaseModel):
    """What is new in an answer."""

    role: Literal["assistant"] | None = Field(None, exclude_if=_absent)
    content: str | None = Field(None, exclude_if=_absent)


class ChatChunkChoice(BaseModel):
    """What is new in one of the answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: Finish | None = None


class ChatChunk(Reply):
    """An event of a stream; `usage` stands in the last one, and only if it was asked for."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    choices: list[ChatChunkChoice]
    usage: Usage | None = Field(None, exclude_if=_absent)
    warnings: Warnings = None


class CompletionChoice(BaseModel):
    """One of the continuations; in a stream: what is new in it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Finish | None = None


class CompletionReply(Reply):
    """Continuations of bare prompts, and an event of their stream."""

    object: Literal["text_completion"] = "text_completion"
    choices: list[CompletionChoice]
    usage: Usage | None = Field(None, exclude_if=_absent)
    warnings: Warnings = None


class ModelReply(BaseModel):
    """A model or adapter that can be asked for by name."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "qwen2-audio"
    root: str = Field(description="Of an adapter: the model it belongs to.")
    parent: str | None = Field(description="The same; null for a model.")
    max_model_len: int = Field(description="Tokens of prompt and answer together.")
    transcription_window: float = Field(description="Seconds of the longest piece in which it transcribes well.")


class ModelList(BaseModel):
    """All that is served; the first is the default."""

    object: Literal["list"] = "list"
    data: list[ModelReply]


class TokenizeReply(BaseModel):
    """The ids of a prompt, every recording's placeholder repeated once for each of its audio tokens."""

    count: int
    max_model_len: int
    tokens: list[int]


class VersionReply(BaseModel):
    """Which version of the package answers."""

    version: str


class StatusReply(BaseModel):
    """Whether the server is alive or ready."""

    status: Literal["ok", "starting"]
