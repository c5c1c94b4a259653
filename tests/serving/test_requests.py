"""Requests that make no sense: a 4xx in OpenAI's shape that names the field and says what to do."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from qwen2_audio.serving.error_handlers import name_of, problem_of_body
from qwen2_audio.serving.fields import BOOKKEEPING, REFUSED
from qwen2_audio.serving.schema import ChatRequest, CompletionRequest, TokenizeRequest
from tests.serving.fake_backend import FakeBackend
from tests.serving.http_server import base64_of, heard, said, wav

CHAT, BARE, TOKENIZE = "/v1/chat/completions", "/v1/completions", "/tokenize"
HELLO = {"messages": [said("hello")]}


def problem(response: httpx.Response, status: int = 400) -> dict[str, Any]:
    """The error of an answer, whose shape is checked."""
    assert response.status_code == status, response.text
    body = response.json()
    assert body.keys() == {"error"}
    assert body["error"].keys() == {"message", "type", "param", "code"}
    assert body["error"]["type"] in ("invalid_request_error", "not_found_error", "server_error")
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("given", "param", "message"),
    [
        ({}, "messages", "messages: field required"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": "hi"}, "messages", "valid list"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "field required"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'system', 'developer', 'user'"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "give text or a list of parts"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "at least 1 item"),
        ({"messages": [{"role": "user", "content": "x", "name": "Ann"}]}, "messages[0].name", "put them into the text"),
        ({"messages": [{"role": "user", "content": "x", "rolle": 1}]}, "messages[0].rolle", "did you mean 'role'?"),
        ({"messages": [said({"type": "image_url"}, "x")]}, "messages[0].content[0]", "'input_audio'"),
        ({"messages": [said("x", {"type": "text"})]}, "messages[0].content[1].text", "field required"),
        (
            {"messages": [said({"type": "input_audio", "input_audio": {"format": "wav"}}, "x")]},
            "messages[0].content[0].input_audio.data",
            "field required",
        ),
        ({**HELLO, "temprature": 1}, "temprature", "did you mean 'temperature'?"),
        ({**HELLO, "zzz": 1}, "zzz", "known are model, stream"),
        ({**HELLO, "temperature": -1}, "temperature", "greater than or equal to 0"),
        ({**HELLO, "temperature": True}, "temperature", "valid number"),
        ({**HELLO, "temperature": "1"}, "temperature", "valid number"),
        ({**HELLO, "temperature": 1e-9}, None, "temperature must be 0 or at least 0.0001"),
        ({**HELLO, "max_tokens": -1}, "max_tokens", "greater than or equal to 1"),
        ({**HELLO, "max_tokens": True}, "max_tokens", "valid integer"),
        ({**HELLO, "max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({**HELLO, "max_tokens": 2, "max_completion_tokens": 3}, "max_tokens", "one thing"),
        ({**HELLO, "n": 0}, "n", "greater than or equal to 1"),
        ({**HELLO, "n": 9}, "n", "9 answers, at most 8 are allowed here (setting max_choices)"),
        ({**HELLO, "stop": list("abcde")}, "stop", "5 stop strings, at most 4"),
        ({**HELLO, "stop": ["a", 5]}, "stop[1]", "valid string"),
        ({**HELLO, "stop": ""}, "stop[0]", "at least 1 character"),
        ({**HELLO, "top_p": 0}, "top_p", "greater than 0"),
        ({**HELLO, "logit_bias": {"x": 1}}, "logit_bias.x", "match"),
        ({**HELLO, "logit_bias": {"1": 101}}, "logit_bias.1", "less than or equal to 100"),
        ({**HELLO, "top_logprobs": 2}, "top_logprobs", "set logprobs to true"),
        ({**HELLO, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "at most 20"),
        ({**HELLO, "stream_options": {"include_usage": True}}, "stream_options", "set stream to true"),
        ({**HELLO, "stream": True, "stream_options": {"x": 1}}, "stream_options.x", "unknown field"),
        ({**HELLO, "response_format": {"type": "xml"}}, "response_format", "'json_schema'"),
        (
            {**HELLO, "response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
            "response_format.json_schema.name",
            "field required",
        ),
        ({**HELLO, "tools": [{}]}, "tools", "calls no functions; leave it out"),
        ({**HELLO, "priority": -1}, "priority", "in the order in which they are asked"),
        ({**HELLO, "prediction": {"type": "content", "content": "x"}}, "prediction", "prediction is not supported"),
        ({**HELLO, "modalities": ["text", "audio"]}, "modalities", "answers in text only"),
        ({**HELLO, "audio": {"voice": "x", "format": "wav"}}, "audio", "answers in text only"),
    ],
)
def test_chat_refuses(http: httpx.Client, given: dict[str, Any], param: str | None, message: str) -> None:
    error = problem(http.post(CHAT, json=given))
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    ("path", "given", "param", "message"),
    [
        (BARE, {}, "prompt", "field required"),
        (BARE, {"prompt": 5}, "prompt", "give text or a list of texts"),
        (BARE, {"prompt": [1, 2]}, "prompt[0]", "valid string"),
        (BARE, {"prompt": ""}, "prompt", "give text, recordings or both"),
        (BARE, {"prompt": ["x"] * 9}, "prompt", "9 answers, at most 8"),
        (BARE, {"prompt": "x", "echo": True}, "echo", "echo is not supported"),
        (BARE, {"prompt": "x", "suffix": "y"}, "suffix", "suffix is not supported"),
        (BARE, {"prompt": "x", "best_of": 2}, "best_of", "best_of is not supported"),
        (BARE, {"prompt": "x", "messages": []}, "messages", "unknown field"),
        (BARE, {"prompt": "x", "audio": [{"type": "text", "text": "x"}]}, "audio[0]", "'audio_url'"),
        (TOKENIZE, {}, "messages", "either messages or a prompt"),
        (TOKENIZE, {"prompt": "x", "messages": [said("x")]}, "messages", "either messages or a prompt"),
        (TOKENIZE, {"messages": [said("x")], "audio": [heard(0.5)]}, "audio", "stand in its messages"),
    ],
)
def test_others_refuse(http: httpx.Client, path: str, given: dict[str, Any], param: str, message: str) -> None:
    error = problem(http.post(path, json=given))
    assert error["param"] == param
    assert message in error["message"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "must be a JSON object"),
        (b"5", "must be a JSON object"),
        (b"null", "must be a JSON object"),
        (b"[]", "must be a JSON object"),
        (b"{", "not valid JSON"),
        (b'{"messages": [{"role": "user", "content": "\xff"}]}', "body"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": NaN}', "finite number"),
        (b'{"messages": [{"role": "user", "content": "x"}], "temperature": Infinity}', "temperature"),
        (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages[0]: content holds half a character"),
        (b'{"messages": [{"role": "user", "content": "x"}], "stop": ["\\udfff"]}', "half a character"),
        (b'{"half\\ud800": 1}', "unknown field"),
        (b'{"messages": [{"role": "user", "content": "x"}], "logit_bias": {"\\ud800": 1}}', "logit_bias"),
        (b'{"messages": [{"role": "\\ud800", "content": "x"}]}', "messages[0]"),
        (
            b'{"messages": [{"role": "user", "content": "x"}], "response_format": {"type": "\\ud800"}}',
            "response_format",
        ),
        (b'{"messages": [{"role": "user", "content": [{"type": "text", "text": "\\ud800"}]}]}', "half a character"),
        (b'{"model": "\\ud800", "messages": [{"role": "user", "content": "x"}]}', "half a character"),
        (b'{"seed": ' + b"9" * 5000 + b"}", ""),
        (b"[" * 100_000, ""),
    ],
)
def test_bodies_that_are_no_requests(http: httpx.Client, body: bytes, message: str) -> None:
    error = problem(http.post(CHAT, content=body, headers={"Content-Type": "application/json"}))
    assert message in error["message"]


def test_a_body_of_millions_of_values_is_not_read(http: httpx.Client) -> None:
    body = b'{"messages": [' + b"1," * 200_001 + b"1]}"
    error = problem(http.post(CHAT, content=body, headers={"Content-Type": "application/json"}))
    assert error["code"] == "too_many"


@pytest.mark.parametrize(
    ("path", "given", "told"),
    [
        (CHAT, {"messages": [{}] * 99_000}, "messages[0].role: field required"),
        (CHAT, {"messages": [{"role": "user", "content": [{}] * 99_000}]}, "messages[0].content[0]: unable"),
        (CHAT, {**HELLO, "stop": [1] * 99_000}, "stop[0]: input should be a valid string"),
        (CHAT, {**HELLO, "stop_token_ids": ["x"] * 99_000}, "stop_token_ids[0]: input should be a valid integer"),
        (CHAT, {**HELLO, "logit_bias": {f"x{i}": "y" for i in range(99_000)}}, "logit_bias.x0: string should match"),
        (BARE, {"prompt": [1] * 99_000}, "prompt[0]: input should be a valid string"),
        (BARE, {"prompt": "x", "audio": [{}] * 99_000}, "audio[0]: unable"),
        (TOKENIZE, {"messages": [{}] * 99_000}, "messages[0].role: field required"),
        (TOKENIZE, {"prompt": "x", "audio": [{}] * 99_000}, "audio[0]: unable"),
    ],
)
def test_of_very_many_wrong_items_the_first_is_told(path: str, given: dict[str, Any], told: str) -> None:
    """And the others are not looked at: 200,000 errors take seconds and hundreds of MiB."""
    kinds: dict[str, type[BaseModel]] = {CHAT: ChatRequest, BARE: CompletionRequest, TOKENIZE: TokenizeRequest}
    with pytest.raises(ValidationError) as caught:
        kinds[path].model_validate(given)
    assert caught.value.error_count() <= 2 * 64
    first = caught.value.errors()[0]
    assert told in problem_of_body({**first, "loc": ("body", *first["loc"])}, given).message


def test_all_entries_of_a_large_logit_bias_are_read() -> None:
    bias = {str(token): 0.5 for token in range(1000)}
    assert ChatRequest.model_validate({**HELLO, "logit_bias": bias}).logit_bias == bias
    assert ChatRequest.model_validate({**HELLO, "logit_bias": {}}).logit_bias == {}
    with pytest.raises(ValidationError, match=r"logit_bias\.999"):
        ChatRequest.model_validate({**HELLO, "logit_bias": {**bias, "999": 101}})


def test_a_body_must_be_json(http: httpx.Client) -> None:
    error = problem(http.post(CHAT, data={"messages": "x"}))
    assert "Content-Type: application/json" in error["message"]


@pytest.mark.parametrize(
    ("part", "status", "code"),
    [
        ({"data": "%%%", "format": "wav"}, 400, "invalid_audio"),
        ({"data": base64_of(b"no recording"), "format": "wav"}, 400, "invalid_audio"),
        ({"data": base64_of(wav(0.5)), "format": "mp3"}, 400, "invalid_audio"),
        ({"data": base64_of(wav(0.5)[:200]), "format": "wav"}, 400, "invalid_audio"),
    ],
)
def test_recordings_that_are_none(http: httpx.Client, part: dict[str, str], status: int, code: str) -> None:
    body = {"messages": [said({"type": "input_audio", "input_audio": part}, "x")]}
    assert problem(http.post(CHAT, json=body), status)["code"] == code


def test_addresses_of_this_machine_are_not_fetched(http: httpx.Client) -> None:
    part = {"type": "audio_url", "audio_url": {"url": f"{http.base_url}/health"}}
    assert problem(http.post(CHAT, json={"messages": [said(part)]}))["code"] == "invalid_audio"


def test_too_many_of_anything(http: httpx.Client) -> None:
    clip = {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,"}}
    assert "17 recordings" in problem(http.post(CHAT, json={"messages": [said(*[clip] * 17)]}))["message"]
    assert "513 messages" in problem(http.post(CHAT, json={"messages": [said("x")] * 513}))["message"]
    assert "65 parts" in problem(http.post(CHAT, json={"messages": [said(*["x"] * 65)]}))["message"]
    assert "characters of text" in problem(http.post(CHAT, json={"messages": [said("x" * 1_000_001)]}))["message"]
    deep: dict[str, Any] = {}
    for _ in range(40):
        deep = {"items": deep}
    form = {"type": "json_schema", "json_schema": {"name": "deep", "schema": deep}}
    assert "at most 32" in problem(http.post(CHAT, json={**HELLO, "response_format": form}))["message"]


def test_values_that_change_nothing_are_accepted(http: httpx.Client) -> None:
    for name, (neutral, reason) in REFUSED.items():
        assert reason
        for value in (None, *neutral):
            if name not in ChatRequest.model_fields:
                response = http.post(CHAT, json={**HELLO, name: value})
                assert response.status_code == 200, (name, value, response.text)
    for name in BOOKKEEPING:
        assert http.post(CHAT, json={**HELLO, name: "anything"}).status_code == 200


def test_what_is_refused_is_not_followed_elsewhere() -> None:
    assert not REFUSED.keys() & ChatRequest.model_fields.keys()
    assert REFUSED.keys() & CompletionRequest.model_fields.keys() == {"audio"}
    assert not REFUSED.keys() & BOOKKEEPING


def test_unknown_paths_and_methods(http: httpx.Client) -> None:
    assert "there is no /v1/nothing" in problem(http.get("/v1/nothing"), 404)["message"]
    wrong = http.get(CHAT)
    assert "does not answer GET" in problem(wrong, 405)["message"]
    assert wrong.headers["Allow"] == "POST"


def test_an_adapter_has_a_name_that_is_checked_before_recordings_are_heard(
    http: httpx.Client, fake: FakeBackend
) -> None:
    broken = {
        "model": "nobody",
        "messages": [said({"type": "input_audio", "input_audio": {"data": "%", "format": "wav"}})],
    }
    assert problem(http.post(CHAT, json=broken), 404)["param"] == "model"
    assert fake.jobs == []


def test_places_in_a_body_are_named_as_a_person_would() -> None:
    body = {"messages": [{"content": [{"type": "input_audio", "input_audio": {}}]}]}
    steps = ("messages", 0, "content", "list", 0, "input_audio", "input_audio", "data")
    assert name_of(steps, body) == "messages[0].content[0].input_audio.data"
    assert name_of(("logit_bias", "x", "[key]"), {"logit_bias": {"x": 1}}) == "logit_bias.x"
