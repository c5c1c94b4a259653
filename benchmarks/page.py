"""How soon the page shows the first streamed word after send is pressed, for a clip of 5 s: median of several questions.

    python benchmarks/page.py                 # mini, on this machine
    python benchmarks/page.py --model FOLDER

The page is served as `qwen2-audio ui` serves it, and used through Debian's Chromium (package chromium) by Playwright. The time
runs in the browser, from the click to the first text of the answer; the file has been attached before, as visitors do.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile

SPEECH = Path(__file__).parents[1] / "examples" / "sentence.flac"
SECONDS = 5.0
WATCH = """
() => {
  window.waited = new Promise(done => {
    document.querySelector('#qa-composer .submit-button').addEventListener('click', () => {
      const began = performance.now(), before = document.querySelectorAll('#qa-chat .bot-row').length;
      const timer = setInterval(() => {
        const rows = document.querySelectorAll('#qa-chat .bot-row');
        const last = rows[rows.length - 1];
        if (rows.length > before && !last.querySelector('.qa-thinking') && last.textContent.trim()) {
          clearInterval(timer);
          done((performance.now() - began) / 1000);
        }
      }, 10);
    }, { once: true });
  });
}
"""


def main() -> None:
    """Serve, ask, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=7)
    given = parser.parse_args()
    command = [sys.executable, "-m", "qwen2_audio.cli.main", "ui", "--model", given.model, "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
    ):
        try:
            assert server.stdout is not None
            address = server.stdout.readline().split()[-1]
            times = measured(address, clip_in(Path(folder)), given.rounds)
        finally:
            server.terminate()
    rounds = ", ".join(f"{seconds:.2f}" for seconds in times)
    print(f"first streamed word after pressing send, {SECONDS:g} s clip, {given.model}: ", end="")
    print(f"median {statistics.median(times):.2f} s of {len(times)} ({rounds})")


def clip_in(folder: Path) -> Path:
    """Five seconds of speech."""
    samples, rate = soundfile.read(SPEECH, dtype="float32")
    file = folder / "clip.wav"
    soundfile.write(file, np.resize(samples, int(SECONDS * rate)), rate)
    return file


def measured(address: str, clip: Path, rounds: int) -> list[float]:
    """Seconds to the first word, a new conversation each; one round to warm up does not count."""
    from playwright.sync_api import sync_playwright

    times = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page()
        page.set_default_timeout(120_000)
        page.goto(address)
        page.wait_for_selector("[data-ready]")
        for _ in range(rounds + 1):
            with page.expect_file_chooser() as choosing:
                page.click("#qa-composer .upload-button")
            choosing.value.set_files(str(clip))
            page.wait_for_selector("#qa-composer .thumbnail-item")
            page.fill("#qa-composer textarea", "What does the person say?")
            page.wait_for_timeout(300)
            page.evaluate(WATCH)
            page.click("#qa-composer .submit-button")
            times.append(page.evaluate("window.waited"))
            page.click(".qa-new")  # also ends the answer
            page.wait_for_selector(".qa-welcome")
        browser.close()
    return times[1:]


if __name__ == "__main__":
    main()
