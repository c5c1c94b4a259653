"""Recordings at web addresses and in data URLs, and what stands there instead of one."""

from __future__ import annotations

import io
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import soundfile

from qwen2_audio.processing.audio import load_audio
from tests.processing.refused import assert_refused
from tests.tiny import sound


def _wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, sound(0.5), 16_000, format="WAV")
    return file.getvalue()


WAV = _wav()


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body, kind, status, promised = WAV, "audio/wav", 200, len(WAV)
        if self.path == "/page":
            body, kind = b"<!DOCTYPE html><html><body>Log in</body></html>", "text/html; charset=utf-8"
            promised = len(body)
        elif self.path == "/page-as-wav":
            body = b"\n<html><body>Log in</body></html>"
            promised = len(body)
        elif self.path == "/cut":
            promised = 2 * len(WAV)
        elif self.path not in ("/sound.wav", "/%20d%C3%A9j%C3%A0%20vu/%E8%B0%88.wav?wo=K%C3%B6ln%2F"):
            status = 404
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(promised))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a web server on this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")


def test_url(server: str) -> None:
    np.testing.assert_array_equal(load_audio(f"{server}/sound.wav"), load_audio(WAV))


def test_url_with_letters_beyond_ascii(server: str) -> None:
    address = f"{server}/%20déjà%20vu/谈.wav?wo=Köln%2F"
    np.testing.assert_array_equal(load_audio(address), load_audio(WAV))
    assert_refused(f"{server}/Köln.wav", "404", "Köln.wav")


def test_hosts_are_asked_in_idna(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def urlopen(request: urllib.request.Request, timeout: float) -> None:
        asked.append(request.full_url)
        raise OSError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    for host in ("bücher.example:8080", "me@bücher.example", "[::1]:80"):
        assert_refused(f"https://{host}/ä.wav", "no network")
    assert_refused(f"https://{'ü' * 80}.example/x.wav", "cannot fetch")
    assert asked == [
        f"https://{host}/%C3%A4.wav" for host in ("xn--bcher-kva.example:8080", "me@xn--bcher-kva.example", "[::1]:80")
    ]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/sound.wav/missing", ("404", "check the address")),
        ("/page", ("web page (HTML)", "/page")),
        ("/page-as-wav", ("web page (HTML)", "/page-as-wav")),
        ("/cut", ("cut short", "bytes arrived", "try again")),
    ],
)
def test_bad_answers_of_servers(server: str, path: str, words: tuple[str, ...]) -> None:
    assert_refused(server + path, *words)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:9/x.wav", "http://127.0.0.1:port/x.wav", "http:///x.wav", "http://[::/"]
)
def test_unreachable_urls(url: str) -> None:
    assert_refused(url, url, "check the address")


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("data:audio/wav;base64", "no comma"),
        ("data:audio/wav;base64,@@@@", "not valid base64"),
        ("data:audio/wav;base64,é", "not valid base64"),
        ("data:audio/wav;base64,", "empty"),
        ("data:audio/wav;base64,aGVsbG8gd29ybGQ=", "not a recording"),
        ("data:,hello", "not a recording"),
    ],
)
def test_bad_data_urls(url: str, word: str) -> None:
    assert_refused(url, "data URL", word)
