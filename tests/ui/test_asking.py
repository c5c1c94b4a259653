"""What events of the page change: which recordings are kept, what becomes of the composer, what a script is told."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from qwen2_audio.errors import ConversationError
from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.serving.ui.asking import Asking
from qwen2_audio.serving.ui.bubbles import messages, turn_at
from qwen2_audio.serving.ui.chat import Chat, Turn
from qwen2_audio.serving.ui.clips import Clips
from qwen2_audio.serving.ui.history import KIND, read, written
from qwen2_audio.serving.ui.sessions import Session, Sessions
from qwen2_audio.serving.ui.texts import texts
from qwen2_audio.serving.ui.transcribing import Transcribing
from qwen2_audio.serving.ui.wishes import Wishes
from tests.serving.fake_backend import FakeBackend
from tests.ui.clips import PlainMedia, clip, hearing_of

ME: Any = SimpleNamespace(session_hash="me")
WISHES = ("", "", 0.0, 1.0, 0, 1.0, 64, "", True, "")
"""The side panel untouched, but for reading aloud."""


class Page:
    """A page without Gradio: its events, its session, and what visitors were warned of."""

    def __init__(self, backend: FakeBackend, sessions: Sessions, **limits: Any) -> None:
        self.backend = backend
        self.hearing = hearing_of(**limits)
        self.asking = Asking(backend, self.hearing, sessions)  # type: ignore[arg-type]

    @property
    def session(self) -> Session:
        return self.asking._session(ME)

    @property
    def turns(self) -> list[Turn]:
        return self.session.chat.turns

    def views(self, event: Any) -> list[Any]:
        """All that an event changes, one after the other."""

        async def run() -> list[Any]:
            return [view async for view in event]

        return asyncio.run(run())

    def spoken(self, seconds: float = 1.0) -> list[Any]:
        token = self.hearing.clips.wait(clip(seconds)).token
        return self.views(self.asking.spoken(told(token=token), ME, *WISHES))

    def kept(self) -> list[float]:
        """Seconds of every turn."""
        return [turn.seconds for turn in self.turns]


def told(**data: Any) -> Any:
    return SimpleNamespace(_data=data)


def page_of(backend: FakeBackend | None = None, **limits: Any) -> Page:
    return Page(backend or FakeBackend(), Sessions("en"), **limits)


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    warnings: list[str] = []
    monkeypatch.setattr("gradio.Warning", warnings.append)
    return warnings


def test_only_what_was_sent_leaves_the_composer() -> None:
    page = page_of()

    def empties(views: list[Any]) -> bool:
        return any("value" in composer for _, _, composer, _, _ in views)

    assert empties(page.views(page.asking.send({"text": "Hello", "files": []}, ME, *WISHES)))
    again: Any = SimpleNamespace(index=0)
    edited: Any = SimpleNamespace(index=0, value="Other words")
    for event in (
        page.asking.retry(again, ME, *WISHES),
        page.asking.edit(edited, ME, *WISHES),
        page.asking.example(told(name="question"), ME, *WISHES),
    ):
        views = page.views(event)
        assert not empties(views) and views[0][2]["stop_btn"] is True
    assert not empties(page.spoken())
    refused = Wishes(*WISHES[:7], "no number", *WISHES[8:])
    assert not empties(page.views(page.asking._ask(page.session, Turn("Hello"), refused)))


def test_more_recordings_than_can_be_asked_about_are_not_kept() -> None:
    chat = Chat([Turn("", (clip(2.0),), "one"), Turn("", (clip(1.0),)), Turn("", (clip(1.0),)), Turn("", (clip(9.0),))])
    kept = []
    for most in (13.0, 12.5, 11.0, 10.0, 1.0):
        chat.bound(most)
        kept.append([turn.seconds for turn in chat.turns])
    assert kept == [[2, 1, 1, 9], [2, 0, 1, 9], [2, 0, 0, 9], [0, 0, 0, 9], [0, 0, 0, 9]]
    assert [turn.gone for turn in chat.turns] == [True, True, True, False]


def test_recordings_of_turns_without_an_answer_are_bounded() -> None:
    page = page_of(max_request_seconds=3.0)
    page.spoken()
    page.backend.error = ConversationError("no")
    for _ in range(4):
        page.spoken()
    assert page.kept() == [1, 0, 0, 1, 1]
    refused = Wishes(*WISHES[:7], "no number", *WISHES[8:])
    page.views(page.asking._ask(page.session, Turn("", (clip(),)), refused))
    assert page.kept() == [1, 0, 0, 0, 1, 1]


def test_recordings_of_hands_free_talk_are_bounded() -> None:
    page = page_of(max_request_seconds=2.5)
    for _ in range(4):
        page.asking.heard(told(token=page.hearing.clips.wait(clip()).token, answer="yes"), ME)
    assert page.kept() == [0, 0, 1, 1]
    page.asking.heard(told(token=None, answer="It was never left here"), ME)
    assert [turn.gone for turn in page.turns] == [True, True, False, False, True]


def test_nothing_is_asked_about_recordings_that_are_gone(warned: list[str]) -> None:
    page = page_of(max_request_seconds=2.5)
    turns = [Turn("What is said?", (), "Words", gone=True), Turn("Louder?", (clip(1.0),), "No")]
    page.turns.extend(turns)
    page.spoken()
    asked = page.backend.jobs[-1].prompt
    assert isinstance(asked, Conversation) and len(asked.messages) == 3
    shown = messages(page.turns, texts("en"))
    assert "no longer kept" in shown[0]["content"][0]["value"] and shown[1]["content"][0]["text"] == "What is said?"
    assert [page.turns.index(turn_at(page.turns, index)) for index in range(6)] == [0, 0, 0, 1, 1, 1]  # type: ignore[arg-type]
    again: Any = SimpleNamespace(index=2)
    edited: Any = SimpleNamespace(index=1, value="What is really said?")
    for event in (page.asking.retry(again, ME, *WISHES), page.asking.edit(edited, ME, *WISHES)):
        page.views(event)
    assert len(page.backend.jobs) == 1 and page.turns[:2] == turns
    assert len(warned) == 2 and all("cannot be asked about again" in warning for warning in warned)
    again_read = asyncio.run(read(written(page.turns[:2]), PlainMedia(), Clips()))  # type: ignore[arg-type]
    assert [turn.text for turn in again_read] == ["Louder?"]


def test_a_question_whose_recording_was_too_long_is_not_asked_without_it(warned: list[str]) -> None:
    page = page_of(max_request_seconds=2.5)
    page.views(page.asking._ask(page.session, Turn("What is said?", (clip(3.0),)), Wishes(*WISHES)))
    assert page.turns[0].state == "failed" and page.turns[0].gone
    page.views(page.asking.retry(SimpleNamespace(index=2), ME, *WISHES))  # type: ignore[arg-type]
    assert not page.backend.jobs and len(warned) == 1


def test_an_answer_that_is_given_again_is_read_again() -> None:
    page = page_of()
    page.views(page.asking.send({"text": "Hello", "files": []}, ME, *WISHES))
    views = [page.views(page.asking.retry(SimpleNamespace(index=0), ME, *WISHES)) for _ in range(2)]  # type: ignore[arg-type]
    first, second = (json.loads(each[-1][4]) for each in views)
    assert first["text"] == second["text"] == "Hello" and first["turn"] != second["turn"]


def test_the_same_file_can_be_had_twice() -> None:
    page = page_of()
    assert page.asking.save(ME) != page.asking.save(ME)
    transcribing = Transcribing(page.backend, PlainMedia(), Sessions("en"))  # type: ignore[arg-type]
    wanted = told(format="txt", segments=[{"start": 0, "end": 1, "text": "word"}], duration=1)
    assert transcribing.download(wanted, ME) != transcribing.download(wanted, ME)


@pytest.mark.parametrize("part", ["text", "answer", "name"])
def test_half_a_character_is_no_text(part: str) -> None:
    entry = {"text": "a", "answer": "b", "recordings": [{"name": "c", "flac": ""}]}
    if part == "name":
        entry["recordings"] = [{"name": "\ud800", "flac": ""}]
    else:
        entry[part] = "\ud800"
    saved = json.dumps({"kind": KIND, "version": 1, "turns": [entry]})
    with pytest.raises(ConversationError, match="it is damaged"):
        asyncio.run(read(saved, PlainMedia(), Clips()))  # type: ignore[arg-type]


def test_a_forgotten_page_does_not_begin_anew_unnoticed() -> None:
    sessions = Sessions("en", most=1)
    page = Page(FakeBackend(), sessions)
    page.asking.speak("zh", ME)
    sessions.forget("me")
    sessions.forget("me")
    for event in (page.asking.save, page.asking.stop, Transcribing(None, None, sessions).stop):  # type: ignore[arg-type]
        with pytest.raises(gr.Error, match="请重新加载页面"):
            event(ME)
    assert len(sessions) == 0
    for number in range(20):
        sessions.of(f"other {number}")
    with pytest.raises(ConversationError, match="Reload the page"):
        sessions.of("other 18")
    assert len(sessions) == 1 and len(sessions._closed) == 10
