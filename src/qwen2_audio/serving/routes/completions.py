"""`/v1/completions`: the base model's bare prompts."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from fastapi import APIRouter, Request, Response

from qwen2_audio.serving.answering import FINGERPRINT, Answer, Answers, answer_all, deltas, finish_of, finite, new_id
from qwen2_audio.serving.backend import Backend, TokenLogprob
from qwen2_audio.serving.convert import Asked, completion_jobs
from qwen2_audio.serving.disconnect import while_present
from qwen2_audio.serving.media import Media
from qwen2_audio.serving.replies import CompletionChoice, CompletionLogprobs, CompletionReply, Usage
from qwen2_audio.serving.routes.answers import JsonRoute, as_json, described, failures, log
from qwen2_audio.serving.schema import CompletionRequest
from qwen2_audio.serving.settings import Settings
from qwen2_audio.serving.sse import DONE, EventStream


def router(backend: Backend, settings: Settings, media: Media) -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["answers"], route_class=JsonRoute)

    @routes.post(
        "/v1/completions",
        summary="Continue a bare prompt of recordings and text, as the base model was trained on",
        response_model=CompletionReply,
        responses={200: described("The continuations.", CompletionReply), **failures(400, 404, 413, 429, 503)},
    )
    async def completions(body: CompletionRequest, request: Request) -> Response:
        answers = Answers(await while_present(request, completion_jobs(body, backend, settings, media)))
        try:
            if body.stream:
                events = _events(body, backend, answers, lambda: log(request, answers, settings))
                return EventStream(events, settings.keep_alive_interval)
            await while_present(request, answer_all(backend, answers))
            logprobs = body.logprobs is not None
            choices = [_whole(index, answer, logprobs=logprobs) for index, answer in enumerate(answers.answers)]
            return as_json(_reply(answers.asked, new_id("cmpl"), choices, answers.usage, answers.asked.warnings))
        finally:
            log(request, answers, settings)

    return routes


def _whole(index: int, answer: Answer, *, logprobs: bool) -> CompletionChoice:
    tokens = completion_logprobs(answer.logprobs, 0) if logprobs else None
    return CompletionChoice(index=index, text=answer.text, logprobs=tokens, finish_reason=answer.ended)


def _reply(
    asked: Asked,
    ident: tuple[str, int],
    choices: list[CompletionChoice],
    usage: Usage | None = None,
    warnings: Sequence[str] = (),
) -> CompletionReply:
    return CompletionReply(
        id=ident[0],
        created=ident[1],
        model=asked.model,
        system_fingerprint=FINGERPRINT,
        choices=choices,
        usage=usage,
        warnings=list(warnings) or None,
    )


async def _events(
    body: CompletionRequest, backend: Backend, answers: Answers, ended: Callable[[], None]
) -> AsyncGenerator[str, None]:
    """The chunks of a stream: what is new, why it ended, and what it took."""
    asked, ident = answers.asked, new_id("cmpl")
    offsets = [0] * len(asked.jobs)
    warnings: Sequence[str] = asked.warnings
    try:
        async with aclosing(deltas(backend, asked.jobs)) as stream:
            async for index, delta in stream:
                answers.add(index, delta)
                if not (delta.text or delta.finish_reason or delta.logprobs):
                    continue
                tokens = completion_logprobs(delta.logprobs, offsets[index]) if body.logprobs is not None else None
                offsets[index] += sum(len(token.token) for token in delta.logprobs)
                choice = CompletionChoice(index=index, text=delta.text, logprobs=tokens, finish_reason=finish_of(delta))
                yield _reply(asked, ident, [choice], warnings=warnings).model_dump_json()
                warnings = ()
        if body.usage_wanted:
            yield _reply(asked, ident, [], answers.usage).model_dump_json()
        yield DONE
    finally:
        ended()


def completion_logprobs(tokens: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs:
    """In the form of text completions; `offset` is where in the text the first token begins."""
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token.token)
    return CompletionLogprobs(
        tokens=[token.token for token in tokens],
        token_logprobs=[finite(token.logprob) for token in tokens],
        top_logprobs=[_by_text(token) for token in tokens],
        text_offset=offsets,
    )


def _by_text(token: TokenLogprob) -> dict[str, float]:
    """The alternatives; of several with the same text the likeliest, which comes first."""
    found: dict[str, float] = {}
    for text, _, logprob in token.top:
        found.setdefault(text, finite(logprob))
    return found
