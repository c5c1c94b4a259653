"""With a certificate the server speaks https, and nothing else; files that cannot be used are refused in one line."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import httpx
import pytest
import trustme
from websockets.asyncio.client import connect

from qwen2_audio.errors import UsageError
from qwen2_audio.serving.server import check_certificate
from qwen2_audio.serving.settings import Settings
from tests.serving.fake_backend import FakeBackend
from tests.serving.http_server import PATIENCE, HttpServer

ANSWERED = {"model": "fake", "messages": [{"role": "user", "content": "Hello"}], "stream": True}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def files(authority: trustme.CA, tmp_path: Path) -> dict[str, str]:
    issued = authority.issue_cert("127.0.0.1")
    certificate, key = tmp_path / "chain.pem", tmp_path / "key.pem"
    for number, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(certificate, append=number > 0)
    issued.private_key_pem.write_to_path(key)
    return {"ssl_certfile": str(certificate), "ssl_keyfile": str(key)}


async def first_event(address: str, trusting: ssl.SSLContext) -> str:
    """What the server says first. Not the threaded client: it reads and writes one TLS socket at once and fails by chance."""
    async with connect(address, ssl=trusting) as socket:
        return await asyncio.wait_for(socket.recv(decode=True), PATIENCE)


def test_answers_streams_and_voice_over_https(files: dict[str, str], authority: trustme.CA) -> None:
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with HttpServer(FakeBackend(), **files) as server:
        secure = server.url.replace("http://", "https://")
        with httpx.Client(base_url=secure, verify=trusting) as client:
            models = client.get("/v1/models").json()["data"]
            asked = {**ANSWERED, "model": models[0]["id"]}
            answer = client.post("/v1/chat/completions", json=asked)
        assert answer.status_code == 200 and answer.text.rstrip().endswith("data: [DONE]")
        address = secure.replace("https://", "wss://") + f"/v1/realtime?model={models[0]['id']}"
        assert '"session.created"' in asyncio.run(first_event(address, trusting))
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url + "/health")


def test_files_that_cannot_be_used(files: dict[str, str], tmp_path: Path) -> None:
    check_certificate(Settings.read(files))
    check_certificate(Settings.read())
    (tmp_path / "text.pem").write_text("no certificate")
    for changed, words in (
        ({"ssl_keyfile": ""}, "needs both ssl_certfile and ssl_keyfile"),
        ({"ssl_certfile": str(tmp_path / "none.pem")}, "No such file"),
        ({"ssl_certfile": str(tmp_path / "text.pem")}, "cannot use the certificate"),
        ({"ssl_keyfile": files["ssl_certfile"]}, "cannot use the certificate"),
    ):
        with pytest.raises(UsageError, match=words):
            check_certificate(Settings.read({**files, **changed}))
