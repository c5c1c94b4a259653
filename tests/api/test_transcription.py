"""Transcription with a model in this process: long recordings become segments, and a stream is heard like the whole."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from qwen2_audio import transcription
from qwen2_audio.api import Assistant, load
from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import AudioError, ConversationError, UsageError
from qwen2_audio.generation.engine import Engine, Request
from qwen2_audio.generation.reply import Reply
from qwen2_audio.longform.listening import TRANSLATE, Question
from qwen2_audio.processing.audio import load_audio, load_part
from qwen2_audio.processing.conversation import AudioPart, TextPart
from qwen2_audio.transcription import Transcriber, blocks_of
from tests.tiny import sound

SENTENCE = Path(__file__).parents[2] / "examples" / "sentence.flac"


@pytest.fixture(scope="module")
def assistant(folder: object) -> Assistant:
    loaded = load(str(folder), device="cpu")
    loaded.transcription_window = 6.0
    return loaded


@pytest.fixture(scope="module")
def talk() -> NDArray[np.float32]:
    """Five times the same sentence of about 4 s, with pauses: 26 s."""
    silence = np.zeros(2 * SAMPLE_RATE, np.float32)
    return np.concatenate([silence, *[load_audio(SENTENCE), silence] * 4])


class Answers:
    """Stands in for the model: says how long each window is, and goes round in circles above a length."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, loops_above: float = 100.0) -> None:
        self.heard: list[float] = []
        self.prompts: list[int] = []
        self.loops_above = loops_above
        monkeypatch.setattr(transcription, "answer_all", self)

    def __call__(self, _: Engine, requests: Sequence[Request]) -> list[Reply]:
        replies = []
        self.prompts.append(len(requests))
        for request in requests:
            seconds = request.clips[0].seconds
            self.heard.append(seconds)
            tokens = (3, *[5] * 12) if seconds > self.loops_above else (3, 4)
            replies.append(Reply(f" {seconds:.2f} ", "length" if len(tokens) > 2 else "stop", tokens, 1))
        return replies


def test_halves(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, loops_above=3.0)
    wave = load_audio(SENTENCE)
    reply = assistant.transcribe((wave, SAMPLE_RATE))
    seconds = len(wave) / SAMPLE_RATE
    assert answers.heard[0] == pytest.approx(seconds, abs=0.01)
    assert sum(answers.heard[1:]) == pytest.approx(seconds, abs=0.03) and max(answers.heard[1:]) <= 3.0
    assert reply.text == " ".join(f"{seconds:.2f}" for seconds in answers.heard[1:])
    assert (reply.finish_reason, reply.tokens) == ("stop", (3, 4) * len(answers.heard[1:]))


