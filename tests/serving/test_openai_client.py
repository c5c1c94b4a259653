"""OpenAI's own client, sync and async, against a live server: it works unmodified."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion

from qwen2_audio.config import SAMPLE_RATE, audio_tokens, mel_frames
from qwen2_audio.processing.conversation import AudioPart, Conversation, TextPart
from qwen2_audio.serving.backend import BarePrompt, EngineLostError, OverloadedError
from tests.serving.fake_backend import FakeBackend, seconds_of
from tests.serving.http_server import PATIENCE, HttpServer, base64_of, cut_ogg, eventually, heard, said, wav
from tests.tiny import sound

HELLO: list[Any] = [said("one two three")]


def test_chat(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model="mini", messages=HELLO)
    assert reply.choices[0].message.content == "one two three"
    assert (reply.choices[0].finish_reason, reply.model, reply.object) == ("stop", "mini", "chat.completion")
    assert reply.id.startswith("chatcmpl-")


def test_stream_equals_whole(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "mini", "messages": HELLO, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**options)
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    choices = [chunk.choices[0] for chunk in chunks[:-1]]
    assert "".join(choice.delta.content or "" for choice in choices) == whole.choices[0].message.content
    assert [choice.delta.role for choice in choices if choice.delta.role] == ["assistant"]
    assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or ()]
    assert whole.choices[0].logprobs is not None
    assert tokens == whole.choices[0].logprobs.content
    assert chunks[-1].choices == []
    assert chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({chunk.id for chunk in chunks}) == 1


def test_usage_is_exact(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.cached_tokens = 3
    reply = client.chat.completions.create(model="mini", messages=[said("say this", heard(1.0), heard(2.0))])  # type: ignore[list-item]
    usage = reply.usage
    assert usage is not None and usage.prompt_tokens_details is not None
    assert usage.prompt_tokens == 2 + 25 + 50
    assert usage.completion_tokens == 5  # say this [1.0 s] [2.0 s], and the end
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.audio_tokens == 25 + 50
    assert usage.prompt_tokens_details.cached_tokens == 3


def test_content_keeps_its_order(client: openai.OpenAI, fake: FakeBackend) -> None:
    url = {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{base64_of(wav(1.5))}"}}
    messages: list[Any] = [
        said("be brief", role="developer"),
        said(heard(0.5), "first", url, "second"),
        said("an answer", role="assistant"),
        said("then?"),
    ]
    client.chat.completions.create(model="mini", messages=messages)
    asked = fake.jobs[-1].prompt
    assert isinstance(asked, Conversation)
    assert [message.role for message in asked.messages] == ["system", "user", "assistant", "user"]
    parts = asked.messages[1].parts
    assert [type(part) for part in parts] == [AudioPart, TextPart, AudioPart, TextPart]
    assert [seconds_of(part) for part in parts if isinstance(part, AudioPart)] == [0.5, 1.5]
    assert [part.text for part in parts if isinstance(part, TextPart)] == ["first", "second"]


def test_every_option_arrives(client: openai.OpenAI, fake: FakeBackend) -> None:
    client.chat.completions.create(
        model="digits",
        messages=HELLO,
        temperature=0.5,
        top_p=0.9,
        max_completion_tokens=7,
        presence_penalty=0.25,
        frequency_penalty=-0.5,
        logit_bias={"5": -100, "6": 2},
        seed=-1,
        stop=["x", "yz"],
        logprobs=True,
        top_logprobs=4,
        user="somebody",
        metadata={"a": "b"},
        store=False,
        extra_body={
            "top_k": -1,
            "min_p": 0.1,
            "repetition_penalty": 1.5,
            "min_tokens": 2,
            "stop_token_ids": [9],
            "ignore_eos": True,
        },
    )
    job = fake.jobs[-1]
    options = job.options
    assert job.model == "digits"
    assert (options.temperature, options.top_p, options.top_k, options.min_p) == (0.5, 0.9, 0, 0.1)
    assert (options.max_new_tokens, options.min_new_tokens, options.ignore_eos) == (7, 2, True)
    assert (options.presence_penalty, options.frequency_penalty, options.repetition_penalty) == (0.25, -0.5, 1.5)
    assert (options.logit_bias, options.stop_token_ids) == (((5, -100.0), (6, 2.0)), (9,))
    assert (options.seed, options.stop, options.logprobs) == (2**64 - 1, ("x", "yz"), 4)


def test_what_is_not_said_is_as_the_model_says(client: openai.OpenAI, fake: FakeBackend) -> None:
    client.chat.completions.create(model="mini", messages=HELLO)
    assert fake.jobs[-1].options == fake.cards[0].defaults


def test_several_answers(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.answer, fake.delay = lambda job: [f"seed {job.options.seed}"], 0.02
    whole = client.chat.completions.create(model="mini", messages=HELLO, n=3, seed=5)
    assert [choice.message.content for choice in whole.choices] == ["seed 5", "seed 6", "seed 7"]
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert whole.usage is not None
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens) == (3, 6)
    assert fake.most_running == 3
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(model="mini", messages=HELLO, n=3, seed=5, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == [choice.message.content for choice in whole.choices]


def test_stop_and_length(client: openai.OpenAI) -> None:
    stopped = client.chat.completions.create(model="mini", messages=HELLO, stop=" three").choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("one two", "stop")
    cut = client.chat.completions.create(model="mini", messages=HELLO, max_tokens=2).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("one two", "length")


def test_response_formats(client: openai.OpenAI, fake: FakeBackend) -> None:
    schema: dict[str, Any] = {"type": "object", "properties": {"name": {"type": "string"}}}
    named: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    client.chat.completions.create(model="mini", messages=HELLO, response_format=named)
    assert json.loads(fake.jobs[-1].options.json_schema or "") == schema
    client.chat.completions.create(model="mini", messages=HELLO, response_format={"type": "json_object"})
    assert fake.jobs[-1].options.json_schema == "{}"
    client.chat.completions.create(model="mini", messages=HELLO, response_format={"type": "text"})
    assert fake.jobs[-1].options.json_schema is None


def test_an_answer_can_be_sent_back_as_it_came(client: openai.OpenAI, fake: FakeBackend) -> None:
    reply = client.chat.completions.create(model="mini", messages=HELLO)
    again: list[Any] = [*HELLO, reply.choices[0].message.model_dump(), said("go on")]
    client.chat.completions.create(model="mini", messages=again)
    asked = fake.jobs[-1].prompt
    assert isinstance(asked, Conversation)
    assert [message.text for message in asked.messages] == ["one two three", "one two three", "go on"]


def test_a_long_recording_is_heard_in_parts_and_says_so(client: openai.OpenAI, fake: FakeBackend) -> None:
    messages: list[Any] = [said(heard(1.0), "and", heard(61.0))]
    note = ["recording 2 is 61.0 s long; it is heard as 3 consecutive parts of at most 30 s"]
    whole = client.chat.completions.create(model="mini", messages=messages)
    assert (whole.model_extra or {})["warnings"] == note
    asked = fake.jobs[-1].prompt
    assert isinstance(asked, Conversation)
    parts = [part for part in asked.messages[0].parts if isinstance(part, AudioPart)]
    assert len(parts) == 4
    assert sum(seconds_of(part) for part in parts) == 62
    assert max(seconds_of(part) for part in parts) <= 30
    assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
    tokens = sum(audio_tokens(mel_frames(int(seconds_of(part) * SAMPLE_RATE))) for part in parts)
    assert whole.usage.prompt_tokens_details.audio_tokens == tokens
    chunks = list(client.chat.completions.create(model="mini", messages=messages, stream=True))
    assert [(chunk.model_extra or {}).get("warnings") for chunk in chunks[:2]] == [note, None]


def test_a_recording_that_is_not_whole_is_heard_and_says_so(client: openai.OpenAI) -> None:
    sent = {"data": base64.b64encode(cut_ogg(sound(2.0))).decode(), "format": "ogg"}
    messages: list[Any] = [said({"type": "input_audio", "input_audio": sent})]
    reply = client.chat.completions.create(model="mini", messages=messages)
    note = "the recording lacks the mark of its end; it may have been cut short"
    assert (reply.model_extra or {})["warnings"] == [note]


def test_completions(client: openai.OpenAI, fake: FakeBackend) -> None:
    audio = {"audio": [heard(0.5), heard(1.0)]}
    whole = client.completions.create(model="mini", prompt=["a b", "c"], n=2, logprobs=1, extra_body=audio)
    assert [choice.text for choice in whole.choices] == ["[0.5 s] [1.0 s] a b"] * 2 + ["[0.5 s] [1.0 s] c"] * 2
    assert isinstance(fake.jobs[0].prompt, BarePrompt)
    assert whole.usage is not None and whole.usage.prompt_tokens_details is not None
    assert whole.usage.prompt_tokens == (12 + 25 + 2) + (12 + 25 + 1)
    assert whole.usage.prompt_tokens_details.audio_tokens == 2 * (12 + 25)
    logprobs = whole.choices[2].logprobs
    assert logprobs is not None
    assert (logprobs.tokens, logprobs.text_offset) == (["[0.5 s]", " [1.0 s]", " c"], [0, 7, 15])
    assert logprobs.top_logprobs is not None and logprobs.top_logprobs[2] == {" c": -0.5}
    texts, offsets = [""] * 4, [[], [], [], []]  # type: ignore[var-annotated]
    for chunk in client.completions.create(
        model="mini", prompt=["a b", "c"], n=2, logprobs=1, extra_body=audio, stream=True
    ):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            offsets[choice.index] += choice.logprobs.text_offset if choice.logprobs else []  # type: ignore[operator]
    assert texts == [choice.text for choice in whole.choices]
    assert offsets[2] == logprobs.text_offset


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["mini", "digits"]
    adapter = client.models.retrieve("digits")
    assert (adapter.model_extra or {})["root"] == "mini"
    with pytest.raises(openai.NotFoundError, match="'minni' does not exist here; did you mean 'mini'"):
        client.models.retrieve("minni")


def test_errors_are_the_clients_own(client: openai.OpenAI, fake: FakeBackend) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt", messages=HELLO)
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="tools is not supported: the model calls no functions"):
        client.chat.completions.create(
            model="mini", messages=HELLO, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    fake.error = OverloadedError("too much is waiting; try again", retry_after=7.2)
    with pytest.raises(openai.InternalServerError) as full:
        client.chat.completions.create(model="mini", messages=HELLO)
    assert (full.value.status_code, full.value.response.headers["Retry-After"]) == (503, "8")
    fake.error = RuntimeError("with the secret of somebody else")
    with pytest.raises(openai.InternalServerError) as mistake:
        client.chat.completions.create(model="mini", messages=HELLO)
    assert (mistake.value.status_code, mistake.value.code) == (500, "internal_error")
    assert "secret" not in str(mistake.value)


def test_an_error_before_the_first_event_keeps_its_status(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.error = EngineLostError("the engine died; try again")
    with pytest.raises(openai.InternalServerError) as lost:
        client.chat.completions.create(model="mini", messages=HELLO, stream=True)
    assert (lost.value.status_code, lost.value.code) == (503, "engine_lost")


def test_an_error_in_a_stream_is_raised_where_it_comes(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.error, fake.error_after = EngineLostError("the engine died; try again"), 2
    stream = client.chat.completions.create(model="mini", messages=HELLO, stream=True)
    texts = []
    with pytest.raises(openai.APIError, match="the engine died"):
        for chunk in stream:
            texts.append(chunk.choices[0].delta.content)
    assert texts == ["", "one", " two"]


def test_the_client_tries_again_where_that_makes_sense(server: HttpServer, fake: FakeBackend) -> None:
    def answer(_job: object) -> list[str]:
        if len(fake.jobs) == 1:
            raise OverloadedError("too much is waiting; try again", retry_after=0.1)
        return ["there"]

    fake.answer = answer
    with server.client(max_retries=2) as client:
        assert client.chat.completions.create(model="mini", messages=HELLO).choices[0].message.content == "there"
    assert len(fake.jobs) == 2


def test_the_async_client(server: HttpServer, fake: FakeBackend) -> None:
    async def ask() -> tuple[list[ChatCompletion], str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=PATIENCE) as client:
            asking = [client.chat.completions.create(model="mini", messages=[said(f"number {n}")]) for n in range(8)]  # type: ignore[list-item]
            replies = await asyncio.gather(*asking)
            stream = await client.chat.completions.create(model="mini", messages=HELLO, stream=True)
            return replies, "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    fake.delay = 0.01
    replies, streamed = asyncio.run(ask())
    assert [reply.choices[0].message.content for reply in replies] == [f"number {n}" for n in range(8)]
    assert streamed == "one two three"
    assert fake.most_running > 1


def test_closing_a_stream_frees_the_slot(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.answer = lambda _job: ["word "] * 1000
    fake.delay = 0.01
    stream = client.chat.completions.create(model="mini", messages=HELLO, stream=True, max_tokens=1000)
    next(iter(stream))
    assert fake.running == 1
    stream.close()
    eventually(lambda: fake.running == 0)
    assert (fake.cancelled, fake.finished) == (1, 0)


@pytest.mark.parametrize("choices", [1, 3])
def test_a_client_that_gives_up_frees_the_slot(server: HttpServer, fake: FakeBackend, choices: int) -> None:
    fake.holding = True
    with server.client(timeout=0.3) as client, pytest.raises(openai.APITimeoutError):
        client.chat.completions.create(model="mini", messages=HELLO, n=choices)
    eventually(lambda: fake.running == 0)
    assert fake.cancelled == choices
