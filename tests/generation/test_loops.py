"""Going round in circles is noticed, and nothing that people say is taken for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.generation.loops import LEAST_TOKENS, LONGEST_PERIOD, TIMES, repeated_tail
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sequence import Choice, Sequence
from qwen2_audio.processing.processor import Processor


@pytest.mark.parametrize(
    ("tokens", "repeated"),
    [
        ([], 0),
        ([7] * 11, 0),
        ([7] * 12, 11),
        ([1, 2, 3] + [4, 5, 6, 7] * 3, 8),
        ([4, 5, 6, 7] * 2, 0),  # a line of a song, twice
        ([1, 2] * 5, 0),
        ([9] + [1, 2] * 6, 10),
        ([1, 2] * 6 + [9], 0),  # it found its way out again
        (list(range(100)), 0),
        (list(range(32)) * 3, 64),
        (list(range(33)) * 3, 0),
    ],
)
def test_cases(tokens: list[int], repeated: int) -> None:
    assert repeated_tail(tokens) == repeated


@given(st.lists(st.integers(0, 3), max_size=20), st.lists(st.integers(0, 3), min_size=1, max_size=8), st.integers(0, 9))
def test_what_repeats_is_all_that_would_be_dropped(before: list[int], circle: list[int], times: int) -> None:
    tokens = before + circle * times
    repeated = repeated_tail(tokens)
    assert repeated or times < TIMES or len(circle) * times < LEAST_TOKENS
    kept = tokens[: len(tokens) - repeated]
    periods = range(1, LONGEST_PERIOD + 1)
    assert not repeated or any((kept[-p:] * len(tokens))[:repeated] == tokens[-repeated:] for p in periods)


def test_an_answer_ends_there_only_when_asked_to(processor: Processor) -> None:
    plain = GenerationOptions(max_new_tokens=50)
    for options, steps in ((plain, 50), (replace(plain, stop_loops=True), 12)):
        sequence = Sequence(0, options, frozenset(), 100, processor.tokenizer)
        count = 0
        while sequence.finish_reason is None:
            sequence.push(Choice(5))
            count += 1
        assert (count, sequence.finish_reason) == (steps, "length")
