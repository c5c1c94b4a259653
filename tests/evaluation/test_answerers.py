"""A model here and a model on a server: each sample as if it were alone, and no sample ever disappears."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Iterable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from qwen2_audio.api import Assistant, load
from qwen2_audio.errors import AudioError, AudioWarning, UsageError
from qwen2_audio.evaluation.answerers import AssistantAnswerer
from qwen2_audio.evaluation.samples import Answer, Sample
from qwen2_audio.evaluation.server_answerer import OpenAIAnswerer
from tests.tiny import sound, tiny_folder

KEY = "sk-this-is-a-secret"
PROMPT = "Detect the language and recognize the speech: <|en|>"


@pytest.fixture(scope="module")
def assistant(folder: Path) -> Assistant:
    return load(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    place = tmp_path_factory.mktemp("clips")
    paths = [place / f"{number}.wav" for number in range(4)]
    for number, path in enumerate(paths):
        soundfile.write(path, sound(0.3 + 0.4 * number, seed=number), 16_000)
    return [str(path) for path in paths]


def sample(name: str, *audio: str, chat: bool = False, prompt: str = PROMPT) -> Sample:
    return Sample(name, audio, prompt, "the cat", "here", chat=chat)


def samples_of(clips: list[str]) -> list[Sample]:
    """Bare and in a chat, with none, one and two recordings."""
    bare = [sample(f"bare{n}", clip) for n, clip in enumerate(clips)]
    chat = [sample(f"chat{n}", clip, chat=True, prompt="What?") for n, clip in enumerate(clips)]
    return [*bare, *chat, sample("voice", clips[0], chat=True, prompt=""), sample("two", *clips[:2]), sample("text")]


def test_a_batch_answers_as_each_alone(assistant: Assistant, clips: list[str]) -> None:
    answerer = AssistantAnswerer(assistant, "tiny", max_new_tokens=6)
    samples = samples_of(clips)
    together = answerer.answer(samples)
    alone = [answerer.answer([one])[0] for one in samples]
    assert [answer.response for answer in together] == [answer.response for answer in alone]
    assert [answer.sample for answer in together] == samples
    assert not any(answer.error for answer in together)
    assert len({answer.response for answer in together}) > 3


def test_asked_as_published(assistant: Assistant, clips: list[str]) -> None:
    """Bare prompts through `complete`, chats through `chat`, both greedy with the checkpoint's repetition penalty."""
    answerer = AssistantAnswerer(assistant, "tiny", max_new_tokens=6)
    bare, chat = answerer.answer([sample("1", clips[2]), sample("2", clips[2], chat=True, prompt="What?")])
    greedy: Any = {"temperature": 0.0, "repetition_penalty": 1.1, "max_new_tokens": 6}
    assert bare.response == assistant.complete(clips[2], PROMPT, **greedy).text
    assert chat.response == assistant.chat([clips[2], "What?"], **greedy).text
    assert bare.response != chat.response


