"""`load("openai:URL")`: the same surface as a model in this process, over a server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen2_audio import Conversation, load
from qwen2_audio.errors import AudioWarning, ContextLengthError, ServerError, UsageError
from qwen2_audio.remote.assistant import RemoteAssistant
from qwen2_audio.remote.opening import open_remote
from tests.remote.scripted import Refuse, Say, ScriptedServer, lengths, running
from tests.tiny import sound

EXAMPLES = Path(__file__).parents[2] / "examples"
QUESTION = str(EXAMPLES / "question.flac")
KEY = "sk-a-secret-of-some-length"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with running(ScriptedServer()) as server:
        yield server


@pytest.fixture
def assistant(server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteAssistant]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    opened = RemoteAssistant(f"openai:{server.url}", attempts=2, pause=0.01, timeout=5)
    yield opened
    opened.close()


def test_loading(server: ScriptedServer) -> None:
    server.models = ["mini", "digits"]
    assert load(f"openai:{server.url}").served.name == "mini"  # type: ignore[attr-defined]
    assert load(f"openai:{server.url}#digits").served.name == "digits"  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="has no model 'other'; it has mini, digits"):
        load(f"openai:{server.url}#other")
    for option in ({"device": "cpu"}, {"dtype": "float32"}, {"adapter": "x"}, {"revision": "x"}, {"offline": True}):
        with pytest.raises(UsageError, match=f"{next(iter(option))} is the server's choice"):
            load(f"openai:{server.url}", **option)  # type: ignore[arg-type]


def test_a_chat_says_what_was_given_and_no_more(server: ScriptedServer, assistant: RemoteAssistant) -> None:
    reply = assistant.chat([QUESTION, "What is said?"], system="Be brief.", temperature=0, max_new_tokens=9, top_k=None)
    assert (str(reply), reply.finish_reason, reply.prompt_tokens, reply.completion_tokens) == ("Hello!", "stop", 11, 4)
    body = server.bodies[0]
    assert body.keys() == {"messages", "model", "stream", "stream_options", "temperature", "max_tokens"}
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert lengths(body) == [soundfile.info(QUESTION).frames]
    with pytest.raises(UsageError, match="temperature must be"):
        assistant.chat("Hello", temperature=-1)
    with pytest.raises(UsageError, match="unknown option 'tempo'"):
        assistant.chat("Hello", tempo=1)  # type: ignore[call-arg]


def test_long_clips_are_heard_in_parts_with_a_warning(server: ScriptedServer, assistant: RemoteAssistant) -> None:
    with pytest.warns(AudioWarning, match="2 consecutive parts"):
        assistant.chat((sound(31.0), 16_000))
    assert len(lengths(server.bodies[0])) == 2


def test_streams(server: ScriptedServer, assistant: RemoteAssistant) -> None:
    stream = assistant.stream("Hello")
    assert list(stream) == ["Hel", "lo", "!"] and stream.reply.text == "Hello!"
    server.usual = Say(["word "] * 2000, pause=0.002)
    stream = assistant.stream("Hello")
    heard = 0
    for _ in stream:
        heard += 1
        if heard == 3:
            stream.cancel()
    assert heard < 10 and stream.reply.finish_reason == "cancelled" and stream.reply.text.startswith("word word ")
    for _ in range(500):
        if server.hung_up:
            break
        threading.Event().wait(0.01)
    assert server.hung_up == 1  # the server need not go on


def test_batches_in_order(server: ScriptedServer, assistant: RemoteAssistant) -> None:
    server.usual = Say(["a"], pause=0.01)
    replies = assistant.batch([f"question {number}" for number in range(20)])
    assert [reply.text for reply in replies] == ["a"] * 20
    assert sorted(body["messages"][0]["content"] for body in server.bodies) == sorted(
        f"question {n}" for n in range(20)
    )
    with pytest.raises(UsageError, match="batch takes a list"):
        assistant.batch("one")


def test_transcribing_long_recordings(server: ScriptedServer, assistant: RemoteAssistant) -> None:
    server.extra = {"transcription_window": 2.0}
    again = RemoteAssistant(f"openai:{server.url}")
    server.usual = Say(["the", " words"])
    spoken = soundfile.read(QUESTION, dtype="float32")[0]
    transcript = again.transcribe((np.concatenate([spoken, np.zeros(16_000, np.float32), spoken]), 16_000))
    assert transcript.text == " ".join(["the words"] * len(transcript.segments)) and len(transcript.segments) >= 2
    assert all(body["temperature"] == 0 and body["repetition_penalty"] == 1 for body in server.bodies)
    assert all(body["messages"][0]["content"][-1]["text"] == "Transcribe the speech." for body in server.bodies)
    assert all(max(lengths(body)) <= 32_000 for body in server.bodies)
    again.close()


def test_a_session_sends_all_that_was_said(server: ScriptedServer, assistant: RemoteAssistant) -> None:
    session = assistant.session(system="Be brief.")
    session.send(QUESTION)
    session.send("And then?")
    roles = [message["role"] for message in server.bodies[1]["messages"]]
    assert roles == ["system", "user", "assistant", "user"]
    assert server.bodies[1]["messages"][2]["content"] == "Hello!"
    server.usual = Refuse(400, "no")
    with pytest.raises(UsageError):
        session.send("lost")
    server.usual = Say()
    abandoned = session.stream("left unfinished")
    next(iter(abandoned))
    session.send("last")
    said = [message.text for message in session.conversation.messages]
    assert said == ["Be brief.", "", "Hello!", "And then?", "Hello!", "last", "Hello!"]
    session.reset()
    assert len(session.conversation.messages) == 1


def test_bare_prompts(server: ScriptedServer, assistant: RemoteAssistant) -> None:
    assert assistant.complete([], "The cat").text == "Hello!"
    assert server.asked[0][0] == "/v1/completions"
    with pytest.raises(UsageError, match="takes no bare prompts with recordings"):
        assistant.complete(QUESTION, "Recognize")
    with running(ScriptedServer("qwen2-audio")) as ours:
        opened = open_remote(f"openai:{ours.url}")
        opened.complete([QUESTION], "Recognize", temperature=0)
        assert ours.bodies[0]["prompt"] == "Recognize" and len(ours.bodies[0]["audio"]) == 1
        opened.close()


def test_what_it_has_not(assistant: RemoteAssistant) -> None:
    with pytest.raises(AttributeError, match="'processor': the model mini is on a server"):
        _ = assistant.processor
    with pytest.raises(AttributeError, match="has no 'chatt'"):
        _ = assistant.chatt


@pytest.mark.parametrize(
    ("refusal", "error", "message", "times"),
    [
        (Refuse(400, "maximum context length is 8"), ContextLengthError, "finds the prompt too long", 1),
        (Refuse(400, "bad"), UsageError, r"refuses the question \(status 400\): bad", 1),
        (Refuse(401, f"bad key {KEY}"), UsageError, "wants a valid key", 1),
        (Refuse(403, "no"), UsageError, "lets nobody in", 1),
        (Refuse(404, "no"), UsageError, "no such model", 1),
        (Refuse(503, "later"), ServerError, "cannot answer just now", 2),
        (Refuse(500, "oh"), ServerError, "cannot answer just now", 2),
        (Say(broken_after=1), ServerError, "broke off", 1),
        (Say(error_after=1), ServerError, r"broke off \(the engine died\)", 1),
        (Say(error_after=0), ServerError, r"broke off \(the engine died\)", 1),
        (Say(error_after=0, error={"message": "bad", "code": 400}), UsageError, r"refuses the question .*: bad", 1),
        (Say(error_after=1, error={"message": "bad", "code": 400}), ServerError, r"broke off \(bad\)", 1),
        (Say(error_after=0, error={"message": "full", "code": "overloaded"}), ServerError, "answer just now", 1),
    ],
)
def test_what_goes_wrong(
    server: ScriptedServer,
    assistant: RemoteAssistant,
    refusal: Refuse | Say,
    error: type[Exception],
    message: str,
    times: int,
) -> None:
    server.usual = refusal
    with pytest.raises(error, match=message) as caught:
        assistant.chat("Hello")
    assert len(server.asked) == times and KEY not in str(caught.value)


def test_a_busy_server_is_asked_again(server: ScriptedServer, assistant: RemoteAssistant) -> None:
    server.script = [Refuse(429, headers={"Retry-After": "0"})]
    assert assistant.chat("Hello").text == "Hello!" and len(server.asked) == 2


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ServerError, match=r"cannot ask http://127\.0\.0\.1:9/v1: .*start the server"):
        RemoteAssistant("openai:http://127.0.0.1:9", attempts=1)
    with running(ScriptedServer()) as server:
        server.key = KEY
        monkeypatch.setenv("OPENAI_API_KEY", "wrong")
        with pytest.raises(UsageError, match="OPENAI_API_KEY is refused") as caught:
            open_remote(f"openai:{server.url}")
        assert "wrong" not in str(caught.value)
        monkeypatch.setenv("MINE", KEY)
        open_remote(f"openai:{server.url}", key_variable="MINE").close()


def test_conversations_go_as_they_are(server: ScriptedServer, assistant: RemoteAssistant) -> None:
    assistant.chat(Conversation().user("one").assistant("two").user("three"))
    assert [message["content"] for message in server.bodies[0]["messages"]] == ["one", "two", "three"]
