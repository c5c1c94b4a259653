"""`serve`: one line when it is ready, logs as JSON, an end in order; mistakes are one line."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import openai
import pytest

from qwen2_audio.serving import logs
from tests.cli.conftest import Run

LIMIT = 120
"""Seconds for anything to happen; the machine may be busy."""


def test_serves_until_told_to_end_and_finishes_what_runs(folder: Path) -> None:
    arguments = [
        "serve",
        "--model",
        str(folder),
        "--name",
        "tiny",
        "--port",
        "0",
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "QWEN2_AUDIO_API_KEYS": "a-key-of-ours"}
    command = [sys.executable, "-m", "qwen2_audio.cli.main", *arguments]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            _ask_and_end(process)
            out, err = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert (process.returncode, out) == (0, "")
    lines = [json.loads(line) for line in err.splitlines()]
    access = [line for line in lines if line["logger"] == "qwen2_audio.access"]
    assert [line["status"] for line in access] == [401, 200]
    assert (access[1]["model"], access[1]["completion_tokens"]) == ("tiny", 64)
    assert "a-key-of-ours" not in err and "hello" not in err


_DOWNLOADING = """
import sys, time
from concurrent.futures import ThreadPoolExecutor
from qwen2_audio.checkpoints import hub
from qwen2_audio.cli.main import app

def download(*_args, **_options):
    with ThreadPoolExecutor() as pool:
        pool.submit(print, "downloading", flush=True).result()
        pool.submit(time.sleep, 600).result()

hub.find_checkpoint = download
sys.argv = ["qwen2-audio", "serve", "--model", "some/model", "--port", "0"]
app()
"""


def test_an_end_during_the_download_does_not_wait_for_it() -> None:
    with subprocess.Popen([sys.executable, "-c", _DOWNLOADING], stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None:
                raise TypeError("no stdout")
            assert process.stdout.readline() == "downloading\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(LIMIT) == 0
        finally:
            process.kill()


def _ask_and_end(process: subprocess.Popen[str]) -> None:
    if process.stdout is None:
        raise TypeError("no stdout")
    line = process.stdout.readline()
    found = re.fullmatch(r"qwen2-audio serves tiny at (http://127\.0\.0\.1:\d+)\n", line)
    assert found, line or process.communicate(timeout=LIMIT)
    messages: Any = [{"role": "user", "content": "hello"}]
    stranger = openai.OpenAI(base_url=f"{found[1]}/v1", api_key="wrong", max_retries=0, timeout=LIMIT)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.chat.completions.create(model="tiny", messages=messages)
    with openai.OpenAI(base_url=f"{found[1]}/v1", api_key="a-key-of-ours", max_retries=0, timeout=LIMIT) as client:
        stream = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=64, stream=True, extra_body={"ignore_eos": True}
        )
        chunks = iter(stream)
        next(chunks)
        process.send_signal(signal.SIGTERM)
        assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "length"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--setting", "max_clip=3"), "there is no setting max_clip; did you mean max_clips?"),
        (("--setting", "max_clips"), "--setting takes NAME=VALUE, got 'max_clips'"),
        (("--setting", "max_clips=none"), "setting max_clips"),
        (("--api-key", "short"), "a key has at least 8 printable ASCII characters"),
        (("--adapter", "x"), "an adapter is given as NAME=FOLDER, got 'x'"),
        (("--engine", "http://localhost:1/v1", "--adapter", "x=y"), "--adapter goes with a model of this machine"),
        (("--engine", "http://localhost:1/v1", "--quantize", "int8"), "--quantize goes with a model of this machine"),
        (("--engine", "http://localhost:1/v1", "--model", "other"), "--model goes with a model of this machine"),
        (
            ("--engine", "http://localhost:1/v1", "--setting", "max_running=4"),
            "the setting max_running is of this machine",
        ),
        (
            ("--model", "openai:http://localhost:1", "--quantize", "int8"),
            "--quantize goes with a model of this machine",
        ),
        (("--engine", "localhost"), "localhost"),
        (("--engine-key-env", "KEY"), "--engine-key-env goes with --engine"),
        (("--host", "203.0.113.7"), "cannot listen at 203.0.113.7"),
        (("--port", "0", "--model", "./no-such-folder"), "no-such-folder"),
    ],
)
def test_mistakes(run: Run, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str) -> None:
    monkeypatch.setattr(logs, "log_to", lambda _stream: None)
    result = run("serve", *arguments)
    assert (result.code, result.out) == (2, "")
    assert message in result.err
    assert [line[:7] for line in result.err.splitlines()] == ["error: "]


def test_a_port_that_is_taken(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = run("serve", "--port", str(port))
    assert result.code == 2
    assert f"cannot listen at 127.0.0.1:{port}: Address already in use; choose another --port" in result.err
