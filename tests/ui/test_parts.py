"""The page's decisions, without a browser."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import qwen2_audio.serving.ui
from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError, ConversationError, Qwen2AudioError, UsageError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.longform.segments import Segment
from qwen2_audio.processing.conversation import AudioPart, Conversation, TextPart
from qwen2_audio.serving.backend import Delta, Job, OverloadedError
from qwen2_audio.serving.ui.asking import Asking
from qwen2_audio.serving.ui.bubbles import messages, plain, turn_at, unescaped
from qwen2_audio.serving.ui.chat import Chat, Turn
from qwen2_audio.serving.ui.clips import Clips
from qwen2_audio.serving.ui.examples import EXAMPLES
from qwen2_audio.serving.ui.history import read, written
from qwen2_audio.serving.ui.sessions import Sessions
from qwen2_audio.serving.ui.texts import LANGUAGES, language_of, texts
from qwen2_audio.serving.ui.transcribing import _wanted
from qwen2_audio.serving.ui.wishes import Wishes
from tests.serving.fake_backend import FakeBackend
from tests.ui.clips import PlainMedia, clip, hearing_of

PACKAGE = Path(qwen2_audio.serving.ui.__file__).parent
OPTIONS = GenerationOptions()
WISHES = ("", "", 0.0, 1.0, 0, 1.0, 64, "", False, "")
"""The side panel untouched."""


def answered(backend: FakeBackend, chat: Chat, turn: Turn, system: str = "") -> Turn:
    async def run() -> None:
        chat.turns.append(turn)
        async for _ in chat.answer(backend, turn, system=system, options=OPTIONS, model="mini"):
            pass

    asyncio.run(run())
    return turn


def asking_of(backend: FakeBackend, **limits: Any) -> Asking:
    return Asking(backend, hearing_of(**limits), Sessions("en"))


def test_an_answer_and_what_it_was_asked_with() -> None:
    backend, chat = FakeBackend(), Chat()
    answered(backend, chat, Turn("Hello", (clip(),)), system="Be brief")
    turn = answered(backend, chat, Turn("And now?"), system="Be brief")
    assert (turn.answer, turn.state, turn.problem) == ("And now?", "done", "")
    asked = backend.jobs[-1].prompt
    assert isinstance(asked, Conversation)
    assert [message.role for message in asked.messages] == ["system", "user", "assistant", "user"]
    assert [type(part) for part in asked.messages[1].parts] == [AudioPart, TextPart]


def test_turns_without_an_answer_are_not_asked_with() -> None:
    chat = Chat()
    answered(FakeBackend(error=OverloadedError("too much is waiting")), chat, Turn("lost"))
    assert (chat.turns[0].state, chat.turns[0].problem) == ("failed", "too much is waiting")
    backend = FakeBackend()
    answered(backend, chat, Turn("found"))
    assert isinstance(backend.jobs[0].prompt, Conversation) and len(backend.jobs[0].prompt.messages) == 1


def test_an_unknown_failure_is_told_without_its_details(caplog: pytest.LogCaptureFixture) -> None:
    turn = answered(FakeBackend(error=RuntimeError("secret path")), Chat(), Turn("Hello"))
    assert turn.state == "failed" and "secret" not in turn.problem and "secret path" in caplog.text


@pytest.mark.parametrize("end", ["stop", "close"])
def test_stopping_frees_the_work(end: str) -> None:
    async def run() -> Turn:
        backend, chat, turn = FakeBackend(delay=0.01), Chat(), Turn("word " * 500)
        chat.turns.append(turn)
        stream = chat.answer(backend, turn, system="", options=OPTIONS, model="mini")
        async with aclosing(stream) as news:
            async for _ in news:
                if turn.answer:
                    if end == "close":
                        break
                    chat.stop()
        assert (backend.running, backend.cancelled) == (0, 1)
        return turn

    turn = asyncio.run(run())
    assert turn.state == "stopped" and 0 < len(turn.answer) < 2000


def test_a_stream_beats_before_its_first_token() -> None:
    """Else a visitor who went away is not noticed while a job waits."""

    async def run() -> bool:
        chat, turn = Chat(), Turn("slow")
        chat.turns.append(turn)
        stream = chat.answer(FakeBackend(delay=30), turn, system="", options=OPTIONS, model="mini")
        async with aclosing(stream) as news, asyncio.timeout(5):
            return await anext(news)

    assert asyncio.run(run()) is False


def test_an_overtaken_answer_leaves_the_stop_button() -> None:
    asking = asking_of(FakeBackend(delay=0.01))
    session = asking._session(SimpleNamespace(session_hash="me"))  # type: ignore[arg-type]
    first, second = Turn("word " * 500), Turn("word " * 20)

    async def run(turn: Turn) -> list[Any]:
        return [composer async for _, _, composer, _, _ in asking._ask(session, turn, Wishes(*WISHES))]

    async def both() -> tuple[list[Any], list[Any]]:
        early = asyncio.create_task(run(first))
        while not first.answer:
            await asyncio.sleep(0.01)
        late = asyncio.create_task(run(second))
        return await early, await late

    early, late = asyncio.run(both())
    assert (first.state, second.state) == ("stopped", "done")
    assert early[0]["stop_btn"] is True and all("stop_btn" not in composer for composer in early[1:])
    assert late[0]["stop_btn"] is True and late[-1]["stop_btn"] is False


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_clips": 2}, "there are 3 recordings"),
        ({"max_request_seconds": 3.5}, "longer than 3.5 s together"),
        ({"max_text_chars": 9}, "more than 9 characters"),
    ],
)
def test_a_conversation_has_the_servers_limits(limits: dict[str, Any], reason: str) -> None:
    backend = FakeBackend()
    asking = asking_of(backend, **limits)
    session = asking._session(SimpleNamespace(session_hash="me"))  # type: ignore[arg-type]
    session.chat.turns.append(Turn("Hello", (clip(),), "World"))
    turn = Turn("", (clip(), clip(), clip()))

    async def run() -> None:
        async for _ in asking._ask(session, turn, Wishes(*WISHES)):
            pass

    asyncio.run(run())
    assert turn.state == "failed" and reason in turn.problem and not backend.jobs
    with pytest.raises(AudioError, match="there are 17 recordings"):
        asyncio.run(hearing_of().files(["no such file"] * 17))
    with pytest.raises(AudioError, match="there are 17 recordings"):
        asyncio.run(hearing_of().addresses("http://host/a.mp3 " * 17))


def test_messages_and_their_turns() -> None:
    turns = [Turn("text", (clip(), clip()), "one"), Turn("", (clip(),), "two"), Turn("<b>", (), "three")]
    shown = messages(turns, texts("en"))
    assert [message["role"][0] for message in shown] == list("uuauaua")
    assert [turns.index(turn_at(turns, index)) for index in range(7)] == [0, 0, 0, 1, 1, 2, 2]  # type: ignore[arg-type]
    assert turn_at(turns, 7) is None
    assert shown[5]["content"][0]["text"] == "&lt;b>" and unescaped(plain("a < b")) == "a < b"


def test_a_saved_conversation_of_too_many_values() -> None:
    with pytest.raises(ConversationError, match="holds more than any conversation does"):
        asyncio.run(read("[" + "[]," * 1_000_001 + "[]]", PlainMedia(), Clips()))  # type: ignore[arg-type]


def test_a_saved_conversation_comes_back() -> None:
    turns = [Turn("question", (clip(0.5, "ä.wav"),), "answer"), Turn("unanswered")]
    again = asyncio.run(read(written(turns), PlainMedia(), Clips()))  # type: ignore[arg-type]
    assert [(turn.text, turn.answer) for turn in again] == [("question", "answer")]
    assert again[0].clips[0].name == "ä.wav"
    assert np.abs(again[0].clips[0].samples - turns[0].clips[0].samples).max() < 1e-4


def test_a_saved_conversation_may_not_hold_days_of_silence() -> None:
    turns = [Turn("question", (clip(0.5),), "answer")]

    class Long(PlainMedia):
        async def from_base64(self, data: str, format: str = "") -> AudioPart:
            return AudioPart((np.zeros(1300 * SAMPLE_RATE, np.float32), SAMPLE_RATE))

    assert len(asyncio.run(read(written(turns * 2), Long(), Clips()))) == 2  # type: ignore[arg-type]
    with pytest.raises(ConversationError, match="longer than an hour"):
        asyncio.run(read(written(turns * 3), Long(), Clips()))  # type: ignore[arg-type]


def test_segments_of_the_browser_are_not_trusted() -> None:
    def asked(**changes: Any) -> dict[str, Any]:
        segment = {"start": 0, "end": 1.5, "text": "word"} | changes
        return {"format": "srt", "name": "../talk", "segments": [segment], "duration": changes.get("duration", 2)}

    assert _wanted(asked()) == ("srt", "talk", [Segment(0.0, 1.5, "word")], 2.0)
    for changes in (
        {"start": "nan"},
        {"end": float("inf")},
        {"duration": "1e999"},
        {"text": "a " * 3000},
        {"end": None},
    ):
        with pytest.raises(ConversationError):
            _wanted(asked(**changes))
    with pytest.raises(UsageError, match="no format"):
        _wanted(asked() | {"format": "exe"})


def test_a_turn_whose_recording_is_gone_is_not_saved() -> None:
    turns = [Turn("", (), "an answer to nothing"), Turn("question", (), "answer")]
    again = asyncio.run(read(written(turns), PlainMedia(), Clips()))  # type: ignore[arg-type]
    assert [turn.answer for turn in again] == ["answer"]


def test_a_bad_file_leaves_the_conversation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warned: list[str] = []
    monkeypatch.setattr("gradio.Warning", warned.append)
    asking = asking_of(FakeBackend())
    visitor: Any = SimpleNamespace(session_hash="me")
    turns = asking._session(visitor).chat.turns
    turns.append(Turn("question", (), "answer"))
    for text, kept in (("no conversation", ["answer"]), (written([Turn("other", (), "another")]), ["another"])):
        file = tmp_path / "saved.json"
        file.write_text(text)
        asyncio.run(asking.load(str(file), visitor))
        assert [turn.answer for turn in asking._session(visitor).chat.turns] == kept
    assert len(warned) == 1


def test_no_speed_is_told_before_tokens_are_counted() -> None:
    class Late(FakeBackend):
        async def generate(self, job: Job) -> AsyncIterator[Delta]:
            yield Delta("one", 0, 0)
            assert turn.speed is None
            yield Delta(" two", 3, 7, "stop")

    turn = Turn("question")
    answered(Late(), Chat(), turn)
    assert (turn.answer, turn.state) == ("one two", "done")
    assert turn.speed is not None and turn.speed.tokens == 3 and turn.speed.rate > 0


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"kind": "other", "version": 1, "turns": []}', '{"kind": "qwen2-audio conversation"}']
)
def test_other_files_are_no_conversation(text: str) -> None:
    with pytest.raises(ConversationError):
        asyncio.run(read(text, PlainMedia(), Clips()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "left", "fetched"),
    [
        ("http://host/a.mp3", "", 1),
        ("http://host/any", "", 1),
        ("What is http://host/a.mp3?x=1 and http://host/b.ogg like", "What is  and  like", 2),
        ("read http://host/page", "read http://host/page", 0),
    ],
)
def test_addresses_of_recordings(text: str, left: str, fetched: int) -> None:
    hearing = hearing_of()
    assert [*asyncio.run(hearing.addresses(text))[:1]] == [left]
    assert len(asyncio.run(hearing.addresses(text))[1]) == fetched


def test_sessions_are_forgotten() -> None:
    sessions = Sessions("en", most=2)
    first = sessions.of("a")
    first.chat.turns.append(Turn("private"))
    assert sessions.of("a") is first
    for name in ("b", "c"):
        sessions.of(name)
    assert len(sessions) == 2 and first.chat.turns == []
    sessions.forget("c")
    assert len(sessions) == 1


def test_wishes() -> None:
    wishes = Wishes("mini", "", 0.5, 0.9, 10, 1.1, 64, " 7 ", False, "")
    options = wishes.options(OPTIONS)
    assert (options.temperature, options.top_k, options.seed, options.max_new_tokens) == (0.5, 10, 7, 64)
    with pytest.raises(UsageError, match="seed"):
        Wishes("mini", "", 0, 1, 0, 1, 64, "x", False, "").options(OPTIONS)
    with pytest.raises(Qwen2AudioError):
        Wishes("mini", "", -1, 1, 0, 1, 64, "", False, "").options(OPTIONS)


def test_both_languages_say_everything() -> None:
    keys = [set(texts(language).entries) for language in LANGUAGES]
    assert keys[0] == keys[1]
    for key, text in texts("en").entries.items():
        assert re.findall(r"{\w+}", text) == re.findall(r"{\w+}", texts("zh").entries[key]), key
    code = "".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.py"))
    code += "".join(file.read_text(encoding="utf-8") for file in PACKAGE.rglob("*.js"))
    built = {f"example.{example.name}{end}" for example in EXAMPLES for end in ("", ".ask") if not end or example.asks}
    assert sorted(key for key in keys[0] - built if f'"{key}"' not in code) == []
    assert (language_of("zh-TW"), language_of("de"), language_of(None, "zh")) == ("zh", "en", "zh")


def test_examples_are_small_and_can_be_heard() -> None:
    for example in EXAMPLES:
        assert all(0.5 < heard.seconds < 10 for heard in example.clips())
    assert sum(file.stat().st_size for file in (PACKAGE / "sounds").iterdir()) < 150_000


def test_nothing_is_fetched_from_elsewhere() -> None:
    for file in PACKAGE.rglob("*"):
        if file.suffix in (".js", ".css", ".py", ".svg"):
            found = re.findall(r"(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}", file.read_text(encoding="utf-8"))
            assert [url for url in found if "www.w3.org" not in url] == [], file


def test_json_of_the_page_holds_no_tag() -> None:
    from qwen2_audio.serving.ui.mount import _head

    head = _head("en", "/", ["<script>"])
    assert json.loads(re.search(r"window.qwenAudio = (.*?);</script>", head)[1])["voices"] == ["<script>"]  # type: ignore[index]
    assert '<script>"' not in head
