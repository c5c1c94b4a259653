"""Every error as OpenAI's clients expect it: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.responses import Response

from qwen2_audio.errors import (
    AudioError,
    CheckpointError,
    ContextLengthError,
    ConversationError,
    Qwen2AudioError,
    ServerError,
    TooLargeError,
    UsageError,
)
from qwen2_audio.serving.backend import EngineLostError, OverloadedError, UnknownModelError

BAD_REQUEST, NOT_FOUND, TOO_LARGE, BROKEN, UNAVAILABLE = 400, 404, 413, 500, 503


@dataclass(frozen=True, slots=True)
class Problem:
    """What is told to a client that gets no answer.

    Attributes:
        type: of OpenAI's few kinds: invalid_request_error, authentication_error, not_found_error, rate_limit_error,
            server_error.
        param: the field of the request at fault, where one is.
        code: for programs, for instance "context_length_exceeded".
    """

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, dict[str, Any]]:
        """The JSON of the answer."""
        return {"error": {"message": self.message, "type": self.type, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The answer."""
        return Response(self.text, self.status, dict(self.headers), media_type="application/json")

    @property
    def text(self) -> str:
        """The body as JSON; in ASCII, because a message may quote half a character of a broken request."""
        return json.dumps(self.body)


class RequestError(UsageError):
    """A request that makes no sense, with the field at fault.

    Attributes:
        param: the field, for instance "messages[1].content".
        code: for programs.
    """

    def __init__(self, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


_CODES: tuple[tuple[type[Qwen2AudioError], int, str, str | None], ...] = (
    (UnknownModelError, NOT_FOUND, "not_found_error", "model_not_found"),
    (OverloadedError, UNAVAILABLE, "server_error", "overloaded"),
    (EngineLostError, UNAVAILABLE, "server_error", "engine_lost"),
    (ContextLengthError, BAD_REQUEST, "invalid_request_error", "context_length_exceeded"),
    (TooLargeError, TOO_LARGE, "invalid_request_error", "audio_too_large"),
    (AudioError, BAD_REQUEST, "invalid_request_error", "invalid_audio"),
    (ConversationError, BAD_REQUEST, "invalid_request_error", "invalid_messages"),
    (UsageError, BAD_REQUEST, "invalid_request_error", "invalid_value"),
    (ServerError, UNAVAILABLE, "server_error", "engine_lost"),
    (CheckpointError, UNAVAILABLE, "server_error", "model_unavailable"),
)
"""Kind of error, status, type, code; the first that fits counts."""


def problem_of(error: BaseException) -> Problem:
    """What to tell a client about an error; of one that is a mistake of ours it learns nothing but that."""
    retry = {"Retry-After": str(max(1, math.ceil(error.retry_after)))} if isinstance(error, OverloadedError) else {}
    if isinstance(error, EngineLostError):
        retry = {"Retry-After": "1"}
    for kind, status, name, code in _CODES:
        if isinstance(error, kind):
            param = "model" if kind is UnknownModelError else getattr(error, "param", None)
            return Problem(status, str(error), name, param, getattr(error, "code", None) or code, retry)
    return Problem(BROKEN, "the server made a mistake; it is in its log", "server_error", code="internal_error")
