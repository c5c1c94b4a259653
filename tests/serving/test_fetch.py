"""What is fetched from a stranger's address: where names and redirects may lead, what is allowed, which answers are taken."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from qwen2_audio.errors import AudioError, TooLargeError
from qwen2_audio.serving.fetch import Fetcher, shown
from tests.serving.fetching import fetch, refused, settings
from tests.serving.loopback import PUBLIC, Names, ToLoopback, serving

SOUND = b"RIFF" + bytes(1000)


def answer(handler: BaseHTTPRequestHandler) -> None:
    """Paths say what is wanted: /sound, /to?URL, /status/404, /big, /lie, /slow, /page, /zip, /cut."""
    path, _, query = handler.path.partition("?")
    headers = {"Content-Type": "audio/wav", "Content-Length": str(len(SOUND))}
    status, body = 200, SOUND
    if path == "/to":
        status, headers, body = 302, {"Location": query, "Content-Length": "0"}, b""
    elif path.startswith("/status/"):
        status = int(path[8:])
    elif path in ("/page", "/hidden-page"):
        body = b"<!DOCTYPE html><html>Log in</html>"
        headers = {"Content-Type": "text/html; charset=utf-8" if path == "/page" else "audio/wav"}
    elif path == "/big":
        body, headers = SOUND * 2100, {"Content-Type": "audio/wav"}
    elif path == "/lie":
        body, headers["Content-Length"] = SOUND * 2100, str(2**40)
    elif path == "/cut":
        headers["Content-Length"] = "5000"
    elif path == "/zip":
        headers["Content-Encoding"] = "gzip"
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    try:
        if path == "/slow":
            for at in range(len(body)):
                handler.wfile.write(body[at : at + 1])
                time.sleep(0.2)
        handler.wfile.write(body)
    except OSError:  # the client had enough
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with serving(answer) as number:
        yield number


def test_a_public_host_is_fetched_at_the_address_that_was_checked(port: int) -> None:
    data, transport, names = fetch("http://media.test/sound?a=1#part", port)
    assert data == SOUND
    assert transport.sent == [(PUBLIC, "media.test")]
    assert names.asked == ["media.test"]


def test_a_name_that_changes_its_address_after_the_check_changes_nothing(port: int) -> None:
    names = Names(rebinding_test=[[PUBLIC], ["127.0.0.1"]])
    data, transport, names = fetch("http://rebinding.test/sound", port, names)
    assert data == SOUND
    assert names.asked == ["rebinding.test"]  # once
    assert transport.sent == [(PUBLIC, "rebinding.test")]


def test_a_name_that_changes_its_address_between_redirects_is_refused(port: int) -> None:
    names = Names(rebinding_test=[[PUBLIC], ["127.0.0.1"]])
    refused("http://rebinding.test/to?/sound", "public internet", port=port, names=names)


# redirects


def test_a_redirect_is_followed_and_checked(port: int) -> None:
    data, transport, _ = fetch("http://media.test/to?http://other.test/sound", port)
    assert data == SOUND
    assert [host for _, host in transport.sent] == ["media.test", "other.test"]
    assert fetch("http://media.test/to?/sound", port)[0] == SOUND


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("http://127.0.0.1/", "public internet"),
        ("http://[::1]/", "public internet"),
        ("http://169.254.169.254/latest/meta-data", "public internet"),
        ("http://inside.test/", "public internet"),
        ("http://2130706433/", "unusual form"),
        ("//127.0.0.1/", "public internet"),
        ("file:///etc/passwd", "no address"),
        ("http://a\\@b/", "no address"),
        ("http://user:pass@media.test/", "no address"),
        ("http://media.test:6379/", "another port"),
        ("http://other.test:8080/", "another port"),
        ("http://media.test:22/", "port 22"),
    ],
)
def test_redirects_to_where_an_address_may_not_lead(port: int, location: str, word: str) -> None:
    refused(f"http://media.test/to?{location}", word, port=port, names=Names(inside_test=[["10.0.0.1"]]))


@pytest.mark.parametrize(
    ("start", "location", "followed"),
    [
        ("http://media.test:8080", "http://media.test/sound", False),
        ("http://media.test:8080", "https://media.test/sound", False),
        ("http://media.test", "http://media.test:8080/sound", False),
        ("http://media.test", "http://media.test:443/sound", False),
        ("http://media.test:443", "http://media.test/sound", False),
        ("http://media.test:8080", "http://media.test:8080/sound", True),
        ("http://media.test:80", "http://media.test/sound", True),
        ("http://media.test", "https://media.test/sound", True),
        ("http://media.test:443", "https://media.test/sound", True),
    ],
)
def test_a_redirect_stays_at_its_port(start: str, location: str, followed: bool) -> None:
    """From http to https it may go from the port of the one to that of the other."""
    fetcher = Fetcher(settings(), Names())
    before = fetcher._check(f"{start}/to", "it")
    if followed:
        assert str(fetcher._check_redirect(before, location, "it")) == location.replace(":80/", "/")
        return
    with pytest.raises(AudioError, match="leads to another port"):
        fetcher._check_redirect(before, location, "it")


def test_names_in_other_letters_are_fetched_in_their_ascii_form(port: int) -> None:
    host = "xn--bcher-kva.test"
    data, transport, names = fetch(f"http://{host}/sound", port, allowed_media_hosts=(host,))
    assert (data, transport.sent, names.asked) == (SOUND, [(PUBLIC, host)], [host])
    refused(f"http://{host}/", "public internet", names=Names(**{"xn--bcher-kva_test": [["10.0.0.1"]]}))
    refused(f"http://{host}/", "fetches from media.test only", allowed_media_hosts=("media.test",))


def test_redirects_in_a_circle_and_at_most_three(port: int) -> None:
    chain = "/sound"
    for count in range(1, 5):
        chain = f"/to?{chain}"
        if count <= 3:
            assert fetch(f"http://media.test{chain}", port)[0] == SOUND
    refused(f"http://media.test{chain}", "more than 3 times", port=port)
    refused("http://media.test/to?/sound", "more than 0 times", port=port, max_redirects=0)


# settings


def test_fetching_can_be_switched_off() -> None:
    refused("http://media.test/sound", "fetches no addresses", fetch_urls=False)


def test_allowed_hosts_are_exact(port: int) -> None:
    allowed = {"allowed_media_hosts": ("media.test",), "port": 9}
    assert fetch("http://MEDIA.test/sound", port, allowed_media_hosts=("media.test",))[0] == SOUND
    for host in ("other.test", "sub.media.test", "media.test.evil.test", "evilmedia.test", PUBLIC):
        refused(f"http://{host}/sound", "fetches from media.test only", **allowed)  # type: ignore[arg-type]
    refused("http://media.test/to?http://other.test/sound", "only", port=port, allowed_media_hosts=("media.test",))
    private = Names(media_test=[["10.0.0.1"]])
    refused("http://media.test/", "public internet", names=private, allowed_media_hosts=("media.test",))


# answers


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/status/404", "answered 404"),
        ("/status/500", "answered 500"),
        ("/status/304", "answered 304"),
        ("/page", "web page (HTML)"),
        ("/hidden-page", "web page (HTML)"),
        ("/zip", "compressed"),
        ("/cut", "cut short"),
    ],
)
def test_answers_that_are_no_recording(port: int, path: str, word: str) -> None:
    refused(f"http://media.test{path}?signature=secret", word, port=port)


@pytest.mark.parametrize("path", ["/big", "/lie"])
def test_more_bytes_than_allowed_are_not_read(port: int, path: str) -> None:
    with pytest.raises(TooLargeError, match="larger than 2 MiB"):
        fetch(f"http://media.test{path}", port)


def test_a_host_that_trickles_has_a_limit_altogether(port: int) -> None:
    began = time.monotonic()
    refused("http://media.test/slow", "did not arrive within 0.7 s", port=port, fetch_timeout=0.7)
    assert time.monotonic() - began < 10


def test_a_resolver_that_hangs_has_a_limit() -> None:
    async def run() -> None:
        async def never(host: str, port: int) -> list[str]:
            await asyncio.sleep(60)
            return []

        fetcher = Fetcher(settings(fetch_timeout=0.2), never)
        with pytest.raises(AudioError, match="did not arrive"):
            await fetcher.fetch("http://media.test/")
        await fetcher.close()

    asyncio.run(run())


def test_a_host_that_is_not_there() -> None:
    refused("http://media.test/sound", "does not answer", port=9)


def test_no_proxy_and_no_password_file_of_the_environment(
    port: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[str | None] = []

    def note(handler: BaseHTTPRequestHandler) -> None:
        seen.append(handler.headers["Authorization"])
        answer(handler)

    (tmp_path / "netrc").write_text("default login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    with serving(note) as other:
        assert fetch("http://media.test/sound", other)[0] == SOUND
    assert seen == [None]


def test_messages_show_no_secrets_of_an_address() -> None:
    assert shown("https://user:pass@host/a.wav?X-Signature=secret#x") == "https://host/a.wav"
    assert "\n" not in shown("http://host/\nx")
    assert len(shown("http://" + "a" * 9000)) <= 200


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_the_certificate_must_be_the_hosts_and_https_stays_https(tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    names = ["-subj", "/CN=media.test", "-addext", "subjectAltName=DNS:media.test"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run(
        [*made, "-keyout", str(key), "-out", str(cert), "-days", "2", *names], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    trust = ssl.create_default_context(cafile=str(cert))
    asked: list[str | None] = []
    context.sni_callback = lambda sock, name, _: asked.append(name)

    def lasting(handler: BaseHTTPRequestHandler) -> None:
        handler.protocol_version, handler.close_connection = "HTTP/1.1", False  # it would keep the connection
        answer(handler)

    async def run(server: int) -> None:
        fetcher = Fetcher(settings(), Names(), ToLoopback(server, verify=trust))
        try:
            assert await fetcher.fetch("https://media.test/sound") == SOUND
            with pytest.raises(AudioError, match="does not answer"):
                await fetcher.fetch("https://other.test/sound")
            with pytest.raises(AudioError, match="from https to http"):
                await fetcher.fetch("https://media.test/to?http://media.test/sound")
        finally:
            await fetcher.close()

    with serving(lasting, context) as server:
        asyncio.run(run(server))
    assert asked[:2] == ["media.test", "other.test"]