def test_an_unreadable_clip_is_a_failure_and_the_others_go_on(
    assistant: Assistant, clips: list[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.wav"
    broken.write_bytes(b"RIFF")
    soundfile.write(tmp_path / "short.wav", np.zeros(3, dtype=np.float32), 16_000)
    answerer = AssistantAnswerer(assistant, "tiny", max_new_tokens=8)
    asked = [
        sample("good", clips[0]),
        sample("broken", str(broken)),
        sample("none", str(tmp_path / "none.wav")),
        sample("short", str(tmp_path / "short.wav")),
        sample("control", clips[1], chat=True, prompt="<|im_start|>"),
        sample("long", clips[1], chat=True, prompt="hello " * 5000),
        sample("last", clips[1], chat=True, prompt="What?"),
    ]
    good, unreadable, missing, short, control, long, last = answerer.answer(asked)
    alone = AssistantAnswerer(assistant, "tiny", max_new_tokens=8).answer([asked[0]])
    assert good.response == alone[0].response and not good.error
    assert str(broken) in unreadable.error and unreadable.response == ""
    assert missing.error.startswith(f"no such file: {tmp_path}/none.wav")
    assert "short" in short.error and "control token" in control.error and "too long" in long.error
    assert last.error == "" and last.response


def test_what_is_over_30_seconds(assistant: Assistant, tmp_path: Path) -> None:
    wave = sound(40.0)
    for name, part in (("whole", wave), ("start", wave[:480_000])):
        soundfile.write(tmp_path / f"{name}.wav", part, 16_000, subtype="FLOAT")
    whole, start = (sample(name, str(tmp_path / f"{name}.wav")) for name in ("whole", "start"))
    cut = AssistantAnswerer(assistant, "tiny", max_new_tokens=8)
    with pytest.warns(AudioWarning, match=r"whole\.wav is 40\.0 s long; .* its first 30 s are heard"):
        heard = cut.answer([whole, start])
    assert heard[0].response == heard[1].response
    with pytest.warns(AudioWarning, match="2 consecutive parts"):
        windows = AssistantAnswerer(assistant, "tiny", max_new_tokens=8, long_audio="windows").answer([whole])
    assert windows[0].response != heard[0].response
    with pytest.raises(UsageError, match="long_audio must be one of cut, windows, got 'all'"):
        AssistantAnswerer(assistant, "tiny", long_audio="all")


def test_no_answer_ends_before_it_begins(
    assistant: Assistant, clips: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in the official script, the first token never ends an answer; the second may."""
    answerer = AssistantAnswerer(assistant, "tiny", max_new_tokens=4)
    assert answerer.identity()["min_new_tokens"] == 1
    asked = [sample("bare", clips[0]), sample("chat", clips[0], chat=True, prompt="What?")]
    greedy: Any = {"temperature": 0.0, "max_new_tokens": 1}
    likeliest = (
        assistant.complete(clips[0], PROMPT, **greedy).tokens + assistant.chat([clips[0], "What?"], **greedy).tokens
    )
    monkeypatch.setattr(assistant.engine, "end_ids", frozenset(likeliest))
    assert assistant.chat([clips[0], "What?"], **greedy).text == ""
    bare, chat = answerer.answer(asked)
    assert bare.response and chat.response


def test_identity_names_what_answers_depend_on(assistant: Assistant, folder: Path, tmp_path: Path) -> None:
    identity = AssistantAnswerer(assistant, "tiny").identity()
    assert identity["model"] == "tiny" and identity["dtype"] == "float32" and identity["device"] == "cpu"
    assert (identity["max_new_tokens"], identity["temperature"], identity["repetition_penalty"]) == (256, 0.0, 1.1)
    again = AssistantAnswerer(load(folder, device="cpu", dtype="float32"), "tiny").identity()
    assert again == identity
    other = load(tiny_folder(tmp_path / "other", seed=2), device="cpu", dtype="float32")
    assert AssistantAnswerer(other, "tiny").identity()["weights"] != identity["weights"]


class Server(ThreadingHTTPServer):
    """Answers `chat/completions` with the number of samples heard, after what `troubles` says for a prompt."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[dict[str, Any]] = []
        self.paths: list[tuple[str, str]] = []
        self.troubles: dict[str, list[Any]] = {}
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        *sounds, last = [*body["messages"][0]["content"]]
        text = last["text"] if last["type"] == "text" else ""
        with self.server.lock:
            self.server.requests.append(body)
            self.server.paths.append((self.path, self.headers.get("Authorization", "")))
            waiting = self.server.troubles.get(text, [])
            trouble = waiting.pop(0) if waiting else None
        if trouble == "hang up":
            self.close_connection = True
            return
        if trouble == "sleep":
            time.sleep(0.6)
        status, reply = trouble if isinstance(trouble, tuple) else (200, self.reply(sounds, text))
        data = reply.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @staticmethod
    def reply(sounds: list[dict[str, Any]], text: str) -> str:
        lengths = []
        for part in sounds:
            assert part["type"] == "input_audio" and part["input_audio"]["format"] == "wav"
            wave, rate = soundfile.read(io.BytesIO(base64.b64decode(part["input_audio"]["data"])))
            lengths.append(f"{len(wave)}@{rate}")
        return json.dumps({"choices": [{"message": {"content": f"{text}: {' '.join(lengths)}"}}]})

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "*")


def asking(server: Server, **options: Any) -> OpenAIAnswerer:
    return OpenAIAnswerer(server.url, "qwen2-audio", **{"attempts": 3, "pause": 0.01, **options})


def in_order(answers: Iterable[Answer], asked: list[Sample]) -> list[Answer]:
    return sorted(answers, key=lambda answer: asked.index(answer.sample))


def test_a_server_hears_recordings_and_prompt(server: Server, clips: list[str]) -> None:
    asked = [sample(str(n), clip, chat=n % 2 == 0, prompt=f"Q{n}") for n, clip in enumerate(clips)]
    answers = in_order(asking(server, max_new_tokens=9).answer(asked), asked)
    assert [answer.response for answer in answers] == [
        f"Q{n}: {round((0.3 + 0.4 * n) * 16_000)}@16000" for n in range(4)
    ]
    assert all(answer.sample is one and not answer.error for answer, one in zip(answers, asked, strict=True))
    assert set(server.paths) == {("/v1/chat/completions", f"Bearer {KEY}")}
    body = server.requests[0]
    assert (body["model"], body["max_tokens"], body["temperature"]) == ("qwen2-audio", 9, 0)
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_the_samples_arrive_unchanged(server: Server, tmp_path: Path) -> None:
    """16-bit recordings at 16 kHz reach the server bit by bit."""
    numbers = (sound(0.2) * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.flac", numbers, 16_000)
    list(asking(server).answer([sample("1", str(tmp_path / "a.flac"))]))
    data = server.requests[0]["messages"][0]["content"][0]["input_audio"]["data"]
    sent, _ = soundfile.read(io.BytesIO(base64.b64decode(data)), dtype="int16")
    assert np.array_equal(sent, numbers)


@pytest.mark.parametrize(
    "trouble",
    [(503, "busy"), (429, "slow down"), (200, "<html>"), (200, '{"choices": []}'), "hang up", "sleep"],
    ids=str,
)
def test_what_may_pass_is_tried_again(server: Server, clips: list[str], trouble: Any) -> None:
    server.troubles["Q"] = [trouble] * 2
    (answer,) = asking(server, timeout=0.3).answer([sample("1", clips[0], prompt="Q")])
    assert (answer.response, answer.error) == ("Q: 4800@16000", "")
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("trouble", "error"),
    [
        ((503, "busy"), "status 503: busy (3 attempts)"),
        ((200, "what?"), "the reply is no chat completion: what? (3 attempts)"),
        ((200, '{"choices": [{"message": {"content": null}}]}'), "the reply has no text"),
        ("sleep", "no reply within 0.3 s (3 attempts)"),
    ],
)
def test_what_does_not_pass_is_a_failure(server: Server, clips: list[str], trouble: Any, error: str) -> None:
    server.troubles["Q"] = [trouble] * 3
    asked = [sample("1", clips[0], prompt="Q"), sample("2", clips[1], prompt="R")]
    answers = in_order(asking(server, timeout=0.3).answer(asked), asked)
    assert answers[0].response == "" and answers[0].error.startswith(error)
    assert answers[0].error.endswith("(3 attempts)") and len(server.requests) == 4
    assert answers[1].response == "R: 11200@16000"


def test_a_refused_sample_is_not_tried_again(server: Server, clips: list[str], tmp_path: Path) -> None:
    server.troubles["Q"] = [(400, "too\nlong")]
    asked = [sample("1", clips[0], prompt="Q"), sample("2", str(tmp_path / "none.wav"))]
    refused, missing = in_order(asking(server).answer(asked), asked)
    assert refused.error == "status 400: too long"
    assert missing.error.startswith("no such file")
    assert len(server.requests) == 1


def test_an_empty_answer_is_one(server: Server, clips: list[str]) -> None:
    server.troubles["Q"] = [(200, '{"choices": [{"message": {"content": ""}}]}')]
    (answer,) = asking(server).answer([sample("1", clips[0], prompt="Q")])
    assert (answer.response, answer.error, len(server.requests)) == ("", "", 1)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (
            401,
            r"the server at http://127\.0\.0\.1.* wants a valid key .* variable OPENAI_API_KEY is refused; set it anew$",
        ),
        (403, r"the server at .* does not let this key in: status 403: no \[key\]$"),
        (404, r"the server at .* has no model 'qwen2-audio' or no such address: status 404: no \[key\]$"),
    ],
)
def test_what_every_sample_would_meet_ends_the_run(server: Server, clips: list[str], status: int, message: str) -> None:
    server.troubles["Q"] = [(status, f"no {KEY}")]
    with pytest.raises(UsageError, match=message) as error:
        list(asking(server).answer([sample("1", clips[0], prompt="Q")]))
    assert KEY not in str(error.value) and len(server.requests) == 1


