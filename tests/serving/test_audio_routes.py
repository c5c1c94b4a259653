"""Transcription and translation by OpenAI's client, sync and async, in every format; what is not supported is named."""

from __future__ import annotations

import asyncio
import html
import io
from typing import Any

import httpx
import openai
import pytest
import soundfile
import srt
import webvtt

from qwen2_audio.longform.listening import TRANSCRIBE, TRANSLATE
from qwen2_audio.processing.conversation import TextPart
from qwen2_audio.serving.backend import Job
from tests.serving.fake_backend import FakeBackend, parts_of
from tests.serving.http_server import PATIENCE, HttpServer, cut_ogg, eventually, wav
from tests.serving.recordings import PAUSE, sentence_seconds, talk

WORDS = ("The quick brown", " fox jumps", " over it.")


@pytest.fixture(scope="module")
def recording() -> tuple[str, bytes]:
    """Three sentences, three windows."""
    return "talk.flac", talk(3)


@pytest.fixture(autouse=True)
def numbered(fake: FakeBackend) -> None:
    """Each window has its own text."""
    fake.answer = lambda job: [f"{len(fake.jobs)}:", *WORDS]


WHOLE = " ".join(f"{number}:{''.join(WORDS)}" for number in (1, 2, 3))
LENGTH = 4 * PAUSE


def test_json(client: openai.OpenAI, recording: tuple[str, bytes], fake: FakeBackend) -> None:
    reply = client.audio.transcriptions.create(model="mini", file=recording)
    assert reply.text == WHOLE
    usage: Any = reply.usage
    assert (usage.type, usage.seconds) == ("duration", pytest.approx(3 * sentence_seconds() + LENGTH, abs=0.01))
    assert asked(fake.jobs[0]) == TRANSCRIBE
    options = fake.jobs[0].options
    assert (options.temperature, options.repetition_penalty, options.logprobs) == (0.0, 1.0, None)


def asked(job: Job) -> str:
    (text,) = [part.text for part in parts_of(job.prompt) if isinstance(part, TextPart)]
    return text


def test_text(client: openai.OpenAI, recording: tuple[str, bytes]) -> None:
    reply: Any = client.audio.transcriptions.create(model="mini", file=recording, response_format="text")
    assert reply == WHOLE + "\n"


def test_srt(client: openai.OpenAI, recording: tuple[str, bytes]) -> None:
    reply: Any = client.audio.transcriptions.create(model="mini", file=recording, response_format="srt")
    cues = list(srt.parse(reply))
    assert " ".join(cue.content for cue in cues) == WHOLE
    assert PAUSE < cues[0].start.total_seconds() < PAUSE + 0.6


def test_vtt(client: openai.OpenAI, recording: tuple[str, bytes]) -> None:
    reply: Any = client.audio.transcriptions.create(model="mini", file=recording, response_format="vtt")
    cues = list(webvtt.from_buffer(io.StringIO(reply)))
    assert " ".join(html.unescape(cue.raw_text) for cue in cues) == WHOLE


def test_verbose_json(client: openai.OpenAI, recording: tuple[str, bytes]) -> None:
    reply = client.audio.transcriptions.create(
        model="mini", file=recording, response_format="verbose_json", language="de", timestamp_granularities=["segment"]
    )
    assert (reply.text, reply.language) == (WHOLE, "german")
    assert reply.duration == pytest.approx(3 * sentence_seconds() + LENGTH, abs=0.01)
    assert reply.segments is not None and reply.usage is not None
    assert [segment.id for segment in reply.segments] == [0, 1, 2]
    for number, segment in enumerate(reply.segments):
        begin = PAUSE + number * (sentence_seconds() + PAUSE)
        assert begin < segment.start < begin + 0.6 and segment.start < segment.end < begin + sentence_seconds() + 0.1
        assert segment.avg_logprob == -0.5 and 0 <= segment.no_speech_prob < 0.5


