"""`/v1/chat/completions`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from qwen2_audio.serving.answering import (
    FINGERPRINT,
    Answers,
    answer_all,
    chat_logprobs,
    deltas,
    finish_of,
    new_id,
)
from qwen2_audio.serving.backend import Backend, Delta
from qwen2_audio.serving.convert import chat_jobs
from qwen2_audio.serving.disconnect import while_present
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.replies import (
    AnswerMessage,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
    ChatReply,
    Usage,
)
from qwen2_audio.serving.routes.answers import JsonRoute, as_json, described, failures, log
from qwen2_audio.serving.schema import ChatRequest
from qwen2_audio.serving.settings import Settings
from qwen2_audio.serving.sse import DONE, EventStream


def router(backend: Backend, settings: Settings, media: Media) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["answers"], route_class=JsonRoute)

    @routes.post(
        "/v1/chat/completions",
        summary="Answer a conversation of text and recordings",
        response_model=ChatReply,
        responses={200: described("The answers.", ChatChunk), **failures(400, 404, 413, 429, 503)},
    )
    async def chat_completions(body: ChatRequest, request: Request) -> Response:
        answers = Answers(await while_present(request, chat_jobs(body, backend, settings, media)))
        try:
            if body.stream:
                events = _events(body, backend, answers, lambda: log(request, answers, settings))
                return EventStream(events, settings.keep_alive_interval)
            await while_present(request, answer_all(backend, answers))
            return as_json(_reply(answers, logprobs=bool(body.logprobs)))
        finally:
            log(request, answers, settings)

    return routes


def _reply(answers: Answers, *, logprobs: bool) -> ChatReply:
    name, created = new_id("chatcmpl")
    choices = [
        ChatChoice(
            index=index,
            message=AnswerMessage(content=answer.text),
            logprobs=chat_logprobs(answer.logprobs) if logprobs else None,
            finish_reason=answer.ended,
        )
        for index, answer in enumerate(answers.answers)
    ]
    return ChatReply(
        id=name,
        created=created,
        model=answers.asked.model,
        system_fingerprint=FINGERPRINT,
        choices=choices,
        usage=answers.usage,
        warnings=list(answers.asked.warnings) or None,
    )


async def _events(
    body: ChatRequest, backend: Backend, answers: Answers, ended: Callable[[], None]
) -> AsyncGenerator[str, None]:
    """The chunks of a stream: who speaks, what is new, why it ended, and what it took."""
    asked = answers.asked
    name, created = new_id("chatcmpl")

    def chunk(choices: list[ChatChunkChoice], usage: Usage | None = None, warnings: Sequence[str] = ()) -> str:
        made = ChatChunk(
            id=name,
            created=created,
            model=asked.model,
            system_fingerprint=FINGERPRINT,
            choices=choices,
            usage=usage,
            warnings=list(warnings) or None,
        )
        return made.model_dump_json()

    started: set[int] = set()
    try:
        async with aclosing(deltas(backend, asked.jobs)) as stream:
            async for index, delta in stream:
                answers.add(index, delta)
                if index not in started:
                    opening = ChatChunkChoice(index=index, delta=ChatDelta(role="assistant", content=""))
                    yield chunk([opening], warnings=() if started else asked.warnings)
                    started.add(index)
                if delta.text or delta.finish_reason or delta.logprobs:
                    yield chunk([_choice(index, delta, logprobs=bool(body.logprobs))])
        if body.usage_wanted:
            yield chunk([], answers.usage)
        yield DONE
    finally:
        ended()


def _choice(index: int, delta: Delta, *, logprobs: bool) -> ChatChunkChoice:
    return ChatChunkChoice(
        index=index,
        delta=ChatDelta(content=delta.text) if delta.text or not delta.finish_reason else ChatDelta(),
        logprobs=chat_logprobs(delta.logprobs) if logprobs else None,
        finish_reason=finish_of(delta),
    )
