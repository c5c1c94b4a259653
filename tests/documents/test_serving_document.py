"""docs/serving.md: its tables are those of the code, and its examples are answered by a live server."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator

import pytest

from qwen2_audio.serving.fields import BOOKKEEPING, REFUSED
from qwen2_audio.serving.settings import PREFIX, Settings
from tests.documents.test_documents import ROOT, fences
from tests.serving.fake_backend import FakeBackend
from tests.serving.http_server import HttpServer

DOCUMENT = ROOT / "docs" / "serving.md"
ADDRESS, KEY = "http://127.0.0.1:8000", "a-long-secret"


@pytest.fixture(scope="module")
def server() -> Iterator[HttpServer]:
    with HttpServer(FakeBackend(), api_keys=KEY) as server:
        yield server


def blocks(language: str, server: HttpServer) -> list[str]:
    """Examples, asking the live server."""
    return [code.replace(ADDRESS, server.url) for found, code in fences(DOCUMENT) if found == language]


def section(title: str) -> str:
    """The text under a heading."""
    return DOCUMENT.read_text(encoding="utf-8").split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_every_setting_is_listed_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", section("Settings"), re.MULTILINE)
    assert [name for name, _, _ in rows] == list(Settings.model_fields)
    for name, default, meaning in rows:
        field = Settings.model_fields[name]
        assert meaning == field.description
        found = Settings.model_validate({name: default}) if default else Settings.model_validate({})
        assert getattr(found, name) == field.default, name


def test_every_route_is_listed(server: HttpServer) -> None:
    listed = set(re.findall(r"^\| `(\w+) (/\S*)` \|", section("Routes"), re.MULTILINE))
    described = server.app.openapi()["paths"]
    served = {(method.upper(), path) for path, methods in described.items() for method in methods}
    assert {(method, path) for method, path in listed if method != "WS"} == served
    assert ("WS", "/v1/realtime") in listed


def test_every_refused_and_ignored_field_is_listed() -> None:
    _, refused, ignored = re.split(r"is the neutral one\):|Bookkeeping is accepted", section("What goes in"))
    assert re.findall(r"`(\w+)`", refused) == list(REFUSED)
    assert re.findall(r"`(\w+)`", ignored) == sorted(BOOKKEEPING)


def test_the_python_examples_run(
    server: HttpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, object] = {"__name__": "serving"}
    for number, code in enumerate(blocks("python", server), 1):
        exec(compile(code, f"serving.md, python block {number}", "exec"), names)
        assert capsys.readouterr().out.strip()
    names["client"].close()  # type: ignore[attr-defined]


def test_the_examples_without_a_client_run(server: HttpServer) -> None:
    commands = blocks("bash", server)
    assert len(commands) == 3
    for command in commands:
        run = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
        if "srt" in command:
            assert " --> " in run.stdout
        else:
            assert json.loads(run.stdout)["choices"][0]["finish_reason"] in ("stop", "length")


def test_the_prefix_of_variables_is_named() -> None:
    assert f"`{PREFIX}`" in DOCUMENT.read_text(encoding="utf-8")
