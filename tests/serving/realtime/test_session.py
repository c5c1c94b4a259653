"""Turns on a connection, event by event: no sockets, no model, no clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qwen2_audio.serving.backend import Delta
from qwen2_audio.serving.realtime.config import Bounds
from tests.serving.realtime.driving import (
    ANSWERED,
    BEGUN,
    ITEM,
    Client,
    b64,
    by_hand,
    kinds,
    say,
)
from tests.tiny import sound


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
        assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (400, 3, 403)
        details = usage["input_token_details"]
        assert details["audio_tokens"] + details["text_tokens"] == 400 and details["cached_tokens"] == 8
        assert 0 <= details["audio_tokens"] - int(seconds * 25) <= 1

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

    @pytest.mark.parametrize("threshold", [0.05, 0.15, 0.95])
    def test_silence_ends_a_turn_at_any_threshold(self, threshold: float) -> None:
        turns = {"type": "server_vad", "threshold": threshold}
        client = Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": turns}})
        assert kinds(client.hear(0.5)) == ["input_audio_buffer.speech_started"]
        assert kinds(client.hear(0.7, loud=False))[0] == "input_audio_buffer.speech_stopped"

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

    def test_what_waited_may_be_deleted_meanwhile(self) -> None:
        turns = {"type": "server_vad", "interrupt_response": False}
        client = Client(audio={"input": {"format": {"rate": 16_000}, "turn_detection": turns}})
        for _ in range(2):
            client.hear(1.0)
            client.hear(0.7, loud=False)
        users = [event["item_id"] for event in client.events if event["type"] == "input_audio_buffer.committed"]
        assert len(users) == 2 and len(client.asked) == 1
        for id in users:
            client.send("conversation.item.delete", item_id=id)
        assert kinds(client.answer("done"))[-1] == "response.done" and len(client.asked) == 1
        client.hear(1.0)
        client.hear(0.7, loud=False)
        assert len(client.asked) == 2

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
    def test_commit_then_ask(self) -> None:
        client = by_hand()
        assert client.hear(1.0) == []
        events = client.send("input_audio_buffer.commit")
        assert kinds(events) == ["input_audio_buffer.committed", *ITEM]
        assert kinds(client.send("response.create")) == BEGUN
        assert client.conversation == [("user", [1.0])]

    def test_clear(self) -> None:
        client = by_hand()
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
        client = by_hand()
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
        client = by_hand()
        client.send("conversation.item.create", item={**say("one"), "id": "one"})
        client.send("response.create")
        running = client.events[-1]["item_id"]
        assert client.send("conversation.item.delete", item_id=running)[0]["error"]["code"] == "item_in_progress"
        client.answer("A long answer")
        cut = client.send("conversation.item.truncate", item_id=running, content_index=0, audio_end_ms=900, text_end=6)
        assert cut[0]["type"] == "conversation.item.truncated" and cut[0]["audio_end_ms"] == 900
        bad = client.send("conversation.item.truncate", item_id=running, audio_end_ms=-1, text_end=1)
        assert bad[0]["type"] == "error" and len(client.session._history.find(running).text) == 6
        assert client.send("conversation.item.truncate", item_id="one", text_end=1)[0]["error"]["param"] == "item_id"
        assert client.send("conversation.item.truncate", item_id=running)[0]["error"]["param"] == "text_end"
        assert kinds(client.send("conversation.item.delete", item_id="one")) == ["conversation.item.deleted"]
        client.send("conversation.item.create", item=say("two"))
        client.send("response.create")
        assert client.conversation == [("assistant", ["A long"]), ("user", ["two"])]

    def test_cancelling(self) -> None:
        client = by_hand()
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
        client = by_hand(instructions="Be brief.")
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
