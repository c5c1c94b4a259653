"""`train` takes a stage, a file and changes to it, and ends with the file that was trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from typer.testing import CliRunner

from qwen2_audio.cli.main import app


@pytest.fixture
def plan(tmp_path: Path, folder: Path) -> Path:
    pair = {"query": "Hello", "chosen": "the cat", "rejected": "a dog"}
    plain = {"query": "Hello", "response": "the cat"}
    for name, value in (("pairs", pair), ("rows", plain)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(value))
    file = tmp_path / "run.yaml"
    file.write_text(
        f"model: {folder}\ndata: {tmp_path}/rows.jsonl\nout: {tmp_path}/run\nsteps: 2\nlanguage_model: {{rank: 2}}\n"
    )
    return file


@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_stages(plan: Path, tmp_path: Path, stage: str) -> None:
    changes = [f"data={tmp_path}/pairs.jsonl", "projector.learn=frozen"] if stage == "dpo" else []
    result = CliRunner().invoke(app, ["train", stage, "--config", str(plan), "language_model.rank=3", *changes])
    assert result.exit_code == 0, result.output
    trained = Path(result.stdout.strip().splitlines()[-1])
    with safe_open(trained, framework="pt") as file:
        ranks = {file.get_slice(name).get_shape()[0] for name in file.keys() if name.endswith("lora_A")}  # noqa: SIM118
    assert ranks == {3}


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["stp=3"], "unknown key 'stp'; did you mean 'steps'?"),
        (["steps"], "'steps' changes nothing; write key=value"),
        (["precision=int8"], "precision must be one of auto, float32, bfloat16, got 'int8'"),
        (
            ["projector.learning_rate=1e-3"],
            "projector.learning_rate must be of type float, got '1e-3' (YAML takes 1e-3 for a text; write 1.0e-3)",
        ),
        (["head.lern=full"], "unknown key 'head.lern'; did you mean 'head.learn'?"),
        (
            ["embeddings.learn=lora"],
            "embeddings are no linear layer and cannot learn by lora; use embeddings.learn=full",
        ),
        (
            ["language_model.targets=[q_prj]"],
            "language_model.targets has 'q_prj', which is no linear layer of it; there are down_proj",
        ),
        (["language_model.layers=[0, 9]"], "language_model.layers has 9, which is no layer of it; there are 0 to "),
        (["projector.layers=[0]"], "projector.layers has 0, which is no layer of it; it has none"),
        (["model=/no/such/model"], "/no/such/model"),
        (["--resume", "sometimes"], "resume must be one of auto, never, got 'sometimes'"),
        (["projector.targets=[linear]"], "targets must be left out where a part learns in full"),
        (["next_token_weight=0.0", "spoken_weight=1.0"], "freeze it: language_model.learn=frozen"),
        (["stage=dpo"], "is for stage 'dpo', not 'sft'; give another file, or stage=sft"),
    ],
)
def test_bad_changes_are_one_line(plan: Path, arguments: list[str], reason: str) -> None:
    result = CliRunner().invoke(app, ["train", "sft", "--config", str(plan), *arguments])
    assert result.exit_code == 2
    assert reason in result.stderr and result.stderr.count("\n") == 1


@pytest.mark.parametrize("change", ["distil=0.5", "misread=0.1", "spoken_weight=0.1", "next_token_weight=0.5"])
def test_what_a_stage_does_not_use_is_refused(plan: Path, change: str) -> None:
    result = CliRunner().invoke(app, ["train", "dpo", "--config", str(plan), change])
    assert result.exit_code == 2 and 'in stage "dpo", which does not use it' in result.stderr


def test_unknown_stage_and_file(plan: Path) -> None:
    assert CliRunner().invoke(app, ["train", "tune", "--config", str(plan)]).exit_code == 2
    missing = CliRunner().invoke(app, ["train", "sft", "--config", "none.yaml"])
    assert missing.exit_code == 2 and "cannot read the training configuration none.yaml" in missing.stderr
