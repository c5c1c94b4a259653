"""However a step is cut into packs, whatever stands beside a row: the same losses, the same gradients."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from qwen2_audio.errors import UsageError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import Processor
from qwen2_audio.training.collate import pack
from qwen2_audio.training.config import GroupConfig, TrainConfig
from qwen2_audio.training.datasets import Rows, build_example
from qwen2_audio.training.feature_cache import FeatureCache
from qwen2_audio.training.groups import choose_what_learns, exported, names_of_trained, start_from
from qwen2_audio.training.losses import hear, next_token_loss
from qwen2_audio.training.trainer import Trainer, train
from tests.tiny import tiny_model
from tests.training.plans import log_of, silent, small_plan


@pytest.fixture
def plan(tmp_path: Path, folder: Path) -> TrainConfig:
    return small_plan(tmp_path, folder)


def close(a: dict[str, Any], b: dict[str, Any], tolerance: float) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        torch.testing.assert_close(tensor, b[name], atol=tolerance, rtol=tolerance, msg=name)


def test_four_packs_of_one_row_are_one_pack_of_four(plan: TrainConfig) -> None:
    sizes = [len(Trainer(plan, silent).stage.item(i).ids) for i in range(8)]
    assert len(set(sizes)) > 3  # unlike lengths, and unlike numbers of targets: a mean of means would differ
    four = replace(plan, batch_tokens=1, accumulate=4, steps=2, out=plan.out + "-four")
    together = replace(plan, batch_tokens=max(sum(sizes[:4]), sum(sizes[4:])), steps=2, out=plan.out + "-together")
    a, b = load_file(train(four, silent)), load_file(train(together, silent))
    assert [row["targets"] for row in log_of(four)] == [row["targets"] for row in log_of(together)]
    for key in ("loss", "gradient_norm"):
        assert [row[key] for row in log_of(four)] == pytest.approx([row[key] for row in log_of(together)], rel=1e-5)
    close(a, b, 1e-3)


def everything_learns() -> Qwen2Audio:
    model = tiny_model().requires_grad_(True)
    model.audio_tower.embed_positions.requires_grad_(False)
    return model


@pytest.mark.filterwarnings("ignore")  # transformers' own
def test_packed_is_padded(plan: TrainConfig, processor: Processor, folder: Path) -> None:
    """Our packs against the padded, masked batch of `transformers`, its clips padded to 30 s: loss and gradients."""
    from transformers import Qwen2AudioForConditionalGeneration

    examples = [Rows(plan.data, processor, build_example)[i] for i in range(6)]
    ours = everything_learns()
    batch = pack(examples)
    loss = next_token_loss(ours, batch, hear(ours, batch)) / len(batch.targets)
    loss.backward()
    theirs = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train()
    longest = max(len(example.ids) for example in examples)
    ids, mask, labels = (torch.full((len(examples), longest), fill) for fill in (0, 0, -100))
    features = torch.zeros(len(examples), batch.clips[0].mel.shape[0], 3000)
    frames = torch.zeros(len(examples), 3000, dtype=torch.int64)
    for i, example in enumerate(examples):
        size = len(example.ids)
        ids[i, :size], mask[i, :size] = torch.tensor(example.ids), 1
        learnt = torch.tensor(example.learnt)
        labels[i, :size] = torch.where(learnt, ids[i, :size], -100)
        (clip,) = example.clips
        silence = (clip.mel.max() - 2.0).clamp(min=-1.5)  # the floor of log-mel features, where nothing sounds
        features[i], frames[i, : clip.frames] = silence, 1
        features[i, :, : clip.mel.shape[1]] = clip.mel
    out = theirs(input_ids=ids, attention_mask=mask, input_features=features, feature_attention_mask=frames)
    their_loss = cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    their_loss.backward()
    torch.testing.assert_close(loss, their_loss, atol=1e-5, rtol=1e-5)
    for name in ("multi_modal_projector.linear.weight", "audio_tower.layers.0.fc1.weight", "audio_tower.conv1.weight"):
        mine, other = ours.get_parameter(name).grad, theirs.get_parameter(f"model.{name}").grad
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-3, msg=name)
    mine = ours.get_parameter("language_model.model.layers.0.self_attn.k_proj.weight").grad
    other = theirs.get_parameter("model.language_model.layers.0.self_attn.k_proj.weight").grad
    torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-3)


def test_packed_is_alone(plan: TrainConfig, processor: Processor) -> None:
    """The gradients of a pack are the sums of those of its rows: nothing sees its neighbours."""
    examples = [Rows(plan.data, processor, build_example)[i] for i in range(8)]
    together, alone = everything_learns(), everything_learns()
    for model, groups in ((together, [examples]), (alone, [[example] for example in examples])):
        for group in groups:
            batch = pack(group)
            next_token_loss(model, batch, hear(model, batch)).backward()
    gradients = [{n: p.grad for n, p in m.named_parameters() if p.requires_grad} for m in (together, alone)]
    close(gradients[0], gradients[1], 1e-4)


def test_a_row_of_weight_three_is_three_rows(plan: TrainConfig, processor: Processor) -> None:
    one, two = (Rows(plan.data, processor, build_example)[i] for i in range(2))
    weighted, repeated = everything_learns(), everything_learns()
    losses = []
    for model, rows in ((weighted, [one, replace(two, weight=3.0)]), (repeated, [one, two, two, two])):
        batch = pack(rows)
        losses.append(next_token_loss(model, batch, hear(model, batch)) / batch.weights.sum())
        losses[-1].backward()
    torch.testing.assert_close(*losses, atol=1e-5, rtol=1e-5)
    gradients = [{n: p.grad for n, p in m.named_parameters() if p.requires_grad} for m in (weighted, repeated)]
    close(gradients[0], gradients[1], 1e-5)


@pytest.mark.parametrize("kind", ["lora", "rslora", "dora"])
@pytest.mark.filterwarnings("ignore")  # peft's own
def test_learning_with_a_correction_is_learning_with_that_of_peft(
    plan: TrainConfig, processor: Processor, kind: str
) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    group = GroupConfig("lora", 1e-2, rank=4, alpha=6.0, targets=("q_proj", "down_proj"), kind=kind)
    ours, theirs = tiny_model(), tiny_model()
    choose_what_learns(ours, replace(plan, projector=GroupConfig(), language_model=group))
    flags = {"use_rslora": kind == "rslora", "use_dora": kind == "dora"}
    config = LoraConfig(r=4, lora_alpha=6, target_modules=r"language_model\..*(q_proj|down_proj)", **flags)
    inject_adapter_in_model(config, theirs)
    generator = torch.Generator().manual_seed(0)
    names = {}
    for name in names_of_trained(ours):
        tensor = ours.get_parameter(name)
        layer, _, matrix = name.rpartition(".")
        end = "lora_magnitude_vector.default.weight" if matrix == "lora_magnitude" else f"{matrix}.default.weight"
        names[name] = f"{layer}.{end}"
        values = torch.randn(tensor.shape, generator=generator) * 0.1 + (1.0 if matrix == "lora_magnitude" else 0.0)
        for model, own in ((ours, name), (theirs, names[name])):
            model.get_parameter(own).data.copy_(values)
    batch = pack([Rows(plan.data, processor, build_example)[i] for i in range(3)])
    losses = [next_token_loss(model, batch, hear(model, batch)) for model in (ours, theirs)]
    torch.testing.assert_close(*losses, atol=1e-4, rtol=1e-5)
    for loss in losses:
        loss.backward()
    for name, other in names.items():
        torch.testing.assert_close(
            ours.get_parameter(name).grad, theirs.get_parameter(other).grad, atol=1e-4, rtol=1e-3, msg=name
        )


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_run_goes_on_from_what_another_trained(plan: TrainConfig, kind: str) -> None:
    """At a greater rank too; the scale of the corrections is not the file's."""
    first = replace(plan, language_model=GroupConfig("lora", 1e-2, rank=4, alpha=8.0, kind=kind), steps=3)
    file = train(first, silent)
    wider = GroupConfig("lora", 1e-2, rank=6, alpha=30.0, kind=kind)
    a = Trainer(first, silent).model
    b = Trainer(replace(first, language_model=wider, start=str(file), out=plan.out + "-b"), silent).model
    ids = torch.arange(30)
    with torch.no_grad():
        torch.testing.assert_close(a(ids, [30]), b(ids, [30]), atol=2e-2, rtol=1e-2)  # the file is in half precision
    frozen = replace(first, start=str(file), projector=GroupConfig(), steps=1, out=plan.out + "-frozen")
    kept, before = load_file(train(frozen, silent)), load_file(file)
    assert torch.equal(kept["multi_modal_projector.linear.bias"], before["multi_modal_projector.linear.bias"])
    narrower = replace(first, language_model=replace(wider, rank=2), start=str(file), out=plan.out + "-c")
    with pytest.raises(UsageError, match=r"in the shape \[4, \d+\] instead of \[2, \d+\]"):
        Trainer(narrower, silent)
    with pytest.raises(UsageError, match="does not have; let that part learn by lora"):
        Trainer(replace(narrower, language_model=GroupConfig()), silent)


