"""From requests to jobs: the wire formats end here, recordings are decoded, limits of the settings applied."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qwen2_audio.config import MAX_CLIP_SECONDS, MAX_SAMPLES, SAMPLE_RATE, audio_tokens, mel_frames
from qwen2_audio.errors import advice
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.audio import load_part
from qwen2_audio.processing.chat_template import is_broken
from qwen2_audio.processing.conversation import AudioPart, Conversation, Message, Part, TextPart
from qwen2_audio.processing.windows import cut_windows
from qwen2_audio.serving.backend import Backend, BarePrompt, Job, ModelCard, OverloadedError, UnknownModelError
from qwen2_audio.serving.errors import RequestError
from qwen2_audio.serving.media import Encoded, Link, Media
from qwen2_audio.serving.schema import (
    AudioUrl,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    InputAudio,
    JsonObject,
    JsonSchema,
    Sampling,
    TextContent,
    TokenizeRequest,
)
from qwen2_audio.serving.settings import Settings


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, understood.

    Attributes:
        jobs: the answers wanted, each prompt's choices one after the other.
        prompts: how many prompts there are.
        audio_tokens, audio_seconds: of all recordings of all prompts.
        warnings: what happened to recordings.
    """

    jobs: tuple[Job, ...]
    prompts: int
    audio_tokens: int
    audio_seconds: float
    warnings: tuple[str, ...]

    @property
    def model(self) -> str:
        """Who answers."""
        return self.jobs[0].model

    @property
    def text(self) -> str:
        """The text of all prompts."""
        prompts = [job.prompt for job in self.jobs[:: self.choices]]
        return "\n".join(
            prompt.text if isinstance(prompt, BarePrompt) else "\n".join(message.text for message in prompt.messages)
            for prompt in prompts
        )

    @property
    def choices(self) -> int:
        """Answers a prompt."""
        return len(self.jobs) // self.prompts


def card_of(backend: Backend, name: str | None) -> ModelCard:
    """The model or adapter that a request names; the first where it names none.

    Raises:
        UnknownModelError: there is no such model.
        OverloadedError: the server is not ready to say.
    """
    cards = backend.models
    if not cards:
        raise OverloadedError("the model is still being loaded; try again shortly", retry_after=5)
    if name is None:
        return cards[0]
    names = [card.name for card in cards]
    if name not in names:
        raise UnknownModelError(f"the model {name[:200]!r} does not exist here; {advice(name, names, 'served are')}")
    return cards[names.index(name)]


async def chat_jobs(request: ChatRequest, backend: Backend, settings: Settings, media: Media) -> Asked:
    """What `/v1/chat/completions` asks for."""
    card = card_of(backend, request.model)
    limit = request.max_completion_tokens or request.max_tokens
    alternatives = (request.top_logprobs or 0) if request.logprobs else None
    options = options_of(request, card, settings, limit, alternatives)
    _limit(request.n or 1, settings.max_choices, "n", "answers", "max_choices")
    heard = await _hear(_clips_of(request.messages, settings), media)
    return _asked([_conversation(request.messages, heard)], heard, request.n or 1, options, card)


async def completion_jobs(request: CompletionRequest, backend: Backend, settings: Settings, media: Media) -> Asked:
    """What `/v1/completions` asks for."""
    card = card_of(backend, request.model)
    options = options_of(request, card, settings, request.max_tokens, request.logprobs)
    texts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    _limit(
        (request.n or 1) * len(texts), settings.max_choices, "n" if request.n else "prompt", "answers", "max_choices"
    )
    _limit(sum(map(len, texts)), settings.max_text_chars, "prompt", "characters of text", "max_text_chars")
    if not request.audio and not all(texts):
        raise RequestError("a prompt is empty; give text, recordings or both", "prompt")
    heard = await _hear([_clip(part) for part in request.audio or ()], media)
    return _asked([BarePrompt(heard.parts, text) for text in texts], heard, request.n or 1, options, card)


