"""`/v1/audio/transcriptions` and `/v1/audio/translations`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.datastructures import FormData, UploadFile

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.longform.listening import Question
from qwen2_audio.longform.segments import Segment, cut_short, join_texts
from qwen2_audio.longform.subtitles import srt, verbose_json, vtt
from qwen2_audio.serving.audio_form import AudioForm, TranscriptionForm, TranslationForm, read_form
from qwen2_audio.serving.backend import Backend, ModelCard, TokenLogprob
from qwen2_audio.serving.convert import card_of
from qwen2_audio.serving.disconnect import while_present
from qwen2_audio.serving.errors import RequestError
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.routes.answers import failures
from qwen2_audio.serving.settings import Settings
from qwen2_audio.serving.sse import EventStream
from qwen2_audio.serving.transcriber import ServedTranscriber, Transcribed

_MOST_FIELDS, _MOST_FIELD_BYTES = 32, 16 * 1024
_FAILURES = failures(400, 404, 413, 429, 503)


def router(backend: Backend, settings: Settings, media: Media) -> APIRouter:
    """The routes."""
    routes = APIRouter(tags=["audio"])
    work = _Work(backend, settings, media)

    @routes.post(
        "/v1/audio/transcriptions",
        summary="Write down what is said in a recording of any length",
        responses={200: _described(stream=True), **_FAILURES},
        openapi_extra=_body_of(TranscriptionForm),
    )
    async def transcriptions(request: Request) -> Response:
        return await work.answer(request, TranscriptionForm)

    @routes.post(
        "/v1/audio/translations",
        summary="Write down in English what is said in a recording of any length",
        responses={200: _described(stream=False), **_FAILURES},
        openapi_extra=_body_of(TranslationForm),
    )
    async def translations(request: Request) -> Response:
        return await work.answer(request, TranslationForm)

    return routes


class _Work:
    """What both routes do."""

    def __init__(self, backend: Backend, settings: Settings, media: Media) -> None:
        self._backend, self._settings, self._media = backend, settings, media

    async def answer(self, request: Request, kind: type[AudioForm]) -> Response:
        try:
            received = await request.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD_BYTES)
        except UnicodeError as error:  # of the charset that the head names
            raise RequestError("the form cannot be read as text; send it in UTF-8") from error
        handed_over = False
        try:
            form, file = read_form(received, kind)
            listener = self._listener(form, card_of(self._backend, form.model))
            request.state.model = form.model
            if isinstance(form, TranscriptionForm) and form.stream:
                events = self._events(form, listener, file, received, request)
                handed_over = True
                return EventStream(events, self._settings.keep_alive_interval)
            told: list[str] = []
            try:
                found = await while_present(request, self._all(listener, file, told))
            finally:
                _log(request, listener)
            return _reply(form, found, listener.samples / SAMPLE_RATE, told)
        finally:
            if not handed_over:
                await received.close()

    def _listener(self, form: AudioForm, card: ModelCard) -> ServedTranscriber:
        wanted = form.response_format == "verbose_json" or (isinstance(form, TranscriptionForm) and form.include)
        options = replace(
            card.defaults,
            temperature=form.temperature,
            repetition_penalty=1.0,
            max_new_tokens=None,
            logprobs=0 if wanted else None,
        )
        return ServedTranscriber(self._backend, card, Question(form.instruction, options))

    async def _all(self, listener: ServedTranscriber, file: UploadFile, told: list[str]) -> list[Transcribed]:
        async with (
            aclosing(self._media.stream_upload(file, told)) as blocks,
            aclosing(listener.segments(blocks)) as segments,
        ):
            return [transcribed async for transcribed in segments]

    async def _events(
        self,
        form: TranscriptionForm,
        listener: ServedTranscriber,
        file: UploadFile,
        received: FormData,
        request: Request,
    ) -> AsyncGenerator[str, None]:
        """A delta for each segment, then the whole."""
        text, tokens, found, told = "", list[TokenLogprob](), list[Segment](), list[str]()
        try:
            async with (
                aclosing(self._media.stream_upload(file, told)) as blocks,
                aclosing(listener.segments(blocks)) as segments,
            ):
                async for transcribed in segments:
                    found.append(transcribed.segment)
                    longer = join_texts([text, transcribed.segment.text])
                    if longer != text:
                        event = {"type": "transcript.text.delta", "delta": longer[len(text) :]}
                        yield json.dumps(event | _logprobs(form, transcribed.logprobs))
                        text = longer
                        tokens += transcribed.logprobs
            done = {"type": "transcript.text.done", "text": text}
            yield json.dumps(done | _logprobs(form, tokens) | _tokens_used(listener) | _warnings(found, told))
        finally:
            _log(request, listener)
            await received.close()


def _log(request: Request, listener: ServedTranscriber) -> None:
    state = request.state
    state.audio_seconds = round(listener.samples / SAMPLE_RATE, 3)
    state.prompt_tokens, state.completion_tokens = listener.prompt_tokens, listener.completion_tokens


def _reply(form: AudioForm, found: Sequence[Transcribed], seconds: float, told: Sequence[str]) -> Response:
    segments: list[Segment] = [transcribed.segment for transcribed in found]
    text = join_texts(segment.text for segment in segments)
    match form.response_format:
        case "text":
            return Response(text + "\n", media_type="text/plain")
        case "srt":
            return Response(srt(segments), media_type="application/x-subrip")
        case "vtt":
            return Response(vtt(segments), media_type="text/vtt")
        case "verbose_json":
            body = verbose_json(
                segments, task=form.task, language=form.spoken, duration=seconds, temperature=form.temperature
            )
        case "json":
            body = {"text": text} | _logprobs(form, [token for one in found for token in one.logprobs])
    body |= _usage(seconds) | _warnings(segments, told)
    return Response(json.dumps(body, ensure_ascii=False), media_type="application/json")


def _warnings(segments: Sequence[Segment], told: Sequence[str]) -> dict[str, Any]:
    """What is not whole: of the recording, of its text."""
    said = [*told, *cut_short(segments)]
    return {"warnings": said} if said else {}


def _usage(seconds: float) -> dict[str, Any]:
    return {"usage": {"type": "duration", "seconds": round(seconds, 3)}}


def _tokens_used(listener: ServedTranscriber) -> dict[str, Any]:
    """In the form that OpenAI's last event has; `seconds` is ours."""
    asked, answered = listener.prompt_tokens, listener.completion_tokens
    used = {"type": "tokens", "input_tokens": asked, "output_tokens": answered, "total_tokens": asked + answered}
    return {"usage": used | {"seconds": round(listener.samples / SAMPLE_RATE, 3)}}


