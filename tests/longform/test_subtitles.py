"""Subtitles that others can read: parsed by their libraries, narrow enough, in time, nothing missing."""

from __future__ import annotations

import csv
import html
import io
import json
from itertools import pairwise

import pytest
import srt as srt_reader
import webvtt
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.longform.segments import Segment, join_texts
from qwen2_audio.longform.subtitles import _balanced, _columns, _lines, _units, cues, srt, tsv, verbose_json, vtt, write

LONG = (
    "He should ask about symptoms, and when food or medicine was last taken. "
    "He should then notice the position and the temperature of the body, and all marks."
)
SEGMENTS = [
    Segment(0.5, 2.25, "Good morning."),
    Segment(3.0, 3.5, ""),
    Segment(3600.5, 3612.0, LONG, probability=0.9, tokens=(1, 2)),
    Segment(3700, 3701.5, "<b> & --> \t你好"),
]


def words(text: str) -> list[str]:
    return text.split()


def test_srt() -> None:
    parsed = list(srt_reader.parse(srt(SEGMENTS)))
    assert [item.index for item in parsed] == list(range(1, len(parsed) + 1))
    assert (parsed[0].start.total_seconds(), parsed[0].end.total_seconds()) == (0.5, 2.25)
    assert words(" ".join(item.content for item in parsed)) == words(" ".join(s.text for s in SEGMENTS))
    assert parsed[-1].end.total_seconds() == 3701.5


def test_vtt() -> None:
    parsed = webvtt.from_buffer(io.StringIO(vtt(SEGMENTS)))
    assert parsed[0].start == "00:00:00.500" and parsed[-1].end == "01:01:41.500"
    said = " ".join(html.unescape(item.raw_text) for item in parsed)
    assert words(said) == words(" ".join(segment.text for segment in SEGMENTS))


def test_tsv() -> None:
    rows = list(csv.reader(io.StringIO(tsv(SEGMENTS)), delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows[:2] == [["start", "end", "text"], ["500", "2250", "Good morning."]]
    assert [len(row) for row in rows] == [3] * 4


def test_json_and_text() -> None:
    found = json.loads(write(SEGMENTS, "json", duration=4000.0))
    assert found["duration"] == 4000.0 and found["text"].startswith("Good morning. He should")
    assert [segment["start"] for segment in found["segments"]] == [0.5, 3600.5, 3700]
    assert write(SEGMENTS, "txt", duration=0).splitlines() == ["Good morning.", LONG, "<b> & --> 你好"]
    assert write([], "txt", duration=0) == ""


def test_verbose_json() -> None:
    found = verbose_json(SEGMENTS, task="transcribe", language="english", duration=4000.0)
    assert (found["task"], found["language"], found["duration"]) == ("transcribe", "english", 4000.0)
    assert [segment["id"] for segment in found["segments"]] == [0, 1, 2]
    assert found["segments"][1]["tokens"] == [1, 2]
    assert found["segments"][1]["no_speech_prob"] == pytest.approx(0.1)
    assert found["segments"][1]["compression_ratio"] > 1


def test_a_long_segment_shares_its_time() -> None:
    shown = cues([SEGMENTS[2]])
    assert len(shown) == 2
    assert shown[0].start == 3600.5 and shown[-1].end == 3612.0
    assert all(one.end == other.start for one, other in pairwise(shown))
    lasting = [(cue.end - cue.start) / len(" ".join(cue.lines)) for cue in shown]
    assert max(lasting) < 1.1 * min(lasting)
    assert shown[0].text.endswith("taken.")  # between sentences rather than in one


@given(st.text("ab ,.你好-\n", max_size=400), st.floats(0, 1e5), st.floats(0, 40))
def test_every_cue_can_be_read(text: str, start: float, lasting: float) -> None:
    shown = cues([Segment(start, start + lasting, text)])
    assert "".join("".join(cue.lines) for cue in shown).replace(" ", "") == "".join(text.split())
    for cue in shown:
        assert 1 <= len(cue.lines) <= 2
        assert all(_columns(line) <= 42 and line == line.strip() and line for line in cue.lines)
        assert cue.start < cue.end
    assert all(one.end <= other.start for one, other in pairwise(shown))
    if len(shown) > 1:  # and they are as few as can be
        assert not all(_lines(chunk) for chunk in _balanced(_units(text), len(shown) - 1))
    assert len(list(srt_reader.parse(srt([Segment(start, start + lasting, text)])))) == len(shown)


def test_texts_are_joined_as_they_are_written() -> None:
    assert join_texts([" Hello,", "", "world. "]) == "Hello, world."
    assert join_texts(["你好。", "世界"]) == "你好。世界"
    assert join_texts(["안녕", "세계"]) == "안녕 세계"
    assert join_texts(["你好", "world"]) == "你好 world"
