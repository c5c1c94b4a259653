"""Whisper's English normaliser: the golden table, `transformers`' twin of it, and releases that must be refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from importlib.resources import files
from types import ModuleType
from typing import Any

import pytest
from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.normalizers import whisper
from qwen2_audio.evaluation.normalizers.whisper import basic, english
from tests.evaluation.golden_table import golden, spaced

TEXTS = [text for name in ("english", "basic", "chinese", "simplified") for text, _ in golden(name)]


@pytest.fixture
def fresh() -> Iterator[None]:
    """The package is looked at again, and once more afterwards."""
    whisper._normalizers.cache_clear()
    yield
    whisper._normalizers.cache_clear()


def test_the_table_is_large() -> None:
    assert len(golden("english")) >= 150


@pytest.mark.parametrize(("text", "normalised"), golden("english"))
def test_golden(text: str, normalised: str) -> None:
    assert spaced(english(text)) == normalised


def test_equals_transformers_to_the_space() -> None:
    spelling = json.loads(files("whisper_normalizer.normalizers").joinpath("english.json").read_text(encoding="utf-8"))
    their_english, their_basic = EnglishTextNormalizer(spelling), BasicTextNormalizer()
    assert [english(text) for text in TEXTS] == [their_english(text) for text in TEXTS]
    assert [basic(text) for text in TEXTS] == [their_basic(text) for text in TEXTS]


def test_a_release_that_changes_cause_is_refused(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    later: Any = ModuleType("whisper_normalizer.english")
    later.EnglishTextNormalizer = lambda: lambda text: text.replace("cause", "because")
    monkeypatch.setitem(sys.modules, "whisper_normalizer.english", later)
    with pytest.raises(UsageError, match=r"because kinda.*pip install \"whisper-normalizer==0\.1\.1\""):
        english("hello")


def test_a_missing_package_names_the_command(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "whisper_normalizer.basic", None)
    with pytest.raises(UsageError, match=r'pip install "qwen2-audio\[eval\]"'):
        basic("bonjour")
