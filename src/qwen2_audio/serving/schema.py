"""Requests as they come: OpenAI's fields and vLLM's, in types that refuse what makes no sense."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidatorFunctionWrapHandler,
    WithJsonSchema,
    WrapValidator,
    model_validator,
)

from qwen2_audio.serving.fields import BOOKKEEPING, Strict, refusal

MAX_TOKENS = 2**31 - 1
_TOGETHER = 64
"""Entries of an object that are checked at a time. Like `fail_fast` of lists: of 100,000 wrong ones the first is told, and
the others are not looked at."""


class TextContent(Strict):
    """Text of a message."""

    type: Literal["text"]
    text: str


class AudioData(Strict):
    """A recording in the request itself."""

    data: str = Field(description="The file, in base64.", min_length=1)
    format: str = Field(
        "", description="wav, mp3, flac, ogg, opus, m4a, webm and others; must fit the data.", max_length=32
    )


class AudioLink(Strict):
    """A recording elsewhere."""

    url: str = Field(description="An http(s) address of the public internet, or a data URL.", min_length=1)


class InputAudio(Strict):
    """A recording in base64."""

    ignored: ClassVar[frozenset[str]] = frozenset({"uuid"})
    type: Literal["input_audio"]
    input_audio: AudioData


class AudioUrl(Strict):
    """A recording at an address."""

    ignored: ClassVar[frozenset[str]] = frozenset({"uuid"})
    type: Literal["audio_url"]
    audio_url: AudioLink


AudioContent = Annotated[InputAudio | AudioUrl, Field(discriminator="type")]
Content = Annotated[TextContent | InputAudio | AudioUrl, Field(discriminator="type")]


def _text_or_list(value: Any) -> str | None:
    return "text" if isinstance(value, str) else "list" if isinstance(value, list) else None


TextOrContents = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[Content], Tag("list"), Field(min_length=1, fail_fast=True)],
    Discriminator(_text_or_list, custom_error_type="text_type", custom_error_message="give text or a list of parts"),
]
TextOrTexts = Annotated[
    Annotated[str, Tag("text")] | Annotated[list[str], Tag("list"), Field(min_length=1, fail_fast=True)],
    Discriminator(_text_or_list, custom_error_type="text_type", custom_error_message="give text or a list of texts"),
]


class ChatMessage(Strict):
    """A turn: who speaks, and text and recordings in order. `developer` is another word for `system`."""

    role: Literal["system", "developer", "user", "assistant"]
    content: TextOrContents


class StreamOptions(Strict):
    """What a stream tells besides the answer."""

    ignored: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})
    include_usage: bool | None = Field(None, description="End with a chunk that holds the usage.")


class TextFormat(Strict):
    """Free text."""

    type: Literal["text"]


class JsonObject(Strict):
    """Any JSON object."""

    type: Literal["json_object"]


class NamedSchema(Strict):
    """A JSON schema. It is always obeyed to the letter, whatever `strict` says."""

    ignored: ClassVar[frozenset[str]] = frozenset({"strict", "description"})
    name: str = Field(min_length=1, max_length=64)
    json_schema: dict[str, Any] | None = Field(None, alias="schema")


class JsonSchema(Strict):
    """JSON that obeys a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


ResponseFormat = Annotated[TextFormat | JsonObject | JsonSchema, Field(discriminator="type")]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[
    list[Annotated[str, Field(min_length=1)]],
    Field(fail_fast=True),
    BeforeValidator(_listed),
    WithJsonSchema(
        {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}}]}
    ),
]


def _some_at_a_time(value: Any, check: ValidatorFunctionWrapHandler) -> Any:
    if not isinstance(value, dict):
        return check(value)
    entries = list(value.items())
    checked: dict[Any, Any] = {}
    for at in range(0, len(entries), _TOGETHER):
        checked |= check(dict(entries[at : at + _TOGETHER]))
    return checked


TokenId = Annotated[int, Field(ge=0, lt=2**31)]
Bias = Annotated[
    dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]],
    WrapValidator(_some_at_a_time),
    Field(description="Token id to what is added to its logit."),
]


class Sampling(Strict):
    """Fields that all requests for text share. What is left out is as the model's checkpoint says."""

    ignored: ClassVar[frozenset[str]] = BOOKKEEPING
    model: str | None = Field(None, description="A model or adapter of /v1/models; the first by default.")
    stream: bool | None = Field(None, description="Answer as server-sent events.")
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="Answers wanted.")
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Longest answer, in tokens."
    )
    min_tokens: Annotated[int, Field(ge=0, le=MAX_TOKENS)] | None = Field(
        None, description="No end before so many tokens."
    )
    temperature: Annotated[float, Field(ge=0, le=100)] | None = Field(None, description="0 takes the likeliest token.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=MAX_TOKENS)] | None = Field(None, description="0 and -1 are off.")
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = Field(None, description="Makes drawing repeatable.")
    stop: Stops | None = Field(None, description="The answer ends before any of these texts.")
    stop_token_ids: Annotated[list[TokenId], Field(fail_fast=True)] | None = Field(
        None, description="The answer ends at any of these tokens."
    )
    ignore_eos: bool | None = Field(None, description="Go on past the model's own end of an answer.")
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=100)] | None = None
    logit_bias: Bias | None = None
    response_format: ResponseFormat | None = None

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream ends with its usage."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    @model_validator(mode="after")
    def _options_of_streams(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refusal("stream_options", "stream_options are for streams; set stream to true, or leave them out")
        return self


class ChatRequest(Sampling):
    """A conversation that is to be answered."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="Another name of max_tokens."
    )
    logprobs: bool | None = Field(None, description="Tell the log-probabilities of the answer's tokens.")
    top_logprobs: Annotated[int, Field(ge=0)] | None = Field(None, description="Alternatives a token, with logprobs.")

    @model_validator(mode="after")
    def _fields_that_go_together(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise refusal("top_logprobs", "top_logprobs are told with logprobs only; set logprobs to true")
        limits = {self.max_tokens, self.max_completion_tokens} - {None}
        if len(limits) > 1:
            raise refusal("max_tokens", "max_tokens and max_completion_tokens are one thing; give one of them")
        return self


class CompletionRequest(Sampling):
    """The base model's bare prompt: recordings, then text that is continued; no chat."""

    prompt: TextOrTexts = Field(description="Text, or several texts that are continued each by itself.")
    audio: Annotated[list[AudioContent], Field(fail_fast=True)] | None = Field(
        None, description="Recordings in front of every prompt, in order (an extension of this server)."
    )
    logprobs: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Log-probabilities with so many alternatives."
    )


class TokenizeRequest(Strict):
    """A prompt whose tokens are wanted: messages of a chat, or a bare prompt with its recordings."""

    ignored: ClassVar[frozenset[str]] = BOOKKEEPING
    model: str | None = None
    messages: Annotated[list[ChatMessage], Field(min_length=1, fail_fast=True)] | None = None
    prompt: str | None = None
    audio: Annotated[list[AudioContent], Field(fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.messages is None) == (self.prompt is None):
            raise refusal("messages", "give either messages or a prompt")
        if self.messages is not None and self.audio is not None:
            raise refusal("audio", "recordings of a chat stand in its messages; audio goes with a prompt")
        return self
