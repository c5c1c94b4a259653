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


def read_aloud(page: Any) -> None:
    """With a voice of the test's own."""
    page.evaluate(VOICES)
    page.click(".qa-gear")
    page.check("#qa-speak input")
    page.click(".qa-gear")


@pytest.mark.parametrize("by", ["escape", "talk"])
def test_a_silenced_answer_stays_silent(open_page: Open, slow: FakeBackend, by: str) -> None:
    page = open_page()
    read_aloud(page)
    ask(page, "This goes on forever. One word . Two words . Three words . And the end .")
    page.wait_for_function("window.speaking?.text.includes('forever')")
    if by == "escape":
        page.keyboard.press("Escape")
    else:
        page.click(".qa-press")
    wait_for_answer(page, "And the end .")
    page.wait_for_timeout(100)
    assert page.evaluate("window.spoken.length") == 1


def test_an_answer_given_again_is_read_from_its_beginning(open_page: Open, slow: FakeBackend) -> None:
    page = open_page()
    read_aloud(page)
    ask(page, "This is the first. " + "Word by word. " * 10)
    page.wait_for_function("window.spoken.length > 1")
    page.click("#qa-composer .stop-button")
    page.wait_for_selector(".qa-note")
    page.evaluate("window.spoken = []")
    page.click('#qa-chat [aria-label="Retry"]')
    page.wait_for_function("window.spoken.length > 1")
    assert page.evaluate("window.spoken[0][0]") == "This is the first."


def test_a_recording_that_is_still_sent_leaves_the_next_one_alone(open_page: Open) -> None:
    page = open_page()
    held: list[Any] = []
    page.route("**/page/recordings", lambda route: held.append(route))
    page.click(".qa-press")
    page.wait_for_timeout(1200)
    page.click(".qa-press")
    page.wait_for_selector('.qa-talk[data-state="sending"]')
    page.click(".qa-press")
    page.wait_for_selector('.qa-talk[data-state="recording"]')
    held[0].continue_()
    wait_for_answer(page, " s]")
    assert page.get_attribute(".qa-talk", "data-state") == "recording"
    assert page.is_visible(".qa-discard")


HANDS_FREE = """async () => {
    const { HandsFree } = await import(new URL('page/static/handsfree.js', document.baseURI));
    const seen = [];
    const send = window.fetch;
    let left = 0;
    window.fetch = async () => {
        seen.push('left');
        const token = `clip ${left++}`;
        await new Promise((done) => setTimeout(done, token === 'clip 0' ? 300 : 1));
        return new Response(JSON.stringify({ token }));
    };
    const talk = Object.assign(Object.create(HandsFree.prototype), {
        told: Promise.resolve(), live: {}, reader: { hush() {}, follow() {} },
        sent: { cut: () => new Float32Array(100) },
        on: { show() {}, ended() {}, heard: ({ token, answer }) => seen.push(`${token}: ${answer}`) },
    });
    const say = (words) => {
        talk.take({ type: 'input_audio_buffer.speech_started', audio_start_ms: 0 });
        talk.take({ type: 'input_audio_buffer.speech_stopped', audio_end_ms: 10, item_id: words });
        talk.take({ type: 'response.output_text.delta', delta: words });
    };
    say('one');
    await new Promise((done) => setTimeout(done, 50));
    seen.push('answered');
    say('two');
    talk.take({ type: 'response.done', response: { status: 'completed' } });
    await talk.told;
    say('three');
    talk.take({ type: 'response.done', response: { status: 'completed' } });
    talk.forget();
    await talk.told;
    window.fetch = send;
    return seen;
}"""


def test_turns_by_hands_free_come_in_order_with_their_recordings(open_page: Open) -> None:
    told = ["answered", "left", "clip 0: one", "left", "clip 1: two"]
    assert open_page().evaluate(HANDS_FREE) == told  # a clip is left once its turn has ended; none of a forgotten turn


@pytest.mark.parametrize("height", [844, 640])
def test_a_long_answer_by_hands_free_leaves_room(open_page: Open, height: int) -> None:
    page = open_page(width=390, height=height)
    page.evaluate("""async () => {
        const { HandsFree } = await import(new URL('page/static/handsfree.js', document.baseURI));
        const talk = Object.assign(Object.create(HandsFree.prototype), {
            turn: { answer: '' }, live: document.querySelector('.qa-live'), reader: { follow() {} }, on: { show() {} },
        });
        talk.take({ type: 'response.output_text.delta', delta: 'word '.repeat(2000) });
    }""")
    live = page.locator(".qa-live").bounding_box()
    assert 0 < live["height"] <= 0.3 * height + 1
    composer = page.locator("#qa-composer textarea").bounding_box()
    assert composer["y"] + composer["height"] <= height
    left = page.evaluate(
        "(({ scrollHeight: s, scrollTop: t, clientHeight: c }) => s - t - c)(document.querySelector('.qa-live'))"
    )
    assert abs(left) <= 1  # its end is seen


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
