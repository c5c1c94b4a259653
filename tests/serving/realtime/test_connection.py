"""`/v1/realtime` on a live server, by OpenAI's client and by clients that misbehave."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from qwen2_audio import DownloadError
from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.serving.backend import EngineLostError
from tests.serving.fake_backend import FakeBackend, echo
from tests.serving.http_server import PATIENCE, HttpServer, eventually

# OpenAI's client connects in the older way of `websockets`
pytestmark = pytest.mark.filterwarnings("ignore:connect.. must be used as a context manager:DeprecationWarning")
QUESTION = Path(__file__).parents[3] / "examples" / "question.flac"
SILENCE = np.zeros(24_000, "<i2")
KEY = "a-key-of-some-length"


@pytest.fixture(scope="module")
def live() -> Iterator[HttpServer]:
    with HttpServer(FakeBackend(), max_websockets=2, max_event_kib=256) as server:
        yield server


@pytest.fixture
def backend(live: HttpServer) -> Iterator[FakeBackend]:
    fake: FakeBackend = live.app.state.backend._backend
    yield fake
    eventually(lambda: fake.running == 0)
    fake.delay, fake.error, fake.answer, fake.jobs = 0.0, None, echo, []


def socket(server: HttpServer, query: str = "", **options: Any) -> ClientConnection:
    address = server.url.replace("http", "ws") + "/v1/realtime" + query
    return connect(address, open_timeout=PATIENCE, close_timeout=1, **options)


def take(client: ClientConnection) -> dict[str, Any]:
    return json.loads(client.recv(timeout=PATIENCE))  # type: ignore[no-any-return]


def until(client: ClientConnection, kind: str) -> list[dict[str, Any]]:
    """Events up to one of a kind."""
    found = [take(client)]
    while found[-1]["type"] != kind:
        assert found[-1]["type"] != "error", found[-1]
        found.append(take(client))
    return found


def say(client: ClientConnection, text: str) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
    client.send(json.dumps({"type": "conversation.item.create", "item": item}))
    client.send(json.dumps({"type": "response.create"}))


def spoken() -> list[str]:
    """The question with silence behind it, 24 kHz, in pieces of 0.1 s."""
    import soxr

    wave, rate = soundfile.read(QUESTION, dtype="float32")
    pcm = np.concatenate([np.rint(soxr.resample(wave, rate, 24_000) * 32_000).astype("<i2"), SILENCE])
    return [base64.b64encode(pcm[at : at + 2400].tobytes()).decode() for at in range(0, len(pcm), 2400)]


def converse(server: HttpServer, **session: Any) -> list[Any]:
    """The spoken question through OpenAI's client, up to the end of the answer."""
    client = openai.OpenAI(
        base_url=f"{server.url}/v1",
        websocket_base_url=f"{server.url.replace('http', 'ws')}/v1",
        api_key=KEY,
        timeout=PATIENCE,
    )
    events: list[Any] = []
    with client.realtime.connect(model="mini") as connection:
        connection.session.update(session={"type": "realtime", "output_modalities": ["text"], **session})  # type: ignore[typeddict-item]
        for audio in spoken():
            connection.input_audio_buffer.append(audio=audio)
        for event in connection:
            events.append(event)
            assert event.type != "error", event
            if event.type == "response.done":
                return events
    raise AssertionError("the connection ended")


def test_a_voice_turn_by_openais_client(live: HttpServer, backend: FakeBackend) -> None:
    events = converse(live, instructions="Be brief.")
    kinds = [event.type for event in events]
    assert kinds[:3] == ["session.created", "session.updated", "input_audio_buffer.speech_started"]
    wanted = "input_audio_buffer.speech_stopped input_audio_buffer.committed conversation.item.added response.created"
    assert [kind for kind in kinds if kind in wanted.split()][:3] == wanted.split()[:3]
    done = events[-1].response
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert done.status == "completed" and done.output[0].content[0].text == text and text.endswith(" s]")
    assert done.usage.total_tokens == done.usage.input_tokens + done.usage.output_tokens > 0
    assert [message.role for message in backend.jobs[0].prompt.messages] == ["system", "user"]  # type: ignore[union-attr]


def test_speaking_into_an_answer_ends_it(live: HttpServer, backend: FakeBackend) -> None:
    backend.delay, backend.answer = 0.02, lambda _job: ["word "] * 500
    with socket(live) as client:
        until(client, "session.created")
        say(client, "Hello")
        until(client, "response.output_text.delta")
        for audio in spoken()[:12]:
            client.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        done = until(client, "response.done")[-1]["response"]
        assert done["status"] == "cancelled" and done["status_details"]["reason"] == "turn_detected"
        eventually(lambda: backend.cancelled >= 1)
    eventually(lambda: backend.running == 0)


def test_hanging_up_frees_the_engine(live: HttpServer, backend: FakeBackend) -> None:
    backend.delay, backend.answer = 0.01, lambda _job: ["word "] * 5000
    before = backend.cancelled
    for rude in (False, True):
        client = socket(live)
        until(client, "session.created")
        say(client, "Hello")
        until(client, "response.output_text.delta")
        eventually(lambda: backend.running == 1)
        if rude:
            client.socket.close()
        else:
            client.close()
        eventually(lambda: backend.running == 0)
    assert backend.cancelled == before + 2