async def prompt_to_tokenize(request: TokenizeRequest, settings: Settings, media: Media) -> Conversation | BarePrompt:
    """What `/tokenize` asks about."""
    if request.messages is not None:
        return _conversation(request.messages, await _hear(_clips_of(request.messages, settings), media))
    text = request.prompt or ""
    _limit(len(text), settings.max_text_chars, "prompt", "characters of text", "max_text_chars")
    heard = await _hear([_clip(part) for part in request.audio or ()], media)
    return BarePrompt(heard.parts, text)


@dataclass(frozen=True, slots=True)
class _Heard:
    """The recordings of a request, decoded: of each the windows of at most 30 s that the model hears; what decoders said."""

    windows: tuple[tuple[AudioPart, ...], ...]
    told: tuple[str, ...]

    @property
    def parts(self) -> tuple[AudioPart, ...]:
        """All windows."""
        return tuple(window for recording in self.windows for window in recording)

    @property
    def samples(self) -> list[int]:
        """Of each window."""
        return [_length(window) for window in self.parts]

    @property
    def warnings(self) -> Iterator[str]:
        """Of the recordings that are not whole, or became several windows."""
        yield from self.told
        for number, recording in enumerate(self.windows, 1):
            if len(recording) > 1:
                seconds = sum(map(_length, recording)) / SAMPLE_RATE
                yield (
                    f"recording {number} is {seconds:.1f} s long; it is heard as {len(recording)} consecutive parts "
                    f"of at most {MAX_CLIP_SECONDS} s"
                )


async def _hear(clips: Sequence[Encoded | Link], media: Media) -> _Heard:
    told: list[str] = []
    parts = await media.load(clips, told)
    if all(_length(part) <= MAX_SAMPLES for part in parts):
        return _Heard(tuple((part,) for part in parts), tuple(told))
    return _Heard(tuple(await asyncio.gather(*(asyncio.to_thread(_windows, part) for part in parts))), tuple(told))


def _windows(part: AudioPart) -> tuple[AudioPart, ...]:
    return tuple(AudioPart((window, SAMPLE_RATE)) for window in cut_windows(load_part(part)))


def _length(part: AudioPart) -> int:
    if not isinstance(part.source, tuple):
        raise TypeError("the recording has not been decoded")
    return len(part.source[0])


def _clips_of(messages: Sequence[ChatMessage], settings: Settings) -> list[Encoded | Link]:
    """The recordings of a conversation, whose size is checked, in order."""
    _limit(len(messages), settings.max_messages, "messages", "messages", "max_messages")
    characters = 0
    clips: list[Encoded | Link] = []
    for index, message in enumerate(messages):
        contents = [] if isinstance(message.content, str) else message.content
        _limit(len(contents), settings.max_parts, f"messages[{index}].content", "parts", "max_parts")
        characters += len(message.content) if isinstance(message.content, str) else 0
        characters += sum(len(content.text) for content in contents if isinstance(content, TextContent))
        clips += [_clip(content) for content in contents if not isinstance(content, TextContent)]
    _limit(characters, settings.max_text_chars, "messages", "characters of text", "max_text_chars")
    return clips


def _conversation(messages: Sequence[ChatMessage], heard: _Heard) -> Conversation:
    recordings = iter(heard.windows)
    return Conversation(tuple(_message(message, recordings) for message in messages))


def _message(message: ChatMessage, recordings: Iterator[Sequence[AudioPart]]) -> Message:
    parts: list[Part] = []
    if isinstance(message.content, str):
        parts.append(TextPart(message.content))
    else:
        for content in message.content:
            parts += [TextPart(content.text)] if isinstance(content, TextContent) else next(recordings)
    return Message("system" if message.role == "developer" else message.role, tuple(parts))


def _clip(part: InputAudio | AudioUrl) -> Encoded | Link:
    if isinstance(part, AudioUrl):
        return Link(part.audio_url.url)
    return Encoded(part.input_audio.data, part.input_audio.format)


