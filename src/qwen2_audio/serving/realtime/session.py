"""`RealtimeSession`: what happens on a connection, as a machine without sockets, clocks or tasks.

Events of the client, pieces of answers and failures go in; what to send, to generate and to stop comes out, in order:

    receive(event) ─┐                       ┌─ Send      an event for the client
    pushed(key, delta) ─▶ RealtimeSession ──┼─ Generate  an answer, whose deltas come back under its key
    failed(key, error) ─┘                   └─ Stop      an answer that nobody wants any more
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qwen2_audio.config import MIN_SAMPLES, SAMPLE_RATE
from qwen2_audio.errors import ContextLengthError, Qwen2AudioError, advice
from qwen2_audio.processing.chat_template import check
from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.serving.backend import Delta, Job, ModelCard
from qwen2_audio.serving.errors import problem_of
from qwen2_audio.serving.realtime.config import Bounds, SessionConfig, check_modalities, max_tokens, temperature
from qwen2_audio.serving.realtime.fields import EventError, Fields
from qwen2_audio.serving.realtime.items import History, Item, Sound, audio_tokens_of, conversation_of, with_transcript
from qwen2_audio.serving.realtime.listening import Activity, Edge, Heard, TurnDetector
from qwen2_audio.serving.realtime.outputs import Generate, Output, Send, Stop
from qwen2_audio.serving.realtime.parsing import Reader, read_input, read_item, read_metadata, read_pcm
from qwen2_audio.serving.realtime.response import Reason, Response
from qwen2_audio.serving.realtime.transcripts import Transcripts

_MS = SAMPLE_RATE // 1000
_BEHIND = 4096
"""Samples that are held beyond the padding before a turn: so far does the detector look back."""


class RealtimeSession:
    """One connection."""

    def __init__(
        self, card: ModelCard, bounds: Bounds, activity: Callable[[], Activity], new_id: Callable[[str], str]
    ) -> None:
        """
        Args:
            activity: makes one who tells speech from other sound.
            new_id: a fresh name for an "event", "item", "response", "session".
        """
        self._card, self._bounds, self._activity, self._new_id = card, bounds, activity, new_id
        self._id = new_id("session")
        self._config = SessionConfig(card.name)
        self._history = History(bounds.items, bounds.seconds, bounds.text)
        self._heard = Heard(self._config.rate)
        self._turns = self._detector()
        self._turn: tuple[str, int] | None = None
        self._response: Response | None = None
        self._another = False
        self._transcripts = Transcripts(card, bounds.seconds)
        self._out: list[Output] = []

    @property
    def busy(self) -> bool:
        """Whether the model works for it."""
        return self._response is not None or bool(self._transcripts)

    def opened(self) -> list[Output]:
        """The connection is there."""
        self._out = []
        self._send("session.created", session=self._session_json())
        return self._out

    def receive(self, event: Any) -> list[Output]:
        """An event of the client, as parsed from JSON. What makes no sense is answered with an `error` event."""
        self._out = []
        name = event.get("event_id") if isinstance(event, dict) else None
        try:
            fields = Fields(event)
            kind = fields.text("type")
            known = _EVENTS.get(kind)
            if known is None:
                raise EventError(f"unknown event {kind!r:.80}; {advice(kind, _EVENTS)}", "unknown_event", "type")
            handle, allowed = known
            fields.only(("type", "event_id", *allowed))
            handle(self, fields)
        except Qwen2AudioError as error:
            self._complain(error, name if isinstance(name, str) else None)
        return self._out

    def refused(self, error: EventError) -> list[Output]:
        """What the client sent is no event at all."""
        self._out = []
        self._complain(error, None)
        return self._out

    def pushed(self, key: str, delta: Delta) -> list[Output]:
        """More of an answer; of one that was stopped nothing comes of it."""
        self._out = []
        if key in self._transcripts:
            self._write_down(self._transcripts.push(key, delta))
        elif self._response is not None and key == self._response.id:
            self._send_all(self._response.push(delta))
            if delta.finish_reason is not None:
                self._finish(cut=delta.finish_reason == "length")
        return self._out

    def failed(self, key: str, error: Exception) -> list[Output]:
        """An answer ended in an error."""
        self._out = []
        if key in self._transcripts:
            self._write_down(self._transcripts.failed(key, error))
        elif self._response is not None and key == self._response.id:
            too_long = isinstance(error, ContextLengthError) and self._config.forget and self._response.forgets
            room = self._card.context_length
            if too_long and self._forgot(self._history.forget_oldest(self._response.keep, room)):
                self._generate(self._response, self._history.items)
            else:
                self._finish(error=error)
        return self._out

    def _complain(self, error: Qwen2AudioError, event_id: str | None) -> None:
        """Tell the client of an error; the connection goes on."""
        problem = problem_of(error)
        ours = isinstance(error, EventError)
        told = {
            "type": "invalid_request_error" if ours else problem.type,
            "code": error.code if isinstance(error, EventError) else problem.code,
            "message": str(error) if ours else problem.message,
            "param": error.param if isinstance(error, EventError) else problem.param,
            "event_id": event_id,
        }
        self._send("error", error=told)

    # --- the session

    def _update(self, event: Fields) -> None:
        before = self._config
        self._config = before.updated(event.given.get("session"), longest=self._bounds.text)
        if self._config.instructions:
            try:
                check(Conversation().system(self._config.instructions))
            except Qwen2AudioError:
                self._config = before
                raise
        if self._config.rate != before.rate:
            self._heard.push(np.zeros(0, np.int16), last=True)
            self._heard.retune(self._config.rate)
        if self._config.turns != before.turns:
            self._turn, self._turns = None, self._detector()
        self._send("session.updated", session=self._session_json())

    def _session_json(self) -> dict[str, Any]:
        return {"id": self._id, **self._config.as_json()}

    def _detector(self) -> TurnDetector | None:
        turns = self._config.turns
        return None if turns is None else TurnDetector(self._activity(), turns, self._heard.end)

    @property
    def _reader(self) -> Reader:
        return Reader(self._config.rate, self._bounds.turn_seconds, self._new_id)

    # --- sound

    def _append(self, event: Fields) -> None:
        pcm = read_pcm(event)
        most = int(self._bounds.turn_seconds * SAMPLE_RATE)
        coming = len(pcm) * SAMPLE_RATE // self._config.rate
        if (self._heard.samples if self._turns is None else 0) + coming > most:
            limit = f"the buffer holds {self._bounds.turn_seconds:g} s"
            raise EventError(
                f"{limit}; commit or clear it, and append less at once", "input_audio_buffer_full", "audio"
            )
        samples = self._heard.push(pcm)
        if self._turns is None:
            return
        for edge in self._turns.push(samples):
            self._edge(edge)
        if self._turn is not None and self._heard.end - self._turn[1] > most:
            self._edge(self._turns.end(self._heard.end))
        elif self._turn is None:
            self._heard.drop(self._heard.end - self._turns.turns.prefix_padding_ms * _MS - _BEHIND)

    def _edge(self, edge: Edge) -> None:
        """A turn begins or ends."""
        turns = self._config.turns
        if turns is None:
            return
        if edge.begins:
            start = max(edge.position, self._heard.start)
            self._turn = (self._new_id("item"), start)
            self._send("input_audio_buffer.speech_started", audio_start_ms=start // _MS, item_id=self._turn[0])
            if turns.interrupt_response:
                self._another = False
                self._cancel("turn_detected")
        elif self._turn is not None:
            (item, start), self._turn = self._turn, None
            self._send("input_audio_buffer.speech_stopped", audio_end_ms=edge.position // _MS, item_id=item)
            self._committed(item, self._heard.take(start, edge.position))
            if turns.create_response:
                self._respond_or_wait()

    def _commit(self, _event: Fields) -> None:
        self._heard.push(np.zeros(0, np.int16), last=True)
        item, start = self._turn or (self._new_id("item"), self._heard.start)
        if self._heard.end - start < MIN_SAMPLES:
            raise EventError("there is no sound in the buffer to commit", "input_audio_buffer_commit_empty")
        self._committed(item, self._heard.take(start, self._heard.end))
        self._turn, self._turns = None, self._detector()

    def _clear(self, _event: Fields) -> None:
        self._heard.push(np.zeros(0, np.int16), last=True)
        self._heard.clear()
        self._turn, self._turns = None, self._detector()
        self._send("input_audio_buffer.cleared")

    def _committed(self, id: str, samples: NDArray[np.int16]) -> None:
        item = Item(id, "user", (Sound(samples),))
        before = self._history.add(item)
        self._send("input_audio_buffer.committed", previous_item_id=before, item_id=id)
        self._added(item, before)
        if self._config.transcribe:
            self._write_down(self._transcripts.ask(item, self._config.language))

    # --- items

    def _create_item(self, event: Fields) -> None:
        item = read_item(event.inside("item"), self._reader)
        after = event.text("previous_item_id", "") or None
        self._added(item, self._history.add(item, after))

    def _added(self, item: Item, before: str | None) -> None:
        for kind in ("conversation.item.added", "conversation.item.done"):
            self._send(kind, previous_item_id=before, item=item.as_json())
        answering = self._response
        self._forgot(self._history.overflow([item.id] if answering is None else [answering.keep, answering.item.id]))

    def _forgot(self, gone: list[Item]) -> bool:
        """Tell what was forgotten; whether anything was."""
        for item in gone:
            self._send("conversation.item.deleted", item_id=item.id)
        return bool(gone)

    def _retrieve_item(self, event: Fields) -> None:
        self._send("conversation.item.retrieved", item=self._history.find(event.text("item_id")).as_json())

    def _delete_item(self, event: Fields) -> None:
        id = event.text("item_id")
        self._refuse_unfinished(id)
        self._history.delete(id)
        self._send("conversation.item.deleted", item_id=id)

    def _truncate_item(self, event: Fields) -> None:
        item = self._history.find(event.text("item_id"))
        self._refuse_unfinished(item.id)
        if item.role != "assistant":
            raise EventError("only answers can be cut", "invalid_value", "item_id")
        if event.given.get("text_end") is None:
            message = "answers here are texts: say in text_end how many of its characters were read aloud"
            raise EventError(message, "missing_field", "text_end")
        end, audio_end = event.whole("text_end"), event.whole("audio_end_ms", 0)
        self._history.put(replace(item, content=(item.text[:end],), status="incomplete"))
        told = {"item_id": item.id, "content_index": 0, "audio_end_ms": audio_end, "text_end": end}
        self._send("conversation.item.truncated", **told)

    def _refuse_unfinished(self, id: str) -> None:
        if self._response is not None and self._response.item.id == id:
            raise EventError("this answer is still being given; cancel it first", "item_in_progress", "item_id")

    def _write_down(self, outputs: Iterable[dict[str, Any] | Generate]) -> None:
        for output in outputs:
            if isinstance(output, Generate):
                self._out.append(output)
                continue
            self._send_all([output])
            if "transcript" in output:
                known = next((item for item in self._history.items if item.id == output["item_id"]), None)
                if known is not None:
                    self._history.put(with_transcript(known, output["transcript"]))

    # --- answers

    def _create_response(self, event: Fields) -> None:
        if self._response is not None:
            message = f"the answer {self._response.id} is still being given; wait for it, or cancel it"
            raise EventError(message, "conversation_already_has_active_response")
        given = event.inside("response")
        given.only(_RESPONSE, {"tools": ([],), "tool_choice": ("auto", "none"), "audio": ({},), "prompt": ()})
        check_modalities(given)
        own = given.text("instructions", "", longest=self._bounds.text)
        if own:
            check(Conversation().system(own))
        items = read_input(given, self._history, self._reader)
        remembered = given.one_of("conversation", ("auto", "none"), "auto") == "auto"
        limit, heat = max_tokens(given, self._config.max_tokens), temperature(given, self._config.temperature)
        self._respond(items, limit, heat, remembered=remembered, forgets=remembered and given.given.get("input") is None,
                      instructions=own or None, metadata=read_metadata(given))  # fmt: skip

    def _respond_or_wait(self) -> None:
        """Answer the user's turn, after the answer that is still being given where there is one."""
        if self._response is not None:
            self._another = True
            return
        self._respond(self._history.items, self._config.max_tokens, self._config.temperature)

    def _respond(
        self,
        items: list[Item],
        limit: int | None,
        heat: float | None,
        *,
        remembered: bool = True,
        forgets: bool = True,
        instructions: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        items = list(items)  # not the conversation's own list, to which the answer is added
        users = [item.id for item in items if item.role == "user"]
        if not users:
            raise EventError("nothing was said that could be answered", "conversation_empty")
        item = Item(self._new_id("item"), "assistant", (), "in_progress")
        options = self._card.defaults.override(max_new_tokens=limit, temperature=heat)
        id = self._new_id("resp")
        response = Response(id, item, users[-1], remembered, forgets, instructions, options, limit, metadata)
        before = self._history.add(item) if remembered else None
        self._response = response
        self._send_all(response.opening(before))
        self._generate(response, items)

    def _generate(self, response: Response, items: list[Item]) -> None:
        asked = conversation_of(items, response.instructions or self._config.instructions)
        response.audio_tokens = audio_tokens_of(items)
        self._out.append(Generate(response.id, Job(asked, response.options, self._card.name)))

    def _cancel_response(self, event: Fields) -> None:
        wanted = event.text("response_id", "")
        if self._response is None or wanted not in ("", self._response.id):
            raise EventError("no such answer is being given", "response_cancel_not_active", "response_id")
        self._another = False
        self._cancel("client_cancelled")

    def _cancel(self, reason: Reason) -> None:
        if self._response is not None:
            self._out.append(Stop(self._response.id))
            self._finish(cancelled=reason)

    def _finish(self, *, cut: bool = False, cancelled: Reason | None = None, error: Exception | None = None) -> None:
        response, self._response = self._response, None
        if response is None:
            return
        ids = [item.id for item in self._history.items]
        place = ids.index(response.item.id) if response.item.id in ids else 0
        self._send_all(response.closing(ids[place - 1] if place else None, cut=cut, cancelled=cancelled, error=error))
        self._history.put(response.item)
        self._forgot(self._history.overflow([response.item.id]))
        another, self._another = self._another, False
        if another and any(item.role == "user" for item in self._history.items):  # else it was deleted meanwhile
            self._respond_or_wait()

    def _send_all(self, events: Iterable[dict[str, Any]]) -> None:
        for event in events:
            self._out.append(Send({"event_id": self._new_id("event"), **event}))

    def _send(self, type: str, **fields: Any) -> None:
        self._send_all([{"type": type, **fields}])


_RESPONSE = (
    "instructions", "output_modalities", "max_output_tokens", "temperature", "conversation", "input", "metadata",
)  # fmt: skip


_EVENTS: Mapping[str, tuple[Callable[[RealtimeSession, Fields], None], tuple[str, ...]]] = MappingProxyType(
    {
        "session.update": (RealtimeSession._update, ("session",)),
        "input_audio_buffer.append": (RealtimeSession._append, ("audio",)),
        "input_audio_buffer.commit": (RealtimeSession._commit, ()),
        "input_audio_buffer.clear": (RealtimeSession._clear, ()),
        "conversation.item.create": (RealtimeSession._create_item, ("item", "previous_item_id")),
        "conversation.item.retrieve": (RealtimeSession._retrieve_item, ("item_id",)),
        "conversation.item.delete": (RealtimeSession._delete_item, ("item_id",)),
        "conversation.item.truncate": (
            RealtimeSession._truncate_item, ("item_id", "content_index", "audio_end_ms", "text_end"),
        ),
        "response.create": (RealtimeSession._create_response, ("response",)),
        "response.cancel": (RealtimeSession._cancel_response, ("response_id",)),
    }
)  # fmt: skip