@pytest.mark.parametrize("trouble", [(400, f"bad\n{KEY}"), (503, f"busy {KEY}"), (200, KEY)])
def test_no_failure_shows_the_key(server: Server, clips: list[str], trouble: tuple[int, str]) -> None:
    server.troubles["Q"] = [trouble] * 3
    (answer,) = asking(server).answer([sample("1", clips[0], prompt="Q")])
    assert "[key]" in answer.error and KEY not in answer.error


def test_one_refusal_ends_those_that_wait(server: Server, clips: list[str]) -> None:
    """Nobody waits for a second attempt of another sample when the run is over."""
    server.troubles = {"Q": [(503, "busy")], "R": [(404, "no")]}
    asked = [sample("1", clips[0], prompt="Q"), sample("2", clips[0], prompt="R")]
    began = time.monotonic()
    with pytest.raises(UsageError, match="has no model"):
        list(asking(server, pause=60.0).answer(asked))
    assert time.monotonic() - began < 30


def test_what_was_answered_before_a_refusal_is_given(server: Server, clips: list[str]) -> None:
    server.troubles["last"] = [(402, "no credit left")]
    asked = [sample(str(n), clips[0], prompt=f"Q{n}") for n in range(40)]
    given, answers = [], asking(server).answer([*asked, sample("last", clips[0], prompt="last")])
    with pytest.raises(UsageError, match="no credit left"):
        for answer in answers:
            given.append(answer.sample.id)
    assert len(given) >= 31 and len(given) == len(set(given))  # of 32 at a time


