"""Segments as text, subtitles, tables and JSON; long ones become cues that can be read: two lines of 42 columns at most."""

from __future__ import annotations

import json
import re
import unicodedata
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from qwen2_audio.longform.segments import Segment, join_texts

LINE_COLUMNS, LINES = 42, 2
Format = Literal["txt", "srt", "vtt", "tsv", "json"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""What files are written in; each is also their suffix."""
_UNIT = re.compile(r"\s*(?:[\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]|[^\s\u3000-\u30ff\u3400-\u9fff\uff00-\uffef]+)")
"""A word with the space before it, or a single character where words are not spaced."""
_ENDS = {character: 0.3 for character in ".?!。？！"} | {character: 0.15 for character in ",;:，；：、"}
"""How far, in shares of a cue, a cut may be moved to fall behind such a character."""


@dataclass(frozen=True, slots=True)
class Cue:
    """What is shown from `start` to `end`, in seconds.

    Attributes:
        lines: one or two, each at most 42 columns wide (Chinese characters take two).
    """

    start: float
    end: float
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The lines, one below the other."""
        return "\n".join(self.lines)


def cues(segments: Sequence[Segment]) -> list[Cue]:
    """Segments as cues; one that is too long to be read at once becomes several that share its time by their length."""
    return [cue for segment in segments for cue in _cues(segment)]


def write(segments: Sequence[Segment], format: Format, *, duration: float) -> str:
    """The contents of a file, with a newline at its end.

    Args:
        duration: of the recording in seconds.
    """
    if format == "srt":
        return srt(segments)
    if format == "vtt":
        return vtt(segments)
    if format == "tsv":
        return tsv(segments)
    if format == "json":
        return json.dumps(_summary(segments, duration), ensure_ascii=False, indent=1) + "\n"
    return "".join(f"{_one_line(segment.text)}\n" for segment in segments if segment.text)


def srt(segments: Sequence[Segment]) -> str:
    """SubRip: numbered cues."""
    return "".join(
        f"{number}\n{_clock(cue.start, ',')} --> {_clock(cue.end, ',')}\n{cue.text}\n\n"
        for number, cue in enumerate(cues(segments), 1)
    )


def vtt(segments: Sequence[Segment]) -> str:
    """WebVTT."""
    shown = (f"{_clock(cue.start, '.')} --> {_clock(cue.end, '.')}\n{_escaped(cue.text)}\n\n" for cue in cues(segments))
    return "WEBVTT\n\n" + "".join(shown)


def tsv(segments: Sequence[Segment]) -> str:
    """A table with a line a segment: start and end in milliseconds, text."""
    rows = (
        f"{_milliseconds(segment.start)}\t{_milliseconds(segment.end)}\t{_one_line(segment.text)}\n"
        for segment in segments
        if segment.text
    )
    return "start\tend\ttext\n" + "".join(rows)


def verbose_json(
    segments: Sequence[Segment], *, task: str, language: str, duration: float, temperature: float = 0.0
) -> dict[str, Any]:
    """OpenAI's `verbose_json`.

    Args:
        task: "transcribe" or "translate".
        language: the name of the language spoken; "unknown" where nobody said it, as it is not guessed.
    """
    found = [segment for segment in segments if segment.text]
    return {
        "task": task,
        "language": language,
        "duration": round(duration, 3),
        "text": join_texts(segment.text for segment in found),
        "segments": [
            {
                "id": number,
                "seek": round(segment.start * 100),
                "start": round(segment.start, 3),
                "end": round(segment.end, 3),
                "text": segment.text,
                "tokens": list(segment.tokens),
                "temperature": temperature,
                "avg_logprob": 0.0 if segment.logprob is None else segment.logprob,
                "compression_ratio": _compression_ratio(segment.text),
                "no_speech_prob": round(1 - segment.probability, 4),
            }
            for number, segment in enumerate(found)
        ],
    }


def _summary(segments: Sequence[Segment], duration: float) -> dict[str, Any]:
    found = [segment for segment in segments if segment.text]
    return {
        "text": join_texts(segment.text for segment in found),
        "duration": round(duration, 3),
        "segments": [
            {"start": round(segment.start, 3), "end": round(segment.end, 3), "text": segment.text} for segment in found
        ],
    }


def _compression_ratio(text: str) -> float:
    data = text.encode()
    return round(len(data) / len(zlib.compress(data)), 4)


def _cues(segment: Segment) -> Iterator[Cue]:
    units = _units(segment.text)
    if not units:
        return
    count = max(
        1, -(-sum(map(_columns, units)) // (LINES * LINE_COLUMNS + LINES))
    )  # a space at each line's end is not shown
    while (chunks := _balanced(units, count)) and not all(_lines(chunk) for chunk in chunks):
        count += 1
    whole = sum(_columns("".join(chunk)) for chunk in chunks)
    first, last = _milliseconds(segment.start), max(_milliseconds(segment.end), _milliseconds(segment.start) + count)
    passed, start = 0, first
    for chunk in chunks:
        passed += _columns("".join(chunk))
        end = max(first + (last - first) * passed // whole, start + 1)
        yield Cue(start / 1000, end / 1000, _lines(chunk))
        start = end


def _units(text: str) -> list[str]:
    """The smallest pieces between which a line may end, none wider than a line."""
    found = []
    for match in _UNIT.finditer(_one_line(text)):
        unit = match[0]
        while _columns(unit.strip()) > LINE_COLUMNS:
            at = next(n for n in range(len(unit), 0, -1) if _columns(unit[:n]) <= LINE_COLUMNS)
            found.append(unit[:at])
            unit = unit[at:]
        found.append(unit)
    return found


def _balanced(units: Sequence[str], count: int) -> list[list[str]]:
    """The units in `count` runs of about the same width, cut behind a sentence or a comma where one ends nearby."""
    count = min(count, len(units))
    ends = [0]
    for unit in units:
        ends.append(ends[-1] + _columns(unit))
    share = ends[-1] / count
    cuts = [0]
    for number in range(1, count):
        allowed = range(cuts[-1] + 1, len(units) - (count - number) + 1)
        cuts.append(
            min(allowed, key=lambda at: abs(ends[at] - number * share) - share * _ENDS.get(units[at - 1][-1], 0.0))
        )
    return [list(units[start:end]) for start, end in zip(cuts, [*cuts[1:], len(units)], strict=True)]


def _lines(units: Sequence[str]) -> tuple[str, ...]:
    """The units as one or two lines, the more even the better; () where they do not fit."""
    whole = "".join(units).strip()
    if _columns(whole) <= LINE_COLUMNS:
        return (whole,)
    pairs = [("".join(units[:at]).strip(), "".join(units[at:]).strip()) for at in range(1, len(units))]
    best = min(pairs, key=lambda pair: max(map(_columns, pair)), default=("", whole))
    return best if max(map(_columns, best)) <= LINE_COLUMNS else ()


def _columns(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _clock(seconds: float, point: str) -> str:
    whole, thousandths = divmod(_milliseconds(seconds), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02}{point}{thousandths:03}"


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
