"""What happens when a visitor asks, stops, edits or asks again: Gradio's events around a `Chat`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import gradio as gr

from qwen2_audio.errors import ConversationError, Qwen2AudioError, TooLongError
from qwen2_audio.serving.backend import Backend
from qwen2_audio.serving.ui.bubbles import messages, turn_at, unescaped
from qwen2_audio.serving.ui.chat import State, Turn
from qwen2_audio.serving.ui.clips import Clip
from qwen2_audio.serving.ui.examples import EXAMPLES
from qwen2_audio.serving.ui.hearing import Hearing
from qwen2_audio.serving.ui.history import written
from qwen2_audio.serving.ui.opening import open_session
from qwen2_audio.serving.ui.parts import for_models
from qwen2_audio.serving.ui.sessions import Session, Sessions
from qwen2_audio.serving.ui.texts import Texts, language_of, texts
from qwen2_audio.serving.ui.wishes import Wishes, chosen

_GLANCE_SECONDS = 0.2
View = tuple[Any, ...]
"""New states of welcome, chatbot, composer, speed, aloud."""


class Asking:
    """The events of the chat tab. Every one gives (or yields) a `View`."""

    def __init__(self, backend: Backend, hearing: Hearing, sessions: Sessions) -> None:
        self._backend = backend
        self._hearing = hearing
        self._sessions = sessions

    async def arrive(self) -> list[Any]:
        """A visitor has come: what the side panel says of the models, once they are loaded."""
        while not self._backend.models:
            await asyncio.sleep(_GLANCE_SECONDS)
        return for_models(self._backend.models)

    async def send(self, message: dict[str, Any], request: gr.Request, *wishes: Any) -> AsyncIterator[View]:
        """A message from the composer: files, text, addresses of recordings."""
        session = self._session(request)
        try:
            clips = await self._hearing.files(message.get("files") or ())
            text, more = await self._hearing.addresses((message.get("text") or "").strip())
            if not clips and not more and not text:
                raise ConversationError(texts(session.language).say("ask.empty"))
        except Qwen2AudioError as error:
            gr.Warning(str(error))
            welcome, chatbot, composer, *rest = _unchanged()
            if message.get("files"):  # they are gone
                composer = gr.update(value={"text": message.get("text") or "", "files": []})
            yield (welcome, chatbot, composer, *rest)
            return
        async for view in self._ask(session, Turn(text, (*clips, *more)), Wishes(*wishes), taken=True):
            yield view

    async def example(self, event: gr.EventData, request: gr.Request, *wishes: Any) -> AsyncIterator[View]:
        """One of the ready examples."""
        session = self._session(request)
        chosen = next((example for example in EXAMPLES if example.name == event._data.get("name")), EXAMPLES[0])
        clips = await asyncio.to_thread(chosen.clips)
        for clip in clips:
            self._hearing.clips.add(clip)
        text = texts(session.language).say(f"example.{chosen.name}.ask") if chosen.asks else ""
        async for view in self._ask(session, Turn(text, clips), Wishes(*wishes)):
            yield view

    async def spoken(self, event: gr.EventData, request: gr.Request, *wishes: Any) -> AsyncIterator[View]:
        """Something was spoken with the button held; the recording has arrived before."""
        session = self._session(request)
        try:
            clip = self._hearing.clips.claim(str(event._data.get("token")))
        except Qwen2AudioError as error:
            gr.Warning(str(error))
            yield _unchanged()
            return
        async for view in self._ask(session, Turn("", (clip,)), Wishes(*wishes)):
            yield view

    def heard(self, event: gr.EventData, request: gr.Request) -> View:
        """A turn of hands-free talk has ended; it was answered by way of the WebSocket."""
        session = self._session(request)
        try:
            clips: tuple[Clip, ...] = (self._hearing.clips.claim(str(event._data.get("token"))),)
        except Qwen2AudioError:
            clips = ()
        answer, problem = str(event._data.get("answer") or ""), str(event._data.get("problem") or "")
        state: State = "failed" if problem else "stopped" if event._data.get("stopped") else "done"
        session.chat.turns.append(Turn("", clips, answer, state, problem, gone=not clips))
        self._hearing.bound(session.chat)
        return self._view(session)

    async def retry(self, event: gr.RetryData, request: gr.Request, *wishes: Any) -> AsyncIterator[View]:
        """Answer the same question again; what came after it is dropped."""
        session = self._session(request)
        turn = turn_at(session.chat.turns, _index(event.index))
        if turn is None:
            yield _unchanged()
            return
        if turn.gone:
            gr.Warning(texts(session.language).say("clip.gone.ask"))
            yield _unchanged()
            return
        del session.chat.turns[session.chat.turns.index(turn) + 1 :]
        async for view in self._answer(session, turn, Wishes(*wishes)):
            yield view

    async def edit(self, event: gr.EditData, request: gr.Request, *wishes: Any) -> AsyncIterator[View]:
        """Ask with another text, the recordings as they were; what came after is dropped."""
        session = self._session(request)
        turn = turn_at(session.chat.turns, _index(event.index))
        text = unescaped(str(event.value)).strip()
        if turn is None or not text:
            yield self._view(session)
            return
        if turn.gone:
            gr.Warning(texts(session.language).say("clip.gone.ask"))
            yield self._view(session)
            return
        turns = session.chat.turns
        del turns[turns.index(turn) :]
        async for view in self._ask(session, Turn(text, turn.clips), Wishes(*wishes)):
            yield view

    def stop(self, request: gr.Request) -> None:
        """End the answer that is being written."""
        self._session(request).chat.stop()

    def clear(self, request: gr.Request) -> View:
        """Forget the conversation."""
        session = self._session(request)
        session.chat.clear()
        return self._view(session, emptied=True)

    def save(self, request: gr.Request) -> str:
        """The conversation as a file for the browser."""
        turns = self._session(request).chat.turns
        name = f"qwen2-audio-{time.strftime('%Y-%m-%d-%H%M')}.json"
        file = {"name": name, "type": "application/json", "text": written(turns)}
        return json.dumps({**file, "at": time.monotonic_ns()})  # else the same file is no news to the page

    async def load(self, path: str, request: gr.Request) -> View:
        """Go on with a saved conversation."""
        session = self._session(request)
        try:
            turns = await self._hearing.conversation(path)
        except Qwen2AudioError as error:
            gr.Warning(texts(session.language).say("chat.unreadable", problem=str(error)))
            return self._view(session)
        session.chat.clear()
        session.chat.turns += turns
        return self._view(session, emptied=True)

    def speak(self, language: Any, request: gr.Request) -> Texts:
        """Show the page in a language from now on."""
        session = self._session(request)
        session.language = language_of(str(language), session.language)
        return texts(session.language)

    def chatbot(self, request: gr.Request) -> Any:
        """The conversation, in the page's language."""
        session = self._session(request)
        return messages(session.chat.turns, texts(session.language))

    def _session(self, request: gr.Request) -> Session:
        return open_session(self._sessions, request)

    async def _ask(self, session: Session, turn: Turn, wishes: Wishes, *, taken: bool = False) -> AsyncIterator[View]:
        session.chat.turns.append(turn)
        async for view in self._answer(session, turn, wishes, taken=taken):
            yield view

    async def _answer(
        self, session: Session, turn: Turn, wishes: Wishes, *, taken: bool = False
    ) -> AsyncIterator[View]:
        try:
            card = chosen(self._backend.models, wishes.model)
            options = wishes.options(card.defaults)
            self._hearing.check(session.chat.turns)
        except Qwen2AudioError as error:
            if isinstance(error, TooLongError):
                turn.let_go()  # which cannot be asked about; they would be held as long as the session
            turn.state, turn.problem = "failed", str(error)
            self._hearing.bound(session.chat)
            yield self._view(session, fresh=True, taken=taken)
            return
        stream = session.chat.answer(self._backend, turn, system=wishes.system or "", options=options, model=card.name)
        try:
            async with aclosing(stream) as answers:
                turn.state = "writing"
                yield self._view(session, fresh=True, taken=taken)
                async for news in answers:
                    yield self._view(session, wishes=wishes) if news else _unchanged()
        finally:
            self._hearing.bound(session.chat)
        yield self._view(session, wishes=wishes)

    def _view(
        self,
        session: Session,
        *,
        fresh: bool = False,
        taken: bool = False,
        wishes: Wishes | None = None,
        emptied: bool = False,
    ) -> View:
        """
        Args:
            fresh: an answer begins.
            taken: what the composer held has been asked; else it stays, as a draft.
            wishes: the last answer is to be read aloud, as these say.
            emptied: another conversation begins, also by hands-free.
        """
        turns, said = session.chat.turns, texts(session.language)
        last = turns[-1] if turns else None
        writing = any(turn.state == "writing" for turn in turns)  # this answer, or the one that overtook it
        speed = ""
        if last is not None and last.speed is not None:
            quick = last.speed
            speed = said.say(
                "answer.speed", first=f"{quick.first:.2f}", rate=f"{quick.rate:.0f}", tokens=str(quick.tokens)
            )
        aloud: Any = gr.skip()
        if emptied or (wishes is not None and last is not None and last.state == "stopped"):
            aloud = json.dumps({"hush": True, "emptied": emptied, "at": time.monotonic_ns()})
        elif wishes is not None and wishes.speak and last is not None:
            told = {"turn": last.number, "text": last.answer, "done": last.state != "writing", "voice": wishes.voice}
            aloud = json.dumps(told)
        buttons = gr.update(submit_btn=not writing, stop_btn=writing)
        composer = gr.update(value=None, submit_btn=not writing, stop_btn=writing) if taken else buttons
        return (
            gr.update(visible=not turns),
            gr.update(value=messages(turns, said), visible=bool(turns) or "hidden"),
            gr.skip() if writing and not fresh else composer,
            speed,
            aloud,
        )


def _unchanged() -> View:
    return tuple(gr.skip() for _ in range(5))


def _index(index: int | tuple[int, int]) -> int:
    return index if isinstance(index, int) else index[0]
