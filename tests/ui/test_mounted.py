"""The page's own addresses, without a browser."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import httpx
import pytest
import soundfile

from tests.serving.fake_backend import FakeBackend
from tests.tiny import sound
from tests.ui.server import served


@pytest.fixture(scope="module")
def page() -> Iterator[httpx.Client]:
    with served(FakeBackend()) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def test_who_speaks_again_while_an_answer_is_written_is_heard(page: httpx.Client) -> None:
    calls = page.get("config").json()["dependencies"]
    modes = {event: call["trigger_mode"] for call in calls for _, event in call["targets"]}
    assert modes["spoken"] == modes["heard"] == "multiple"


def test_what_other_scripts_need_is_in_the_page_itself(page: httpx.Client) -> None:
    head = page.get("config").json()["head"]  # Gradio adds it when the page runs: fetched scripts come in any order
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", head, re.DOTALL)
    inline = [text for attributes, text in scripts if not attributes]
    fetched = [attributes for attributes, _ in scripts if attributes]
    assert len(inline) == 2 and "window.qwenAudio = " in inline[0] and "page.say = " in inline[1]
    assert fetched == [' type="module" src="page/static/page.js"']


def test_a_player_may_ask_for_a_stretch_of_a_clip(page: httpx.Client) -> None:
    file = io.BytesIO()
    soundfile.write(file, sound(1.0), 16_000, format="wav")
    token = page.post("page/recordings", content=file.getvalue()).json()["token"]

    def stretch(wanted: str) -> tuple[int, str | None, bytes]:
        answer = page.get(f"page/clips/{token}.wav", headers={"Range": wanted} if wanted else {})
        assert answer.headers["accept-ranges"] == "bytes"
        return answer.status_code, answer.headers.get("content-range"), answer.content

    status, _, whole = stretch("")
    size = len(whole)
    assert status == 200 and whole[:4] == b"RIFF"
    assert stretch("bytes=0-1") == (206, f"bytes 0-1/{size}", whole[:2])
    assert stretch("bytes=100-") == (206, f"bytes 100-{size - 1}/{size}", whole[100:])
    assert stretch("bytes=-7") == (206, f"bytes {size - 7}-{size - 1}/{size}", whole[-7:])
    assert stretch(f"bytes=5-{size * 9}") == (206, f"bytes 5-{size - 1}/{size}", whole[5:])
    for beyond in (f"bytes={size}-", "bytes=9-3", "bytes=-0", "bytes=-"):
        assert stretch(beyond) == (416, f"bytes */{size}", b"")
    for other in ("bytes=0-1,5-6", "words=1-2", "bytes=x-"):  # which a server may leave unheeded
        assert stretch(other) == (200, None, whole)
