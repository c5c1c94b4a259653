"""`--model openai:URL`: commands that ask a server instead of a model of their own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.remote.scripted import Refuse, Say, ScriptedServer, running

QUESTION = Path(__file__).parents[2] / "examples" / "question.flac"
KEY = "sk-a-secret-of-some-length"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with running(ScriptedServer()) as server:
        yield server


def test_chat(run: Run, server: ScriptedServer) -> None:
    model = f"openai:{server.url}"
    assert run("chat", QUESTION, "--model", model, "--temperature", "0").out == "Hello!\n"
    found = json.loads(run("chat", "Hi", "--model", model, "--json").out)
    assert (found["text"], found["prompt_tokens"], found["completion_tokens"]) == ("Hello!", 11, 4)
    run("chat", "--model", model, stdin=b"one\ntwo\n")
    assert [message["content"] for message in server.bodies[-1]["messages"]] == ["one", "Hello!", "two"]


def test_transcribe(run: Run, server: ScriptedServer, tmp_path: Path) -> None:
    server.usual = Say(["the", " words"])
    model = f"openai:{server.url}#mini"
    assert run("transcribe", QUESTION, "--model", model).out == "the words\n"
    assert "-->" in run("transcribe", QUESTION, "--model", model, "--format", "srt").out


def test_evaluate(run: Run, server: ScriptedServer, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"audio": str(QUESTION), "prompt": "Recognize", "gt": "hello"}) + "\n")
    result = run(
        "evaluate",
        "--task",
        rows,
        "--metric",
        "wer",
        "--language",
        "en",
        "--out",
        tmp_path / "run",
        "--model",
        f"openai:{server.url}",
    )
    assert result.code == 0, result.err
    assert server.bodies[0]["model"] == "mini" and server.bodies[0]["messages"][0]["content"][-1]["text"] == "Recognize"
    assert "Hello!" in next((tmp_path / "run").rglob("*.jsonl")).read_text()


def test_the_key(run: Run, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.key = KEY
    model = f"openai:{server.url}"
    refused = run("chat", "Hi", "--model", model)
    assert refused.code == 2 and "OPENAI_API_KEY is not set" in refused.err
    monkeypatch.setenv("MINE", KEY)
    assert run("chat", "Hi", "--model", model, "--api-key-env", "MINE").out == "Hello!\n"
    needless = run("chat", "Hi", "--model", "mini", "--api-key-env", "MINE")
    assert needless.code == 2 and "--api-key-env is for a model at an address" in needless.err


@pytest.mark.parametrize("option", [("--device", "cpu"), ("--dtype", "float32"), ("--offline",), ("--adapter", "x")])
def test_what_is_the_servers_choice(run: Run, server: ScriptedServer, option: tuple[str, ...]) -> None:
    result = run("chat", "Hi", "--model", f"openai:{server.url}", *option)
    assert result.code == 2 and f"{option[0].strip('-')} is the server's choice" in result.err


def test_trouble_is_one_line(run: Run, server: ScriptedServer) -> None:
    server.usual = Refuse(400, "no\nsuch thing")
    result = run("chat", "Hi", "--model", f"openai:{server.url}")
    assert (result.code, result.err.count("\n")) == (2, 1) and "no such thing" in result.err
    result = run("chat", "Hi", "--model", "openai:localhost:8000")
    assert result.code == 2 and "must begin with http:// or https://" in result.err