def test_too_short_for_halves(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    Answers(monkeypatch, loops_above=0.1)
    reply = assistant.transcribe((load_audio(SENTENCE)[8000:30_000], SAMPLE_RATE))
    assert (reply.finish_reason, reply.tokens) == ("length", (3, 5))


def test_long_recordings_become_segments(
    assistant: Assistant, talk: NDArray[np.float32], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(monkeypatch)
    reply = assistant.transcribe((talk, SAMPLE_RATE))
    assert len(reply.segments) == 4 and answers.prompts == [4]
    assert reply.text == " ".join(segment.text for segment in reply.segments)
    sentence = len(load_audio(SENTENCE)) / SAMPLE_RATE
    for number, segment in enumerate(reply.segments):
        begin = 2 + number * (sentence + 2)
        assert begin < segment.start < begin + 0.6 and begin + sentence - 0.8 < segment.end <= begin + sentence + 0.1
    assert max(answers.heard) <= 6.0


def test_streamed_is_whole_and_many_are_one_by_one(
    assistant: Assistant, talk: NDArray[np.float32], tmp_path: Path
) -> None:
    soundfile.write(tmp_path / "talk.wav", talk, SAMPLE_RATE)
    whole = assistant.transcribe(tmp_path / "talk.wav", max_new_tokens=4)
    stream = assistant.transcribe_stream(str(tmp_path / "talk.wav"), max_new_tokens=4)
    assert isinstance(stream, Iterator) and tuple(stream) == whole.segments
    many = assistant.transcribe_many([str(SENTENCE), tmp_path / "talk.wav", str(SENTENCE)], max_new_tokens=4)
    assert many[1] == whole and many[0] == many[2] == assistant.transcribe(str(SENTENCE), max_new_tokens=4)
    assert all(segment.tokens for segment in whole.segments)
    assert assistant.transcribe_many([]) == []


def test_a_short_recording_is_heard_whole(assistant: Assistant) -> None:
    parts = (AudioPart(str(SENTENCE)), TextPart("Transcribe the speech."))
    asked = assistant.chat(list(parts), temperature=0, repetition_penalty=1.0, max_new_tokens=5)
    assert assistant.transcribe(str(SENTENCE), max_new_tokens=5).tokens == asked.tokens


def test_a_stretch(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch)
    assistant.transcribe(AudioPart(str(SENTENCE), 0.5, 2.0))
    assert answers.heard == [1.5]


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize(
    ("start", "end"),
    [(0.0, None), (0.0, 3.0), (21.3, None), (19.99, 20.02), (20.0, 40.0), (3.00004, 44.10003), (44.0, 45.008), (0, 45)],
)
def test_blocks_of_a_stretch_are_the_stretch(tmp_path: Path, rate: int, start: float, end: float | None) -> None:
    soundfile.write(tmp_path / "long.wav", sound(45.0, rate=rate), rate)
    part = AudioPart(tmp_path / "long.wav", start, end)
    np.testing.assert_array_equal(np.concatenate(list(blocks_of(part))), load_part(part))


@pytest.mark.parametrize(
    ("start", "end"), [(2.0, 2.0), (3.0, 1.0), (-1.0, 1.0), (1.0, 3.02), (3.0, None), (0.0, math.inf), (math.nan, 1.0)]
)
def test_a_stretch_that_is_not_there(start: float, end: float | None) -> None:
    part = AudioPart((sound(3.0), SAMPLE_RATE), start, end)
    for read in (load_part, lambda part: list(blocks_of(part))):
        with pytest.raises(AudioError, match="there is no stretch from"):
            read(part)


def test_a_stretch_is_not_decoded_further_than_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []

    def stream(source: object) -> Iterator[NDArray[np.float32]]:
        for number in range(1000):
            given.append(number)
            yield np.full(20 * SAMPLE_RATE, number, np.float32)

    monkeypatch.setattr(transcription, "stream_audio", stream)
    found = list(blocks_of(AudioPart("x", 50.0, 70.0)))
    assert [(len(block), block[0]) for block in found] == [(10 * SAMPLE_RATE, 2.0), (10 * SAMPLE_RATE, 3.0)]
    assert given == [0, 1, 2, 3]


def test_translation_asks_for_english(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[int]] = []

    def answer_all(_: Engine, requests: Sequence[Request]) -> list[Reply]:
        asked.extend(request.ids for request in requests)
        return [Reply("yes", "stop", (1,), 1) for _ in requests]

    monkeypatch.setattr(transcription, "answer_all", answer_all)
    assert assistant.translate(str(SENTENCE)).text == "yes"
    assert TRANSLATE in assistant.processor.tokenizer.decode(asked[0])


def test_where_nobody_speaks_nothing_is_asked(assistant: Assistant, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch)
    for wave in (np.zeros(3 * SAMPLE_RATE, np.float32), sound(20.0)):
        reply = assistant.transcribe((wave, SAMPLE_RATE))
        assert (reply.text, reply.finish_reason, reply.segments) == ("", "stop", ())
    assert answers.heard == []


def test_bad_input(assistant: Assistant) -> None:
    with pytest.raises(AudioError, match="too short"):
        assistant.transcribe((np.ones(100, np.float32), SAMPLE_RATE))
    with pytest.raises(AudioError, match="no such file"):
        next(assistant.transcribe_stream("nothere.wav"))
    with pytest.raises(UsageError, match="unknown option"):
        assistant.transcribe_stream(str(SENTENCE), max_tokens=3)  # type: ignore[call-arg]
    with pytest.raises(ConversationError, match="nothing to transcribe"):
        assistant.transcribe(TextPart("hello"))  # type: ignore[arg-type]


def test_room_for_what_could_be_said(assistant: Assistant) -> None:
    listener = Transcriber(assistant.engine, assistant.processor, 6.0, Question())
    from qwen2_audio.processing.speech_windows import Window

    request = listener._request(Window(0, sound(2.0), (0, 32_000), 1.0))
    assert (request.options.max_new_tokens, request.options.stop_loops) == (32, True)
