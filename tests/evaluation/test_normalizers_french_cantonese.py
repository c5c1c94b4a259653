"""The basic normaliser, which French gets, and the simplified characters, which Cantonese gets."""

from __future__ import annotations

import sys

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.normalizers import script
from qwen2_audio.evaluation.normalizers.script import simplified
from qwen2_audio.evaluation.normalizers.transcript import transcript_units
from qwen2_audio.evaluation.normalizers.whisper import basic
from tests.evaluation.golden_table import golden, spaced


@pytest.mark.parametrize(("text", "normalised"), golden("basic"))
def test_basic(text: str, normalised: str) -> None:
    assert spaced(basic(text)) == normalised


@pytest.mark.parametrize(("text", "normalised"), golden("simplified"))
def test_simplified(text: str, normalised: str) -> None:
    assert simplified(text) == normalised


@pytest.mark.parametrize("profile", ["official", "clean"])
def test_french_in_words_cantonese_in_characters(profile: str) -> None:
    assert transcript_units("L'été, c'est (très) beau !", "fr", profile) == "l été c est beau".split()
    assert transcript_units("佢 話：「OK」，學嘢！", "yue", profile) == list("佢话ok学嘢")


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    script._convert.cache_clear()
    monkeypatch.setitem(sys.modules, "zhconv", None)
    with pytest.raises(UsageError, match=r'pip install "qwen2-audio\[eval\]"'):
        simplified("學")
    script._convert.cache_clear()
