"""The logs: lines of JSON, without secrets and without what was said."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qwen2_audio.serving.logs import ACCESS, JsonLines, log_to
from tests.serving.guarded import KEY, OTHER, application, get, post


@contextmanager
def logged() -> Iterator[list[dict[str, Any]]]:
    lines: list[dict[str, Any]] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonLines().format(record)))

    logger, handler = logging.getLogger(ACCESS), Keep()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_line_of_json_a_request_without_secrets_or_texts() -> None:
    app = application(api_keys=(OTHER, KEY))
    with logged() as lines:
        response = post(app, "/v1/told?token=secret", authorization=f"Bearer {KEY}", x_request_id="abc-1")
        post(app, "/v1/secret-path", x_request_id="bad id\x7f")
        get(app, "/v1/broken", authorization=f"Bearer {KEY}")
    assert response.headers["x-request-id"] == "abc-1"
    first, second, third = lines
    wanted = {"id": "abc-1", "method": "POST", "status": 200, "model": "mini", "completion_tokens": 7, "key": 1}
    assert first | wanted == first
    assert (second["status"], third["status"]) == (401, 500)
    assert second["id"].isalnum() and len(second["id"]) == 32
    text = json.dumps(lines)
    assert not [word for word in (KEY, OTHER, "secret", "what is said") if word in text]
    with logged() as lines:
        post(application(log_text=True), "/v1/told")
    assert lines[0]["prompt_text"] == "what is said?"
    with logged() as lines:
        post(application(access_log=False), "/v1/told")
    assert lines == []


def test_all_logs_are_lines_of_json_even_with_line_breaks_in_them() -> None:
    names = ("qwen2_audio", "uvicorn", "uvicorn.access", "uvicorn.error", "python_multipart")
    loggers = [logging.getLogger(name) for name in names]
    kept = [(logger, {**vars(logger), "handlers": list(logger.handlers)}) for logger in loggers]
    stream = io.StringIO()
    try:
        log_to(stream)
        logging.getLogger("qwen2_audio.serving").warning("two\nlines \ud800")
        logging.getLogger("uvicorn.error").info("WebSocket /v1/realtime?key=secret")
        try:
            raise RuntimeError("a mistake")
        except RuntimeError as error:
            logging.getLogger("uvicorn.error").error("it failed", exc_info=error)
    finally:
        for logger, state in kept:
            vars(logger).update(state)
            logger.manager._clear_cache()  # type: ignore[attr-defined]
    first, second = (json.loads(line) for line in stream.getvalue().splitlines())
    assert first | {"level": "warning", "logger": "qwen2_audio.serving", "message": "two\nlines \ud800"} == first
    assert "a mistake" in second["trace"]
