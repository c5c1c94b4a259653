"""The recipe behind mini: its scoring, its noise, and rows that the trainer reads."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.augment import augment
from qwen2_audio.training.datasets import build_example
from tests.tiny import sound

RECIPE = Path(__file__).parents[2] / "recipes" / "mini"


@pytest.fixture(scope="module", autouse=True)
def _importable() -> object:
    sys.path.insert(0, str(RECIPE))
    yield
    sys.path.remove(str(RECIPE))


def recipe(name: str) -> ModuleType:
    return __import__(name)


def test_word_errors() -> None:
    measure = recipe("measure")
    words = measure.words
    assert words("It's FIVE o'clock -- now!") == ["it's", "five", "o'clock", "now"]
    cases = [("a b c", "a b c", 0), ("a b c", "a c", 1), ("a b c", "x b c d", 2), ("", "a b", 2), ("a b", "", 2)]
    for reference, heard, errors in cases:
        assert measure.edits(words(reference), words(heard)) == errors
    assert measure.word_f1("Paris is the capital", "the capital is Paris") == 1
    assert measure.word_f1("Paris", "Rome") == 0


@given(a=st.lists(st.sampled_from("abc"), max_size=8), b=st.lists(st.sampled_from("abc"), max_size=8))
def test_word_errors_equal_the_textbook(a: list[str], b: list[str]) -> None:
    table = [[max(i, j) if 0 in (i, j) else 0 for j in range(len(b) + 1)] for i in range(len(a) + 1)]
    for i in range(1, len(a) + 1):
        for j in range(1, len(b) + 1):
            change = table[i - 1][j - 1] + (a[i - 1] != b[j - 1])
            table[i][j] = min(change, table[i - 1][j] + 1, table[i][j - 1] + 1)
    assert recipe("measure").edits(a, b) == table[-1][-1]


@given(seed=st.integers(0, 2**31))
def test_augmented_speech_is_sound(seed: int) -> None:
    rng = np.random.default_rng(seed)
    out = augment(sound(1.0), rng)
    assert out.dtype == np.float32
    assert np.isfinite(out).all()
    assert 0.01 < np.abs(out).max() <= 1
    assert 0.7 < len(out) / 16_000 < 2.5


def test_sentences() -> None:
    assert recipe("reading_texts").sentence_case("AND THEN I SAW IT".split()) == "And then I saw it."


def test_questions_have_no_holes_and_the_test_is_kept_back(tmp_path: Path) -> None:
    questions = recipe("question_texts").from_templates(3000, random.Random(0))
    assert not any("{" in question for question in questions)
    kept = (RECIPE / "test_questions.txt").read_text().split("\n")[:50]
    assert len(set(kept)) == 50
    row = {"id": "x", "text": kept[0], "answer": "Rome.", "complete": True, "audio": "audio/x.flac"}
    (tmp_path / "ask").mkdir()
    (tmp_path / "read").mkdir()
    (tmp_path / "ask" / "manifest.jsonl").write_text(json.dumps(row))
    (tmp_path / "read" / "manifest.jsonl").write_text("")
    run_conversations(tmp_path)
    assert (tmp_path / "rows.jsonl").read_text() == ""


def test_rows_are_what_the_trainer_reads(tmp_path: Path, processor: Processor) -> None:
    for name, extra in (("read", {}), ("ask", {"answer": "Rome.", "complete": False})):
        (tmp_path / name / "audio").mkdir(parents=True)
        rows = []
        for i in range(20):
            soundfile.write(tmp_path / name / "audio" / f"{i}.flac", sound(0.3), 16_000)
            rows.append({"id": str(i), "text": f"hello {i}", "audio": f"audio/{i}.flac", "duration": 0.3, **extra})
        (tmp_path / name / "manifest.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    run_conversations(tmp_path)
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert len(lines) >= 40
    for line in lines:
        example = build_example(json.loads(line), tmp_path, processor)
        assert any(example.learnt)
        assert example.ids.count(processor.audio_token_id) == sum(clip.tokens for clip in example.clips)


def run_conversations(folder: Path) -> None:
    arguments = [
        str(folder / "rows.jsonl"),
        "--read",
        str(folder / "read"),
        "--ask",
        str(folder / "ask"),
        "--short",
        "5",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["conversations.py", *arguments])
        recipe("conversations").main()
