"""What a visitor does, and what can be seen of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ANSWERS, QUESTIONS = "#qa-chat .bot-row", "#qa-chat .user-row"


def ask(page: Any, text: str, *files: Path) -> None:
    """Attach files, write, press send."""
    if files:
        with page.expect_file_chooser() as choosing:
            page.click("#qa-composer .upload-button")
        choosing.value.set_files([str(file) for file in files])
        page.wait_for_function(
            "count => document.querySelectorAll('#qa-composer .thumbnail-item').length === count", arg=len(files)
        )
    page.fill("#qa-composer textarea", text)
    page.click("#qa-composer .submit-button")


def wait_for_answer(page: Any, text: str, *, number: int = 1) -> None:
    """Until the `number`th answer holds the text and nothing is being written any more."""
    page.wait_for_function(
        "([rows, number, text]) => document.querySelectorAll(rows).length === number"
        " && [...document.querySelectorAll(rows)].at(-1).textContent.includes(text)"
        " && document.querySelector('#qa-composer .submit-button')",
        arg=[ANSWERS, number, text],
    )
