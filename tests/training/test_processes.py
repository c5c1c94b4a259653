"""Two processes do what one does, and a run that is killed loses nothing but the steps after its last saved state."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from qwen2_audio.training.tracking import LOG
from tests.tiny import sound

TRAIN = ["-m", "qwen2_audio.cli.main", "train", "sft", "--config"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def plan(tmp_path: Path, folder: Path) -> Path:
    """Rows of equal length, so that two processes with one row each see what one process with two rows sees."""
    rows = []
    for i in range(6):
        soundfile.write(tmp_path / f"{i}.wav", sound(0.5, seed=i), 16_000)
        rows.append({"query": "<audio>What?", "response": "the cat", "audio": f"{i}.wav"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {folder}\ndata: {tmp_path}/rows.jsonl\nout: {tmp_path}/run\nsteps: 4\nshuffle: false\n"
        "language_model: {learn: lora, rank: 2, alpha: 4.0, learning_rate: 0.01}\nprecision: float32\nsave_every: 1\n"
        "device: cpu\ntrackers: []\n"
    )
    return file


def losses(folder: Path) -> dict[int, float]:
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return {row["step"]: row["loss"] for row in rows}


def run(arguments: list[str]) -> None:
    command = [sys.executable, *arguments]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr


def test_two_processes_are_one(plan: Path, tmp_path: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run([*launcher, *TRAIN, str(plan), f"out={tmp_path}/two", "batch_tokens=1"])  # a row each
    tokens = json.loads((tmp_path / "two" / LOG).read_text().splitlines()[0])["tokens"]
    run([*TRAIN, str(plan), f"out={tmp_path}/one", f"batch_tokens={tokens}"])  # two rows
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-4)
    single, double = (load_file(tmp_path / name / "trained.safetensors") for name in ("one", "two"))
    for name, tensor in single.items():
        torch.testing.assert_close(double[name], tensor, atol=1e-4, rtol=1e-3)


def test_killed_and_run_again_is_never_killed(plan: Path, tmp_path: Path) -> None:
    whole, killed = (
        [*TRAIN, str(plan), f"out={tmp_path}/{name}", "steps=12", "batch_tokens=90", "save_every=3"]
        for name in ("whole", "killed")
    )
    run(whole)
    log = tmp_path / "killed" / LOG
    for steps in sorted(random.Random(0).sample(range(2, 12), 3)):
        with subprocess.Popen([sys.executable, *killed], env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
            deadline = time.monotonic() + 50
            while not (log.exists() and len(log.read_text().splitlines()) >= steps) and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    run(killed)
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    ends = [load_file(tmp_path / name / "trained.safetensors") for name in ("killed", "whole")]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_two_processes_keep_one_reference(plan: Path, tmp_path: Path) -> None:
    """Each computes its share of the reference's log-probabilities and reads all of them."""
    pairs = [{"query": "<audio>What?", "chosen": "the cat", "rejected": "a dog", "audio": f"{i}.wav"} for i in range(5)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    changes = [f"data={tmp_path}/pairs.jsonl", "batch_tokens=1", "steps=1", f"out={tmp_path}/dpo"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run([*launcher, *("dpo" if word == "sft" else word for word in TRAIN), str(plan), *changes])
    kept = [(tmp_path / "dpo" / f"reference.{rank}-of-2.jsonl").read_text().splitlines() for rank in (0, 1)]
    assert [[json.loads(line)[0] for line in lines] for lines in kept] == [[0, 2, 4], [1, 3]]
    assert losses(tmp_path / "dpo")[1] == pytest.approx(0.6931, abs=1e-4)
