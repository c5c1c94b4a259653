"""`mini` behind the server, asked by OpenAI's client."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.errors import DownloadError
from qwen2_audio.serving.local import LocalBackend, LocalConfig
from tests.serving.http_server import HttpServer, base64_of, eventually, said

ROOT = Path(__file__).parents[2]
QUESTION = ROOT / "examples" / "question.flac"


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[HttpServer, LocalBackend]]:
    """A live server; skips when `mini` is not here and cannot be had."""
    try:
        find_checkpoint("mini")
    except DownloadError as error:
        pytest.skip(f"mini cannot be had: {error}")
    backend = LocalBackend(LocalConfig(device="cpu", dtype="float32"))
    with HttpServer(backend) as server:
        yield server, backend


@pytest.fixture
def client(served: tuple[HttpServer, LocalBackend]) -> Iterator[openai.OpenAI]:
    with served[0].client() as client:
        yield client


def question() -> list[Any]:
    """The spoken question for the capital of France."""
    part = {"type": "input_audio", "input_audio": {"data": base64_of(QUESTION.read_bytes()), "format": "flac"}}
    return [{"role": "user", "content": [part]}]


def test_whole_streamed_and_counted(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "mini",
        "messages": question(),
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 2,
    }
    whole = client.chat.completions.create(**asked)
    choice, usage = whole.choices[0], whole.usage
    assert "Paris" in (choice.message.content or "")
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == choice.message.content
    assert usage is not None and chunks[-1].usage is not None and usage.prompt_tokens_details is not None
    assert chunks[-1].usage.completion_tokens == usage.completion_tokens
    counted = client.post("../tokenize", body={"messages": question()}, cast_to=object)
    assert isinstance(counted, dict)
    placeholder = max(set(counted["tokens"]), key=counted["tokens"].count)
    assert counted["count"] == usage.prompt_tokens == chunks[-1].usage.prompt_tokens
    assert counted["tokens"].count(placeholder) == usage.prompt_tokens_details.audio_tokens
    assert choice.logprobs is not None and choice.logprobs.content is not None
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert len(choice.logprobs.content) == usage.completion_tokens - 1  # the end is no part of the text
    for token in choice.logprobs.content:
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)


def test_an_answer_obeys_its_schema(client: openai.OpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"capital": {"type": "string", "maxLength": 20}, "sure": {"type": "boolean"}},
        "required": ["capital", "sure"],
        "additionalProperties": False,
    }
    form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    reply = client.chat.completions.create(model="mini", messages=question(), temperature=0, response_format=form)
    answer = json.loads(reply.choices[0].message.content or "")
    assert answer.keys() == {"capital", "sure"} and isinstance(answer["sure"], bool)
    form["json_schema"]["schema"] = {"type": "nonsense"}
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="mini", messages=question(), response_format=form)


def test_several_answers_repeat_with_their_seed(client: openai.OpenAI) -> None:
    messages = [said("Tell me a story")]  # of which there are many
    asked: dict[str, Any] = {"model": "mini", "messages": messages, "temperature": 1.5, "top_p": 1, "max_tokens": 8}
    first, second = (client.chat.completions.create(**asked, n=3, seed=7).choices for _ in range(2))
    texts = [choice.message.content for choice in first]
    assert texts == [choice.message.content for choice in second]
    assert len(set(texts)) > 1


def test_a_closed_stream_frees_its_slot(served: tuple[HttpServer, LocalBackend], client: openai.OpenAI) -> None:
    backend = served[1]
    asked: dict[str, Any] = {"model": "mini", "messages": [said("Tell me a story")], "max_tokens": 1500}
    stream = client.chat.completions.create(**asked, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    eventually(lambda: backend.gauges()["requests_running"] == backend.gauges()["requests_waiting"] == 0)
    assert "Paris" in (
        client.chat.completions.create(model="mini", messages=question(), temperature=0).choices[0].message.content
        or ""
    )


def test_a_token_that_does_not_exist_is_refused(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="logit_bias names the token 999999999"):
        client.chat.completions.create(model="mini", messages=question(), logit_bias={"999999999": 1})


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's own, of translations
def test_what_must_hold_before_any_engine(
    served: tuple[HttpServer, LocalBackend], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same checks that our front before vLLM passes: transcription in all formats, translation, streams, hanging up."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    check_front = importlib.import_module("front_checks").check_front
    assert check_front(f"{served[0].url}/v1", "mini", ROOT / "examples") == 0, capsys.readouterr().out
