"""`transcribe`: texts on stdout, everything else on stderr, one bad file does not spoil the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import soundfile

from qwen2_audio import api
from qwen2_audio.config import SAMPLE_RATE
from tests.cli.conftest import FakeAssistant, Run
from tests.tiny import sound


@pytest.fixture
def blip(tmp_path: Path) -> Path:
    """A recording that can be read, but that the model refuses."""
    path = tmp_path / "blip.wav"
    soundfile.write(path, sound(0.05), SAMPLE_RATE)
    return path


def test_one_file_is_its_text_alone(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    result = run("transcribe", wav)
    assert (result.code, result.out, result.err) == (0, "heard 0.5 s\n", "")
    assert assistant.calls[0]["temperature"] is None  # the default of `transcribe_many` holds


def test_several_files_have_their_names_in_front(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    result = run("transcribe", wav, wav, wav, "--batch-size", "2", "--temperature", "0.5")
    assert result.out == f"{wav}\theard 0.5 s\n" * 3
    assert [call["together"] for call in assistant.calls] == [2, 1]
    assert assistant.calls[0]["temperature"] == 0.5


def test_bad_files_are_reported_and_the_others_go_on(run: Run, assistant: FakeAssistant, wav: Path, blip: Path) -> None:
    result = run("transcribe", wav, "nothere.wav", blip, wav)
    assert (result.code, result.out) == (2, f"{wav}\theard 0.5 s\n" * 2)
    assert result.err.splitlines() == [
        "error: no such file: nothere.wav; check the path",
        f"error: {blip}: the recording is too short",
    ]


def test_json_lines(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    result = run("transcribe", wav, "nothere.wav", wav, "--json")
    expected = {"file": str(wav), "text": "heard 0.5 s", "duration": 0.5}
    assert [json.loads(line) for line in result.out.splitlines()] == [expected, expected]
    assert result.code == 2


def test_stdin(run: Run, assistant: FakeAssistant, wav: Path) -> None:
    assert run("transcribe", "-", stdin=wav.read_bytes()).out == "heard 0.5 s\n"


def test_no_model_is_loaded_for_nothing(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(api, "load")
    result = run("transcribe", "nothere.wav", "--model", tmp_path)
    assert (result.code, result.out) == (2, "")


def test_a_file_is_needed(run: Run) -> None:
    assert run("transcribe").code == 2
