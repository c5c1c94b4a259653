"""What goes wrong on a connection, what is written down of it, and what may be chosen; event by event."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.errors import ContextLengthError
from qwen2_audio.processing.vad import CHUNK
from qwen2_audio.serving.backend import Delta, EngineLostError
from qwen2_audio.serving.realtime.config import Bounds, TurnDetection
from qwen2_audio.serving.realtime.listening import Edge, Heard, TurnDetector
from qwen2_audio.serving.realtime.session import _EVENTS
from tests.serving.realtime.driving import (
    ANSWERED,
    MS,
    Client,
    Loudness,
    b64,
    by_hand,
    create,
    hearing,
    kinds,
    respond,
    say,
    update,
)


class TestTrouble:
    def test_a_failed_answer(self) -> None:
        client = by_hand()
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
        client = by_hand()
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

    def test_as_many_turns_are_forgotten_at_once_as_cannot_fit(self) -> None:
        """Each attempt renders the conversation anew. 200 turns of 3 s are 15,000 tokens, of which 2048 fit."""
        client = by_hand()
        for _ in range(200):
            client.hear(3.0, step=48_000)
            client.send("input_audio_buffer.commit")
        client.send("response.create")
        gone = kinds(_fail(client, ContextLengthError("too long"))).count("conversation.item.deleted")
        assert len(client.conversation) == 200 - gone == 2048 // 75
        assert kinds(_fail(client, ContextLengthError("too long"))) == ["conversation.item.deleted"]

    def test_texts_that_cannot_fit_are_forgotten_at_once(self) -> None:
        client = by_hand()
        for _ in range(100):
            client.send("conversation.item.create", item=say("hello " * 200))
        client.send("response.create")
        _fail(client, ContextLengthError("too long"))
        assert 5 < len(client.conversation) < 20

    def test_an_answer_to_something_else_forgets_nothing(self) -> None:
        client = by_hand()
        client.send("conversation.item.create", item=say("one"))
        client.send("response.create")
        client.answer("to one")
        client.send("response.create", response={"input": [say("two")]})
        assert client.conversation == [("user", ["two"])]
        events = _fail(client, ContextLengthError("too long"))
        assert events[-1]["response"]["status_details"]["error"]["code"] == "context_length_exceeded"
        client.send("response.create")
        assert client.conversation[:2] == [("user", ["one"]), ("assistant", ["to one"])]

    def test_or_fails_where_nothing_may_be_forgotten(self) -> None:
        client = by_hand(truncation="disabled")
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
        for text in ("12", "56", "78"):  # behind what is being answered
            wordy.send("conversation.item.create", item=say(text))
        wordy.answer("")
        wordy.send("response.create")
        assert wordy.conversation == [("user", [text]) for text in ("123", "12", "56", "78")]

    def test_an_input_of_its_own_has_the_same_bounds(self) -> None:
        client = Client(
            Bounds(seconds=2.5, text=10), audio={"input": {"format": {"rate": 16_000}, "turn_detection": None}}
        )
        client.hear(1.0)
        item = client.send("input_audio_buffer.commit")[0]["item_id"]
        for items in ([{"type": "item_reference", "id": item}] * 3, [say("123456"), say("12345")]):
            error = client.send("response.create", response={"input": items})[0]["error"]
            assert (error["code"], error["param"]) == ("too_long", "response.input")
        client.send("response.create", response={"input": [{"type": "item_reference", "id": item}] * 2})
        assert client.conversation == [("user", [1.0]), ("user", [1.0])]

    def test_answers_and_transcripts_count(self) -> None:
        client = Client(Bounds(items=4, text=20), audio={"input": {"format": {"rate": 16_000}, "turn_detection": None}})
        client.send("conversation.item.create", item=say("one"))
        for _ in range(9):
            client.send("response.create", response={"input": [say("x")]})
            client.answer("twelve words")
        held = [event["item"]["id"] for event in client.events if event["type"] == "conversation.item.added"]
        gone = [event["item_id"] for event in client.events if event["type"] == "conversation.item.deleted"]
        assert len(set(held) - set(gone)) == 1
        spoken = {"type": "input_audio", "audio": b64(np.zeros(3200, np.int16)), "transcript": "t" * 15}
        for _ in range(3):
            client.send("conversation.item.create", item={**say("x"), "content": [spoken]})
        assert len(client.session._history.items) == 1

    def test_what_looks_like_a_recording_is_text(self) -> None:
        client = by_hand()
        error = client.send("conversation.item.create", item=say("<|im_end|> x.wav"))[0]["error"]
        assert error["code"] == "invalid_messages"

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
            ({"type": "input_audio_buffer.append", "audio": "é"}, "invalid_audio", "audio"),
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
            (hearing(transcription={"prompt": "Names: Li"}), "unsupported", "session.audio.input.transcription.prompt"),
            (hearing(transcription={"language": "xx"}), "invalid_value", "session.audio.input.transcription.language"),
        ],
    )  # fmt: skip
    def test_what_makes_no_sense_is_told_and_changes_nothing(self, event: Any, code: str, param: str | None) -> None:
        client = by_hand()
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

    def test_in_a_language_that_was_said(self) -> None:
        said = {"model": "mini", "language": "de"}
        client = Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": None, "transcription": said}})
        assert client.update()[0]["session"]["audio"]["input"]["transcription"] == said
        client.hear(1.0)
        client.send("input_audio_buffer.commit")
        assert client.conversation == [("user", [1.0, "Transcribe the German speech."])]

    def test_long_turns_are_heard_in_pieces(self) -> None:
        client = Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": None, "transcription": {}}})
        client.hear(15.0, step=16_000)
        client.send("input_audio_buffer.commit")
        (key,) = client.asked
        events = client.answer(" one", " ", key=key)
        assert kinds(events)[-1].endswith("delta") and len(client.conversation) == 1
        events += client.answer("two ", "three", key=key)
        assert events[-1]["transcript"] == "one two three"
        assert "".join(event.get("delta", "") for event in events) == "one two three"

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

    def test_what_waits_is_held_as_it_came_and_no_more_than_is_remembered(self) -> None:
        """Turns of 16 bits a sample, cut when they are heard; beyond the bound of the conversation they are refused."""
        client = Client(
            Bounds(seconds=3.0),
            audio={"input": {"format": {"rate": 16_000}, "turn_detection": None, "transcription": {}}},
        )
        for _ in range(4):
            client.hear(1.0)
            client.send("input_audio_buffer.commit")
        turns = list(client.session._transcripts._turns.values())
        assert [turn.windows is None for turn in turns] == [False, True, True]
        assert all(turn.sound.samples.dtype == np.int16 for turn in turns)
        failed = [event for event in client.events if event["type"].endswith("transcription.failed")]
        assert len(failed) == 1 and failed[0]["error"]["code"] == "overloaded"
        for _ in range(3):
            client.answer("words")
        assert not client.session.busy and len(client.asked) == 3
        client.hear(3.5)  # alone it may be longer
        client.send("input_audio_buffer.commit")
        assert client.session.busy

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
