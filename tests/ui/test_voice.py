"""Hands-free talk over the WebSocket, and what is said when there is no microphone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.ui.steps import QUESTIONS, wait_for_answer

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
