"""`bench` measures both sides of one checkpoint and says so in text and in JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qwen2_audio.cli import bench
from qwen2_audio.cli.main import app


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "CLIP_SECONDS", (1, 2))
    monkeypatch.setattr(bench, "BATCH_SECONDS", (1, 2))
    monkeypatch.setattr(bench, "DECODE_TOKENS", 3)


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_both_sides(folder: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "--model", str(folder), "--runs", "2", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [row["what"] for row in report["rows"]] == [
        "features, 1 s", "features, 2 s", "first token, 1 s", "first token, 2 s",
        "decode, a token after 1 s", "decode, a token after 2 s", "8 clips of 5 s, 3 tokens", "2 clips of 1 to 2 s, 3 tokens",
    ]  # fmt: skip
    assert all(row["ours"] is not None and row["ratio"] is not None for row in report["rows"])


@pytest.mark.usefixtures("quick")
def test_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = CliRunner().invoke(app, ["bench", "-m", str(folder), "--runs", "1", "--alone"])
    assert result.exit_code == 0, result.output
    assert "first token, 2 s" in result.stdout
    refused = CliRunner().invoke(app, ["bench", "-m", str(folder), "--runs", "1"])
    assert refused.exit_code == 2
