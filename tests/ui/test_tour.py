"""A visitor's whole way through the page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import srt

from tests.serving.fake_backend import FakeBackend
from tests.tiny import sound
from tests.ui.steps import ANSWERS, QUESTIONS, ask, wait_for_answer

EXAMPLES = Path(__file__).parents[2] / "examples"
Open = Callable[..., Any]


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    """Two recordings, the second one longer than the model hears at once."""
    files = [tmp_path / "bell.wav", tmp_path / "engine.flac"]
    for file, seconds in zip(files, (1.0, 31.0), strict=True):
        soundfile.write(file, sound(seconds), 16_000)
    return files


def test_two_clips_and_a_question(open_page: Open, clips: list[Path], backend: FakeBackend) -> None:
    page = open_page()
    ask(page, "Which is louder?", *clips)
    wait_for_answer(page, "[1.0 s] [31.0 s] Which is louder?")
    cards = page.locator(f"{QUESTIONS} .qa-clip")
    assert cards.count() == 2
    assert "bell.wav" in cards.nth(0).inner_text() and "2 parts" in cards.nth(1).inner_text()
    page.wait_for_function("[...document.querySelectorAll('.qa-clip img')].every(image => image.naturalWidth === 640)")
    page.wait_for_function("[...document.querySelectorAll('.qa-clip audio')].every(audio => audio.duration >= 1)")
    assert "tokens/s" in page.inner_text("#qa-speed")


def test_speaking_with_the_button(open_page: Open, backend: FakeBackend) -> None:
    page = open_page()
    page.click(".qa-press")  # a tap: goes on until the next one
    page.wait_for_selector('.qa-talk[data-state="recording"]')
    page.wait_for_timeout(1200)
    page.click(".qa-press")
    wait_for_answer(page, " s]")
    assert page.locator(f"{QUESTIONS} .qa-clip").count() == 1


def test_speaking_again_while_an_answer_is_written(open_page: Open, slow: FakeBackend) -> None:
    page = open_page()
    slow.delay = 2.0  # no word of the first answer before the second question
    for number in (1, 2):
        page.click(".qa-press")
        page.wait_for_selector('.qa-talk[data-state="recording"]')
        page.wait_for_timeout(600)
        page.click(".qa-press")
        page.wait_for_function(f"document.querySelectorAll('{QUESTIONS}').length === {number}")
    wait_for_answer(page, " s]", number=2)
    assert "Stopped." in page.inner_text(ANSWERS)


def test_stop(open_page: Open, slow: FakeBackend) -> None:
    page = open_page()
    words = " ".join(f"word{number}" for number in range(400))
    cancelled = slow.cancelled
    ask(page, words)
    page.wait_for_function(f"document.querySelector('{ANSWERS}')?.textContent.includes('word3')")
    page.click("#qa-composer .stop-button")
    page.wait_for_selector(".qa-note")
    assert "word40" not in page.inner_text(ANSWERS)
    assert slow.cancelled == cancelled + 1


def test_edit_retry_clear(open_page: Open, backend: FakeBackend) -> None:
    page = open_page()
    ask(page, "First words")
    wait_for_answer(page, "First words")
    page.click(f'{QUESTIONS.replace("user-row", "message-buttons-right")} [aria-label="Edit"]')
    page.fill("#qa-chat textarea", "Shorter & <b>bolder</b>")
    page.click('#qa-chat [aria-label="Submit"]')
    wait_for_answer(page, "Shorter & <b>bolder</b>")
    asked = len(backend.jobs)
    page.click('#qa-chat [aria-label="Retry"]')
    page.wait_for_timeout(300)
    wait_for_answer(page, "Shorter & <b>bolder</b>")
    assert len(backend.jobs) == asked + 1
    page.click(".qa-new")
    page.wait_for_selector(".qa-welcome")
    assert page.locator(ANSWERS).count() == 0


def test_a_conversation_is_saved_as_often_as_one_likes(open_page: Open) -> None:
    page = open_page()
    ask(page, "Keep this")
    wait_for_answer(page, "Keep this")
    page.click(".qa-gear")
    for _ in range(2):
        with page.expect_download() as waiting:
            page.click("#qa-save")
        assert "Keep this" in Path(waiting.value.path()).read_text(encoding="utf-8")


def test_a_draft_outlives_what_is_asked_otherwise(open_page: Open) -> None:
    page = open_page()
    page.fill("#qa-composer textarea", "A draft")
    page.click('[data-example="question"]')
    wait_for_answer(page, " s]")
    page.click('#qa-chat [aria-label="Retry"]')
    page.wait_for_timeout(300)
    wait_for_answer(page, " s]")
    assert page.input_value("#qa-composer textarea") == "A draft"
    page.click("#qa-composer .submit-button")
    wait_for_answer(page, "A draft", number=2)
    assert page.input_value("#qa-composer textarea") == ""


def test_language_and_colours(open_page: Open) -> None:
    page = open_page()
    ask(page, "Hello")
    wait_for_answer(page, "Hello")
    page.click(".qa-language")
    page.wait_for_function("document.querySelector('#qa-composer textarea').placeholder.includes('输入')")
    assert page.inner_text("#qa-tab-chat-button") == "对话"
    assert page.get_attribute("html", "lang") == "zh-CN"
    assert page.locator(ANSWERS).count() == 1  # the conversation stays
    colour = "getComputedStyle(document.querySelector('.qa-header').closest('.block')).backgroundColor"
    before = page.evaluate(colour)
    page.click(".qa-dark")
    assert page.evaluate(colour) != before
    page.reload()
    page.wait_for_selector("[data-ready]")
    page.wait_for_function("document.querySelector('#qa-composer textarea').placeholder.includes('输入')")
    assert page.evaluate("document.body.classList.contains('dark')")
    assert page.locator(ANSWERS).count() == 0  # nothing private is kept


def test_two_minutes_written_down(open_page: Open, tmp_path: Path) -> None:
    file = tmp_path / "lecture.flac"
    sentence, rate = soundfile.read(EXAMPLES / "sentence.flac", dtype="float32")
    soundfile.write(file, np.resize(np.concatenate([sentence, np.zeros(rate // 2)]), 120 * rate), rate)
    page = open_page()
    page.click("#qa-tab-transcribe-button")
    page.set_input_files("#qa-file-long input[type=file]", str(file))
    page.wait_for_selector("#qa-file-long .file-preview")
    page.click("#qa-start")
    page.wait_for_function("document.querySelector('#qa-progress').textContent.includes('segments, 2:00')")
    first = page.locator(".qa-segments textarea").first
    first.fill("As corrected")
    with page.expect_download() as waiting:
        page.click('[data-format="srt"]')
    assert waiting.value.suggested_filename == "lecture.srt"
    cues = list(srt.parse(Path(waiting.value.path()).read_text(encoding="utf-8")))
    assert cues[0].content == "As corrected"
    assert len(cues) > 1 and cues[-1].end.total_seconds() <= 121