def test_scales_are_multiplied_in_when_written(plan: TrainConfig, tmp_path: Path) -> None:
    model = tiny_model()
    choose_what_learns(model, plan)
    state = {name: torch.ones_like(model.get_parameter(name)) for name in names_of_trained(model)}
    written = exported(model, state)
    assert {float(t.flatten()[0]) for name, t in written.items() if name.endswith("lora_B")} == {2.0}
    assert {float(t.flatten()[0]) for name, t in written.items() if name.endswith("lora_A")} == {1.0}
    with pytest.raises(UsageError, match="cannot start from"):
        start_from(model, tmp_path / "none.safetensors")


@pytest.mark.parametrize("learn", ["lora", "full"])
def test_only_the_layers_named_learn(plan: TrainConfig, learn: str) -> None:
    model, everywhere = tiny_model(seed=1), tiny_model(seed=1)
    frozen = replace(plan, projector=GroupConfig(), language_model=GroupConfig())
    choose_what_learns(model, replace(frozen, encoder=GroupConfig(learn, layers=(1,))))
    choose_what_learns(everywhere, replace(frozen, encoder=GroupConfig(learn)))
    names, all_names = names_of_trained(model), names_of_trained(everywhere)
    assert names and names == [name for name in all_names if name.startswith("audio_tower.layers.1.")]
    assert len(names) < len(all_names)


