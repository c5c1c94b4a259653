"""Debian's Chromium with a fake microphone, and pages that note everything that should not happen."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from qwen2_audio.longform.listening import TRANSCRIBE
from qwen2_audio.processing.conversation import TextPart
from qwen2_audio.serving.backend import Job
from tests.serving.fake_backend import FakeBackend, echo, parts_of
from tests.ui.server import served

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")

EXAMPLES = Path(__file__).parents[2] / "examples"
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
WAIT_MS = 60_000


@dataclass
class Seen:
    """What a page did that it should not."""

    errors: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the fake microphone hears, over and over: a sentence, then silence."""
    file = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    sentence, rate = soundfile.read(EXAMPLES / "question.flac", dtype="float32")
    soundfile.write(file, np.concatenate([np.repeat(sentence, 3), np.zeros(3 * 3 * rate)]), 3 * rate, subtype="PCM_16")
    return file


@pytest.fixture(scope="session")
def chromium() -> str:
    """The browser's program."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here; Debian's package chromium has it (or set CHROMIUM to the program)")
    return CHROMIUM


@pytest.fixture(
    scope="module"
)  # as long as it is open an event loop runs, which tests without a browser could not bear
def browser(chromium: str, spoken: Path) -> Iterator[Any]:
    """One browser for the tests of a file."""
    with playwright.sync_playwright() as driver:
        launched = driver.chromium.launch(
            executable_path=chromium,
            args=[
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-audio-capture={spoken}",
                "--autoplay-policy=no-user-gesture-required",
            ],
        )
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def backend() -> FakeBackend:
    """Answers every question with itself, a word at a time; to windows of a lecture it says each time something else."""
    pieces = count(1)

    def answer(job: Job) -> Sequence[str]:
        said = parts_of(job.prompt)[-1]
        lecture = isinstance(said, TextPart) and said.text == TRANSCRIBE
        return f"Piece {next(pieces)} of the lecture .".split() if lecture else echo(job)

    return FakeBackend(delay=0.01, answer=answer)


@pytest.fixture(scope="session")
def address(backend: FakeBackend, chromium: str) -> Iterator[str]:
    """Where the page is."""
    assert chromium
    with served(backend) as url:
        yield url


@pytest.fixture
def slow(backend: FakeBackend) -> Iterator[FakeBackend]:
    """The same backend, a word every fifth of a second: time to stop it."""
    backend.delay, quick = 0.2, backend.delay
    yield backend
    backend.delay = quick


@pytest.fixture
def seen() -> Seen:
    """Notes of the pages of a test."""
    return Seen()


@pytest.fixture
def open_page(browser: Any, address: str, seen: Seen) -> Iterator[Callable[..., Any]]:
    """Open the page as a new visitor; afterwards nothing must have gone wrong and nothing been fetched from elsewhere."""
    contexts = []

    def opened(*, width: int = 1280, height: int = 800, language: str = "en-US", dark: bool = False) -> Any:
        context = browser.new_context(
            viewport={"width": width, "height": height},
            locale=language,
            color_scheme="dark" if dark else "light",
            permissions=["microphone"],
            accept_downloads=True,
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(WAIT_MS)
        page.on("console", lambda message: message.type == "error" and seen.errors.append(message.text))
        page.on("pageerror", lambda error: seen.errors.append(str(error)))
        host = address.split("/")[2]
        page.on("request", lambda request: _is_foreign(request.url, host) and seen.foreign.append(request.url))
        page.goto(address)
        page.wait_for_selector("#qa-composer textarea")
        page.wait_for_selector("[data-ready]")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert seen.errors == []
    assert seen.foreign == []


def _is_foreign(url: str, host: str) -> bool:
    return not url.startswith((f"http://{host}/", f"ws://{host}/", "data:", f"blob:http://{host}/"))
