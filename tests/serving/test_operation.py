"""What those who run the server look at: alive, ready, metrics, documentation."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from qwen2_audio import __version__
from qwen2_audio.errors import CheckpointError
from qwen2_audio.serving.backend import Delta, Job, OverloadedError
from tests.serving.fake_backend import FakeBackend
from tests.serving.http_server import HttpServer, said

CHAT = "/v1/chat/completions"
HELLO = {"messages": [said("one two three")]}


def metrics(http: httpx.Client) -> dict[str, float]:
    """All samples: name and labels to value."""
    families = text_string_to_metric_families(http.get("/metrics").text)
    return {
        "".join((sample.name, *(f"[{value}]" for _, value in sorted(sample.labels.items())))): sample.value
        for family in families
        for sample in family.samples
    }


def test_alive_ready_and_version(http: httpx.Client, fake: FakeBackend) -> None:
    assert http.get("/health").json() == {"status": "ok"}
    assert http.get("/ready").status_code == 200
    assert http.get("/version").json() == {"version": __version__}
    fake.is_ready = False
    assert http.get("/ready").status_code == 503
    assert http.get("/health").status_code == 200


def test_while_it_starts_it_says_so(http: httpx.Client, fake: FakeBackend) -> None:
    fake.cards = ()
    for response in (http.get("/v1/models"), http.post(CHAT, json=HELLO)):
        assert response.status_code == 503
        assert response.headers["Retry-After"] == "5"
        assert "still being loaded" in response.json()["error"]["message"]


def test_a_start_that_fails_ends_the_server() -> None:
    class Broken(FakeBackend):
        async def start(self) -> None:
            raise CheckpointError("no such model")

    with pytest.raises(CheckpointError, match="no such model"), HttpServer(Broken()):
        pass


def test_it_is_alive_while_it_starts() -> None:
    class Slow(FakeBackend):
        async def start(self) -> None:
            while self.holding:
                await asyncio.sleep(0.01)
            self.is_ready = True

    backend = Slow(holding=True, is_ready=False)
    server = HttpServer(backend)
    server.ready.set()  # do not wait for it
    with server, server.http() as http:
        assert http.get("/health").status_code == 200
        assert http.get("/ready").status_code == 503
        backend.holding = False


def test_metrics_add_up() -> None:
    backend = FakeBackend()
    with HttpServer(backend) as server, server.http() as http:
        for _ in range(2):
            http.post(CHAT, json=HELLO)
        http.post(CHAT, json={**HELLO, "model": "digits", "max_tokens": 2})
        backend.error = OverloadedError("too much is waiting; try again")
        http.post(CHAT, json=HELLO)
        found = metrics(http)
    assert found["qwen2_audio:prompt_tokens_total[mini]"] == 6
    assert found["qwen2_audio:generation_tokens_total[mini]"] == 8
    assert found["qwen2_audio:request_success_total[stop][mini]"] == 2
    assert found["qwen2_audio:request_success_total[length][digits]"] == 1
    assert found["qwen2_audio:admission_rejections_total"] == 1
    assert found["qwen2_audio:time_to_first_token_seconds_count[mini]"] == 2
    assert found["qwen2_audio:inter_token_latency_seconds_count[mini]"] == 6
    assert found["qwen2_audio:e2e_request_latency_seconds_count[mini]"] == 2
    assert found["qwen2_audio:num_requests_running"] == found["qwen2_audio:num_requests_waiting"] == 0
    assert found["qwen2_audio:kv_cache_usage_perc"] == 0.25
    assert found["qwen2_audio:engine_restarts_total"] == 0


def test_metrics_of_an_engine_that_counts_at_the_end() -> None:
    class Late(FakeBackend):
        def gauges(self) -> dict[str, float]:
            return {**super().gauges(), "engines_usable": 2}

        async def generate(self, job: Job) -> AsyncIterator[Delta]:
            for text in ("one", " two"):
                yield Delta(text, 0, 0)
            yield Delta("", 3, 7, "stop")

    with HttpServer(Late()) as server, server.http() as http:
        http.post(CHAT, json=HELLO)
        found = metrics(http)
    assert found["qwen2_audio:prompt_tokens_total[mini]"] == 7
    assert found["qwen2_audio:generation_tokens_total[mini]"] == 3
    assert found["qwen2_audio:inter_token_latency_seconds_count[mini]"] == 1
    assert found["qwen2_audio:engines_usable"] == 2


def test_tokenize(http: httpx.Client) -> None:
    expected = {"count": 3, "max_model_len": 2048, "tokens": [0, 1, 2]}
    assert http.post("/tokenize", json={"model": "mini", "prompt": "one two three"}).json() == expected
    assert http.post("/tokenize", json=HELLO).json() == expected


class Links(HTMLParser):
    """Collects ids and everything that is loaded or linked."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids.add(found.get("id") or "")
        self.links += [value for name, value in attrs if name in ("href", "src") and value]


def test_the_documentation_needs_nothing_from_elsewhere(http: httpx.Client) -> None:
    page = http.get("/docs")
    links = Links()
    links.feed(page.text)
    assert "<script" not in page.text
    assert {link for link in links.links if not link.startswith("#")} == {"openapi.json"}
    assert {link[1:] for link in links.links if link.startswith("#")} <= links.ids
    for path in http.get("/openapi.json").json()["paths"]:
        assert f"<code>{path}</code>" in page.text


def test_documentation_and_metrics_can_be_switched_off() -> None:
    with HttpServer(FakeBackend(), docs=False, metrics=False) as server, server.http() as http:
        assert [http.get(path).status_code for path in ("/docs", "/openapi.json", "/metrics")] == [404, 404, 404]


def test_every_failure_is_described(http: httpx.Client) -> None:
    schema: dict[str, Any] = http.get("/openapi.json").json()
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            assert "422" not in operation["responses"]
            if path not in ("/health", "/ready"):
                assert operation["responses"]["401"]["content"]["application/json"]["schema"] == {
                    "$ref": "#/components/schemas/ErrorReply"
                }


def test_the_front_loads_no_torch() -> None:
    code = "import sys, qwen2_audio.serving.app, qwen2_audio.serving.server; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.stdout, run.stderr) == ("False\n", "")