def test_kept_features_are_the_features(plan: TrainConfig, processor: Processor, tmp_path: Path) -> None:
    kept = replace(plan, feature_cache=str(tmp_path / "cache"), out=plan.out + "-kept")
    a, b = load_file(train(plan, silent)), load_file(train(kept, silent))
    close(a, b, 1e-5)
    files = list((tmp_path / "cache").rglob("*.safetensors"))
    assert len(files) == 4 and not list((tmp_path / "cache").rglob("*.part"))
    model = tiny_model()
    clips = [Rows(plan.data, processor, build_example)[i].clips[0] for i in (0, 2, 0)]
    cache = FeatureCache(tmp_path / "cache", model.audio_tower)
    expected = model.audio_tower([clip.mel for clip in clips], [clip.frames for clip in clips])
    torch.testing.assert_close(
        cache.encode(model.audio_tower, clips, torch.device("cpu")), expected, atol=1e-5, rtol=1e-5
    )
    model.audio_tower.conv1.bias.data += 1
    assert FeatureCache(tmp_path / "cache", model.audio_tower).folder != cache.folder
    for bad in ({"augmented": 0.5}, {"encoder": GroupConfig("full")}):
        with pytest.raises(UsageError, match="feature_cache is for an encoder that is frozen"):
            Trainer(replace(kept, **bad, out=plan.out + "-bad"), silent)


def test_four_bits(plan: TrainConfig) -> None:
    pytest.importorskip("bitsandbytes")
    small = replace(plan, quantize="nf4", steps=30, projector=GroupConfig())
    trainer = Trainer(small, silent)
    layer = trainer.model.language_model.model.layers[0].self_attn.q_proj
    assert layer.base.weight.dtype == torch.uint8
    trainer.run()
    losses = [row["loss"] for row in log_of(small)]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    with pytest.raises(UsageError, match="set learn=lora"):
        frozen = replace(small, language_model=GroupConfig(), projector=GroupConfig("full"), out=plan.out + "-x")
        Trainer(frozen, silent)
