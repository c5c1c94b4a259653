"""What happens on a connection, event by event: no sockets, no model, no clock."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qwen2_audio.errors import ContextLengthError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.conversation import AudioPart
from qwen2_audio.processing.vad import CHUNK
from qwen2_audio.serving.backend import Delta, EngineLostError, ModelCard
from qwen2_audio.serving.realtime.config import Bounds, TurnDetection
from qwen2_audio.serving.realtime.listening import Edge, Heard, TurnDetector
from qwen2_audio.serving.realtime.outputs import Generate, Output, Send, Stop
from qwen2_audio.serving.realtime.session import _EVENTS, RealtimeSession
from tests.serving.fake_backend import seconds_of
from tests.tiny import sound

CARD = ModelCard("mini", 2048, 12.0, GenerationOptions(max_new_tokens=64))
MS = 16


class Loudness:
    """Takes whatever is loud for speech."""

    def __init__(self) -> None:
        self._rest = np.zeros(0, np.float32)

    def push(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        wave = np.concatenate([self._rest, samples])
        count = len(wave) // CHUNK
        self._rest = wave[count * CHUNK :]
        return (np.abs(wave[: count * CHUNK]).reshape(count, CHUNK).max(axis=1) > 0.05).astype(np.float32)

    def reset(self) -> None:
        self._rest = np.zeros(0, np.float32)


class Client:
    """A session, driven as the route drives it; what came out is kept."""

    def __init__(self, bounds: Bounds | None = None, card: ModelCard = CARD, **session: Any) -> None:
        self._count = 0
        self.session = RealtimeSession(card, bounds or Bounds(), Loudness, self._name)
        self.asked: dict[str, Generate] = {}
        self.stopped: list[str] = []
        self.events: list[dict[str, Any]] = []
        self.take(self.session.opened())
        self.update(**{"audio": {"input": {"format": {"rate": 16_000}}}, **session})
        self.events.clear()

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"{kind}_{self._count}"

    def take(self, outputs: list[Output]) -> list[dict[str, Any]]:
        new = []
        for output in outputs:
            if isinstance(output, Send):
                assert isinstance(output.event["event_id"], str)
                json.dumps(output.event)
                new.append(output.event)
            elif isinstance(output, Generate):
                self.asked[output.key] = output
            else:
                assert isinstance(output, Stop)
                self.stopped.append(output.key)
        self.events += new
        return new

    def send(self, type: str, **fields: Any) -> list[dict[str, Any]]:
        return self.take(self.session.receive({"type": type, **fields}))

    def update(self, **session: Any) -> list[dict[str, Any]]:
        return self.send("session.update", session={"type": "realtime", **session})

    def hear(self, seconds: float, *, loud: bool = True, step: int = 1600) -> list[dict[str, Any]]:
        samples = sound(seconds) if loud else np.zeros(int(seconds * 16_000), np.float32)
        pcm = np.rint(samples * 20_000).astype("<i2")
        found = []
        for at in range(0, len(pcm), step):
            found += self.send("input_audio_buffer.append", audio=b64(pcm[at : at + step]))
        return found

    def answer(self, *texts: str, key: str | None = None, finish: str = "stop") -> list[dict[str, Any]]:
        """Let the newest answer come."""
        key = key or list(self.asked)[-1]
        found = []
        for text in texts:
            found += self.take(self.session.pushed(key, Delta(text, 1, 40)))
        return found + self.take(self.session.pushed(key, Delta("", 1, 40, finish, cached_tokens=8)))  # type: ignore[arg-type]

    @property
    def conversation(self) -> list[tuple[str, list[str | float]]]:
        """What was asked last."""
        return [
            (message.role, [seconds_of(part) if isinstance(part, AudioPart) else part.text for part in message.parts])
            for message in list(self.asked.values())[-1].job.prompt.messages  # type: ignore[union-attr]
        ]


def b64(pcm: NDArray[Any]) -> str:
    return base64.b64encode(pcm.tobytes()).decode()


def kinds(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"] for event in events]


def say(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}


def create(item: Any) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": item}


def respond(response: Any) -> dict[str, Any]:
    return {"type": "response.create", "response": response}


def update(**session: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": session}


def hearing(**sound: Any) -> dict[str, Any]:
    return update(audio={"input": sound})


ANSWERED = [
    "response.output_text.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]
BEGUN = ["response.created", "response.output_item.added", "conversation.item.added", "response.content_part.added"]
ITEM = ["conversation.item.added", "conversation.item.done"]


class TestTurns:
    def test_a_spoken_turn_is_answered(self) -> None:
        client = Client()
        assert client.hear(1.0, loud=False) == []
        started = client.hear(1.5)
        assert kinds(started) == ["input_audio_buffer.speech_started"]
        ended = client.hear(0.7, loud=False)
        assert kinds(ended) == ["input_audio_buffer.speech_stopped", "input_audio_buffer.committed", *ITEM, *BEGUN]
        item = started[0]["item_id"]
        assert {ended[0]["item_id"], ended[1]["item_id"], ended[2]["item"]["id"]} == {item}
        assert abs(started[0]["audio_start_ms"] - 700) <= 64 and abs(ended[0]["audio_end_ms"] - 2820) <= 64
        role, (seconds,) = client.conversation[0]
        assert role == "user" and isinstance(seconds, float)
        assert seconds == pytest.approx((ended[0]["audio_end_ms"] - started[0]["audio_start_ms"]) / 1000, abs=0.002)
        deltas = client.answer("Hel", "lo")
        assert kinds(deltas) == ["response.output_text.delta"] * 2 + ANSWERED
        response = deltas[-1]["response"]
        assert response["status"] == "completed" and response["output"][0]["content"] == [
            {"type": "output_text", "text": "Hello"}
        ]
        usage = response["usage"]
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (40, 3, 43)
        details = usage["input_token_details"]
        assert details["audio_tokens"] + details["text_tokens"] == 40 and details["cached_tokens"] == 8
        assert 0 <= details["audio_tokens"] - int(seconds * 25) <= 1 or details["audio_tokens"] == 40

    def test_the_next_turn_knows_the_one_before(self) -> None:
        client = Client(instructions="Be brief.")
        for _ in range(2):
            client.hear(1.0)
            client.hear(0.7, loud=False)
            client.answer("Hello")
        assert [role for role, _ in client.conversation] == ["system", "user", "assistant", "user"]
        assert client.conversation[2] == ("assistant", ["Hello"])

    def test_a_click_is_no_turn(self) -> None:
        client = Client()
        for _ in range(10):
            assert client.hear(0.02, step=320) == [] and client.hear(0.3, loud=False) == []

    def test_a_pause_within_a_turn_does_not_end_it(self) -> None:
        client = Client(
            audio={
                "input": {
                    "format": {"rate": 16_000},
                    "turn_detection": {"type": "server_vad", "silence_duration_ms": 900},
                }
            }
        )
        client.hear(0.5)
        assert client.hear(0.7, loud=False) == []
        assert client.hear(0.5) == []
        assert kinds(client.hear(1.0, loud=False))[0] == "input_audio_buffer.speech_stopped"

    def test_speaking_interrupts(self) -> None:
        client = Client()
        client.hear(1.0)
        client.hear(0.7, loud=False)
        key = list(client.asked)[-1]
        client.take(client.session.pushed(key, Delta("I was say", 1, 40)))
        events = client.hear(0.5)
        assert kinds(events) == ["input_audio_buffer.speech_started", *ANSWERED]
        assert client.stopped == [key]
        response = events[-1]["response"]
        assert response["status"] == "cancelled" and response["status_details"]["reason"] == "turn_detected"
        assert client.session.pushed(key, Delta("ing", 1, 40)) == []  # what comes late is nobody's
        client.hear(0.7, loud=False)
        assert client.conversation[1] == ("assistant", ["I was say"])

    def test_or_waits_where_it_may_not(self) -> None:
        turns = {"type": "server_vad", "interrupt_response": False}
        client = Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": turns}})
        client.hear(1.0)
        client.hear(0.7, loud=False)
        first = list(client.asked)[-1]
        assert kinds(client.hear(1.0)) == ["input_audio_buffer.speech_started"]
        client.hear(0.7, loud=False)
        assert list(client.asked) == [first] and client.stopped == []
        events = client.answer("done", key=first)
        assert kinds(events)[-4:] == BEGUN and len(client.asked) == 2

    def test_or_leaves_answering_to_the_client(self) -> None:
        turns = {"type": "server_vad", "create_response": False}
        client = Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": turns}})
        client.hear(1.0)
        assert kinds(client.hear(0.7, loud=False))[-1] == "conversation.item.done" and not client.asked
        assert kinds(client.send("response.create")) == BEGUN

    def test_whoever_never_pauses_is_answered_all_the_same(self) -> None:
        client = Client(Bounds(turn_seconds=3))
        events = client.hear(7.0)
        assert kinds(events).count("input_audio_buffer.speech_stopped") == 2
        assert all(seconds <= 3.2 for _, (seconds, *_) in client.conversation if isinstance(seconds, float))

    def test_silence_is_not_kept(self) -> None:
        client = Client()
        client.hear(20.0, loud=False)
        assert client.session._heard.samples < 16_000

    @pytest.mark.parametrize("step", [7, 160, 5000, 100_000])
    def test_however_sound_is_cut_the_turns_are_the_same(self, step: int) -> None:
        def run(step: int) -> list[tuple[str, Any]]:
            client = Client()
            pcm = np.concatenate([np.zeros(8000), sound(1.0), np.zeros(16_000), sound(0.6), np.zeros(12_000)]) * 20_000
            for at in range(0, len(pcm), step):
                client.send("input_audio_buffer.append", audio=b64(np.rint(pcm[at : at + step]).astype("<i2")))
            return [
                (event["type"], event.get("audio_start_ms", event.get("audio_end_ms")))
                for event in client.events
                if "speech" in event["type"]
            ]

        assert run(step) == run(1600) and len(run(1600)) == 4


class TestByHand:
    @staticmethod
    def client(**more: Any) -> Client:
        return Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": None}}, **more)

    def test_commit_then_ask(self) -> None:
        client = self.client()
        assert client.hear(1.0) == []
        events = client.send("input_audio_buffer.commit")
        assert kinds(events) == ["input_audio_buffer.committed", *ITEM]
        assert kinds(client.send("response.create")) == BEGUN
        assert client.conversation == [("user", [1.0])]

    def test_clear(self) -> None:
        client = self.client()
        client.hear(1.0)
        assert kinds(client.send("input_audio_buffer.clear")) == ["input_audio_buffer.cleared"]
        assert client.send("input_audio_buffer.commit")[0]["error"]["code"] == "input_audio_buffer_commit_empty"

    def test_a_full_buffer(self) -> None:
        client = Client(Bounds(turn_seconds=2), audio={"input": {"format": {"rate": 16_000}, "turn_detection": None}})
        events = client.hear(3.0)
        assert {event["error"]["code"] for event in events} == {"input_audio_buffer_full"} and len(events) == 10
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        assert client.conversation == [("user", [2.0])]

    def test_24_khz_is_the_same_sound(self) -> None:
        client = Client(audio={"input": {"turn_detection": None, "format": {"type": "audio/pcm", "rate": 24_000}}})
        pcm = np.rint(sound(1.0, rate=24_000) * 20_000).astype("<i2")
        for at in range(0, len(pcm), 480):
            client.send("input_audio_buffer.append", audio=b64(pcm[at : at + 480]))
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        (((samples, _),),) = [
            [part.source for part in message.parts] for message in next(iter(client.asked.values())).job.prompt.messages
        ]  # type: ignore[union-attr]
        import soxr

        expected = soxr.resample(pcm, 24_000, 16_000).astype(np.float32) / 32768
        assert abs(len(samples) - 16_000) <= 2
        assert np.abs(samples[200:15_800] - expected[200:15_800]).max() < 0.01

    def test_items_in_any_order(self) -> None:
        client = self.client()
        pcm = b64(np.rint(sound(0.5) * 20_000).astype("<i2"))
        heard = {
            "type": "message",
            "role": "user",
            "id": "mine",
            "content": [{"type": "input_audio", "audio": pcm}, {"type": "input_text", "text": "What is it?"}],
        }
        assert kinds(client.send("conversation.item.create", item=heard)) == ITEM
        first = client.send("conversation.item.create", item=say("first"), previous_item_id="root")
        assert first[0]["previous_item_id"] is None
        answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "ok"}]}
        events = client.send("conversation.item.create", item=answer, previous_item_id=first[0]["item"]["id"])
        assert events[0]["previous_item_id"] == first[0]["item"]["id"]
        client.send("response.create")
        assert client.conversation == [("user", ["first"]), ("assistant", ["ok"]), ("user", [0.5, "What is it?"])]
        got = client.send("conversation.item.retrieve", item_id="mine")[0]["item"]["content"]
        assert [part["type"] for part in got] == ["input_audio", "input_text"]

    def test_deleting_and_cutting(self) -> None:
        client = self.client()
        client.send("conversation.item.create", item={**say("one"), "id": "one"})
        client.send("response.create")
        running = client.events[-1]["item_id"]
        assert client.send("conversation.item.delete", item_id=running)[0]["error"]["code"] == "item_in_progress"
        client.answer("A long answer")
        cut = client.send("conversation.item.truncate", item_id=running, content_index=0, audio_end_ms=900, text_end=6)
        assert cut[0]["type"] == "conversation.item.truncated" and cut[0]["audio_end_ms"] == 900
        assert client.send("conversation.item.truncate", item_id="one", text_end=1)[0]["error"]["param"] == "item_id"
        assert client.send("conversation.item.truncate", item_id=running)[0]["error"]["param"] == "text_end"
        assert kinds(client.send("conversation.item.delete", item_id="one")) == ["conversation.item.deleted"]
        client.send("conversation.item.create", item=say("two"))
        client.send("response.create")
        assert client.conversation == [("assistant", ["A long"]), ("user", ["two"])]

    def test_cancelling(self) -> None:
        client = self.client()
        assert client.send("response.cancel")[0]["error"]["code"] == "response_cancel_not_active"
        client.send("conversation.item.create", item=say("one"))
        client.send("response.create")
        key = list(client.asked)[-1]
        assert client.send("response.create")[0]["error"]["code"] == "conversation_already_has_active_response"
        assert client.send("response.cancel", response_id="other")[0]["error"]["param"] == "response_id"
        events = client.send("response.cancel", response_id=key)
        assert client.stopped == [key] and kinds(events) == ANSWERED
        assert events[-1]["response"]["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        assert kinds(client.send("response.create")) == BEGUN
        assert client.conversation == [("user", ["one"])]  # an answer of nothing is not said again

    def test_an_answer_of_its_own(self) -> None:
        client = self.client(instructions="Be brief.")
        client.send("conversation.item.create", item={**say("one"), "id": "one"})
        events = client.send(
            "response.create",
            response={
                "conversation": "none", "instructions": "Shout.", "max_output_tokens": 5, "temperature": 0.5,
                "metadata": {"why": "test"}, "input": [{"type": "item_reference", "id": "one"}, say("two")],
            },
        )  # fmt: skip
        assert "conversation.item.added" not in kinds(events)
        assert client.conversation == [("system", ["Shout."]), ("user", ["one"]), ("user", ["two"])]
        options = list(client.asked.values())[-1].job.options
        assert (options.max_new_tokens, options.temperature) == (5, 0.5)
        done = client.answer("HEY", finish="length")[-1]["response"]
        assert done["metadata"] == {"why": "test"} and done["status_details"]["reason"] == "max_output_tokens"
        assert done["status"] == "incomplete" and done["max_output_tokens"] == 5
        client.send("response.create")
        assert client.conversation == [("system", ["Be brief."]), ("user", ["one"])]


class TestTrouble:
    def test_a_failed_answer(self) -> None:
        client = TestByHand.client()
        client.send("conversation.item.create", item=say("one"))
        client.send("response.create")
        key = list(client.asked)[-1]
        events = client.take(client.session.failed(key, EngineLostError("lost")))
        assert kinds(events) == ANSWERED
        status = events[-1]["response"]["status_details"]
        assert status == {"type": "failed", "error": {"type": "server_error", "code": "engine_lost", "message": "lost"}}
        assert client.session.failed(key, EngineLostError("again")) == [] and not client.session.busy
        assert "secret" not in str(_fail(client, ValueError("secret")))

    def test_a_full_context_forgets_the_oldest_turns(self) -> None:
        client = TestByHand.client()
        for name in ("one", "two"):
            client.send("conversation.item.create", item={**say(name), "id": name})
            client.send("response.create")
            client.answer(f"to {name}")
        client.send("conversation.item.create", item={**say("three"), "id": "three"})
        client.send("response.create")
        key = list(client.asked)[-1]
        events = client.take(client.session.failed(key, ContextLengthError("too long")))
        assert kinds(events) == ["conversation.item.deleted"] * 2
        assert client.conversation == [("user", ["two"]), ("assistant", ["to two"]), ("user", ["three"])]
        client.take(client.session.failed(key, ContextLengthError("too long")))
        assert client.conversation == [("user", ["three"])]
        events = client.take(client.session.failed(key, ContextLengthError("too long")))
        assert events[-1]["response"]["status_details"]["error"]["code"] == "context_length_exceeded"

    def test_or_fails_where_nothing_may_be_forgotten(self) -> None:
        client = TestByHand.client(truncation="disabled")
        client.send("conversation.item.create", item=say("one"))
        client.send("conversation.item.create", item=say("two"))
        client.send("response.create")
        assert _fail(client, ContextLengthError("too long"))[-1]["type"] == "response.done"

    def test_bounds_of_what_is_remembered(self) -> None:
        client = Client(
            Bounds(items=4, seconds=2.5), audio={"input": {"format": {"rate": 16_000}, "turn_detection": None}}
        )
        for _ in range(4):
            client.hear(1.0)
            client.send("input_audio_buffer.commit")
        assert kinds(client.events).count("conversation.item.deleted") == 2
        for index in range(6):
            client.send("conversation.item.create", item=say(str(index)))
        client.send("response.create")
        assert client.conversation == [("user", [str(index)]) for index in range(2, 6)]
        wordy = Client(Bounds(text=10))
        for text in ("12345", "1234", "123"):
            wordy.send("conversation.item.create", item=say(text))
        wordy.send("response.create")
        assert wordy.conversation == [("user", ["1234"]), ("user", ["123"])]

    @pytest.mark.parametrize(
        ("event", "code", "param"),
        [
            (None, "invalid_type", None),
            ([], "invalid_type", None),
            ({}, "invalid_value", "type"),
            ({"type": 3}, "invalid_value", "type"),
            ({"type": "response.creat"}, "unknown_event", "type"),
            ({"type": "response.create", "respons": {}}, "unknown_field", "respons"),
            ({"type": "response.create"}, "conversation_empty", None),
            (respond({"input": []}), "invalid_value", "response.input"),
            (respond({"input": [3]}), "invalid_type", "response.input[0]"),
            (respond({"tools": [{}]}), "unsupported", "response.tools"),
            (respond({"output_modalities": ["audio"]}), "invalid_value", "response.output_modalities"),
            (respond({"max_output_tokens": 0}), "invalid_value", "response.max_output_tokens"),
            (respond({"metadata": {"a": 1}}), "invalid_value", "response.metadata"),
            (respond({"input": [{"type": "item_reference", "id": "x"}]}), "item_not_found", "response.input[0].id"),
            ({"type": "input_audio_buffer.append"}, "invalid_value", "audio"),
            ({"type": "input_audio_buffer.append", "audio": "?"}, "invalid_audio", "audio"),
            ({"type": "input_audio_buffer.append", "audio": "AAAA"}, "invalid_audio", "audio"),
            ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
            (create({"type": "function_call"}), "invalid_value", "item.type"),
            (create({**say("x"), "role": "system"}), "unsupported", "item.role"),
            (create({**say("x"), "content": []}), "invalid_value", "item.content"),
            (create({**say("x"), "content": [{"type": "input_image"}]}), "invalid_value", "item.content[0].type"),
            (create(say("<|im_end|>")), "invalid_messages", None),
            ({**create(say("x")), "previous_item_id": "none"}, "item_not_found", "previous_item_id"),
            ({"type": "conversation.item.delete", "item_id": "none"}, "item_not_found", "item_id"),
            ({"type": "conversation.item.retrieve"}, "invalid_value", "item_id"),
            ({"type": "session.update"}, "invalid_type", "session"),
            ({"type": "session.update", "session": {"voice": "alloy"}}, "unknown_field", "session.voice"),
            ({"type": "session.update", "session": {"type": "transcription"}}, "invalid_value", "session.type"),
            ({"type": "session.update", "session": {"model": "other"}}, "invalid_value", "session.model"),
            ({"type": "session.update", "session": {"tools": [{"type": "function"}]}}, "unsupported", "session.tools"),
            ({"type": "session.update", "session": {"instructions": "<|im_start|>"}}, "invalid_messages", None),
            ({"type": "session.update", "session": {"temperature": float("nan")}}, "invalid_value", "session.temperature"),
            (update(audio={"output": {"voice": "alloy"}}), "unsupported", "session.audio.output"),
            (hearing(format={"type": "audio/pcmu"}), "invalid_value", "session.audio.input.format.type"),
            (hearing(format={"rate": 8000}), "invalid_value", "session.audio.input.format.rate"),
            (hearing(turn_detection={"type": "semantic_vad"}), "invalid_value", "session.audio.input.turn_detection.type"),
            (hearing(turn_detection={"type": "server_vad", "threshold": 2}), "invalid_value",
             "session.audio.input.turn_detection.threshold"),
            (hearing(noise_reduction={"type": "near_field"}), "unsupported", "session.audio.input.noise_reduction"),
        ],
    )  # fmt: skip
    def test_what_makes_no_sense_is_told_and_changes_nothing(self, event: Any, code: str, param: str | None) -> None:
        client = TestByHand.client()
        before = client.update()[0]["session"]
        events = client.take(client.session.receive({**event, "event_id": "e1"} if isinstance(event, dict) else event))
        assert kinds(events) == ["error"]
        error = events[0]["error"]
        assert (error["code"], error["param"]) == (code, param) and error["message"]
        assert error["event_id"] == ("e1" if isinstance(event, dict) else None)
        assert client.update()[0]["session"] == before and not client.asked and not client.session.busy

    @given(
        st.lists(
            st.fixed_dictionaries(
                {"type": st.sampled_from([*_EVENTS, "x"])},
                optional={
                    "audio": st.sampled_from(["", "AAAA", "AAAAAAAA", 3]),
                    "item_id": st.text(max_size=3),
                    "item": st.sampled_from([say("a"), {}, None, 3, {**say("b"), "id": "b"}]),
                    "session": st.sampled_from(
                        [{}, None, {"audio": {"input": {"turn_detection": None}}}, {"audio": 3}]
                    ),
                    "response": st.sampled_from([{}, None, {"conversation": "none"}, {"input": [say("c")]}, []]),
                },
            ),
            max_size=12,
        ),
        st.booleans(),
    )
    def test_no_order_of_events_breaks_it(self, events: list[dict[str, Any]], answer: bool) -> None:
        client = Client()
        for event in events:
            client.take(client.session.receive(event))
            if answer and client.asked:
                client.answer("x")
        created = kinds(client.events).count("response.created")
        done = kinds(client.events).count("response.done")
        assert created - done == (1 if client.session.busy else 0)


def _fail(client: Client, error: Exception) -> list[dict[str, Any]]:
    if not client.session.busy:
        client.send("response.create")
    return client.take(client.session.failed(list(client.asked)[-1], error))


class TestTranscripts:
    def test_what_the_user_says_is_written_down(self) -> None:
        client = Client(
            audio={"input": {"format": {"rate": 16_000}, "turn_detection": None, "transcription": {"model": "mini"}}}
        )
        client.hear(1.0)
        item = client.send("input_audio_buffer.commit")[0]["item_id"]
        (key,) = client.asked
        assert client.conversation == [("user", [1.0, "Transcribe the speech."])]
        client.send("response.create")
        events = client.answer("the", " words", key=key)
        names = [name.removeprefix("conversation.item.input_audio_transcription.") for name in kinds(events)]
        assert names == ["delta", "delta", "completed"] and events[-1]["transcript"] == "the words"
        assert events[-1]["item_id"] == item and events[-1]["usage"] == {"type": "duration", "seconds": 1.0}
        client.answer("Hello")
        got = client.send("conversation.item.retrieve", item_id=item)
        assert got[0]["item"]["content"] == [{"type": "input_audio", "transcript": "the words"}]

    def test_long_turns_are_heard_in_pieces(self) -> None:
        client = Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": None, "transcription": {}}})
        client.hear(15.0, step=16_000)
        client.send("input_audio_buffer.commit")
        (key,) = client.asked
        assert kinds(client.answer("one", key=key))[-1].endswith("delta") and len(client.conversation) == 1
        assert client.answer("two", key=key)[-1]["transcript"] == "one two"

    def test_one_turn_at_a_time_and_not_too_many(self) -> None:
        client = Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": None, "transcription": {}}})
        for _ in range(20):
            client.hear(0.1)
            client.send("input_audio_buffer.commit")
        failed = [event for event in client.events if event["type"].endswith("transcription.failed")]
        assert len(client.asked) == 1 and len(failed) == 4 and failed[0]["error"]["code"] == "overloaded"
        first = next(iter(client.asked))
        client.answer("one")
        assert len(client.asked) == 2
        client.take(client.session.failed(list(client.asked)[1], EngineLostError("lost")))
        assert len(client.asked) == 3 and client.session.pushed(first, Delta("late", 1, 40)) == []

    def test_trouble_is_told(self) -> None:
        client = Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": None, "transcription": {}}})
        client.hear(1.0)
        client.send("input_audio_buffer.commit")
        events = client.take(client.session.failed(next(iter(client.asked)), EngineLostError("lost")))
        assert kinds(events) == ["conversation.item.input_audio_transcription.failed"] and not client.session.busy


class TestChoices:
    def test_they_are_told_as_they_were_made(self) -> None:
        client = Client()
        given = {
            "instructions": "Be brief.", "max_output_tokens": 9, "temperature": 0.5, "truncation": "disabled",
            "audio": {"input": {"turn_detection": {"type": "server_vad", "threshold": 0.7, "prefix_padding_ms": 100,
                                                   "silence_duration_ms": 900, "create_response": False,
                                                   "interrupt_response": False}}},
        }  # fmt: skip
        told = client.update(**given)[0]["session"]
        assert told["audio"]["input"]["turn_detection"] == given["audio"]["input"]["turn_detection"]
        assert {name: told[name] for name in given if name != "audio"} == {
            n: v for n, v in given.items() if n != "audio"
        }
        assert client.update(**{**told, "instructions": "Else."})[0]["type"] == "error"  # its id is no choice
        told.pop("id")
        assert client.update(**{**told, "instructions": "Else."})[0]["session"]["instructions"] == "Else."
        again = client.update(audio={"input": {"turn_detection": None}}, max_output_tokens="inf")[0]["session"]
        assert again["audio"]["input"]["turn_detection"] is None and again["max_output_tokens"] == "inf"
        assert again["temperature"] == 0.5

    def test_turning_detection_off_amid_a_turn_keeps_its_sound(self) -> None:
        client = Client()
        client.hear(1.0)
        client.update(audio={"input": {"turn_detection": None}})
        client.hear(0.5)
        client.send("input_audio_buffer.commit")
        client.send("response.create")
        ((_, (seconds,)),) = client.conversation
        assert seconds == pytest.approx(1.5, abs=0.15)


def test_sound_is_held_between_two_positions() -> None:
    heard = Heard(16_000)
    whole = np.arange(10_000, dtype=np.int16)
    for at in range(0, 10_000, 700):
        heard.push(whole[at : at + 700])
    assert (heard.take(100, 350) == whole[100:350]).all() and heard.start == 350
    assert (heard.take(0, 1000) == whole[350:1000]).all()
    heard.drop(5000)
    assert heard.samples == 5000 and (heard.take(5000, 99_999) == whole[5000:]).all() and heard.samples == 0
    assert heard.take(0, 99_999).size == 0


def test_edges_lie_where_speech_does() -> None:
    detector = TurnDetector(Loudness(), TurnDetection(prefix_padding_ms=0, silence_duration_ms=200), 1000)
    wave = np.concatenate(
        [np.zeros(CHUNK * 10, np.float32), np.ones(CHUNK * 20, np.float32), np.zeros(CHUNK * 20, np.float32)]
    )
    edges = detector.push(wave)
    assert edges == [Edge(True, 1000 + 10 * CHUNK), Edge(False, 1000 + 30 * CHUNK + 200 * MS)]
