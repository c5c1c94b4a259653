"""Chinese read aloud: the golden table, and what must hold for any text."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.evaluation.normalizers.chinese import chinese
from qwen2_audio.evaluation.normalizers.script import half_width
from tests.evaluation.golden_table import golden, spaced

WRITTEN = st.text(st.sampled_from("0123456789.,/-%％：年月日号元块毛分万个张人电话AB二两５０ 。^$"), max_size=40)


def test_the_table_is_large() -> None:
    assert len(golden("chinese")) >= 150


@pytest.mark.parametrize(("text", "normalised"), golden("chinese"))
def test_golden(text: str, normalised: str) -> None:
    assert spaced(chinese(text)) == normalised


@given(WRITTEN)
def test_nothing_is_left_to_read(text: str) -> None:
    read = chinese(text)
    assert not set(read) & set(string.punctuation)
    assert not re.search(r"\d", re.sub("(?<=[A-Za-z])2(?=[A-Za-z])", "", read))
    assert read == read.strip()


@given(st.text(st.sampled_from("今天气很好的在零一二三四五六七八九十百千万亿两Ab"), max_size=20))
def test_what_is_read_already_stays(text: str) -> None:
    assert chinese(text).replace("2", "二") == text


def test_numbers_below_a_thousand() -> None:
    """By the grammar, written apart: hundreds, tens, ones, 零 over a gap, 两 before 百, no 一 before a leading 十."""
    names = "零一二三四五六七八九"
    for whole in range(1, 1000):
        hundreds, tens, ones = whole // 100, whole // 10 % 10, whole % 10
        expected = ("两百" if hundreds == 2 else f"{names[hundreds]}百") if hundreds else ""
        if tens:
            expected += "十" if tens == 1 and not hundreds else f"{names[tens]}十"
        elif hundreds and ones:
            expected += "零"
        assert chinese(f"共{whole}次") == f"共{expected}{names[ones] if ones else ''}次"


def test_half_width() -> None:
    assert half_width("ＡＢｃ　１２．５％！你好。") == "ABc 12.5%!你好。"
