"""axe-core finds nothing serious, whatever the page shows; everything can be reached by keyboard."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.ui.steps import wait_for_answer

axe_playwright = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe-playwright-python is missing")
Open = Callable[..., Any]


def serious(page: Any) -> list[str]:
    """What axe-core objects to, with the first place it stands."""
    found = axe_playwright.Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {each['nodes'][0]['html'][:200]} ({each['nodes'][0]['failureSummary'][:200]})"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_nothing_serious(open_page: Open, dark: bool) -> None:
    page = open_page(dark=dark, width=390, height=844, language="zh-CN" if dark else "en-US")
    assert serious(page) == []
    page.click(".qa-example >> nth=1")
    wait_for_answer(page, " s]")
    assert serious(page) == []
    page.click(".qa-gear")
    page.wait_for_selector("#qa-settings.open")
    page.click("#qa-sampling button")
    page.wait_for_timeout(400)
    assert serious(page) == []
    page.click(".qa-gear")
    page.click("#qa-tab-transcribe-button")
    page.wait_for_selector("#qa-start")
    assert serious(page) == []


def test_by_keyboard(open_page: Open) -> None:
    page = open_page()
    page.focus("#qa-composer textarea")
    page.keyboard.type("Typed only")
    page.keyboard.press("Enter")
    wait_for_answer(page, "Typed only")
    reached = set()
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                "(document.activeElement.getAttribute('aria-label') || '') + document.activeElement.className"
            )
        )
    names = " ".join(reached)
    for wanted in ("qa-press", "qa-handsfree", "qa-gear", "qa-language", "Send", "Retry", "Edit"):
        assert wanted in names, (wanted, reached)
    assert "Seed" not in names  # the side panel is closed