def test_nobody_there_and_no_url(clips: list[str]) -> None:
    with Server() as server:
        url = server.url
    with pytest.raises(
        UsageError, match=r"cannot reach the server at http://127\.0\.0\.1.*; start it and run the same command again"
    ):
        list(OpenAIAnswerer(url, "m", attempts=2, pause=0.01).answer([sample("1", clips[0])]))
    with pytest.raises(UsageError, match="must begin with http:// or https://, got 'localhost:8000'"):
        OpenAIAnswerer("localhost:8000", "m")
    with pytest.raises(UsageError, match="the server must be asked at least once, got attempts=0"):
        OpenAIAnswerer(url, "m", attempts=0)


def test_the_identity_of_a_server_holds_no_secret(server: Server) -> None:
    identity = asking(server).identity()
    assert KEY not in json.dumps(identity)
    assert identity["url"] == f"{server.url}/chat/completions" and "chat" in identity["bare_prompts"]
    inside = OpenAIAnswerer(server.url.replace("://", "://me:hush@"), "m").identity()
    assert inside["url"] == identity["url"]


def test_complete_many(assistant: Assistant, clips: list[str], tmp_path: Path) -> None:
    """The base model's batch is what `complete` gives one by one."""
    pairs: list[Any] = [(clips[0], "What?"), ([clips[1], clips[2]], PROMPT), ([], "the cat")]
    together = assistant.complete_many(pairs, temperature=0.0, max_new_tokens=6)
    alone = [assistant.complete(audios, text, temperature=0.0, max_new_tokens=6) for audios, text in pairs]
    assert [reply.tokens for reply in together] == [reply.tokens for reply in alone]
    assert assistant.complete_many([]) == []
    with pytest.raises(AudioError, match="no such file"):
        assistant.complete_many([(str(tmp_path / "none.wav"), "What?")])
