"""The original's command, as printed, brings the page up; with mini it answers a spoken question."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.errors import DownloadError
from tests.ui.steps import ANSWERS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def demo() -> Iterator[str]:
    """The page as `python demo/web_demo_audio.py` serves it."""
    try:
        find_checkpoint("mini", say=lambda _: None)
    except DownloadError as error:
        pytest.skip(str(error))
    command = [sys.executable, "demo/web_demo_audio.py", "--cpu-only", "--server-port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        yield line.split()[-1]
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


def test_mini_answers_a_spoken_question(demo: str, browser: Any) -> None:
    page = browser.new_page()
    page.set_default_timeout(120_000)
    page.goto(demo)
    page.wait_for_selector("[data-ready]")
    page.click('[data-example="question"]')
    page.wait_for_function(f"document.querySelector('{ANSWERS}')?.textContent.includes('Paris')")
    page.wait_for_function("/first word after [0-9.]+ s/.test(document.querySelector('#qa-speed').textContent)")
    page.close()


def test_what_the_command_line_refuses() -> None:
    wrong = subprocess.run(
        [sys.executable, "demo/web_demo_audio.py", "-c", "no/such/folder", "--server-name", "256.0.0.1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert wrong.returncode == 2 and "256.0.0.1" in wrong.stderr and "Traceback" not in wrong.stderr


def test_requirements_name_the_extra() -> None:
    lines = (ROOT / "requirements_web_demo.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines if not line.startswith("#")]
    torch = re.search(r"^TORCH \?= (\S+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert torch is not None and wanted == [torch[1], ".[mini,fast,ui]"]
