"""Merged = base + scale * B A and nothing else; what does not fit changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from qwen2_audio.checkpoints.load import load_model
from qwen2_audio.checkpoints.merge import merge_trained, merged_copy, own_weights
from qwen2_audio.checkpoints.sample import sample_of
from qwen2_audio.checkpoints.save import save
from qwen2_audio.checkpoints.verify import verify_merged
from qwen2_audio.cli.main import app
from qwen2_audio.errors import CheckpointError
from qwen2_audio.kernels.packing import pack_linears
from qwen2_audio.model.linear import Linear
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from tests.tiny import tiny_config, tiny_folder, tiny_model

LAYER = "language_model.model.layers.0.self_attn.q_proj"
EMBEDDING = "language_model.model.embed_tokens.weight"
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
    assert "2 weights changed" in result.stderr
    half = tmp_path / "half"
    result = CliRunner().invoke(
        app, ["merge", str(trained(tmp_path)), str(half), "--model", str(folder), "--dtype", "bfloat16"]
    )
    assert result.exit_code == 0, result.output
    for name, tensor in load_model(half, dtype=torch.bfloat16).state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].bfloat16())  # rounded once


def test_what_was_found_wrong_is_not_kept(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(model: Qwen2Audio, path: Path) -> list[str]:
        model.state_dict()[BIAS] += 1
        return [BIAS]

    monkeypatch.setattr("qwen2_audio.checkpoints.merge.merge_trained", forgetful)
    arguments = [str(trained(tmp_path)), str(tmp_path / "merged"), "--model", str(folder)]
    result = CliRunner().invoke(app, ["merge", *arguments])
    assert result.exit_code == 2 and "than it should; merge again" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["trained.safetensors"]


@pytest.mark.parametrize("name", [f"{LAYER}.weight", EMBEDDING])
def test_what_was_written_is_compared(tmp_path: Path, folder: Path, name: str) -> None:
    """Whether or not it was to change."""
    model = load_model(folder)
    own_weights(model)
    file = trained(tmp_path)
    merge_trained(model, file)
    save(model, tmp_path / "right", source=folder)
    assert verify_merged(folder, tmp_path / "right", file) == 2
    model.state_dict()[name][3, 3] += 1e-3
    save(model, tmp_path / "wrong", source=folder)
    with pytest.raises(CheckpointError, match=f"has another {name} than it should"):
        verify_merged(folder, tmp_path / "wrong", file)


def test_the_head_of_a_tied_model_is_compared_with_its_new_embeddings(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", tiny_model(tiny_config(tied=True)))
    own = load_model(base)
    save_file({EMBEDDING: own.get_parameter(EMBEDDING) + 1}, tmp_path / "t.safetensors", metadata={"lora_scale": "1"})
    own_weights(own)
    merge_trained(own, tmp_path / "t.safetensors")
    save(own, tmp_path / "merged", source=base)
    assert verify_merged(base, tmp_path / "merged", tmp_path / "t.safetensors") == 2
    own.state_dict()["language_model.lm_head.weight"][3, 3] += 1  # and the embeddings with it
    save(own, tmp_path / "wrong", source=base)
    with pytest.raises(CheckpointError, match="than it should"):
        verify_merged(base, tmp_path / "wrong", tmp_path / "t.safetensors")


def test_a_head_of_its_own_stays_where_the_settings_say_tied(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", tiny_model(tiny_config(tied=True)))
    weights = load_file(base / "model.safetensors")
    weights["language_model.lm_head.weight"] += 1
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    embeddings = {EMBEDDING: load_model(base).get_parameter(EMBEDDING) + 1}
    save_file(embeddings, tmp_path / "t.safetensors", metadata={"lora_scale": "1"})
    own = load_model(base)
    own_weights(own)
    merge_trained(own, tmp_path / "t.safetensors")
    save(own, tmp_path / "merged", source=base)
    assert verify_merged(base, tmp_path / "merged", tmp_path / "t.safetensors") == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_what_was_trained_on_another_model_is_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    own = tiny_model().state_dict()
    tensors, metadata = load_file(trained(tmp_path)), {"lora_scale": "0.5", "base_sample": sample_of(own)}
    save_file(tensors, tmp_path / "known.safetensors", metadata)
    model = tiny_model().to(dtype)
    assert merge_trained(model, tmp_path / "known.safetensors") == [f"{LAYER}.weight", BIAS]
    other = tiny_model()
    for tensor in other.state_dict().values():  # as much as a short training changes
        tensor += 0.03 * tensor.std() * torch.randn(tensor.shape) if tensor.ndim == 2 else 0
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"was trained on another model, whose .* differs"):
        merge_trained(other, tmp_path / "known.safetensors")
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_a_merged_copy_shares_what_does_not_change(tmp_path: Path) -> None:
    model, file = tiny_model(), trained(tmp_path)
    pack_linears(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy, whole = merged_copy(model, file), tiny_model()
    merge_trained(whole, file)
    pack_linears(copy)
    for name, tensor in copy.state_dict().items():
        mine = model.state_dict()[name]
        assert torch.equal(mine, before[name])
        assert torch.equal(tensor, whole.state_dict()[name])
        assert (tensor.data_ptr() == mine.data_ptr()) == (name not in (f"{LAYER}.weight", BIAS))
    anew = (LAYER, LAYER.replace("q_proj", "o_proj"), "multi_modal_projector.linear")
    for name, layer in model.named_modules():
        if isinstance(layer, Linear):  # so is the second copy, in the layout that is multiplied fastest
            assert (copy.get_submodule(name).packed is layer.packed) == (name not in anew), name
    ids = torch.arange(3, 20)
    with torch.inference_mode():
        torch.testing.assert_close(copy(ids, [17]), whole(ids, [17]))
        assert not torch.allclose(copy(ids, [17]), model(ids, [17]))


def test_a_merged_copy_of_a_model_with_a_tied_head_keeps_it_tied(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(tied=True))
    save_file({EMBEDDING: torch.ones(384, 64)}, tmp_path / "tied.safetensors", metadata={"lora_scale": "1"})
    copy = merged_copy(model, tmp_path / "tied.safetensors")
    assert copy.language_model.lm_head.weight is copy.language_model.model.embed_tokens.weight
    assert torch.equal(copy.language_model.lm_head.weight, torch.ones(384, 64))
    assert not torch.equal(model.language_model.lm_head.weight, torch.ones(384, 64))
