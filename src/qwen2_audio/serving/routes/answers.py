"""What the routes have in common: how answers are written, and how they and errors stand in /openapi.json."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from qwen2_audio.serving.answering import Answers
from qwen2_audio.serving.errors import RequestError
from qwen2_audio.serving.replies import ErrorReply
from qwen2_audio.serving.settings import Settings

_MOST_VALUES = 200_000
"""Commas, to be exact; those in texts count too. So many are read within a fraction of a second."""
_MEANINGS = {
    400: "The request makes no sense; `param` names the field at fault.",
    401: "The API key is missing or wrong.",
    404: "There is no such model.",
    413: "The request or a recording is too large.",
    429: "Too many requests are in progress; `Retry-After` says when to try again.",
    503: "The engine is not there or has too much waiting; `Retry-After` says when to try again.",
}


class JsonRoute(APIRoute):
    """Refuses bodies of very many values before they are read: that would stop everything else for seconds."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The handler, behind that check."""
        handler = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            values = (await request.body()).count(b",")
            if values > _MOST_VALUES:
                raise RequestError(f"the body holds {values} values; at most {_MOST_VALUES} are read", code="too_many")
            return await handler(request)

        return bounded


def log(request: Request, answers: Answers, settings: Settings) -> None:
    """Add to the request's line in the log what was asked and answered, as far as it has come."""
    state, asked, usage = request.state, answers.asked, answers.usage
    state.model, state.audio_seconds = asked.model, round(asked.audio_seconds, 3)
    state.prompt_tokens, state.completion_tokens = usage.prompt_tokens, usage.completion_tokens
    if settings.log_text:
        state.prompt_text, state.completion_text = asked.text, "\n".join(answer.text for answer in answers.answers)


def as_json(reply: BaseModel) -> Response:
    """An answer."""
    return Response(reply.model_dump_json(), media_type="application/json")


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Answers that are no success, for a route's `responses`; also says what anything else would look like."""
    known = {status: {"model": ErrorReply, "description": _MEANINGS[status]} for status in (*statuses, 401)}
    return {
        **dict(sorted(known.items())),
        "default": {"model": ErrorReply, "description": "Anything else that went wrong."},
    }


def described(description: str, chunk: type[BaseModel]) -> dict[str, Any]:
    """A success that comes as JSON, or as events of type `chunk`."""
    events = f"With stream: events `data: {chunk.__name__}`, at the end `data: [DONE]`."
    return {
        "description": description,
        "content": {"text/event-stream": {"schema": {"type": "string", "description": events}}},
    }
