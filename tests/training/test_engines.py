"""Every engine that accelerate launches computes what one process computes: DDP, FSDP2, DeepSpeed's ZeRO 1 to 3 and offload."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file

from qwen2_audio.training.tracking import LOG
from tests.tiny import sound, tiny_config, tiny_folder, tiny_model

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "accelerate"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT / "src")}
STEPS = 3


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of equal numbers of tokens, some with a recording and some without: of each pair, one process gets either."""
    place = tmp_path_factory.mktemp("plan")
    # with so few mel bins, layers are larger than the convolutions, and ZeRO 3 shares them out
    folder = tiny_folder(place / "tiny", tiny_model(tiny_config(mel_bins=16)))
    rows = []
    for i in range(4):
        soundfile.write(place / f"{i}.wav", sound(0.5, seed=i), 16_000)
        rows.append({"query": "<audio>What?", "response": "the cat", "audio": f"{i}.wav"})
        rows.append(
            {"query": "What is this world and the man and the dog?", "response": "the man was walking in the rain"}
        )
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    settings = {
        "model": str(folder), "data": str(place / "rows.jsonl"), "steps": STEPS, "shuffle": False, "trackers": [],
        "encoder": {"learn": "full", "learning_rate": 1.0e-3}, "projector": {"learning_rate": 1.0e-2},
        "language_model": {"learn": "lora", "rank": 2, "learning_rate": 1.0e-2}, "head": {"learn": "full"},
        "precision": "float32", "device": "cpu", "save_every": 2, "batch_tokens": 1, "clip_norm": 0.5,
        "schedule": "constant", "warmup": 0.0,
    }  # fmt: skip
    file = place / "run.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def launch(engine: str, plan: Path, out: Path, *changes: str) -> None:
    """Two processes on the CPU with one of our configurations."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(CONFIGS / f"{engine}.yaml")]
    command += ["--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
    command += ["-m", "qwen2_audio.cli.main", "train", "sft", "--config", str(plan), f"out={out}", *changes]
    run(command)


def run(command: list[str]) -> None:
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=170)
    assert result.returncode == 0, result.stderr[-9000:]


def losses(folder: Path) -> list[tuple[float, float]]:
    rows = [json.loads(line) for line in (folder / LOG).read_text().splitlines()]
    return [(row["loss"], row["gradient_norm"]) for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def alone(plan: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One process that takes for each step what the two take together, row by row."""
    out = tmp_path_factory.mktemp("one") / "alone"
    command = [sys.executable, "-m", "qwen2_audio.cli.main", "train", "sft", "--config", str(plan), f"out={out}"]
    run([*command, "accumulate=8"])
    return out


@pytest.fixture(scope="module")
def uneven(plan: Path) -> list[str]:
    """Settings: autocast, a spoken-token loss, packs with several clips, later ones with none."""
    rows = [json.loads(line) for line in (plan.parent / "rows.jsonl").read_text().splitlines()]
    spoken = [{**row, "spoken": row["response"]} if "audio" in row else row for row in rows]
    ordered = [*spoken[0::2], *spoken[1::2]]  # the recordings first: packs of some processes hold two, later ones none
    file = plan.parent / "uneven.jsonl"
    file.write_text("\n".join(map(json.dumps, ordered)))
    changes = ["precision=bfloat16", "spoken_weight=0.1", "batch_tokens=150", "steps=4", "projector.learn=full"]
    return [f"data={file}", f"evaluation.data={file}", *changes]


@pytest.fixture(scope="module")
def plain(plan: Path, uneven: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("two") / "plain"
    launch("ddp", plan, out, *uneven)
    return out


@pytest.mark.parametrize("engine", ["fsdp2", "deepspeed_z3"])
def test_bfloat16_with_lora(engine: str, plan: Path, uneven: list[str], plain: Path, tmp_path: Path) -> None:
    """Autocast over weights that stay in float32."""
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    launch(engine, plan, tmp_path / engine, *uneven)
    both = [torch.tensor([row[0] for row in losses(out)]) for out in (plain, tmp_path / engine)]
    torch.testing.assert_close(both[0], both[1], atol=0.1, rtol=0.02)


def test_a_checkpoint_after_a_measurement_that_was_not_better(plan: Path, tmp_path: Path) -> None:
    """Then nothing but the optimizer's state asks for the shares of what was gathered to measure."""
    still = [f"{part}.learning_rate=0.0" for part in ("encoder", "projector", "language_model")]
    measured = [f"evaluation.data={plan.parent / 'rows.jsonl'}", "evaluation.every=1", "save_every=1", "steps=1"]
    launch("fsdp2", plan, tmp_path / "out", *still, *measured, "projector.learn=full")
    assert list((tmp_path / "out" / "checkpoints").iterdir())


@pytest.mark.parametrize(
    "engine",
    [
        "ddp",
        "cpu",
        "fsdp2",
        "deepspeed_z1",
        "deepspeed_z1_offload",
        "deepspeed_z2",
        "deepspeed_z2_offload",
        "deepspeed_z3",
        "deepspeed_z3_offload",
    ],
)
def test_two_processes_are_one(engine: str, plan: Path, alone: Path, tmp_path: Path) -> None:
    """Though the packs of one hold two recordings each, and those of the other none."""
    if engine.startswith("deepspeed"):
        pytest.importorskip("deepspeed")
    out, cut = tmp_path / engine, ["accumulate=2", "batch_tokens=150", "recompute=true"]
    launch(engine, plan, out, *cut, "steps=2")
    launch(engine, plan, out, *cut)  # goes on where that ended
    torch.testing.assert_close(torch.tensor(losses(out)), torch.tensor(losses(alone)), atol=1e-4, rtol=1e-3)
    one, two = load_file(alone / "trained.safetensors"), load_file(out / "trained.safetensors")
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=2e-3, rtol=1e-2, msg=name)
