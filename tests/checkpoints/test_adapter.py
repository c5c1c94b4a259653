"""Adapters: peft reads what we write, we read what peft writes, and both mean the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen2_audio.api import load
from qwen2_audio.checkpoints.adapter import CONFIG, WEIGHTS, write_adapter
from qwen2_audio.checkpoints.merge import merge_trained, read_trained
from qwen2_audio.errors import CheckpointError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from tests.tiny import sound, tiny_model

LAYERS = ("language_model.model.layers.0.self_attn.q_proj", "audio_tower.layers.0.fc1")
IDS = torch.arange(3, 40)


@pytest.fixture
def trained(tmp_path: Path, model: Qwen2Audio) -> Path:
    """What a run gives that trained a LoRA and the projector."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in LAYERS:
        rows, columns = model.get_submodule(layer).weight.shape  # type: ignore[misc]
        tensors[f"{layer}.lora_A"] = torch.randn(2, columns, generator=generator) * 0.3  # type: ignore[call-overload]
        tensors[f"{layer}.lora_B"] = torch.randn(rows, 2, generator=generator) * 0.3  # type: ignore[call-overload]
    for name, tensor in model.multi_modal_projector.state_dict().items():
        tensors[f"multi_modal_projector.{name}"] = tensor + torch.randn(tensor.shape, generator=generator) * 0.1
    file = tmp_path / "trained.safetensors"
    save_file(tensors, file, metadata={"lora_scale": "2.0"})
    return file


@pytest.fixture
def adapter(tmp_path: Path, trained: Path) -> Path:
    found = read_trained(trained)
    write_adapter(tmp_path / "adapter", found.whole, found.corrections, "mini")
    return tmp_path / "adapter"


def merged(path: Path) -> Qwen2Audio:
    model = tiny_model()
    merge_trained(model, path)
    return model


def test_written_and_read_is_the_same(trained: Path, adapter: Path) -> None:
    for (name, a), b in zip(merged(trained).state_dict().items(), merged(adapter).state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=0, msg=name)


@pytest.mark.filterwarnings("ignore")  # peft's and transformers' own
def test_peft_reads_it_as_the_same_model(adapter: Path, folder: Path) -> None:
    from peft import PeftModel
    from transformers import Qwen2AudioForConditionalGeneration

    base = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    theirs = PeftModel.from_pretrained(base, str(adapter)).eval()
    ours = merged(adapter)
    assistant = load(folder, adapter=adapter, device="cpu")
    prompt = assistant.processor.prepare_base([(sound(1.3), 16_000)], "hello")
    with torch.no_grad():
        clip = prompt.clips[0]
        audio = ours.encode_audio([clip.mel], [clip.frames])
        expected = ours(torch.tensor(prompt.ids), [len(prompt.ids)], audio)
        inputs = _their_inputs(folder)
        torch.testing.assert_close(theirs(**inputs).logits[0], expected, atol=1e-4, rtol=0)
        generated = theirs.generate(**inputs, max_new_tokens=12, do_sample=False, repetition_penalty=1.0)
    reply = assistant.complete(
        [(sound(1.3), 16_000)], "hello", max_new_tokens=12, temperature=0, repetition_penalty=1.0
    )  # type: ignore[list-item]
    assert generated[0, len(prompt.ids) :].tolist()[: len(reply.tokens)] == list(reply.tokens)


def _their_inputs(folder: Path) -> Any:
    from transformers import AutoProcessor

    processor = AutoProcessor.from_pretrained(folder)
    text = "<|audio_bos|><|AUDIO|><|audio_eos|>hello"
    return processor(text=text, audio=sound(1.3), sampling_rate=16_000, return_tensors="pt")


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"use_rslora": True},
        {"use_dora": True},
        {"rank_pattern": {"fc1": 2, "layers.0.self_attn.q_proj": 3}, "alpha_pattern": {"linear": 1}},
    ],
    ids=["lora", "rslora", "dora", "patterns"],
)
@pytest.mark.filterwarnings("ignore")
def test_we_read_what_peft_writes(tmp_path: Path, folder: Path, variant: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen2AudioForConditionalGeneration

    base = Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    config = LoraConfig(
        r=4, lora_alpha=6, target_modules=["q_proj", "fc1", "linear"], init_lora_weights=False, **variant
    )
    theirs = get_peft_model(base, config)
    theirs.save_pretrained(str(tmp_path / "theirs"))
    ours = merged(tmp_path / "theirs")
    with torch.no_grad():
        expected = theirs.merge_and_unload()(input_ids=IDS[None]).logits[0]
        torch.testing.assert_close(ours(IDS, [len(IDS)]), expected, atol=1e-4, rtol=0)


def test_names_of_older_classes(adapter: Path, trained: Path) -> None:
    """Before transformers 5 the layers were named as in the checkpoints."""
    older = {
        name.replace("base_model.model.model.language_model.", "base_model.model.language_model.model.").replace(
            "base_model.model.model.", "base_model.model."
        ): tensor
        for name, tensor in load_file(adapter / WEIGHTS).items()
    }
    save_file(older, adapter / WEIGHTS)
    assert torch.equal(merged(adapter)(IDS, [len(IDS)]), merged(trained)(IDS, [len(IDS)]))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"peft_type": "IA3"}, "of the kind IA3"),
        ({"use_dora": True}, "says use_dora=True, which .* contradicts"),
        ({"lora_bias": True}, "uses lora_bias"),
        ({"init_lora_weights": "pissa_niter_4"}, "began as pissa_niter_4, which changes the weights"),
        ({"init_lora_weights": "lora_ga"}, "began as lora_ga, which changes the weights"),
        ({"init_lora_weights": "LoftQ"}, "began as loftq, which changes the weights"),
        ({"alora_invocation_tokens": [1, 2]}, "uses alora_invocation_tokens"),
        ({"lora_alpha": None}, "has no lora_alpha, a number; it is damaged"),
    ],
)
def test_what_cannot_be_merged_is_said(adapter: Path, change: dict[str, Any], named: str) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(CheckpointError, match=named):
        merged(adapter)


def test_unmatched_and_damaged(adapter: Path) -> None:
    tensors = load_file(adapter / WEIGHTS)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    save_file({k: v for k, v in tensors.items() if k != name}, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match="only one half"):
        merged(adapter)
    save_file({k.replace("layers.0", "layers.9"): v for k, v in tensors.items()}, adapter / WEIGHTS)
    with pytest.raises(CheckpointError, match=r"trains \S+layers\.9\.\S+, which this model does not have"):
        merged(adapter)


def test_what_is_no_adapter(tmp_path: Path, trained: Path) -> None:
    found = read_trained(trained)
    with pytest.raises(CheckpointError, match=r"audio_tower\.conv1\.bias was trained in full"):
        write_adapter(tmp_path / "x", {"audio_tower.conv1.bias": torch.zeros(1)}, found.corrections, "mini")
    with pytest.raises(CheckpointError, match="there is no LoRA in it"):
        write_adapter(tmp_path / "x", {}, {}, "mini")
    assert not (tmp_path / "x").exists()
