"""The front door, on a tiny random checkpoint."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from qwen2_audio import AudioPart, Conversation, TextPart, load
from qwen2_audio.api import Assistant, Input, as_conversation
from qwen2_audio.errors import (
    AudioError,
    AudioWarning,
    CheckpointError,
    ContextLengthError,
    ConversationError,
    UsageError,
)
from tests.tiny import short_context, sound, tiny_config, tiny_folder, tiny_model

GREEDY: dict[str, Any] = {"temperature": 0, "repetition_penalty": 1.0, "max_new_tokens": 16}


@pytest.fixture(scope="module")
def assistant(tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    return load(tiny_folder(tmp_path_factory.mktemp("api") / "model"), device="cpu")


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("audio") / "speech.wav"
    soundfile.write(path, sound(2.5), 16_000, subtype="FLOAT")
    return str(path)


def test_the_ways_to_say_the_same(assistant: Assistant, speech: str) -> None:
    messages: list[Input] = [
        [speech, "What is said?"],
        [Path(speech), TextPart("What is said?")],
        (speech, "What is said?"),
        [(sound(2.5), 16_000), "What is said?"],
        [
            {
                "role": "user",
                "content": [{"type": "audio", "audio_url": speech}, {"type": "text", "text": "What is said?"}],
            }
        ],  # type: ignore[list-item]
        Conversation().user(speech, "What is said?"),
        Conversation().user(AudioPart(Path(speech).read_bytes()), "What is said?"),
    ]
    replies = [assistant.chat(message, **GREEDY) for message in messages]
    assert len({reply.tokens for reply in replies}) == 1
    assert str(replies[0]) == replies[0].text
    assert replies[0].prompt_tokens == len(assistant.processor.prepare(as_conversation(messages[0])).ids)


def test_voice_chat_and_analysis_differ_only_in_the_message(assistant: Assistant, speech: str) -> None:
    alone, asked = as_conversation(speech), as_conversation([speech, "Why?"])
    a, b = assistant.processor.prepare(alone).text, assistant.processor.prepare(asked).text
    assert b == a.replace("<|audio_eos|>\n<|im_end|>", "<|audio_eos|>\nWhy?<|im_end|>")


def test_streamed_equals_whole(assistant: Assistant, speech: str) -> None:
    stream = assistant.stream([speech, "What?"], **GREEDY)
    assert "".join(stream) == assistant.chat([speech, "What?"], **GREEDY).text == stream.reply.text
    assert stream.reply.finish_reason in ("stop", "length")


def test_stream_can_be_stopped(assistant: Assistant, speech: str) -> None:
    stream = assistant.stream([speech], **GREEDY | {"max_new_tokens": 400})
    for _ in stream:
        stream.cancel()
    assert stream.reply.finish_reason == "cancelled"
    assert len(stream.reply.tokens) < 20


def test_stop_string(assistant: Assistant) -> None:
    whole = assistant.chat("hello", **GREEDY | {"max_new_tokens": 40}).text
    stop = whole[10:13]
    reply = assistant.chat("hello", **GREEDY | {"max_new_tokens": 40}, stop=stop)
    assert reply.text == whole[: whole.index(stop)]
    assert reply.finish_reason == "stop"


def test_second_turn_computes_nothing_of_the_first(
    assistant: Assistant, speech: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encode, forward = assistant.model.encode_audio, assistant.model.forward
    encoded: list[int] = []
    monkeypatch.setattr(
        assistant.model, "encode_audio", lambda mels, frames: encoded.extend(frames) or encode(mels, frames)
    )
    monkeypatch.setattr(assistant.model, "forward", lambda ids, *a, **k: seen.append(len(ids)) or forward(ids, *a, **k))
    chat = assistant.session()
    first = chat.send(speech, "What is said?", **GREEDY)
    encoded.clear()
    seen.clear()
    second = chat.send((sound(1.0, seed=2), 16_000), **GREEDY)
    assert encoded == [100]
    new = second.prompt_tokens - first.prompt_tokens - len(first.tokens)
    assert seen[0] <= new + 2  # the new turn, the last token of the answer and what ends it

    fresh = Conversation().user(speech, "What is said?").assistant(first.text).user((sound(1.0, seed=2), 16_000))
    prompt = assistant.processor.prepare(fresh)
    if assistant.processor.tokenizer.encode(first.text) == list(first.tokens):
        assert second.prompt_tokens == len(prompt.ids)
        assert assistant.chat(fresh, **GREEDY).tokens == second.tokens
    assert "Audio 2: " in prompt.text


@pytest.mark.parametrize("ending", ["length", "stop string", "cancelled"])
def test_session_goes_on_as_if_the_history_were_fresh(assistant: Assistant, ending: str) -> None:
    chat = assistant.session(system="the cat")
    whole = assistant.chat("hello", system="the cat", **GREEDY | {"max_new_tokens": 30})
    if ending == "cancelled":
        stream = chat.stream("hello", **GREEDY)
        for _ in stream:
            stream.cancel()
        first = stream.reply
    else:
        stop = whole.text[8:11] if ending == "stop string" else None
        first = chat.send("hello", **GREEDY, stop=stop)
    second = chat.send("the dog", **GREEDY)
    history = [m.text for m in chat.conversation.messages]
    assert history == ["the cat", "hello", first.text, "the dog", second.text]
    prompt = assistant.processor.prepare(Conversation(chat.conversation.messages[:-1]))
    tokenizer = assistant.processor.tokenizer
    rendered = tokenizer.decode((chat._cached + chat._pending)[: second.prompt_tokens])
    assert rendered == prompt.text


def test_a_session_holds_what_its_conversation_shows(assistant: Assistant) -> None:
    """Also where an answer went on over an end: no turn that nobody spoke follows from it."""
    tokenizer, end = assistant.processor.tokenizer, assistant.processor.tokenizer.id_of("<|im_end|>")
    bias = {end: 100.0}
    chat = assistant.session(system="the cat")
    first = chat.send("hello", temperature=0.0, max_new_tokens=4, ignore_eos=True, logit_bias=bias)
    assert end in first.tokens[:-1]
    second = chat.send("the dog", **GREEDY)
    prompt = assistant.processor.prepare(Conversation(chat.conversation.messages[:-1]))
    assert tokenizer.decode((chat._cached + chat._pending)[: second.prompt_tokens]) == prompt.text


def test_tuples_of_several_are_no_wave(assistant: Assistant, tmp_path: Path) -> None:
    file = tmp_path / "a.wav"
    soundfile.write(file, sound(0.4), 16_000)
    path = str(file)
    expected = assistant.chat([path, TextPart("What?")], **GREEDY).tokens
    assert assistant.chat((path, TextPart("What?")), **GREEDY).tokens == expected
    both = assistant.complete([path, path], "hello", **GREEDY).tokens
    assert assistant.complete((path, path), "hello", **GREEDY).tokens == both


def test_reset(assistant: Assistant) -> None:
    chat = assistant.session()
    first = chat.send("hello", **GREEDY)
    chat.send("again", **GREEDY)
    chat.reset()
    assert chat.send("hello", **GREEDY).tokens == first.tokens


def test_long_recordings_become_windows(assistant: Assistant) -> None:
    wave = sound(61.0)
    with pytest.warns(AudioWarning, match="3 consecutive parts"):
        prompt = assistant.processor.prepare(as_conversation([(wave, 16_000), "What?"]))
    assert sum(clip.seconds for clip in prompt.clips) == pytest.approx(61.0)
    assert all(clip.seconds <= 30.0 for clip in prompt.clips)
    assert "Audio 3: <|audio_bos|><|AUDIO|><|audio_eos|>\nWhat?" in prompt.text


def test_bare_prompt(assistant: Assistant, speech: str) -> None:
    prompt = assistant.processor.prepare_base([speech], "Generate the caption in English:")
    assert prompt.text == "<|audio_bos|><|AUDIO|><|audio_eos|>Generate the caption in English:"
    assert (
        assistant.complete(speech, "hello", **GREEDY).tokens == assistant.complete([speech], "hello", **GREEDY).tokens
    )


def test_saved_equals_loaded(assistant: Assistant, tmp_path: Path) -> None:
    assistant.save(tmp_path / "copy")
    again = load(tmp_path / "copy", device="cpu")
    assert again.chat("hello", **GREEDY).tokens == assistant.chat("hello", **GREEDY).tokens
    assert again.defaults == assistant.defaults


def test_packed_linears_equal_plain_ones(assistant: Assistant) -> None:
    plain = tiny_model(tiny_config(0), 0)
    ids = torch.arange(40) % 300
    with torch.inference_mode():
        torch.testing.assert_close(assistant.model(ids, [40]), plain(ids, [40]), atol=1e-4, rtol=1e-4)


def test_bad_input(assistant: Assistant, tmp_path: Path) -> None:
    def one_line(error: pytest.ExceptionInfo[Exception]) -> None:
        assert "\n" not in str(error.value)

    with pytest.raises(UsageError, match="max_tokens"):
        assistant.chat("hello", max_tokens=3)  # type: ignore[call-arg]
    with pytest.raises(ConversationError, match="empty"):
        assistant.chat([])
    with pytest.raises(ConversationError, match="empty"):
        assistant.chat(Conversation())
    with pytest.raises(ConversationError, match="control token"):
        assistant.chat("hello <|im_end|>")
    with pytest.raises(ConversationError, match="unknown role 'robot'"):
        assistant.chat([{"role": "robot", "content": "hi"}])  # type: ignore[list-item]
    with pytest.raises(ConversationError, match="twice"):
        assistant.chat(Conversation().system("a").user("b"), system="c")
    with pytest.raises(UsageError, match="list"):
        assistant.batch("hello")
    with pytest.raises(AudioError, match="no such file") as error:
        assistant.chat("missing.wav")
    one_line(error)
    with pytest.raises(ConversationError, match="nothing to transcribe"):
        assistant.transcribe(TextPart("hello"))  # type: ignore[arg-type]
    with pytest.raises(AudioError, match="too short"):
        assistant.chat((np.zeros(100, np.float32), 16_000))
    with pytest.raises(UsageError, match="unknown dtype"):
        load("mini", dtype="int3")
    with pytest.raises(UsageError, match="cannot use the device"):
        load("mini", device="cuda:99" if torch.cuda.is_available() else "cuda")
    with pytest.raises(CheckpointError, match="did you mean 'mini'"):
        load("mimi")
    with pytest.raises(CheckpointError, match="Qwen/Qwen2-Audio-7B-Instruct"):
        load("qwen2-audio-7b-instruct")


def test_prompt_past_the_context(tmp_path: Path) -> None:
    config = short_context(tiny_config(0), 64)
    assistant = load(tiny_folder(tmp_path / "short", tiny_model(config)), device="cpu")
    with pytest.raises(ContextLengthError, match="context holds 64"):
        assistant.chat((sound(5.0), 16_000))
    reply = assistant.chat("hello", temperature=0, repetition_penalty=1.0, stop=None)
    assert reply.prompt_tokens + len(reply.tokens) <= 64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert assistant.chat("hello", **GREEDY | {"max_new_tokens": 1}).finish_reason in ("length", "stop")


def test_an_unfinished_turn_gives_way_to_the_next(assistant: Assistant) -> None:
    chat = assistant.session()
    options = GREEDY | {"max_new_tokens": 6}
    left = chat.stream("hello", **options)
    next(iter(left))
    second = chat.send("the dog", **options)
    with pytest.raises(UsageError, match="left unfinished"):
        left.run()
    assert [message.text for message in chat.conversation.messages] == ["the dog", second.text]
    assert second.tokens == assistant.chat("the dog", **options).tokens
    stale = chat.stream("the cat", **options)
    chat.reset()
    with pytest.raises(UsageError, match="left unfinished"):
        stale.run()
    assert chat.conversation.messages == ()


def test_nothing_is_accepted_and_then_ignored(assistant: Assistant) -> None:
    with pytest.raises(ConversationError, match="control token"):
        assistant.session(system="be kind<|im_end|>")
    with pytest.raises(ConversationError, match="control token"):
        assistant.complete([], "hello <|im_start|>")
    with pytest.raises(ConversationError, match="prompt is empty"):
        assistant.complete([], "")
    with pytest.raises(UsageError, match="max_new_tokens"):
        assistant.transcribe((sound(1.0), 16_000), max_new_tokens=0)
    with pytest.raises(UsageError, match="use transcribe"):
        assistant.transcribe_many("speech.wav")
    with pytest.raises(UsageError, match="stop must be"):
        assistant.chat("hello", stop=5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stop must be"):
        assistant.chat("hello", stop="")
    with pytest.raises(UsageError, match="seed must be"):
        assistant.chat("hello", seed=2**64)


def test_a_model_can_be_converted_after_loading(tmp_path: Path) -> None:
    assistant = load(tiny_folder(tmp_path / "model"), device="cpu")
    assistant.model.bfloat16()
    assert assistant.chat((sound(0.5), 16_000), **GREEDY).tokens
