"""Merged = base + scale * B A and nothing else; what does not fit changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from qwen2_audio.checkpoints.load import load_model
from qwen2_audio.checkpoints.merge import merge_trained, own_weights
from qwen2_audio.cli.main import app
from qwen2_audio.errors import CheckpointError
from tests.tiny import tiny_model

LAYER = "language_model.model.layers.0.self_attn.q_proj"
BIAS = "multi_modal_projector.linear.bias"


def trained(path: Path, **changes: torch.Tensor | None) -> Path:
    generator = torch.Generator().manual_seed(0)
    tensors = {
        f"{LAYER}.lora_A": torch.randn(2, 64, generator=generator),
        f"{LAYER}.lora_B": torch.randn(64, 2, generator=generator),
        BIAS: torch.randn(64, generator=generator),
    }
    tensors |= {name.replace("__", "."): tensor for name, tensor in changes.items()}  # type: ignore[dict-item]
    file = path / "trained.safetensors"
    save_file({k: v for k, v in tensors.items() if v is not None}, file, metadata={"lora_scale": "0.5"})
    return file


def test_merged_is_base_plus_correction_and_nothing_else(tmp_path: Path) -> None:
    before, model = tiny_model().state_dict(), tiny_model()
    file = trained(tmp_path)
    assert merge_trained(model, file) == [f"{LAYER}.weight", BIAS]
    generator = torch.Generator().manual_seed(0)
    a, b, bias = (torch.randn(*shape, generator=generator) for shape in ((2, 64), (64, 2), (64,)))
    for name, tensor in model.state_dict().items():
        if name == f"{LAYER}.weight":
            torch.testing.assert_close(tensor - before[name], 0.5 * b @ a, atol=1e-6, rtol=1e-5)
        else:
            assert torch.equal(tensor, bias if name == BIAS else before[name])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({f"{LAYER}.lora_B": None}, "only one half of the correction"),
        ({f"{LAYER}.lora_B": torch.zeros(32, 2)}, r"q_proj.weight in the shape \[32, 64\] instead of \[64, 64\]"),
        ({"language_model.model.layers.9.input_layernorm.weight": torch.zeros(64)}, "which this model does not have"),
        ({BIAS: torch.zeros(3)}, r"in the shape \[3\] instead of \[64\]"),
    ],
)
def test_what_does_not_fit_changes_nothing(tmp_path: Path, changes: dict[str, torch.Tensor | None], named: str) -> None:
    model = tiny_model()
    with pytest.raises(CheckpointError, match=named):
        merge_trained(model, trained(tmp_path, **changes))
    for name, tensor in tiny_model().state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)


def test_files_that_are_something_else(tmp_path: Path) -> None:
    save_file({BIAS: torch.zeros(64)}, tmp_path / "plain.safetensors")
    (tmp_path / "text.safetensors").write_text("x")
    for name, reason in (("plain", "no lora_scale"), ("text", "cannot read"), ("none", "cannot read")):
        with pytest.raises(CheckpointError, match=reason):
            merge_trained(tiny_model(), tmp_path / f"{name}.safetensors")


def test_command(tmp_path: Path, folder: Path) -> None:
    out = tmp_path / "merged"
    result = CliRunner().invoke(app, ["merge", str(trained(tmp_path)), str(out), "--model", str(folder)])
    assert result.exit_code == 0, result.output
    assert result.stdout.strip().splitlines()[-1] == str(out)
    model = load_model(folder)
    own_weights(model)
    merge_trained(model, trained(tmp_path))
    for name, tensor in load_model(out).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
