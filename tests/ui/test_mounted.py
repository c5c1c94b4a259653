"""The page's own addresses, without a browser."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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


SETTINGS = ["mini", "", 0, 1, 0, 1, 64, "", False, ""]
"""The side panel untouched."""


def call(page: httpx.Client, event: str, data: list[Any], session: str) -> dict[str, Any]:
    """What comes of an event of the page that somebody has written by hand."""
    calls = page.get("config").json()["dependencies"]
    meant = [call for call in calls if event in [each for _, each in call["targets"]]]
    [number] = [call["id"] for call in meant if len(call["inputs"]) == len(data)]
    asked = {"data": data, "fn_index": number, "session_hash": session, "event_data": {}}
    page.post("gradio_api/queue/join", json=asked).raise_for_status()
    with page.stream("GET", "gradio_api/queue/data", params={"session_hash": session}) as answer:
        told = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line]
    return next(each for each in told if each["msg"] == "process_completed")


@pytest.mark.parametrize("path", ["https://host.example/a.wav", "http://127.0.0.1:9/a.wav", "/", ""])
@pytest.mark.parametrize("event", ["submit", "click", "upload"])
def test_events_name_no_files_but_uploads(
    page: httpx.Client, path: str, event: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gradio import processing_utils

    fetched: list[str] = []

    async def fetch(url: str, **_: object) -> None:
        fetched.append(url)

    monkeypatch.setattr(processing_utils.sh, "get", fetch)
    private = tmp_path / ("a.json" if event == "upload" else "a.wav")
    private.write_text('{"kind": "qwen2-audio conversation", "version": 1, "turns": []}')
    if event != "upload":
        soundfile.write(private, sound(1.0), 16_000)
    path = path if path.startswith("http") else path + str(private)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}}
    call(page, "load", [], "curious")
    data: list[Any] = {
        "submit": [{"text": "", "files": [file]}, *SETTINGS],
        "click": [file, "transcribe", "mini"],
        "upload": [file],
    }[event]
    told = call(page, event, data, "curious")
    assert (told["success"], fetched, private.exists()) == (False, [], True)
    if path.startswith("http"):
        assert "only uploaded files are taken" in told["output"]["error"]
    for other in ({"is_stream": True}, {"url": "https://host.example/a.wav"}):
        file |= other
        call(page, event, data, "curious")
        assert fetched == [] and private.exists()


def test_equal_uploads_lie_apart(page: httpx.Client) -> None:
    places = [page.post("gradio_api/upload", files={"files": ("a.wav", b"the same")}).json()[0] for _ in range(2)]
    assert places[0] != places[1] and all(Path(place).read_bytes() == b"the same" for place in places)


def test_uploads_are_taken_though_another_page_was_made(page: httpx.Client) -> None:
    file = io.BytesIO()
    soundfile.write(file, sound(1.0), 16_000, format="wav")
    with served(FakeBackend()):
        [place] = page.post("gradio_api/upload", files={"files": ("a.wav", file.getvalue())}).json()
        call(page, "load", [], "first")
        part = {"path": place, "meta": {"_type": "gradio.FileData"}}
        told = call(page, "submit", [{"text": "", "files": [part]}, *SETTINGS], "first")
    assert told["success"] is True, told


def test_a_page_finds_out_whether_the_server_is_another_one(page: httpx.Client) -> None:
    assert page.get("gradio_api/app_id").json() == {"app_id": page.get("config").json()["app_id"]}


def test_a_page_that_lost_its_connection_is_told_so(page: httpx.Client) -> None:
    call(page, "load", [], "lost")
    question = [{"text": "Hello", "files": []}, *SETTINGS]
    with page.stream("GET", "gradio_api/heartbeat/lost") as beats:
        lines = beats.iter_lines()  # which hangs up when it goes
        assert next(lines) == "data: ALIVE"
        told = call(page, "submit", question, "lost")
        assert told["success"] is True, told
    for _ in range(100):
        told = call(page, "submit", question, "lost")
        if not told["success"]:
            break
    assert "Reload the page" in told["output"]["error"]
