"""A piece in which the model goes round in circles is heard again in halves; nothing of the recording is left out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qwen2_audio import transcription
from qwen2_audio.api import Assistant, load
from qwen2_audio.generation.engine import Engine, Request
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.reply import Reply
from qwen2_audio.transcription import Transcriber
from tests.tiny import sound


@pytest.fixture(scope="module")
def assistant(folder: object) -> Assistant:
    return load(str(folder), device="cpu")


def transcriber(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch, *, loops_above: float
) -> tuple[Transcriber, list[float]]:
    """One whose model goes round in circles in pieces longer than `loops_above` seconds; and the pieces that it hears."""
    heard: list[float] = []

    def answer_all(_: Engine, requests: Sequence[Request]) -> list[Reply]:
        replies = []
        for request in requests:
            seconds = request.clips[0].seconds
            heard.append(seconds)
            tokens = (3, *[5] * 12) if seconds > loops_above else (3, 4)
            replies.append(Reply(f" {seconds:.2f} ", "length" if len(tokens) > 2 else "stop", tokens, 1))
        return replies

    monkeypatch.setattr(transcription, "answer_all", answer_all)
    return Transcriber(assistant.engine, assistant.processor, 6.0, GenerationOptions()), heard


def test_halves(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, heard = transcriber(assistant, monkeypatch, loops_above=3.0)
    (reply,) = listener.transcribe([sound(4.0)])
    assert heard[0] == 4.0
    assert sum(heard[1:]) == pytest.approx(4.0) and max(heard[1:]) <= 3.0
    assert reply.text == " ".join(f"{seconds:.2f}" for seconds in heard[1:])
    assert (reply.finish_reason, reply.tokens) == ("stop", (3, 4) * len(heard[1:]))


def test_too_short_for_halves(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    listener, heard = transcriber(assistant, monkeypatch, loops_above=0.1)
    (reply,) = listener.transcribe([sound(1.5)])
    assert (heard, reply.finish_reason, reply.tokens) == ([1.5], "length", (3, 5))


def test_room_for_what_could_be_said(assistant: Assistant) -> None:
    request = Transcriber(assistant.engine, assistant.processor, 6.0, GenerationOptions())._request(sound(2.0))
    assert (request.options.max_new_tokens, request.options.stop_loops) == (32, True)
    given = Transcriber(assistant.engine, assistant.processor, 6.0, GenerationOptions(max_new_tokens=7))
    assert given._request(sound(2.0)).options.max_new_tokens == 7