def _logprobs(form: AudioForm, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    if not (isinstance(form, TranscriptionForm) and form.include):
        return {}
    return {
        "logprobs": [{"token": one.token, "bytes": list(one.data), "logprob": one.logprob} for one in tokens],
    }


def _body_of(kind: type[AudioForm]) -> dict[str, Any]:
    """The form as OpenAPI describes it; lists stand under the names that OpenAI's clients give them."""
    schema = kind.model_json_schema()
    fields = {
        f"{name}[]" if field.get("type") == "array" else name: field for name, field in schema["properties"].items()
    }
    file = {
        "type": "string",
        "format": "binary",
        "description": "wav, flac, mp3, ogg, opus, m4a, webm, mp4 and others.",
    }
    form = {
        "type": "object",
        "properties": {"file": file, **fields},
        "required": ["file", *schema["required"]],
        "additionalProperties": False,
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def _described(*, stream: bool) -> dict[str, Any]:
    """A success in its five forms."""
    texts = ("text/plain", "application/x-subrip", "text/vtt", *(("text/event-stream",) if stream else ()))
    return {
        "description": "The text, as response_format says.",
        "content": {
            "application/json": {"schema": {"type": "object", "required": ["text", "usage"]}},
            **{kind: {"schema": {"type": "string"}} for kind in texts},
        },
    }
