"""`data check` says what is in a file, and what is wrong with it, by line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import soundfile
from typer.testing import CliRunner

from qwen2_audio.cli.main import app
from tests.tiny import sound


def rows_of(folder: Path, *extra: str) -> Path:
    soundfile.write(folder / "a.wav", sound(1.0), 16_000)
    good = [
        {"query": "<audio>What?", "response": "the cat", "audio": "a.wav"},
        {"audio": "a.wav", "text": "the cat", "language": "en"},
        {"query": "Hi", "chosen": "yes", "rejected": "no"},
    ]
    file = folder / "rows.jsonl"
    file.write_text("\n".join([*(json.dumps(row) for row in good), "", *extra]))
    return file


def test_a_good_file(folder: Path, tmp_path: Path) -> None:
    file = rows_of(tmp_path)
    result = CliRunner().invoke(app, ["data", "check", str(file), "--model", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["errors"] == []
    assert report["kinds"] == {"chat": 1, "bare": 1, "preference": 1}
    assert (report["clips"], report["seconds"]) == (2, 2.0)
    assert sum(report["histogram"].values()) == len(report["lengths"]) == 3
    assert report["targets"] > 0
    assert "give them files of their own" in result.stderr


def test_no_weights_are_fetched(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot(_name: str, **options: Any) -> str:
        assert "*.safetensors" not in options["allow_patterns"]
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    arguments = ["data", "check", str(rows_of(tmp_path)), "--model", "Qwen/Qwen2-Audio-7B"]
    assert CliRunner().invoke(app, arguments).exit_code == 0


def test_errors_by_line(folder: Path, tmp_path: Path) -> None:
    missing = '{"query": "<audio>", "response": "x", "audio": "none.wav"}'
    file = rows_of(tmp_path, "{", missing, *["[]"] * 20)
    result = CliRunner().invoke(app, ["data", "check", str(file), "--model", str(folder)])
    assert result.exit_code == 2
    assert "3 good rows (1 bare, 1 chat, 1 preference), 22 with errors" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0].startswith("line 5: not JSON") and lines[1].startswith("line 6: no such file")
    assert lines[2] == "line 7: a row is a JSON object, got list" and lines[-1].startswith("... and 2 lines more")


def test_no_rows_or_no_file(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("\n")
    for name, reason in (("empty.jsonl", "holds no rows"), ("none.jsonl", "cannot read the training data")):
        result = CliRunner().invoke(app, ["data", "check", str(tmp_path / name), "--model", str(folder)])
        assert result.exit_code == 2 and reason in result.stderr
