"""Circles, echoes and doubled words are noticed, and what is rightly said twice is left alone."""

from __future__ import annotations

import pytest

from qwen2_audio.longform.repetition import agree, is_echo, is_impossible, without_circle, without_overlap


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("We went home. " + "Thank you very much. " * 6, "We went home. Thank you very much."),
        ("and so on and so on and so on and so on", "and so on"),
        ("ha" * 30, "ha"),
        ("你好谢谢你" + "谢谢你" * 8, "你好谢谢你"),
        ("no, no, no, not again", "no, no, no, not again"),
        ("", ""),
    ],
)
def test_circles(text: str, kept: str) -> None:
    assert without_circle(text) == kept


def test_echoes() -> None:
    text = "Thank you very much for watching."
    assert is_echo("thank you very much for watching", text)
    assert not is_echo("Thank you very much for listening.", text)
    assert not is_echo("No.", "No.")  # people do say that
    assert not is_echo("", "")


@pytest.mark.parametrize(
    ("before", "text", "left"),
    [
        ("it was a matter of", "matter of fact", "fact"),
        ("and the repetition,", "Repetition. Then it went on.", "Then it went on."),
        ("this is very", "very good", "very good"),
        ("one two", "three four", "three four"),
        ("all of it", "all of it", "all of it"),
        ("我们今天去北京", "去北京玩", "去北京玩"),
        ("", "something", "something"),
    ],
)
def test_words_doubled_at_a_cut(before: str, text: str, left: str) -> None:
    assert without_overlap(before, text) == left


def test_agreement() -> None:
    assert agree("The quick brown fox jumps.", "the quick brown fox. Jumps")
    assert agree("The quick brown fox jumps over it", "The quick brown fox jumped over it")
    assert not agree("Thank you for watching.", "and the price rose again")
    assert not agree("Thank you for watching.", "")


def test_impossible() -> None:
    assert is_impossible("thank you for watching and see you next time", 0.2)
    assert not is_impossible("yes of course", 0.2)
    assert not is_impossible("", 0.0)
