"""Every shape in which people have their data comes out as the same conversation; what does not fit is named."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from qwen2_audio.errors import Qwen2AudioError
from qwen2_audio.processing.conversation import AudioPart, Conversation, Message, TextPart
from qwen2_audio.training.rows import BareRow, ChatRow, PreferenceRow, parse_row

FOLDER = Path("/data")
A, B = AudioPart(FOLDER / "a.wav"), AudioPart(FOLDER / "b.wav")
ASKED = Conversation((Message("user", (A, TextPart("What is said?"))), Message("assistant", (TextPart("Hello."),))))

PARTS = [{"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "What is said?"}]
ANSWER = {"role": "assistant", "content": "Hello."}


def tagged(text: str = "<audio>What is said?", **row: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}, ANSWER], "audios": ["a.wav"], **row}


@pytest.mark.parametrize(
    "row",
    [
        tagged(),
        tagged("What is said?"),  # a single recording without a mark comes first
        {"messages": [{"role": "user", "content": PARTS}, ANSWER], "id": 7},
        {"messages": [{"role": "user", "content": [{"type": "audio"}, PARTS[1]]}, ANSWER], "audios": ["a.wav"]},
        {
            "messages": [
                {"role": "user", "content": [{"type": "audio_url", "audio_url": {"url": "a.wav"}}, PARTS[1]]},
                ANSWER,
            ]
        },
        {
            "conversations": [{"from": "human", "value": "<audio>What is said?"}, {"from": "gpt", "value": "Hello."}],
            "audios": ["a.wav"],
        },
        {"query": "<audio>What is said?", "response": "Hello.", "audios": "a.wav"},
        {"query": "What is said?", "response": "Hello.", "audio": "/data/a.wav"},
    ],
)
def test_the_same_conversation(row: dict[str, Any]) -> None:
    assert parse_row(row, FOLDER) == ChatRow(ASKED, (False, True))


def test_turns_recordings_and_system_in_order() -> None:
    row = {
        "system": "Be brief.", "history": [["<audio>One?", "1"]], "query": "Two? <audio>", "response": "2",
        "audios": ["a.wav", {"path": "b.wav", "start": 1, "end": 2.5}],
    }  # fmt: skip
    parsed = parse_row(row, FOLDER)
    assert isinstance(parsed, ChatRow)
    assert [message.role for message in parsed.conversation.messages] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert parsed.conversation.messages[1].parts == (A, TextPart("One?"))
    assert parsed.conversation.messages[3].parts == (TextPart("Two? "), AudioPart(FOLDER / "b.wav", 1, 2.5))


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Salut"}]},
        {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Salut"}]},
    ],
)
def test_a_system_beside_the_messages_is_their_first(row: dict[str, Any]) -> None:
    parsed = parse_row({"system": "Answer in French.", **row}, FOLDER)
    assert isinstance(parsed, ChatRow) and parsed.learnt == (False, False, True)
    assert [message.text for message in parsed.conversation.messages] == ["Answer in French.", "Hi", "Salut"]


def test_recordings_alone_text_alone_and_bytes() -> None:
    voice = parse_row({"messages": [{"role": "user", "content": "<audio>"}, ANSWER], "audios": ["a.wav"]}, FOLDER)
    assert isinstance(voice, ChatRow) and voice.conversation.messages[0].parts == (A,)
    written = parse_row({"query": "Hi", "response": "Hello."}, FOLDER)
    assert isinstance(written, ChatRow) and written.conversation.messages[0].parts == (TextPart("Hi"),)
    encoded = {"data": base64.b64encode(b"RIFF").decode(), "format": "wav"}
    part = {"type": "input_audio", "input_audio": encoded}
    inline = parse_row({"messages": [{"role": "user", "content": [part]}, ANSWER]}, FOLDER)
    assert isinstance(inline, ChatRow) and inline.conversation.messages[0].parts == (AudioPart(b"RIFF"),)


def test_what_is_learnt() -> None:
    messages = [{"role": "user", "content": "1"}, {**ANSWER, "loss": False}, {"role": "user", "content": "2"}, ANSWER]
    parsed = parse_row({"messages": messages, "complete": False, "spoken": "hello", "loss_weight": 2}, FOLDER)
    assert isinstance(parsed, ChatRow)
    assert (parsed.learnt, parsed.complete, parsed.spoken) == ((False, False, False, True), False, "hello")
    assert parsed.weight == 2
    bare = parse_row({"audio": "a.wav", "prompt": "Say:", "gt": "Hello.", "loss_weight": 0.5}, FOLDER)
    assert isinstance(bare, BareRow) and bare.weight == 0.5


def test_bare_rows() -> None:
    official = {"audio": "a.wav", "prompt": "Say:", "gt": "Hello.", "source": "x", "task": "ASR"}
    assert parse_row(official, FOLDER) == BareRow((A,), "Say:", "Hello.")
    heard = BareRow((A,), "Detect the language and recognize the speech: ", "<|en|>hello", "hello")
    assert parse_row({"audio": "a.wav", "text": "hello", "task": "asr", "language": "en"}, FOLDER) == heard
    assert parse_row({"wav": "a.wav", "txt": "hello", "lang": "en"}, FOLDER) == heard
    row = {"audio": "a.wav", "text": "hola", "task": "translate", "language": "en", "target_language": "es"}
    translated = parse_row(row, FOLDER)
    assert isinstance(translated, BareRow)
    assert translated.prompt == "Detect the language and translate the speech into Spanish: "
    assert translated.target == "<|en|>hola"
    emotion = parse_row({"audio": "a.wav", "text": "angry", "task": "emotion"}, FOLDER)
    assert emotion == BareRow((A,), "Recognize the emotion with keywords in English:", "angry")


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [{"role": "user", "content": PARTS}], "chosen": "Hello.", "rejected": "Bye."},
        {"messages": [{"role": "user", "content": PARTS}, ANSWER], "rejected_response": "Bye."},
        {"messages": [{"role": "user", "content": PARTS}], "chosen": [ANSWER], "rejected": {"content": "Bye."}},
        {
            "conversations": [{"from": "human", "value": "<audio>What is said?"}], "audios": ["a.wav"],
            "chosen": {"from": "gpt", "value": "Hello."}, "rejected": {"from": "gpt", "value": "Bye."},
        },
        {
            "messages": [{"role": "user", "content": PARTS}, ANSWER],
            "rejected_messages": [{"role": "user", "content": PARTS}, {"role": "assistant", "content": "Bye."}],
        },
        {"prompt": [{"role": "user", "content": PARTS}], "chosen": [ANSWER], "rejected": [{"content": "Bye."}]},
        {"prompt": "What is said?", "audio": "a.wav", "chosen": "Hello.", "rejected": "Bye."},
    ],
)  # fmt: skip
def test_preferences(row: dict[str, Any]) -> None:
    assert parse_row(row, FOLDER) == PreferenceRow(Conversation(ASKED.messages[:1]), "Hello.", "Bye.")


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ([], "a row is a JSON object, got list"),
        ({}, "of an empty object"),
        (tagged("<audio> <audio>"), "2 <audio> marks for 1 recordings"),
        (tagged("<audio>", audios=[]), "1 <audio> marks for 0 recordings"),
        (tagged("none", audios=["a.wav", "b.wav"]), "0 <audio> marks for 2 recordings"),
        (tagged(audios=[""]), "a recording must be given as a path or URL, got ''"),
        (tagged(audios=[{"path": "a.wav", "begin": 1}]), "a recording is a path or"),
        ({"messages": []}, "the conversation is empty"),
        ({"messages": [{"content": "x"}]}, 'message 0 has no "role"'),
        ({"messages": [{"role": "user", "content": "x", "contnt": ""}]}, "did you mean 'content'"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "cannot read the content part"),
        ({"messages": [{"role": "user", "content": "x", "loss": True}]}, "only on messages of the assistant"),
        ({"audio": "a.wav", "prompt": "Say:", "gt": "x", "loss_weight": 0}, '"loss_weight" must be a number above 0'),
        ({"query": "x", "chosen": "a", "rejected": "b", "loss_weight": 2}, "not for preferences"),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": "x"}]}]},
            "must be .*base64",
        ),
        ({"conversations": [{"from": "bot", "value": "x"}]}, "one of human, user, gpt"),
        ({"audio": "a.wav", "text": "x", "task": "sing"}, "unknown task 'sing'; known are asr"),
        ({"audio": "a.wav", "text": "x", "task": "asr"}, '"lang" must be one of .*got None'),
        ({"audio": "a.wav", "prompt": None, "gt": "x"}, '"prompt" must be a text, got None'),
        ({"query": "x", "chosen": "same", "rejected": "same"}, "nothing to prefer"),
        ({"query": "x", "chosen": "", "rejected": "same"}, "not empty"),
        ({"query": "x", "chosen": "same", "rejected": "  "}, "rejected answer is empty"),
        ({"query": "x", "response": "a", "rejected_response": "b", "rejected": "c"}, "worse answer is given 2 times"),
        ({**tagged(rejected_response="x"), "rejected_audios": ["b.wav"]}, 'leave out "rejected_audios"'),
        ({"query": "x", "rejected": "same"}, 'a preference needs "chosen"'),
        ({"query": "x", "answer": "y"}, 'a row with "query" needs a "response"'),
        ({"query": "x", "history": [["a", "b"]], "response": None}, 'a row with "query" needs a "response"'),
        ({"query": "x", "response": "y", "history": [["a", None]]}, r'"history" must be .* got \[\'a\', None\]'),
        (
            {"query": "x", "response": "y", "history": ["你好", "您好"]},
            r'"history" must be a list of \[query, response\]',
        ),
        ({"query": "x", "response": "y", "history": {"a": "b"}}, r'"history" must be a list of \[query, response\]'),
        (
            {"messages": [{"role": "user", "content": PARTS}, ANSWER], "audio": "a.wav"},
            "0 <audio> marks for 1 recordings",
        ),
        ({"messages": [{"role": "user", "content": PARTS[1]}, ANSWER], "audio": "a.wav"}, "content"),
        (
            {"messages": [{"role": "user", "content": "Say it"}, {**ANSWER, "content": "<audio>"}], "audio": "a.wav"},
            "in an answer",
        ),
        (
            {
                "messages": [{"role": "user", "content": "Say it"}, {**ANSWER, "content": "<audio>"}],
                "audios": ["a.wav"],
                "rejected_response": "x",
            },
            "a last answer in text",
        ),
        (
            {"system": "x", "messages": [{"role": "system", "content": "y"}, {"role": "user", "content": "z"}, ANSWER]},
            "system",
        ),
        (tagged(complete="false"), '"complete" is true, or false'),
        ({"messages": [ANSWER, {"role": "user", "content": "x"}], "complete": False}, '"complete" is true, or false'),
        ({"audio": "a.wav", "prompt": "Say:", "gt": "x", "complete": False}, '"complete" is for conversations'),
        ({"query": "x", "chosen": "a", "rejected": "b", "complete": False}, "not for preferences"),
        ({"query": "x", "response": "y", "audio_path": "a.wav"}, "stand in \"audios\", got 'audio_path'"),
        ({"messages": [{"role": "user", "content": "x"}, ANSWER], "wav": "a.wav"}, "stand in \"audios\", got 'wav'"),
        ({"audio": "a.wav", "prompt": "Say:", "text": "x", "language": "en"}, 'leave out "prompt"'),
    ],
)
def test_what_does_not_fit_is_named(row: Any, named: str) -> None:
    with pytest.raises(Qwen2AudioError, match=named):
        parse_row(row, FOLDER)


def test_a_stretch_of_a_recording_in_the_row() -> None:
    part = {"type": "input_audio", "input_audio": {"data": base64.b64encode(b"sound").decode()}, "start": 1, "end": 2}
    parsed = parse_row({"messages": [{"role": "user", "content": [part]}, ANSWER]}, FOLDER)
    assert isinstance(parsed, ChatRow) and parsed.conversation.messages[0].parts == (AudioPart(b"sound", 1, 2),)
