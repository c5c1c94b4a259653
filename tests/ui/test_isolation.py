"""Visitors do not see each other, and leave nothing behind."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import soundfile

from tests.serving.fake_backend import FakeBackend
from tests.tiny import sound
from tests.ui.steps import ANSWERS, ask, wait_for_answer

Open = Callable[..., Any]


def test_ten_visitors_at_once(open_page: Open) -> None:
    pages = [open_page() for _ in range(10)]
    for number, page in enumerate(pages):
        ask(page, f"I am visitor {number} and say so {'again ' * 20}")
    for number, page in enumerate(pages):
        wait_for_answer(page, f"I am visitor {number} and say so")
        for other in range(10):
            assert other == number or f"visitor {other} " not in page.inner_text("#qa-chat")


def test_a_closed_tab_frees_its_generation(open_page: Open, slow: FakeBackend) -> None:
    page = open_page()
    ask(page, "word " * 2000)
    page.wait_for_function(f"document.querySelector('{ANSWERS}')?.textContent.includes('word word')")
    assert slow.running == 1
    page.close()
    deadline = time.monotonic() + 2.0
    while slow.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert slow.running == 0


def test_recordings_are_reachable_by_their_secret_name_only(open_page: Open, address: str, tmp_path: Path) -> None:
    file = tmp_path / "private.wav"
    soundfile.write(file, sound(1.0), 16_000)
    page = open_page()
    uploads = []
    page.on(
        "response", lambda answer: "/upload" in answer.url and "progress" not in answer.url and uploads.append(answer)
    )
    ask(page, "Mine", file)
    wait_for_answer(page, "Mine")
    [stored] = uploads[0].json()
    assert not Path(stored).exists()  # gone once it was heard
    for path in (f"gradio_api/file={stored}", "gradio_api/file=/etc/hostname", "gradio_api/proxy=http://example.org/",
                 "monitoring", "gradio_api/vibe-code", "page/clips/guess.wav", "page/static/..%2fmount.py"):  # fmt: skip
        assert httpx.get(address + path).status_code == 404, path
    clip = page.get_attribute(".qa-clip audio", "src")
    assert httpx.get(address + clip).headers["cache-control"] == "no-store"
    page.close()
    deadline = time.monotonic() + 10.0
    while httpx.get(address + clip).status_code != 404 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert httpx.get(address + clip).status_code == 404
