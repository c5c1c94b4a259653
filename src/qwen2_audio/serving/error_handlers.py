"""Every error that reaches the application becomes an answer of `errors.py`."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.serving.backend import OverloadedError
from qwen2_audio.serving.disconnect import ClientGoneError
from qwen2_audio.serving.errors import Problem, problem_of

CLIENT_GONE = 499
"""Nobody reads this status; it stands in the log."""


def handle_errors(app: FastAPI) -> None:
    """Answer our errors, unreadable requests, unknown paths and our own mistakes in one shape."""
    app.add_exception_handler(Qwen2AudioError, _ours)
    app.add_exception_handler(RequestValidationError, _unreadable)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientGoneError, _gone)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _mistake)


async def _ours(_request: Request, error: Exception) -> Response:
    problem = problem_of(error)
    if problem.status >= 500 and not isinstance(
        error, OverloadedError
    ):  # those come in swarms; the access log has them
        logging.getLogger(__name__).warning("%s: %s", type(error).__name__, error)
    return problem.response()


async def _gone(_request: Request, _error: Exception) -> Response:
    return Response(status_code=CLIENT_GONE)


async def _mistake(_request: Request, error: Exception) -> Response:
    return problem_of(error).response()  # uvicorn logs the traceback


async def _http(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise TypeError(f"expected an HTTPException, got {error!r}")
    path = request.url.path[:200]
    messages = {
        404: f"there is no {path}; /docs lists what there is",
        405: f"{path} does not answer {request.method[:20]}; /docs lists what it answers",
    }
    kind = "invalid_request_error" if error.status_code < 500 else "server_error"
    message = messages.get(error.status_code, str(error.detail))
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "bad_request")
    return Problem(error.status_code, message, kind, code=code, headers=error.headers or {}).response()


async def _unreadable(_request: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise TypeError(f"expected a RequestValidationError, got {error!r}")
    return problem_of_body(error.errors()[0], error.body).response()


def problem_of_body(first: Mapping[str, Any], body: Any) -> Problem:
    """What is wrong with a request's body.

    Args:
        first: an error of pydantic's.
        body: what was given.
    """
    kind, context = str(first["type"]), first.get("ctx") or {}
    if kind == "json_invalid":
        at = first["loc"][-1]
        return Problem(
            400, f"the body is not valid JSON: {context.get('error')} at character {at}", code="invalid_json"
        )
    path = name_of(first["loc"][1:], body)
    if not path and kind in ("missing", "model_attributes_type", "dict_type", "model_type"):
        return Problem(400, "the body must be a JSON object, with Content-Type: application/json", code="invalid_json")
    if kind == "refused":
        param = f"{path}.{context['param']}" if path else str(context["param"])
        prefix = f"{path}: " if path else ""
        return Problem(400, prefix + str(context["message"]), param=param, code=str(context["code"]))
    code = "missing_parameter" if kind == "missing" else "invalid_type" if kind.endswith("_type") else "invalid_value"
    message = str(first["msg"])
    return Problem(400, f"{path}: {message[:1].lower()}{message[1:]}", param=path or None, code=code)


def name_of(steps: Sequence[str | int], body: Any) -> str:
    """Where in a body something stands, as in `messages[0].content[1].text`.

    Args:
        steps: pydantic's way there, which also names the alternatives that it chose.
    """
    text, here, chosen = "", body, True
    for step in steps:
        if isinstance(here, list) and isinstance(step, int) and step < len(here):
            text, here, chosen = f"{text}[{step}]", here[step], False
        elif isinstance(here, dict) and not chosen and here.get("type") == step:
            chosen = True  # the name of the alternative, not a field
        elif isinstance(here, dict) and isinstance(step, str) and step != "[key]":
            text, here, chosen = f"{text}.{step}" if text else step, here.get(step), False
        elif isinstance(step, int):
            text = f"{text}[{step}]"
    return text
