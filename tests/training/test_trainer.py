"""The loop: it learns, and a run that was stopped ends where an uninterrupted one does."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from qwen2_audio.checkpoints.load import load_model
from qwen2_audio.checkpoints.merge import merge_trained, own_weights
from qwen2_audio.checkpoints.sample import sample_of
from qwen2_audio.cli.main import app
from qwen2_audio.errors import CheckpointError, UsageError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.checkpointing import STATE, Checkpoints
from qwen2_audio.training.collate import pack
from qwen2_audio.training.config import GROUPS, GroupConfig, TrainConfig, load_train_config
from qwen2_audio.training.datasets import Rows, build_example
from qwen2_audio.training.losses import hear, target_losses
from qwen2_audio.training.signals import stop_signals
from qwen2_audio.training.tracking import LOG
from qwen2_audio.training.trainer import Trainer, train
from tests.tiny import tiny_folder, tiny_model
from tests.training.plans import losses, silent, small_plan


@pytest.fixture
def plan(tmp_path: Path, folder: Path) -> TrainConfig:
    return small_plan(tmp_path, folder)


def test_loss_falls(plan: TrainConfig) -> None:
    plan = replace(plan, steps=40)
    train(plan, silent)
    seen = losses(plan)
    assert len(seen) == 40
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])


def stop_once_saved(plan: TrainConfig) -> None:
    """Train up to the first checkpoint."""

    class StopError(Exception):
        pass

    trainer = Trainer(plan, silent)
    save = trainer._save

    def save_and_stop() -> None:
        save()
        raise StopError

    trainer._save = save_and_stop  # type: ignore[method-assign]
    with pytest.raises(StopError):
        trainer.run()


def test_resumed_equals_uninterrupted(plan: TrainConfig) -> None:
    whole = load_file(train(replace(plan, out=plan.out + "-whole"), silent))
    stop_once_saved(plan)
    said: list[str] = []
    resumed = load_file(train(replace(plan, workers=2), said.append))
    assert said[0] == "resumed at step 5"
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=0)


def test_a_signal_saves_first_and_nothing_is_lost(plan: TrainConfig) -> None:
    whole = load_file(train(replace(plan, out=plan.out + "-whole"), silent))
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("step 1 "):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        train(plan, say)
    assert said[-1] == "stopped after step 2, saved; run it again to go on"
    resumed = load_file(train(plan, said.append))
    assert "resumed at step 2" in said
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=0)


def test_a_row_that_cannot_be_used_costs_nothing(plan: TrainConfig) -> None:
    plan = replace(plan, save_every=100)
    whole = load_file(train(replace(plan, out=plan.out + "-whole"), silent))
    data = Path(str(plan.data))
    good = data.read_text()
    data.write_text("\n".join([*good.splitlines()[:-1], "{"]))
    with pytest.raises(UsageError, match="line 8"):
        train(plan, silent)
    learnt = losses(plan)
    assert learnt
    data.write_text(good)
    said: list[str] = []
    resumed = load_file(train(plan, said.append))
    assert said[0] == f"resumed at step {len(learnt)}"
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, atol=1e-6, rtol=0)


def test_a_stop_that_comes_twice_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("qwen2_audio.training.signals.time.monotonic", lambda: now[0])
    stopped = []
    with pytest.raises(KeyboardInterrupt), stop_signals(lambda: stopped.append(now[0])):
        for now[0] in (0.0, 0.1):
            signal.raise_signal(signal.SIGINT)
        assert stopped == [0.0, 0.1]
        now[0] = 5.0
        signal.raise_signal(signal.SIGINT)


def test_a_run_goes_on_from_what_it_was_started_from(plan: TrainConfig) -> None:
    start = Path(plan.out + "-start.safetensors")
    train(plan, silent)
    shutil.copy(Path(plan.out) / "trained.safetensors", start)
    second = replace(plan, out=plan.out + "-second", start=str(start), steps=1)
    train(second, silent)
    assert Trainer(replace(second, steps=2), silent).step == 1
    going_on = Trainer(replace(second, steps=2), silent)
    train(replace(plan, steps=13), silent)
    shutil.copy(Path(plan.out) / "trained.safetensors", start)
    going_on.run()  # and saves, though the file is another one meanwhile
    with pytest.raises(UsageError, match=r"was started from another .*-start\.safetensors than is there now"):
        Trainer(replace(second, steps=2), silent)


def test_a_run_is_not_mixed_with_another(plan: TrainConfig) -> None:
    train(replace(plan, steps=1), silent)
    with pytest.raises(
        UsageError, match=r"was started with language_model=.*'rank': 4.* not .*'rank': 8.*; go on with that"
    ):
        Trainer(replace(plan, language_model=replace(plan.language_model, rank=8)), silent)
    with pytest.raises(UsageError, match="holds a run already"):
        Trainer(replace(plan, resume="never"), silent)
    resumed = Trainer(replace(plan, steps=3, save_every=1, projector=GroupConfig("full", 0.5)), silent)
    assert resumed.step == 1
    assert {g["name"]: g["peak"] for g in resumed.engine.optimizer.param_groups}["projector"] == 0.5


def test_data_sets_in_another_order_are_another_run(plan: TrainConfig) -> None:
    """Rows are drawn from them by their numbers."""
    more = Path(str(plan.data)).with_name("more.jsonl")
    more.write_bytes(Path(str(plan.data)).read_bytes())
    one, two = {str(plan.data): 1.0, str(more): 1.0}, {str(more): 1.0, str(plan.data): 1.0}
    train(replace(plan, steps=1, data=one), silent)
    assert Trainer(replace(plan, steps=2, data=dict(one)), silent).step == 1
    with pytest.raises(UsageError, match="was started with data="):
        Trainer(replace(plan, steps=2, data=two), silent)


def test_a_run_of_an_earlier_version_is_gone_on_with_and_one_of_another_model_is_not(plan: TrainConfig) -> None:
    train(replace(plan, steps=1), silent)
    (file,) = Path(plan.out).glob(f"checkpoints/*/{STATE}")
    state = torch.load(file, weights_only=True)
    del state["config"]["encoder"]["layers"], state["sample"]  # which it did not have
    torch.save(state, file)
    assert Trainer(plan, silent).step == 1
    state["sample"] = sample_of(tiny_model(seed=5).state_dict())
    torch.save(state, file)
    with pytest.raises(UsageError, match=r"was started on another model than what .* is now"):
        Trainer(plan, silent)


def test_a_loss_that_is_no_number_ends_the_run(plan: TrainConfig) -> None:
    wild = {name: replace(getattr(plan, name), learning_rate=1e30) for name in ("projector", "language_model")}
    plan = replace(plan, **wild, clip_norm=1e30, warmup=0.0, save_every=1)
    with pytest.raises(UsageError, match=r"no number any more at step \d+ .*read .*data\.jsonl, line \d"):
        train(plan, silent)
    saved = torch.load(Checkpoints(Path(plan.out), 2).finished()[-1] / STATE, weights_only=True)
    assert saved["step"] == len(losses(plan)) >= 1


def test_result_merges_into_the_model(plan: TrainConfig, folder: Path) -> None:
    trainer = Trainer(replace(plan, language_model=replace(plan.language_model, learning_rate=1e-3)), silent)
    result = trainer.run()
    model = load_model(folder)
    own_weights(model)
    merge_trained(model, result)
    ids = torch.arange(30)
    with torch.no_grad():
        expected = trainer.model(ids, [30])
        torch.testing.assert_close(model(ids, [30]), expected, atol=2e-2, rtol=1e-2)  # LoRA is kept in half precision
        assert not torch.allclose(_fresh(folder)(ids, [30]), expected, atol=2e-2, rtol=1e-2)


def _fresh(folder: Path) -> Qwen2Audio:
    return load_model(folder)


def test_hearing_is_learnt_from_what_is_spoken(plan: TrainConfig) -> None:
    data = Path(plan.data)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    said = [{**row, "spoken": "the cat"} for row in rows]
    with pytest.raises(UsageError, match="spoken_weight needs rows"):
        Trainer(replace(plan, spoken_weight=0.5), silent)
    data.write_text("\n".join(json.dumps(row) for row in said))
    train(replace(plan, spoken_weight=2.0, augmented=0.1, steps=40), silent)
    log = [json.loads(line)["spoken"] for line in (Path(plan.out) / LOG).read_text().splitlines()]
    assert sum(log[-5:]) < 0.8 * sum(log[:5])


def test_what_is_written_of_speech_is_misread_and_nothing_else(plan: TrainConfig, processor: Processor) -> None:
    data = Path(plan.data)
    row, *rest = (json.loads(line) for line in data.read_text().splitlines())
    rows = [{**row, "spoken": "the cat"}, {**row, "spoken": "the dog"}, row, *rest]
    data.write_text("\n".join(json.dumps(row) for row in rows))
    stage = Trainer(replace(plan, misread=1.0), silent).stage
    example, *others = (stage.item(position) for position in range(4))
    wrong = [i for i, (a, b) in enumerate(zip(example.ids, example.read, strict=True)) if a != b]
    assert wrong
    assert all(example.learnt[i] and example.read[i] in processor.tokenizer.encode("the cat") for i in wrong)
    assert not any(other.read for other in others)
    batch, true = pack([example, *others]), pack([replace(example, read=[]), *others])
    assert torch.equal(batch.targets, true.targets)
    assert (batch.ids != true.ids).nonzero().flatten().tolist() == wrong
    assert stage.item(0).read == example.read
    assert any(stage.item(len(rows) * i).read != example.read for i in range(1, 9))


def test_every_repetition_is_augmented_anew(plan: TrainConfig, processor: Processor) -> None:
    data = Rows(plan.data, processor, build_example, augmented=1.0)
    plain = Rows(plan.data, processor, build_example)
    once, again, later = data[1], data[1], data[1 + len(data)]
    assert torch.equal(once.clips[0].mel, again.clips[0].mel)
    assert once.clips[0].mel.shape != later.clips[0].mel.shape
    assert torch.equal(plain[1].clips[0].mel, plain[1 + len(plain)].clips[0].mel)


def test_a_row_that_gets_too_long_stays_as_it_is(
    plan: TrainConfig, processor: Processor, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, data = (Rows(plan.data, processor, build_example, augmented=share) for share in (0.0, 1.0))
    fits = len(plain[6].ids)
    positions = range(6, 6 + 20 * len(data), len(data))
    assert max(len(data[position].ids) for position in positions) > fits
    monkeypatch.setattr(processor, "context_length", fits)
    assert max(len(data[position].ids) for position in positions) == fits


def test_recomputing_changes_nothing_but_the_memory(plan: TrainConfig) -> None:
    some = {
        "encoder": GroupConfig("lora", 1e-2, rank=4, targets=("fc1",)),
        "language_model": GroupConfig("lora", 1e-2, rank=4, targets=("up_proj",)),
    }
    a, b = (
        load_file(train(replace(plan, steps=4, **some, recompute=recompute, out=f"{plan.out}-{recompute}"), silent))
        for recompute in (False, True)
    )
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=1e-6, rtol=0)


def test_only_what_is_asked_for_is_trained(plan: TrainConfig) -> None:
    frozen = replace(plan, projector=GroupConfig(), language_model=GroupConfig())
    with pytest.raises(UsageError, match="nothing learns"):
        Trainer(frozen, silent)
    trainer = Trainer(replace(frozen, projector=GroupConfig("full")), silent)
    assert trainer.learns == [f"multi_modal_projector.linear.{name}" for name in ("weight", "bias")]
    every = replace(frozen, **{name: GroupConfig("full") for name in GROUPS})
    names = {name for name, _ in trainer.model.named_parameters()}
    assert names - set(Trainer(every, silent).learns) == {"audio_tower.embed_positions.weight"}


def test_each_part_has_its_own_learning_rate(plan: TrainConfig) -> None:
    rates = dict(zip(GROUPS, (1e-3, 2e-3, 3e-3, 4e-3, 5e-3), strict=True))
    trainer = Trainer(replace(plan, **{name: GroupConfig("full", rate) for name, rate in rates.items()}), silent)
    assert {group["name"]: group["peak"] for group in trainer.engine.optimizer.param_groups} == rates


@pytest.mark.parametrize("group", ["encoder", "projector", "language_model"])
def test_each_part_learns_by_lora_alone(plan: TrainConfig, group: str, folder: Path) -> None:
    """What was trained, merged, answers as the trained model does, and the loss falls."""
    lora = GroupConfig("lora", 3e-2, rank=4, alpha=8.0)
    frozen = {name: GroupConfig() for name in ("encoder", "projector", "language_model")}
    plan = replace(plan, **{**frozen, group: lora}, steps=20)
    trainer = Trainer(plan, silent)
    result = trainer.run()
    assert sum(losses(plan)[-5:]) < 0.95 * sum(losses(plan)[:5])
    merged, model = load_model(folder), trainer.model.eval()
    merge_trained(merged, result)
    batch = trainer.stage.pack([trainer.stage.item(0)])
    with torch.no_grad():
        of_merged, of_trained = (target_losses(m, batch, hear(m, batch)) for m in (merged, model))
    torch.testing.assert_close(of_merged, of_trained, atol=2e-3, rtol=1e-3)  # corrections are written in half precision


def test_a_part_that_nothing_ran_through_is_gone_on_with(plan: TrainConfig) -> None:
    """The projector, in rows without recordings: no gradient comes to it, and it is as if the run had not been stopped."""
    rows = [json.loads(line) for line in Path(plan.data).read_text().splitlines()][::2]
    heard = [json.dumps(row) for row in rows[:2]]
    written = [json.dumps({"query": "Who barked?", "response": "the dog"})] * 10
    Path(plan.data).write_text("\n".join([*written, *heard]))
    plan = replace(plan, batch_tokens=1, steps=12, save_every=5)
    whole = load_file(train(replace(plan, out=plan.out + "-whole"), silent))
    stop_once_saved(plan)
    for name, tensor in load_file(train(plan, silent)).items():
        torch.testing.assert_close(tensor, whole[name], atol=1e-6, rtol=0)


def test_a_finished_run_without_its_checkpoints_is_not_run_over(plan: TrainConfig) -> None:
    plan = replace(plan, steps=1)
    result = train(plan, silent)
    shutil.rmtree(Path(plan.out) / "checkpoints")
    before = result.read_bytes()
    with pytest.raises(UsageError, match="holds a finished run without its checkpoints"):
        train(plan, silent)
    assert result.read_bytes() == before


def test_lora_does_not_go_on_with_whole_weights(plan: TrainConfig) -> None:
    full = replace(plan, steps=1, language_model=GroupConfig("full", 1e-3))
    result = train(full, silent)
    with pytest.raises(UsageError, match="apart from a correction; merge it first"):
        Trainer(replace(plan, start=str(result), out=plan.out + "-on"), silent)


def test_a_run_knows_the_model_that_it_was_made_of(plan: TrainConfig, folder: Path) -> None:
    result = train(replace(plan, steps=1), silent)
    other = tiny_model(seed=5)
    for trained in (result, result.parent / "adapter"):
        merge_trained(load_model(folder), trained)
        with pytest.raises(CheckpointError, match="was trained on another model"):
            merge_trained(other, trained)
    base = tiny_folder(result.parent.with_name("other"), other)
    refused = CliRunner().invoke(app, ["merge", str(result), f"{plan.out}-a", "--adapter", "--model", str(base)])
    assert refused.exit_code == 2 and "was trained on another model" in refused.stderr
    assert not Path(f"{plan.out}-a").exists()
    on = replace(plan, steps=1, start=str(result), out=plan.out + "-on")
    Trainer(on, silent)
    with pytest.raises(UsageError, match=r"trained\.safetensors was trained on another model, whose .* differs"):
        Trainer(on, silent, other)


def test_bad_data_is_named(plan: TrainConfig, tmp_path: Path) -> None:
    data = tmp_path / "bad.jsonl"
    data.write_text('{"messages": []}\n')
    with pytest.raises(UsageError, match=r"bad\.jsonl, line 1"):
        train(replace(plan, data=str(data)), silent)
    with pytest.raises(UsageError, match="cannot read the training data"):
        train(replace(plan, data=str(tmp_path / "none.jsonl")), silent)


def test_config_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("model: a\ndata: b\nout: c\nsteps: 7\n")
    assert load_train_config(file) == TrainConfig(model="a", data="b", out="c", steps=7)
    file.write_text("model: a\ndata: b\nout: c\nstep: 7\n")
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        load_train_config(file)
    file.write_text("model: a\n")
    with pytest.raises(UsageError, match="data"):
        load_train_config(file)
    file.write_text("model: a\ndata: b\nout: c\nsteps: 0\n")
    with pytest.raises(UsageError, match="steps must be above 0"):
        load_train_config(file)
    file.write_text("model: a\ndata: b\nout: c\nstage: sft\n")
    for changes, said in (
        (["seed=-1"], "seed must be at least 0"),
        (["data={}"], "data must be a source of rows"),
        (["dpo_beta=0.3"], "dpo_beta must be left out"),
        (["dpo_sft_weight=1"], "dpo_sft_weight must be left out"),
        (["evaluation.metric=wer"], "needs evaluation.data"),
        (["misread=0.1", "next_token_weight=0", "spoken_weight=1"], "misread must be 0"),
        (["spoken_weight=0.3", "embeddings.learn=full"], "spoken_weight needs the embeddings as they are"),
    ):
        with pytest.raises(UsageError, match=said):
            load_train_config(file, changes)
