"""The loop: it learns, and a run that was stopped ends where an uninterrupted one does."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from safetensors.torch import load_file

from qwen2_audio.checkpoints.load import load_model
from qwen2_audio.checkpoints.merge import merge_trained, own_weights
from qwen2_audio.errors import UsageError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.config import TrainConfig, load_train_config
from qwen2_audio.training.datasets import JsonLinesDataset, build_example
from qwen2_audio.training.trainer import LOG, STATE, Trainer, train
from tests.tiny import sound


@pytest.fixture
def plan(tmp_path: Path, folder: Path) -> TrainConfig:
    rows: list[dict[str, object]] = []
    for i, text in enumerate(["the cat", "hello world", "the dog barked", "the man"]):
        soundfile.write(tmp_path / f"{i}.wav", sound(0.3 + 0.2 * i, seed=i), 16_000)
        content = [{"type": "audio", "audio": f"{i}.wav"}, {"type": "text", "text": "What is said?"}]
        rows.append({"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": text}]})
        rows.append({"audio": f"{i}.wav", "prompt": "recognize the speech:", "gt": text})
    data = tmp_path / "data.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in rows))
    return TrainConfig(
        model=str(folder), data=str(data), out=str(tmp_path / "run"), lora_rank=4, lora_learning_rate=1e-2,
        learning_rate=1e-2, batch_tokens=150, steps=12, save_every=5, precision="float32",
    )  # fmt: skip


def silent(_: str) -> None:
    pass


def losses(plan: TrainConfig) -> list[float]:
    return [json.loads(line)["loss"] for line in (Path(plan.out) / LOG).read_text().splitlines()]


def test_loss_falls(plan: TrainConfig) -> None:
    plan = replace(plan, steps=40)
    train(plan, silent)
    seen = losses(plan)
    assert len(seen) == 40
    assert sum(seen[-5:]) < 0.7 * sum(seen[:5])


def test_resumed_equals_uninterrupted(plan: TrainConfig) -> None:
    whole = load_file(train(replace(plan, out=plan.out + "-whole"), silent))

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


def test_a_run_is_not_mixed_with_another(plan: TrainConfig) -> None:
    train(replace(plan, steps=1), silent)
    with pytest.raises(UsageError, match=r"was started with lora_rank=4, not 8; go on with that"):
        Trainer(replace(plan, lora_rank=8), silent)
    with pytest.raises(UsageError, match="holds a run already"):
        Trainer(replace(plan, resume="never"), silent)
    resumed = Trainer(replace(plan, steps=3, save_every=1, learning_rate=0.5), silent)
    assert resumed.step == 1
    assert resumed.optimizer.param_groups[1]["peak"] == 0.5


def test_a_loss_that_is_no_number_ends_the_run(plan: TrainConfig) -> None:
    plan = replace(plan, learning_rate=1e30, lora_learning_rate=1e30, clip_norm=1e30, warmup=0.0, save_every=1)
    with pytest.raises(UsageError, match=r"no number any more at step \d+ .*read the lines \[\d"):
        train(plan, silent)
    saved = torch.load(Path(plan.out) / STATE, weights_only=True)
    assert saved["step"] == len(losses(plan)) >= 1


def test_result_merges_into_the_model(plan: TrainConfig, folder: Path) -> None:
    trainer = Trainer(replace(plan, lora_learning_rate=1e-3), silent)
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


def test_every_repetition_is_augmented_anew(plan: TrainConfig, processor: Processor) -> None:
    data = JsonLinesDataset(Path(plan.data), processor, build_example, augmented=1.0)
    plain = JsonLinesDataset(Path(plan.data), processor, build_example)
    once, again, later = data[1], data[1], data[1 + len(data)]
    assert torch.equal(once.clips[0].mel, again.clips[0].mel)
    assert once.clips[0].mel.shape != later.clips[0].mel.shape
    assert torch.equal(plain[1].clips[0].mel, plain[1 + len(plain)].clips[0].mel)


def test_recomputing_changes_nothing_but_the_memory(plan: TrainConfig) -> None:
    encoder = r"(audio_tower|language_model\.model)\.layers\.\d+\.(fc1|mlp\.up_proj)"
    a, b = (
        load_file(
            train(replace(plan, steps=4, lora=encoder, recompute=recompute, out=f"{plan.out}-{recompute}"), silent)
        )
        for recompute in (False, True)
    )
    for name, tensor in a.items():
        torch.testing.assert_close(b[name], tensor, atol=1e-6, rtol=0)


def test_only_what_is_asked_for_is_trained(plan: TrainConfig) -> None:
    trainer = Trainer(replace(plan, lora="", train=r"multi_modal_projector\.linear\.bias"), silent)
    assert [n for n, p in trainer.model.named_parameters() if p.requires_grad] == ["multi_modal_projector.linear.bias"]
    with pytest.raises(UsageError, match="nothing to train"):
        Trainer(replace(plan, lora="", train="nothing"), silent)
    with pytest.raises(UsageError, match="LoRA target"):
        Trainer(replace(plan, lora="nothing"), silent)


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
