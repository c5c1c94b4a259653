"""Why a server did not answer, by its status and its words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from qwen2_audio.remote.address import Address, retry_after
from qwen2_audio.remote.stream import Chunk

Fault = Literal["key", "model", "context", "request", "busy", "broken"]
"""Whose it is: the key's, the model's name, a prompt too long, anything else in the request, too much to do, the server's."""


_STATUSES: Mapping[str, int] = MappingProxyType(
    {
        "overloaded": 503,
        "rate_limit_exceeded": 429,
        "rate_limit_error": 429,
        "context_length_exceeded": 400,
        "invalid_request_error": 400,
        "BadRequestError": 400,
        "NotFoundError": 404,
        "not_found_error": 404,
    }
)
"""Of the codes and types of errors in a stream, the status that they would have had before it."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What came instead of an answer.

    Attributes:
        words: the server's own, without the key.
        code: for programs, "" where there is none.
        pause: seconds after which it wants to be asked again, None where it does not say.
    """

    fault: Fault
    status: int
    words: str
    pause: float | None = None
    code: str = ""


def read_refusal(status: int, headers: Mapping[str, str], body: str, address: Address) -> Refusal:
    """Read a response whose status is not 200."""
    words, code = _words(body)
    return Refusal(_fault(status, words, code), status, address.quoted(words), retry_after(headers), code)


def read_failure(chunk: Chunk, address: Address) -> Refusal:
    """Read an error that came as an event, under the status 200: its code or its type says what the status would have."""
    if chunk.code.isascii() and chunk.code.isdigit() and len(chunk.code) == 3:
        status, code = int(chunk.code), ""
    else:
        status, code = _STATUSES.get(chunk.code) or _STATUSES.get(chunk.kind, 500), chunk.code
    return Refusal(_fault(status, chunk.error, code), status, address.quoted(chunk.error), code=code)


def _fault(status: int, words: str, code: str) -> Fault:
    if status in (401, 403):
        return "key"
    if status == 404:
        return "model"
    if status in (408, 409, 425, 429, 503):
        return "busy"
    if status >= 500 or status < 400:  # a redirect would take the key elsewhere
        return "broken"
    too_long = code == "context_length_exceeded" or "context length" in words.lower()
    return "context" if too_long else "request"


def _words(body: str) -> tuple[str, str]:
    """The message and the code of an error in OpenAI's shape, or the whole body."""
    try:
        error = json.loads(body)
        error = error.get("error", error)
        return str(error["message"]), str(error.get("code") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return body, ""
