"""Photograph the page: two widths, light and dark, both languages, four moments each; two of them for the README.

    python recipes/page/shots.py runs/page            # all, as PNG
    python recipes/page/shots.py runs/page --readme   # also docs/images/page*.webp

Wants Playwright and Debian's Chromium. The model that answers is mini, or what --model names.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

ROOT = Path(__file__).parents[2]
DESKTOP, PHONE = (1280, 800), (390, 844)
LOOKS = [
    (size, theme, language) for size in (DESKTOP, PHONE) for theme in ("light", "dark") for language in ("en", "zh")
]
FOR_README = {"page": ("1280-light-en-answer",), "page-phone": ("390-light-en-answer", "390-dark-zh-welcome")}


def main() -> None:
    """Serve the page and photograph it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--readme", action="store_true")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    lecture = lecture_in(given.folder)
    command = [sys.executable, "-m", "qwen2_audio.cli.main", "ui", "--model", given.model, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            photograph(server.stdout.readline().split()[-1], given.folder, lecture)
        finally:
            server.terminate()
    if given.readme:
        for name, shots in FOR_README.items():
            side_by_side([given.folder / f"{shot}.png" for shot in shots], ROOT / "docs" / "images" / f"{name}.webp")


def lecture_in(folder: Path) -> Path:
    """A short stand-in for a long recording."""
    pieces = [
        soundfile.read(ROOT / "examples" / f"{name}.flac", dtype="float32")[0] for name in ("sentence", "question")
    ]
    pause = np.zeros(16_000, np.float32)
    file = folder / "lecture.flac"
    soundfile.write(file, np.concatenate([part for piece in pieces * 2 for part in (piece, pause)]), 16_000)
    return file


def photograph(address: str, folder: Path, lecture: Path) -> None:
    """All looks."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for (width, height), theme, language in LOOKS:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme=theme,
                locale={"en": "en-US", "zh": "zh-CN"}[language],
            )
            page = context.new_page()
            page.set_default_timeout(120_000)
            page.goto(address)
            page.wait_for_selector("[data-ready]")
            moments(page, folder / f"{width}-{theme}-{language}", lecture)
            context.close()
        browser.close()


def moments(page: Any, name: Path, lecture: Path) -> None:
    """The empty page, an answer, the side panel, a transcript."""

    def shoot(moment: str) -> None:
        page.mouse.move(5, 400)
        page.wait_for_timeout(800)
        page.screenshot(path=f"{name}-{moment}.png")

    shoot("welcome")
    page.click('[data-example="speech"]')
    page.wait_for_selector("#qa-chat .bot-row .message")
    page.wait_for_selector("#qa-composer .submit-button")
    shoot("answer")
    page.click(".qa-gear")
    page.wait_for_timeout(500)
    page.click("#qa-sampling button")
    shoot("settings")
    page.click(".qa-gear")
    page.click("#qa-tab-transcribe-button")
    page.set_input_files("#qa-file-long input[type=file]", str(lecture))
    page.wait_for_selector("#qa-file-long .file-preview")
    page.click("#qa-start")
    page.wait_for_selector("#qa-start:enabled")
    page.wait_for_selector(".qa-segments li")
    shoot("transcript")


def side_by_side(shots: list[Path], file: Path) -> None:
    """Photographs as one small picture."""
    images = [Image.open(shot).convert("RGB") for shot in shots]
    gap = 24 * (len(images) - 1)
    whole = Image.new(
        "RGB", (sum(image.width for image in images) + gap, max(image.height for image in images)), "white"
    )
    left = 0
    for image in images:
        whole.paste(image, (left, 0))
        left += image.width + 24
    file.parent.mkdir(parents=True, exist_ok=True)
    whole.save(file, "WEBP", quality=85, method=6)


if __name__ == "__main__":
    main()