def options_of(
    request: Sampling, card: ModelCard, settings: Settings, limit: int | None, alternatives: int | None
) -> GenerationOptions:
    """The model's own options, with what the request says put in their place.

    Args:
        limit: tokens of the longest answer.
        alternatives: log-probabilities with so many alternatives; None: none are wanted.
    """
    stop, bias = request.stop, request.logit_bias
    _limit(len(stop or ()), settings.max_stop, "stop", "stop strings", "max_stop")
    _limit(max(map(len, stop or ()), default=0), settings.max_stop_chars, "stop", "characters", "max_stop_chars")
    _limit(len(bias or ()), settings.max_logit_bias, "logit_bias", "entries", "max_logit_bias")
    field = "top_logprobs" if "top_logprobs" in type(request).model_fields else "logprobs"
    _limit(alternatives or 0, settings.max_top_logprobs, field, "alternatives", "max_top_logprobs")
    _limit(len(request.stop_token_ids or ()), settings.max_logit_bias, "stop_token_ids", "entries", "max_logit_bias")
    given: dict[str, Any] = {
        "max_new_tokens": limit,
        "min_new_tokens": request.min_tokens,
        "temperature": None if request.temperature is None else float(request.temperature),
        "top_k": None if request.top_k is None else max(request.top_k, 0),
        "top_p": request.top_p,
        "min_p": request.min_p,
        "repetition_penalty": request.repetition_penalty,
        "presence_penalty": request.presence_penalty,
        "frequency_penalty": request.frequency_penalty,
        "seed": None if request.seed is None else request.seed % 2**64,
        "stop": None if stop is None else tuple(stop),
        "stop_token_ids": None if request.stop_token_ids is None else tuple(request.stop_token_ids),
        "ignore_eos": request.ignore_eos,
        "logit_bias": None if bias is None else tuple((int(token), value) for token, value in bias.items()),
        "logprobs": alternatives,
        "json_schema": _schema_of(request, settings),
    }
    return replace(card.defaults, **{name: value for name, value in given.items() if value is not None})


def _schema_of(request: Sampling, settings: Settings) -> str | None:
    """The schema that the answer must obey, as JSON; "{}" is any object."""
    wanted = request.response_format
    if isinstance(wanted, JsonObject):
        return "{}"
    if not isinstance(wanted, JsonSchema):
        return None
    schema = wanted.json_schema.json_schema or {}
    where = "response_format.json_schema.schema"
    _limit(_depth(schema), settings.max_json_depth, where, "levels", "max_json_depth")
    text = json.dumps(schema, ensure_ascii=False)
    _limit(len(text), settings.max_schema_chars, where, "characters", "max_schema_chars")
    if is_broken(text):
        raise RequestError(f"{where} holds half a character (a lone surrogate); repair the text", where)
    return text


def _depth(value: Any) -> int:
    """Levels of nesting, counted without recursion."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inner = (item.values() if isinstance(item, dict) else item if isinstance(item, list) else () for item in level)
        level = [item for items in inner for item in items]
    return depth


def _asked(
    prompts: Sequence[Conversation | BarePrompt],
    heard: _Heard,
    choices: int,
    options: GenerationOptions,
    card: ModelCard,
) -> Asked:
    """Jobs for all answers, so many `choices` a prompt; every prompt holds all that was heard."""
    return Asked(
        jobs=tuple(Job(prompt, _nth(options, choice), card.name) for prompt in prompts for choice in range(choices)),
        prompts=len(prompts),
        audio_tokens=len(prompts) * sum(audio_tokens(mel_frames(samples)) for samples in heard.samples),
        audio_seconds=len(prompts) * sum(heard.samples) / SAMPLE_RATE,
        warnings=tuple(heard.warnings),
    )


def _nth(options: GenerationOptions, choice: int) -> GenerationOptions:
    """Options of one of several answers: with a seed each draws differently, and again the same next time."""
    return options if options.seed is None else replace(options, seed=(options.seed + choice) % 2**64)


def _limit(count: int, limit: int, param: str, what: str, setting: str) -> None:
    if count > limit:
        raise RequestError(
            f"{param}: {count} {what}, at most {limit} are allowed here (setting {setting})", param, "too_many"
        )