def test_stream_equals_whole(client: openai.OpenAI, recording: tuple[str, bytes]) -> None:
    events = list(client.audio.transcriptions.create(model="mini", file=recording, stream=True, include=["logprobs"]))
    *pieces, done = events
    assert {event.type for event in pieces} == {"transcript.text.delta"} and len(pieces) == 3
    assert "".join(event.delta for event in pieces) == WHOLE  # type: ignore[union-attr]
    assert done.type == "transcript.text.done" and done.text == WHOLE
    whole = client.audio.transcriptions.create(model="mini", file=recording, include=["logprobs"])
    assert done.logprobs is not None and whole.logprobs is not None
    assert [one.logprob for one in done.logprobs] == [one.logprob for one in whole.logprobs]
    assert done.usage is not None and whole.usage is not None
    assert done.usage.input_tokens > 3 * 25 * 3  # without the pauses, a sentence is over 3 s
    assert (done.usage.output_tokens, done.usage.total_tokens) == (15, done.usage.input_tokens + 15)
    assert done.usage.seconds == whole.usage.seconds  # type: ignore[attr-defined,union-attr]


def test_what_is_not_whole_is_said(client: openai.OpenAI, fake: FakeBackend) -> None:
    """Of the recording, and of texts that the model could not end."""
    fake.answer = lambda _job: ["round and "] * 400
    spoken, _ = soundfile.read(io.BytesIO(talk(2)), dtype="float32")
    file = ("cut.ogg", cut_ogg(spoken))
    (*_, done) = client.audio.transcriptions.create(model="mini", file=file, stream=True)
    replies: list[Any] = [
        client.audio.transcriptions.create(model="mini", file=file),
        client.audio.transcriptions.create(model="mini", file=file, response_format="verbose_json"),
        done,
    ]
    for reply in replies:
        cut, lost = reply.model_extra["warnings"]
        assert cut == "the file lacks the mark of its end; it may have been cut short"
        assert lost.startswith("the model lost the thread and was cut short at ")


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # by OpenAI; others go on using it
def test_translation(client: openai.OpenAI, recording: tuple[str, bytes], fake: FakeBackend) -> None:
    reply = client.audio.translations.create(model="digits", file=recording, temperature=0.7)
    assert reply.text == WHOLE
    assert {(asked(job), job.model, job.options.temperature) for job in fake.jobs} == {(TRANSLATE, "digits", 0.7)}
    verbose = client.audio.translations.create(model="mini", file=recording, response_format="verbose_json")
    assert (verbose.language, len(verbose.segments or ())) == ("english", 3)


def test_async(server: HttpServer, recording: tuple[str, bytes]) -> None:
    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", timeout=PATIENCE) as client:
            reply = await client.audio.transcriptions.create(model="mini", file=recording)
            assert len(reply.text) == len(WHOLE)
            stream = await client.audio.transcriptions.create(model="mini", file=recording, stream=True)
            texts = [event.text async for event in stream if event.type == "transcript.text.done"]
            assert len(texts) == 1

    asyncio.run(asyncio.wait_for(run(), PATIENCE))


