"""`finetune/run.sh`, the entry that the original promises: its arguments, its environment, its mistakes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

from qwen2_audio.api import load
from tests.training.plans import write_rows

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "finetune" / "run.sh"
SMALL = ["steps=3", "language_model.rank=2", "device=cpu", "precision=float32", "trackers=[]", "batch_tokens=150"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    command = ["bash", "run.sh", *arguments]
    return subprocess.run(
        command, cwd=SCRIPT.parent, env=settings | environment, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("processes", ["1", "2"])
def test_lora(tmp_path: Path, folder: Path, processes: str) -> None:
    train, held = write_rows(tmp_path), write_rows(tmp_path, "eval.jsonl")
    files = ["--lora", "--train_file", str(train), "--eval_file", str(held), "--model", str(folder)]
    result = run(*files, "--output_dir", str(tmp_path / "out"), *SMALL, GPUS_PER_NODE=processes, MASTER_PORT="0")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == str(tmp_path / "out/trained.safetensors")
    log = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in log if "eval_loss" in row] == [0, 3]
    assert load(folder, adapter=tmp_path / "out/adapter", device="cpu").chat("hello", max_new_tokens=3).tokens


def test_all_parameters(tmp_path: Path, folder: Path) -> None:
    files = ["--train_file", str(write_rows(tmp_path)), "--model", str(folder), "--output_dir", str(tmp_path / "out")]
    small = [change for change in SMALL if "rank" not in change]
    result = run(*files, *small, GPUS_PER_NODE="1")
    assert result.returncode == 0, result.stderr
    assert "no adapter was written" in result.stderr
    with safe_open(tmp_path / "out/trained.safetensors", framework="pt") as file:
        names = set(file.keys())
    assert {"audio_tower.conv1.weight", "language_model.lm_head.weight", "language_model.model.norm.weight"} <= names


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give the rows to learn from: --train_file FILE"),
        (["--train_fil", "x"], "unknown argument --train_fil"),
        (["--train_file"], "--train_file needs a value"),
        (["--train_file", "x", "--engine", "horovod"], "unknown engine horovod"),
        (["--train_file", "x", "--lora", "--config", "y.yaml"], "give one of them"),
        (["--train_file", "x", "--resume", "now"], "resume must be one of auto, never, got 'now'"),
        (["--train_file", "none.jsonl", "--lora", "steps=1"], "cannot read the training data none.jsonl"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, tmp_path: Path, folder: Path) -> None:
    if "steps=1" in arguments:
        arguments = [*arguments, "--model", str(folder), "--output_dir", str(tmp_path / "out")]
    result = run(*arguments)
    assert result.returncode == 2
    assert said in result.stderr and result.stderr.count("\n") == 1


def test_help() -> None:
    assert "--train_file FILE" in run("--help").stdout
