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
    monkeypatch.setattr(bench, "BATCHES", (1, 2))
    monkeypatch.setattr(bench, "MIXED_SECONDS", (1, 2))
    monkeypatch.setattr(bench, "DECODE_TOKENS", 3)


@pytest.mark.usefixtures("quick")
@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_both_sides(folder: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "--model", str(folder), "--runs", "2", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    each = ["1 x 1 s", "1 x 2 s", "2 x 1 s", "2 x 2 s"]
    kinds = ("features, ", "first token, ", "decode, a step of ")
    rows = [kind + of for kind in kinds for of in each] + ["2 clips of 1 to 2 s, 3 tokens"]
    assert [row["what"] for row in report["rows"]] == rows
    assert all(row["ours"] is not None and row["ratio"] is not None for row in report["rows"])


@pytest.mark.usefixtures("quick")
def test_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = CliRunner().invoke(app, ["bench", "-m", str(folder), "--runs", "1", "--alone"])
    assert result.exit_code == 0, result.output
    assert "first token, 1 x 2 s" in result.stdout
    refused = CliRunner().invoke(app, ["bench", "-m", str(folder), "--runs", "1"])
    assert refused.exit_code == 2