def test_silence_is_no_text(client: openai.OpenAI, fake: FakeBackend) -> None:
    assert client.audio.transcriptions.create(model="mini", file=("tone.wav", wav(3.0))).text == ""
    assert client.audio.transcriptions.create(model="mini", file=("tone.wav", wav(3.0)), language="en").text == ""
    assert fake.jobs == []


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"prompt": "as before"}, "prompt", "leave it out"),
        ({"response_format": "diarized_json"}, "response_format", "speakers"),
        ({"response_format": "docx"}, "response_format", "srt"),
        (
            {"timestamp_granularities[]": "word", "response_format": "verbose_json"},
            "timestamp_granularities",
            "segment",
        ),
        ({"timestamp_granularities[]": "segment"}, "timestamp_granularities", "verbose_json"),
        ({"include[]": "logprobs", "response_format": "srt"}, "include", "json"),
        ({"stream": "true", "response_format": "vtt"}, "stream", "whole"),
        ({"stream": "perhaps"}, "stream", "bool"),
        ({"chunking_strategy[type]": "server_vad"}, "chunking_strategy", "auto"),
        ({"known_speaker_names[]": "Ann"}, "known_speaker_names", "speakers"),
        ({"language": "tlh"}, "language", "known are en"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": "nan"}, "temperature", "number"),
        ({"temperature": "-1"}, "temperature", "greater"),
        ({"temprature": "1"}, "temprature", "did you mean 'temperature'"),
        ({"model": "nothing"}, "model", "does not exist"),
        ({"model": ""}, "model", "at least 1"),
    ],
)
def test_what_is_not_supported_is_named(http: httpx.Client, fields: dict[str, str], param: str, word: str) -> None:
    reply = http.post("/v1/audio/transcriptions", data={"model": "mini"} | fields, files={"file": ("a.wav", wav(0.5))})
    error = reply.json()["error"]
    assert reply.status_code == (404 if word == "does not exist" else 400)
    assert error["param"] == param and word in error["message"]


def test_what_is_harmless_is_taken(http: httpx.Client, recording: tuple[str, bytes]) -> None:
    fields = {
        "model": "mini",
        "prompt": "",
        "chunking_strategy": "auto",
        "language": "",
        "user": "me",
        "stream": "false",
    }
    reply = http.post("/v1/audio/transcriptions", data=fields, files={"file": recording})
    assert (reply.status_code, reply.json()["text"]) == (200, WHOLE)


def test_broken_forms(http: httpx.Client) -> None:
    file = {"file": ("a.wav", wav(0.5))}

    def refused(**request: Any) -> str:
        reply = http.post("/v1/audio/transcriptions", **request)
        assert reply.status_code == 400
        return str(reply.json()["error"]["message"])

    assert "file" in refused(data={"model": "mini"})
    assert "file" in refused(json={"model": "mini"})
    assert "model" in refused(files=file)
    assert "not a recording" in refused(data={"model": "mini"}, files={"file": ("a.wav", b"no sound at all")})
    assert "empty" in refused(data={"model": "mini"}, files={"file": ("a.wav", b"")})
    assert "too short" in refused(data={"model": "mini"}, files={"file": ("a.wav", wav(0.01))})
    boundary = {"Content-Type": "multipart/form-data; boundary=x"}
    assert refused(content=b"--x\r\nnonsense", headers=boundary)
    part = b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nmini\r\n--x--\r\n'
    for charset in ("undefined", "no-such"):
        assert refused(content=part, headers={"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"})
    assert "twice" in refused(data={"model": ["mini", "mini"]}, files=file)


def test_who_goes_away_is_forgotten(http: httpx.Client, fake: FakeBackend, recording: tuple[str, bytes]) -> None:
    fake.delay = 0.05
    fake.answer = lambda _: ["slow "] * 600
    data = {"model": "mini", "stream": "true"}
    with http.stream("POST", "/v1/audio/transcriptions", data=data, files={"file": recording}) as reply:
        lines = reply.iter_lines()  # dropped, it would hang up at once
        next(lines)
        eventually(lambda: fake.running > 0)
    eventually(lambda: fake.running == 0)
    assert fake.cancelled == len(fake.jobs) > fake.finished == 0


def test_described(http: httpx.Client) -> None:
    paths = http.get("/openapi.json").json()["paths"]
    form = paths["/v1/audio/transcriptions"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"file", "model", "timestamp_granularities[]", "include[]", "chunking_strategy"} <= form["properties"].keys()
    assert form["required"] == ["file", "model"]
    assert "stream" not in paths["/v1/audio/translations"]["post"]["requestBody"]["content"]["multipart/form-data"]