def test_a_failing_engine_is_told_and_the_connection_goes_on(live: HttpServer, backend: FakeBackend) -> None:
    with socket(live, subprotocols=["realtime", "openai-insecure-api-key.x"]) as client:  # type: ignore[list-item]
        assert client.subprotocol == "realtime"
        until(client, "session.created")
        backend.error = EngineLostError("lost")
        say(client, "Hello")
        assert until(client, "response.done")[-1]["response"]["status_details"]["error"]["code"] == "engine_lost"
        backend.error = ValueError("an inner secret")
        say(client, "Hello")
        assert "secret" not in json.dumps(until(client, "response.done"))
        backend.error = None
        say(client, "Hello again")
        assert until(client, "response.done")[-1]["response"]["output"][0]["content"][0]["text"] == "Hello again"


def test_messages_that_are_no_events(live: HttpServer, backend: FakeBackend) -> None:
    with socket(live) as client:
        until(client, "session.created")
        halves = (json.dumps(event) for event in ({"event_id": "\ud800"}, {"type": "x", "\udfff": 1}))
        whole = json.dumps({"type": "x", "event_id": "\U0001f600"})
        for text, code in (
            ("{", "invalid_json"), ("[" * 100_000, "invalid_json"), ("3", "invalid_type"),
            *((half, "invalid_json") for half in halves), (whole, "unknown_event"),
        ):  # fmt: skip
            client.send(text)
            assert take(client)["error"]["code"] == code
        client.send(b"\0\0")
        assert take(client)["error"]["code"] == "binary_message"
        with pytest.raises(ConnectionClosed) as closed:
            client.recv(timeout=PATIENCE)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1003
    with socket(live) as client:
        until(client, "session.created")
        client.send("x" * 300_000)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                client.recv(timeout=PATIENCE)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1009


@pytest.mark.parametrize(
    ("query", "code"), [("?model=other", "model_not_found"), ("?intent=transcription", "unsupported")]
)
def test_what_is_not_served(live: HttpServer, backend: FakeBackend, query: str, code: str) -> None:
    with socket(live, query) as client:
        assert take(client)["error"]["code"] == code
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=PATIENCE)


def test_no_more_connections_than_allowed(live: HttpServer, backend: FakeBackend) -> None:
    with socket(live), socket(live):
        with pytest.raises(InvalidStatus) as refused:
            socket(live)
        assert refused.value.response.status_code == 429
    eventually(lambda: _opens(live))


def _opens(server: HttpServer) -> bool:
    try:
        socket(server).close()
    except InvalidStatus:
        return False
    return True


def test_idle_and_endless_connections_end() -> None:
    with HttpServer(FakeBackend(), realtime_idle_timeout=0.2) as server, socket(server) as client:
        until(client, "session.created")
        assert take(client)["error"]["code"] == "idle_timeout"
        with pytest.raises(ConnectionClosed):
            client.recv(timeout=PATIENCE)
    with HttpServer(FakeBackend(), realtime_idle_timeout=0.5) as server, socket(server) as client:
        for audio in spoken()[:-10]:  # and no silence, as whoever lets a button go
            client.send(json.dumps({"type": "input_audio_buffer.append", "audio": audio}))
        until(client, "input_audio_buffer.speech_started")
        assert take(client)["error"]["code"] == "idle_timeout"
    with HttpServer(FakeBackend(), realtime_max_seconds=0.3) as server, socket(server) as client:
        until(client, "session.created")
        assert take(client)["error"]["code"] == "session_expired"


def test_a_client_that_reads_nothing_is_let_go() -> None:
    noise = base64.b64encode(np.random.default_rng(0).bytes(75_000)).decode()  # which cannot be compressed
    backend = FakeBackend(answer=lambda _job: [noise] * 500)
    with HttpServer(backend, send_timeout=0.3) as server:
        client = socket(server, max_queue=1)
        say(client, "Hello")
        eventually(lambda: backend.cancelled == 1)
        client.socket.close()


def test_keys_and_pages_of_other_sites() -> None:
    with HttpServer(FakeBackend(), api_keys=KEY) as server:
        for options in ({}, {"additional_headers": {"Authorization": "Bearer wrong"}}):
            with pytest.raises(InvalidStatus) as refused:
                socket(server, **options)
            assert refused.value.response.status_code == 401
        with socket(server, additional_headers={"Authorization": f"Bearer {KEY}"}) as client:
            until(client, "session.created")
        protocols: Any = ["realtime", f"openai-insecure-api-key.{KEY}"]
        with socket(server, subprotocols=protocols) as client:
            until(client, "session.created")
        with pytest.raises(InvalidStatus) as refused:
            socket(server, subprotocols=protocols, origin="https://evil.example")
        assert refused.value.response.status_code == 403


def test_a_server_that_ends_ends_its_connections() -> None:
    backend = FakeBackend(delay=0.05, answer=lambda _job: ["word "] * 5000)
    with HttpServer(backend, drain_timeout=0.5) as server:
        client = socket(server)
        until(client, "session.created")
        say(client, "Hello")
        until(client, "response.output_text.delta")
    assert backend.running == 0
    with pytest.raises(ConnectionClosed):
        while True:
            client.recv(timeout=PATIENCE)


def test_mini_hears_the_question_and_answers() -> None:
    from qwen2_audio.serving.local import LocalBackend, LocalConfig

    try:
        find_checkpoint("mini")
    except DownloadError as error:
        pytest.skip(str(error))
    with HttpServer(LocalBackend(LocalConfig(model="mini", device="cpu"))) as server:
        backend = server.app.state.backend
        eventually(lambda: backend.ready)
        events = converse(
            server, audio={"input": {"transcription": {"model": "mini"}}}, max_output_tokens=24, instructions=""
        )
        text = events[-1].response.output[0].content[0].text
        assert "Paris" in text and events[-1].response.usage.input_token_details.audio_tokens > 30
