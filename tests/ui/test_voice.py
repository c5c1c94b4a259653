"""Hands-free talk over the WebSocket, and what is said when there is no microphone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.serving.backend import EngineLostError
from tests.serving.fake_backend import FakeBackend
from tests.ui.steps import ANSWERS, QUESTIONS, ask, wait_for_answer

Open = Callable[..., Any]

REFUSALS = [("NotAllowedError", "blocked"), ("NotFoundError", "No microphone"), ("NotReadableError", "another program")]


def test_hands_free(open_page: Open) -> None:
    page = open_page()
    page.evaluate("""() => {
        const bar = document.querySelector('.qa-talk');
        window.states = [];
        new MutationObserver(() => window.states.push(bar.dataset.state)).observe(bar, { attributes: true });
    }""")
    page.check(".qa-handsfree", force=True)
    wait_for_answer(page, " s]")
    page.uncheck(".qa-handsfree", force=True)
    page.wait_for_selector('.qa-talk[data-state="idle"]')
    assert page.locator(f"{QUESTIONS} .qa-clip").count() >= 1
    states = page.evaluate("window.states")
    first = [states.index(state) for state in ("listening", "hearing", "thinking", "speaking")]
    assert first == sorted(first)


def test_speaking_interrupts_an_answer(open_page: Open, slow: FakeBackend) -> None:
    page = open_page()
    slow.delay, cancelled = 2.0, slow.cancelled  # the microphone asks again before the answer is whole
    page.check(".qa-handsfree", force=True)
    page.wait_for_selector(f"{ANSWERS} .qa-note")
    page.uncheck(".qa-handsfree", force=True)
    page.wait_for_selector('.qa-talk[data-state="idle"]')
    assert slow.cancelled > cancelled


def test_another_conversation_is_one_by_hands_free_too(open_page: Open, backend: FakeBackend) -> None:
    page = open_page()
    page.check(".qa-handsfree", force=True)
    wait_for_answer(page, " s]")
    before = len(backend.jobs)
    page.click(".qa-new")
    page.wait_for_selector(ANSWERS, state="detached")
    page.wait_for_selector(ANSWERS)  # hands-free goes on
    page.uncheck(".qa-handsfree", force=True)
    page.wait_for_selector('.qa-talk[data-state="idle"]')
    turns = [len(asked.messages) for job in backend.jobs[before:] if isinstance(asked := job.prompt, Conversation)]
    assert 1 in turns


def test_a_failed_answer_by_hands_free_says_why(open_page: Open, backend: FakeBackend) -> None:
    page = open_page()
    backend.error = EngineLostError("the engine was lost; try again")
    try:
        page.check(".qa-handsfree", force=True)
        page.wait_for_selector(f"{ANSWERS} .qa-problem")
        page.uncheck(".qa-handsfree", force=True)
    finally:
        backend.error = None
    assert "the engine was lost; try again" in page.inner_text(ANSWERS)


VOICES = """() => {
    window.spoken = [];
    window.hushed = 0;
    const voice = { lang: 'en-US', localService: true, name: 'here' };
    const away = { lang: 'en-US', localService: false, name: 'away' };
    speechSynthesis.getVoices = () => [away, voice];
    window.SpeechSynthesisUtterance = class { constructor(text) { this.text = text; } };
    speechSynthesis.speak = (said) => {
        window.spoken.push([said.text.trim(), said.voice.name]);
        window.speaking = said;
        if (!said.text.includes('forever')) setTimeout(() => said.onend(), 10);
    };
    speechSynthesis.cancel = () => { window.hushed += 1; };
}"""


def test_answers_are_read_aloud_by_sentences_until_somebody_speaks(open_page: Open) -> None:
    page = open_page()
    page.evaluate(VOICES)
    page.click(".qa-gear")
    page.check("#qa-speak input")
    page.click(".qa-gear")
    ask(page, "One sentence. And another! The last has no end")
    wait_for_answer(page, "no end")
    page.wait_for_function("window.spoken.length === 3")
    said = ["One sentence.", "And another!", "The last has no end"]
    assert page.evaluate("window.spoken") == [[text, "here"] for text in said]  # by a voice of this machine
    ask(page, "This goes on forever.")
    wait_for_answer(page, "forever", number=2)
    page.wait_for_function("window.speaking.text.includes('forever')")
    hushed = page.evaluate("window.hushed")
    page.click(".qa-press")
    page.wait_for_function("before => window.hushed > before", arg=hushed)


@pytest.mark.parametrize("by", ["stop", "new", "escape"])
def test_what_silences_the_voice(open_page: Open, slow: FakeBackend, by: str) -> None:
    page = open_page()
    page.evaluate(VOICES)
    page.click(".qa-gear")
    page.check("#qa-speak input")
    page.click(".qa-gear")
    ask(page, "This goes on forever. " + "Word by word. " * 40)
    page.wait_for_function("window.speaking?.text.includes('forever')")
    if by == "escape":
        page.keyboard.press("Escape")
    else:
        page.click({"stop": "#qa-composer .stop-button", "new": ".qa-new"}[by])
    page.wait_for_function("window.hushed > 0")


@pytest.mark.parametrize(("error", "words"), REFUSALS, ids=[error for error, _ in REFUSALS])
def test_microphone_refused(open_page: Open, error: str, words: str) -> None:
    page = open_page()
    refuse = f"() => Promise.reject(new DOMException('', '{error}'))"
    page.evaluate(f"() => {{ navigator.mediaDevices.getUserMedia = {refuse}; }}")
    page.click(".qa-press")
    page.wait_for_selector('.qa-talk[data-state="problem"]')
    assert words in page.inner_text(".qa-state")


def test_microphone_only_on_secure_pages(open_page: Open) -> None:
    page = open_page()
    page.evaluate("Object.defineProperty(window, 'isSecureContext', { get: () => false })")
    page.click(".qa-press")
    page.wait_for_selector('.qa-talk[data-state="problem"]')
    assert "https" in page.inner_text(".qa-state")
