"""Our server before another one: what clients hear is the same as without the front."""

from __future__ import annotations

import re
from collections.abc import Iterator

import openai
import pytest

from qwen2_audio import load
from qwen2_audio.remote.assistant import RemoteAssistant
from qwen2_audio.serving.backend import EngineLostError, OverloadedError
from qwen2_audio.serving.upstream import UpstreamBackend
from tests.serving.fake_backend import FakeBackend
from tests.serving.http_server import HttpServer, eventually, heard, said, wav
from tests.serving.recordings import talk

KEY = "the-key-of-the-engine"


@pytest.fixture(scope="module")
def engine() -> Iterator[HttpServer]:
    with HttpServer(FakeBackend(), api_keys=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def front(engine: HttpServer) -> Iterator[HttpServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINE_KEY", KEY)
        backend = UpstreamBackend([f"{engine.url}/v1"], key_variable="ENGINE_KEY", health_interval=0.2)
    with HttpServer(backend) as server:
        eventually(lambda: backend.ready)
        yield server


@pytest.fixture
def fake(engine: HttpServer) -> Iterator[FakeBackend]:
    """What answers in the end."""
    backend: FakeBackend = engine.app.state.backend._backend
    yield backend
    backend.error, backend.delay, backend.jobs = None, 0.0, []
    eventually(lambda: backend.running == 0)


@pytest.fixture
def client(front: HttpServer) -> Iterator[openai.OpenAI]:
    with front.client() as client:
        yield client


def test_chat_stream_and_counts(client: openai.OpenAI, fake: FakeBackend) -> None:
    messages = [said("Be brief.", role="system"), said("Hear", heard(1.5), "well")]
    whole = client.chat.completions.create(model="mini", messages=messages, temperature=0, max_tokens=20)  # type: ignore[call-overload]
    assert whole.choices[0].message.content == "Hear [1.5 s] well"
    chunks = list(
        client.chat.completions.create(  # type: ignore[call-overload]
            model="mini", messages=messages, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Hear [1.5 s] well"
    usage = chunks[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        whole.usage.prompt_tokens,
        whole.usage.completion_tokens,
    )
    assert usage.completion_tokens == 4 and fake.jobs[0].options.temperature == 0


def test_options_arrive(client: openai.OpenAI, fake: FakeBackend) -> None:
    reply = client.chat.completions.create(
        model="mini", messages=[said("one two three")], logprobs=True, top_logprobs=2, seed=3, stop=["three"],  # type: ignore[list-item]
        temperature=0.5, top_p=0.9, presence_penalty=0.5, logit_bias={"7": -1},
        extra_body={"top_k": 4, "min_p": 0.1, "repetition_penalty": 1.2, "min_tokens": 1},
        response_format={"type": "json_object"},
    )  # fmt: skip
    assert reply.choices[0].message.content == "one two "
    assert reply.choices[0].logprobs is not None and reply.choices[0].logprobs.content is not None
    assert len(reply.choices[0].logprobs.content[0].top_logprobs) == 2
    options = fake.jobs[-1].options
    assert (options.temperature, options.top_p, options.top_k, options.min_p) == (0.5, 0.9, 4, 0.1)
    assert (options.repetition_penalty, options.presence_penalty, options.min_new_tokens) == (1.2, 0.5, 1)
    assert (options.seed, options.stop, options.logit_bias) == (3, ("three",), ((7, -1.0),))
    assert (options.logprobs, options.json_schema) == (2, "{}")


def test_models_tokens_and_bare_prompts(client: openai.OpenAI, front: HttpServer, fake: FakeBackend) -> None:
    assert [model.id for model in client.models.list()] == ["mini", "digits"]
    with front.http() as http:
        found = http.post("/tokenize", json={"messages": [said("one two")]}).json()
        assert found["tokens"] == [0, 1]
        bare = {"model": "digits", "prompt": "Recognize", "audio": [heard(0.5)], "temperature": 0}
        assert http.post("/v1/completions", json=bare).json()["choices"][0]["text"] == "[0.5 s] Recognize"
    assert fake.jobs[-1].model == "digits"


def test_transcription_by_an_engine_that_has_none(client: openai.OpenAI, fake: FakeBackend) -> None:
    reply = client.audio.transcriptions.create(model="mini", file=("speech.flac", talk(1)), response_format="json")
    assert re.fullmatch(r"\[\d\.\d s\] Transcribe the speech\.", reply.text)
    count = len(fake.jobs)
    reply = client.audio.transcriptions.create(model="mini", file=("tone.wav", wav(1.0)), response_format="json")
    assert (reply.text, len(fake.jobs)) == ("", count)  # a tone is no speech


@pytest.mark.parametrize(
    ("error", "told"),
    [(OverloadedError("full", 7), openai.APIStatusError), (EngineLostError("x"), openai.APIStatusError)],
)
def test_trouble_of_the_engine(
    client: openai.OpenAI, fake: FakeBackend, error: Exception, told: type[openai.APIStatusError]
) -> None:
    fake.error = error
    with pytest.raises(told) as caught:
        client.chat.completions.create(model="mini", messages=[said("Hello")])  # type: ignore[list-item]
    assert caught.value.status_code in (429, 503) and "127.0.0.1" not in str(caught.value)
    fake.error = None
    front_is_back = client.with_options(max_retries=5)
    assert front_is_back.chat.completions.create(model="mini", messages=[said("Hello")]).choices  # type: ignore[list-item]


def test_hanging_up_reaches_the_engine(client: openai.OpenAI, fake: FakeBackend) -> None:
    fake.delay, before = 0.01, fake.cancelled
    text = " ".join(["word"] * 2000)
    stream = client.chat.completions.create(model="mini", messages=[said(text)], stream=True, max_tokens=3000)  # type: ignore[list-item]
    next(iter(stream))
    stream.close()
    eventually(lambda: fake.cancelled == before + 1)


def test_load_from_our_own_server(engine: HttpServer, fake: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assistant = load(f"openai:{engine.url}/v1#digits")
    assert isinstance(assistant, RemoteAssistant)
    reply = assistant.chat([wav(1.5), "What is it?"], temperature=0)
    assert str(reply) == "[1.5 s] What is it?" and reply.completion_tokens == 5
    assert assistant.complete(wav(0.5), "Recognize").text == "[0.5 s] Recognize"
    assert assistant.served.transcription_window == 12
    assert fake.jobs[-1].model == "digits"
    assistant.close()
