"""Preference training: the formula, the reference, and that the preferred answers win."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import soundfile
import torch
from torch.nn.functional import log_softmax

from qwen2_audio.errors import UsageError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.collate import pack_pairs
from qwen2_audio.training.config import GroupConfig, TrainConfig
from qwen2_audio.training.datasets import build_pair
from qwen2_audio.training.lora import add_lora, without_lora
from qwen2_audio.training.losses import answer_log_probs, hear, preference_loss
from qwen2_audio.training.tracking import LOG
from qwen2_audio.training.trainer import Trainer, train
from tests.tiny import sound, tiny_model

ROWS = [
    {"query": "<audio>What?", "chosen": "the cat", "rejected": "a dog barked", "audio": "0.wav"},
    {"query": "Hello", "chosen": "hello world", "rejected": "the man"},
    {"query": "<audio>and<audio>", "chosen": "the man", "rejected": "glass", "audios": ["1.wav", "0.wav"]},
]


@pytest.fixture
def plan(tmp_path: Path, folder: Path) -> TrainConfig:
    for i in range(2):
        soundfile.write(tmp_path / f"{i}.wav", sound(0.4 + 0.3 * i, seed=i), 16_000)
    data = tmp_path / "pairs.jsonl"
    data.write_text("\n".join(json.dumps(row) for row in ROWS))
    return TrainConfig(
        model=str(folder), data=str(data), out=str(tmp_path / "run"), stage="dpo", batch_tokens=200, steps=25,
        projector=GroupConfig(), language_model=GroupConfig("lora", 1e-2, rank=4, alpha=8.0), precision="float32",
        shuffle=False, trackers=(),
    )  # fmt: skip


def silent(_: str) -> None:
    pass


def test_the_formula_and_its_gradient() -> None:
    """As published (and as in trl's `sigmoid` loss): -log sigmoid(beta * (difference of log-ratios))."""
    generator = torch.Generator().manual_seed(0)
    values = [torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True) for _ in range(4)]
    ours = preference_loss(*values, 0.3)
    chosen, rejected, reference_chosen, reference_rejected = values
    logits = (chosen - rejected) - (reference_chosen - reference_rejected)
    plain = -torch.log(1 / (1 + torch.exp(-0.3 * logits)))
    torch.testing.assert_close(ours, plain)
    for a, b in zip(torch.autograd.grad(ours.sum(), values), torch.autograd.grad(plain.sum(), values), strict=True):
        torch.testing.assert_close(a, b)


def test_log_probabilities_in_a_pack_are_those_of_each_answer(
    model: Qwen2Audio, processor: Processor, plan: TrainConfig
) -> None:
    folder = Path(plan.data).parent
    pairs = [(i, *build_pair(row, folder, processor)) for i, row in enumerate(ROWS)]
    batch = pack_pairs(pairs)
    assert (len(batch.clips), batch.hears) == (3, [0, 0, 1, 2, 1, 2])
    with torch.no_grad():
        together = answer_log_probs(model, batch, hear(model, batch))
        alone = []
        for _, *both in pairs:
            for example in both:
                clips = example.clips
                audio = model.encode_audio([c.mel for c in clips], [c.frames for c in clips]) if clips else None
                logits = log_softmax(model(torch.tensor(example.ids), [len(example.ids)], audio), -1)
                learnt = [i for i, is_learnt in enumerate(example.learnt) if is_learnt]
                alone.append(sum(logits[i - 1, example.ids[i]] for i in learnt))
    torch.testing.assert_close(together, torch.stack(alone), atol=1e-4, rtol=1e-5)


def test_without_lora_is_the_model_before_it() -> None:
    ids = torch.arange(3, 30)
    model = tiny_model()
    with torch.no_grad():
        before = model(ids, [27])
        add_lora(model, [n for n, m in model.named_modules() if n.endswith("_proj")], rank=4, scale=1.0)
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                torch.nn.init.normal_(parameter)
        with without_lora(model):
            assert torch.equal(model(ids, [27]), before)
        assert not torch.allclose(model(ids, [27]), before)


def test_preferred_answers_win(plan: TrainConfig) -> None:
    train(plan, silent)
    log = [json.loads(line) for line in (Path(plan.out) / LOG).read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3)  # at first the model is its own reference
    assert log[-1]["accuracy"] == 1 and log[-1]["margin"] > 0.5


def test_kept_reference_equals_the_model_without_lora(plan: TrainConfig) -> None:
    """With a learning rate of 0 for the projector, both references are the same model."""
    plan = replace(plan, clip_norm=1e9)  # the projector's gradient would count in the norm
    train(plan, silent)
    kept = replace(plan, projector=GroupConfig("full", 0.0), out=plan.out + "-kept")
    train(kept, silent)
    a, b = ([json.loads(line) for line in (Path(p.out) / LOG).read_text().splitlines()] for p in (plan, kept))
    assert [row["margin"] for row in a] == pytest.approx([row["margin"] for row in b], abs=1e-3)
    file = Path(kept.out) / "reference.0-of-1.jsonl"
    assert [json.loads(line)[0] for line in file.read_text().splitlines()] == [0, 1, 2]
    file.write_text("\n".join(file.read_text().splitlines()[:2])[:-5])  # killed in the middle of a line
    again = Trainer(kept, silent).stage._kept  # type: ignore[attr-defined]
    assert sorted(again) == [0, 1, 2]


def test_a_lora_that_is_gone_on_with_is_its_own_reference(plan: TrainConfig) -> None:
    """Without its LoRA the model would be what it was before that was trained."""
    file = train(replace(plan, steps=5), silent)
    train(replace(plan, steps=1, start=str(file), out=plan.out + "-on"), silent)
    (row,) = (json.loads(line) for line in (Path(plan.out + "-on") / LOG).read_text().splitlines())
    assert row["loss"] == pytest.approx(0.6931, abs=1e-4) and row["margin"] == pytest.approx(0, abs=1e-4)


def test_the_reference_of_another_start_under_the_same_name_is_not_kept(plan: TrainConfig) -> None:
    file = train(replace(plan, steps=1), silent)
    on = replace(plan, steps=1, start=str(file), out=plan.out + "-on")
    before = Trainer(on, silent).stage._kept  # type: ignore[attr-defined]
    train(replace(plan, steps=5, out=plan.out + "-other"), silent).replace(file)
    after = Trainer(on, silent).stage._kept  # type: ignore[attr-defined]
    assert after.keys() == before.keys() and all(after[row] != before[row] for row in before)


def test_the_reference_of_another_arithmetic_is_not_kept(plan: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    on = replace(
        plan, steps=1, start=str(train(replace(plan, steps=1), silent)), out=plan.out + "-on", precision="auto"
    )
    kept = []
    for native in (False, True):  # as on a machine without fast bfloat16, and on one with it
        monkeypatch.setattr("qwen2_audio.training.trainer.has_native_bfloat16", lambda _device, native=native: native)
        kept.append(Trainer(on, silent).stage._kept)  # type: ignore[attr-defined]
    assert kept[0].keys() == kept[1].keys() and all(kept[0][row] != kept[1][row] for row in kept[0])


def test_bad_plans(plan: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="augmented needs a reference that hears the same"):
        Trainer(replace(plan, projector=GroupConfig("full"), augmented=0.5), silent)
    file = tmp_path / "plain.jsonl"
    file.write_text('{"query": "Hi", "response": "Hello"}')
    with pytest.raises(UsageError, match='line 1: preference training needs rows with "chosen"'):
        train(replace(plan, data=str(file)), silent)
