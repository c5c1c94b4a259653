"""A report as data: sections of texts, tables and charts, which report_markdown.py and report_html.py write down."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

LONGEST = 400
"""Characters of an answer that a table shows."""


class Span(NamedTuple):
    """A piece of a text, and whether it differs from what it is compared with."""

    text: str
    differs: bool = False


Cell: TypeAlias = str | tuple[Span, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Cells in rows.

    Attributes:
        texts: which columns are words, at the left; the others are numbers, at the right.
        ours: which rows are this run's.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: frozenset[int] = frozenset({0})
    ours: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Chart:
    """A picture that lies beside the report as NAME.png and NAME.svg.

    Attributes:
        title: what it shows, for who cannot see it.
        caption: how to read it.
    """

    name: str
    title: str
    caption: str


@dataclass(frozen=True, slots=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]


Block: TypeAlias = Text | Table | Chart | Section


def compared(reference: str, response: str, units: int) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Both texts, with what differs marked, by the same least edits that the error rate counts.

    Args:
        units: of the reference; where it has so many words, words are compared, else characters.
    """
    from rapidfuzz.distance import Levenshtein

    words = len(reference.split()) == units and (units > 0 or " " in response)
    a, b = (text.split() if words else list(text) for text in (reference, response))
    between = " " if words else ""
    left, right = [], []
    for edit in Levenshtein.opcodes(a, b):
        differs = edit.tag != "equal"
        left.append(Span(between.join(a[edit.src_start : edit.src_end]), differs))
        right.append(Span(between.join(b[edit.dest_start : edit.dest_end]), differs))
    return _shortened(left, between), _shortened(right, between)


def printable(text: str) -> str:
    """On one line, and without what no file may hold or what turns the direction of writing."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", "\ufffd", re.sub(r"\s", " ", text))


def shortened(text: str) -> str:
    """A text that a table has room for; what was left out is counted."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} … ({len(text) - LONGEST} more characters)"


def _shortened(spans: Sequence[Span], between: str) -> tuple[Span, ...]:
    """Spans with what stands between them, up to `LONGEST` characters."""
    there = [span for span in spans if span.text]
    whole = [piece for span in there for piece in (Span(between), span)][1:]
    kept: list[Span] = []
    room = LONGEST
    for span in whole:
        kept.append(Span(span.text[: max(room, 0)], span.differs))
        room -= len(span.text)
    if room < 0:
        kept.append(Span(f" … ({-room} more characters)"))
    return tuple(span for span in kept if span.text)
