"""Measuring while training: the loss, the answers, the best of a run; its log, its curves, its checkpoints."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from qwen2_audio.cli.main import app
from qwen2_audio.errors import UsageError
from qwen2_audio.training.checkpointing import BEST, RESULT, Checkpoints
from qwen2_audio.training.config import EvalConfig, GroupConfig, TrainConfig
from qwen2_audio.training.plot import CURVES, plot, read_log
from qwen2_audio.training.trainer import Trainer, train
from qwen2_audio.training.validation import score
from tests.training.plans import log_of, silent, small_plan, write_rows


@pytest.fixture
def plan(tmp_path: Path, folder: Path) -> TrainConfig:
    return small_plan(tmp_path, folder)


def test_scores() -> None:
    assert score("wer", ["The cat sat.", "Hello"], ["the cat", "hello there!"]) == pytest.approx(2 / 4)
    assert score("cer", ["abc"], ["abd"]) == pytest.approx(1 / 3)
    assert score("accuracy", ["Dog.", "a cat"], ["dog", "cat"]) == 0.5
    assert score("wer", [""], [""]) == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_answers_get_better_and_the_best_is_kept(plan: TrainConfig, tmp_path: Path, precision: str) -> None:
    held_out = EvalConfig(str(write_rows(tmp_path, "held.jsonl")), every=20, metric="wer", samples=6, max_new_tokens=8)
    plan = replace(plan, steps=80, evaluation=held_out, precision=precision)
    said: list[str] = []
    train(plan, said.append)
    found = [row for row in log_of(plan) if "eval_wer" in row]
    assert [row["step"] for row in found] == [0, 20, 40, 60, 80]
    assert found[-1]["eval_wer"] < 0.4 and found[-1]["eval_loss"] < 0.5 * found[0]["eval_loss"]
    assert any("eval_wer" in line for line in said)
    last, kept = load_file(Path(plan.out) / RESULT), load_file(Path(plan.out) / BEST)
    is_last = all((kept[name] == tensor).all() for name, tensor in last.items())
    assert is_last == (found[-1]["eval_wer"] < min(row["eval_wer"] for row in found[:-1]))


def test_the_loss_measured_is_the_loss(plan: TrainConfig) -> None:
    """On the rows that are learnt from, with nothing learnt: the mean over all targets."""
    still = {name: replace(getattr(plan, name), learning_rate=0.0) for name in ("projector", "language_model")}
    tokens = sum(len(Trainer(plan, silent).stage.item(i).ids) for i in range(8))
    whole = replace(plan, **still, batch_tokens=tokens, steps=1, evaluation=EvalConfig(plan.data, every=1))
    train(whole, silent)
    before, learnt, measured = log_of(whole)
    assert before["eval_loss"] == pytest.approx(learnt["loss"], rel=1e-4)
    assert measured["eval_loss"] == pytest.approx(learnt["loss"], rel=1e-4)


def test_hearing_alone_is_measured(plan: TrainConfig) -> None:
    data = Path(plan.data)
    rows = [{**json.loads(line), "spoken": "the cat"} for line in data.read_text().splitlines()]
    data.write_text("\n".join(map(json.dumps, rows)))
    hear = replace(plan, next_token_weight=0.0, spoken_weight=1.0, language_model=GroupConfig(), steps=2)
    train(replace(hear, evaluation=EvalConfig(plan.data, every=1)), silent)
    found = [row["eval_spoken"] for row in log_of(plan) if "eval_spoken" in row]
    assert len(found) == 3 and found[-1] < found[0]
    assert (Path(plan.out) / BEST).exists()


def test_another_measurement_has_another_best(plan: TrainConfig, tmp_path: Path) -> None:
    measured = EvalConfig(plan.data, every=5)
    trainer = Trainer(replace(plan, evaluation=measured), silent)
    trainer.run()
    assert Trainer(replace(plan, evaluation=replace(measured, every=3)), silent).best == trainer.best
    other = replace(measured, data=str(write_rows(tmp_path, "held.jsonl")))
    assert math.isnan(Trainer(replace(plan, evaluation=other), silent).best)


def test_answers_that_are_not_measured_any_more_leave_the_best_open(plan: TrainConfig) -> None:
    """Engines that share the model measure the loss alone."""
    plan = replace(plan, evaluation=EvalConfig(plan.data, every=5, metric="accuracy", samples=1), steps=1)
    trainer = Trainer(plan, silent)
    trainer.run()
    assert Trainer(plan, silent).best == trainer.best
    (file,) = Path(plan.out).glob("checkpoints/*/state.pt")
    torch.save({**torch.load(file, weights_only=True), "engine": "fsdp2"}, file)
    assert math.isnan(Trainer(plan, silent).best)


def test_features_may_be_kept_within_the_run(plan: TrainConfig) -> None:
    plan = replace(plan, feature_cache=f"{plan.out}/cache/encoder", steps=1)
    Trainer(plan, silent)  # killed before its first checkpoint
    train(plan, silent)
    assert list(Path(plan.out, "cache", "encoder").rglob("*.safetensors"))


def test_steps_that_are_made_again_are_drawn_once(plan: TrainConfig) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    plan = replace(plan, trackers=("tensorboard",), steps=7)
    train(plan, silent)
    shutil.rmtree(Checkpoints(Path(plan.out), 2).finished()[-1])  # as if killed after step 7, before it was saved
    train(plan, silent)
    drawn = EventAccumulator(str(Path(plan.out) / "tensorboard"))
    drawn.Reload()
    assert [event.step for event in drawn.Scalars("loss")] == list(range(1, 8))


def test_the_latest_few_checkpoints_stay(plan: TrainConfig) -> None:
    train(replace(plan, save_every=2, keep=3), silent)
    kept = Checkpoints(Path(plan.out), 3).finished()
    assert [path.name for path in kept] == ["step-00000008", "step-00000010", "step-00000012"]
    adapter = json.loads((Path(plan.out) / "adapter" / "adapter_config.json").read_text())
    assert adapter["r"] == 4 and adapter["modules_to_save"] == ["multi_modal_projector"]


def test_a_folder_of_something_else_is_left_alone(plan: TrainConfig) -> None:
    Path(plan.out).mkdir()
    (Path(plan.out) / "thesis.txt").write_text("years of work")
    with pytest.raises(UsageError, match=r"is not empty and holds no run \(there is thesis\.txt\)"):
        Trainer(plan, silent)


def test_a_damaged_checkpoint_is_named(plan: TrainConfig) -> None:
    train(plan, silent)
    (Checkpoints(Path(plan.out), 2).finished()[-1] / "state.pt").write_bytes(b"nothing")
    with pytest.raises(UsageError, match=r"cannot read the checkpoint .*step-00000012, it is damaged; delete it"):
        Trainer(plan, silent)


def test_too_little_memory_is_not_the_checkpoints_fault(plan: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    train(plan, silent)
    monkeypatch.setattr("qwen2_audio.training.engines.PlainEngine.restore", full)
    with pytest.raises(torch.OutOfMemoryError):
        Trainer(plan, silent)


def test_a_full_disk_is_one_line(plan: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(UsageError, match=r"cannot write .*No space left on device; free space"):
        train(plan, silent)
    assert Checkpoints(Path(plan.out), 2).finished() == []


@pytest.mark.parametrize("name", ["feature_cache", "out"])
def test_a_place_that_cannot_be_written_to_is_one_line(plan: TrainConfig, name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "folder" if name == "feature_cache" else tmp_path / "taken"
    (tmp_path / "taken" / "log.jsonl").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"cannot write .*; free space, or give a place that can be written to"):
        train(replace(plan, **{name: str(place)}), silent)


def test_rows_that_changed_are_not_gone_on_with(plan: TrainConfig) -> None:
    train(replace(plan, steps=5, save_every=5), silent)
    data = Path(plan.data)
    data.write_text("".join(data.read_text().splitlines(keepends=True)[1:]))
    with pytest.raises(UsageError, match=r"the data has \d+ rows, and had \d+ when the run in .* began"):
        Trainer(replace(plan, steps=5, save_every=5), silent)


def test_curves(plan: TrainConfig) -> None:
    plan = replace(plan, evaluation=EvalConfig(plan.data, every=4), trackers=("tensorboard",))
    train(plan, silent)
    out = Path(plan.out)
    assert list((out / "tensorboard").iterdir())
    assert set(read_log(out)) >= {"loss", "eval_loss", "gradient_norm", "tokens_per_second"}
    with (out / "log.jsonl").open("a") as log:
        log.write('{"step": 13, "lo')  # the run is going on
    result = CliRunner().invoke(app, ["train", "plot", str(out)])
    assert result.exit_code == 0 and result.stdout.strip() == str(out / CURVES)
    assert (out / CURVES).read_bytes()[:4] == b"\x89PNG"


def test_no_curves(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read the log .*No such file"):
        plot(tmp_path)
    (tmp_path / "log.jsonl").write_text("")
    with pytest.raises(UsageError, match="holds no steps yet"):
        plot(tmp_path)
    (tmp_path / "log.jsonl").write_text("hello\n{}\n")
    with pytest.raises(UsageError, match="line 1 is not a step"):
        plot(tmp_path)


def test_what_is_not_installed_is_said(plan: TrainConfig) -> None:
    said: list[str] = []
    trainer = Trainer(replace(plan, trackers=("swanlab",)), said.append)
    assert (
        trainer.step == 0 and "swanlab is not installed, so the run is not tracked there: pip install swanlab" in said
    )
    with pytest.raises(UsageError, match="trackers must be any of tensorboard, wandb, swanlab"):
        replace(plan, trackers=("notebook",))
