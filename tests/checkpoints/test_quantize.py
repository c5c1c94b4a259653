"""int8 layers are what their rounded weights say, each row by itself, and never half there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwen2_audio import CheckpointError, UsageError, api, load
from qwen2_audio.checkpoints.load import SINGLE, load_model
from qwen2_audio.checkpoints.quantize import Int8Weight, int8_weights, is_int8, put_into_int8, spread, spreader, to_int8
from qwen2_audio.model.linear import Linear, project
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.mel import log_mel
from qwen2_audio.runtime import has_int8_products
from tests.tiny import sound, tiny_config, tiny_folder, tiny_model

pytestmark = [
    pytest.mark.skipif(torch.backends.quantized.engine == "none", reason="torch multiplies no int8 here"),
    pytest.mark.filterwarnings(
        "ignore:torch.quantize_per_tensor:UserWarning"
    ),  # said where a weight is packed by itself
]


def test_rounding_is_off_by_half_a_step_at_most() -> None:
    weight = torch.randn(300, 48) * torch.logspace(-3, 1, 300)[:, None]
    weight[7] = 0
    found = to_int8(weight.bfloat16())
    turned = spread(weight.bfloat16().float(), spreader(48))
    assert found.rows.abs().amax(1).tolist() == [0 if row == 7 else 127 for row in range(300)]
    error = (found.rows * found.scales[:, None] - turned).abs().amax(1)
    assert (error <= turned.abs().amax(1) / 127 * 0.501 + 1e-12).all()


@pytest.mark.parametrize("features", [1, 6, 48, 64, 576, 4096])
def test_spreading_turns_and_turns_back(features: int) -> None:
    x, matrix = torch.randn(3, features), spreader(features)
    torch.testing.assert_close(spread(spread(x, matrix), matrix), x)
    torch.testing.assert_close(spread(x, matrix) @ spread(x, matrix).T, x @ x.T, atol=1e-3, rtol=1e-4)


def test_a_loud_channel_costs_the_others_nothing() -> None:
    layer = Linear(64, 32, bias=False)
    x = torch.randn(4, 64)
    x[:, 5] = 40
    layer.weight.data[:, 5] = 0
    exact, got = layer(x), Int8Weight([to_int8(layer.weight)], [None])(x)
    assert (
        (got - exact).norm() / exact.norm()
    ).item() < 0.08  # one step of 127 would be a third of what the others say


@pytest.mark.parametrize("tokens", [1, 2, 9])
def test_products_are_close_to_exact_ones(tokens: int) -> None:
    layers = [Linear(64, 32), Linear(64, 8, bias=False)]
    x = torch.randn(tokens, 64)
    weight = Int8Weight([to_int8(layer.weight) for layer in layers], [layer.bias for layer in layers])
    exact = torch.cat([layer(x) for layer in layers], 1)
    with torch.inference_mode():
        assert ((weight(x) - exact).norm() / exact.norm()).item() < 0.02


def test_a_loud_token_costs_its_neighbours_nothing() -> None:
    layer = Linear(64, 32, bias=False)
    weight = Int8Weight([to_int8(layer.weight)], [None])
    x = torch.randn(5, 64)
    x[0] *= 1e4
    x[1] = 0
    exact, got = layer(x), weight(x)
    assert (got[1] == 0).all()
    for row in (0, 2, 3, 4):
        assert ((got[row] - exact[row]).norm() / exact[row].norm()).item() < 0.03


@pytest.mark.parametrize("gqa", [True, False])
def test_a_whole_model(gqa: bool) -> None:
    exact, small = (tiny_model(tiny_config(1, 80, gqa), 1) for _ in range(2))
    put_into_int8(small)
    assert is_int8(small)
    assert not is_int8(exact)
    clip = log_mel(sound(1.7), 80)
    with torch.inference_mode():
        ids = torch.arange(40)
        ours, theirs = small(ids, [40]), exact(ids, [40])
        assert ((ours - theirs).norm() / theirs.norm()).item() < 0.1
        heard = [model.encode_audio([clip.mel], [clip.frames]) for model in (small, exact)]
        assert ((heard[0] - heard[1]).norm() / heard[1].norm()).item() < 0.05
        cache = small.new_cache(1, 64)
        steps = [small(ids[:39], [39], cache=cache), small(ids[39:], [1], cache=cache)]
        assert ((torch.cat(steps) - ours).norm() / ours.norm()).item() < 0.05


def test_what_is_replaced_is_what_is_named() -> None:
    model: Qwen2Audio = tiny_model()
    names = int8_weights(model)
    before = set(model.state_dict())
    put_into_int8(model)
    gone = {name.removesuffix(".weight") for name in names}
    assert before - set(model.state_dict()) == {name for name in before if name.rpartition(".")[0] in gone}
    assert "multi_modal_projector.linear.weight" in model.state_dict()


def test_layers_packed_together_are_not_multiplied_apart() -> None:
    model = tiny_model()
    put_into_int8(model)
    attention = model.language_model.model.layers[0].self_attn
    x = torch.randn(2, 64)
    assert [part.shape[1] for part in project([attention.q_proj, attention.k_proj, attention.v_proj], x)] == [
        64,
        32,
        32,
    ]
    with pytest.raises(RuntimeError, match="together"):
        attention.q_proj(x)
    with pytest.raises(RuntimeError, match="together"):
        attention.k_proj(x)


def test_a_checkpoint_loaded_in_int8(folder: Path) -> None:
    """Rounded while it is read, or after it was read: the same."""
    exact, small = load(folder, dtype="float32"), load(folder, quantize="int8")
    later = load_model(folder)
    put_into_int8(later)
    ids = torch.arange(30)
    with torch.inference_mode():
        theirs, ours, after = (model(ids, [30]) for model in (exact.model, small.model, later))
    assert ((ours - theirs).norm() / theirs.norm()).item() < 0.1
    torch.testing.assert_close(ours, after)
    assert small.model.dtype == torch.float32
    assert isinstance(small.chat("hello", max_new_tokens=3).text, str)


def test_embeddings_stay_as_the_file_has_them(tmp_path: Path) -> None:
    model = tiny_model(tiny_config(tied=True)).bfloat16()
    folder = tiny_folder(tmp_path / "half", model)
    small = load(folder, quantize="int8").model
    embedding = small.language_model.model.embed_tokens
    assert embedding.weight.dtype == torch.bfloat16
    ids = torch.arange(9)
    with torch.inference_mode():
        assert embedding(ids).dtype == torch.float32
        theirs = model.float()(ids, [9])
        assert ((small(ids, [9]) - theirs).norm() / theirs.norm()).item() < 0.1


def test_what_int8_cannot(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="computes in float32"):
        load(folder, quantize="int8", dtype="bfloat16")
    with pytest.raises(UsageError, match="unknown quantize 'int7'"):
        load(folder, quantize="int7")
    with pytest.raises(UsageError, match="cannot be saved"):
        load(folder, quantize="int8").save(tmp_path / "out")


def test_auto_leaves_small_models_exact(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_int8(load(folder, quantize="auto").model)
    monkeypatch.setattr(api, "LEAST_INT8_BYTES", 0)
    assert is_int8(load(folder, quantize="auto").model) == has_int8_products(torch.device("cpu"))
    assert not is_int8(load(folder, quantize="auto", dtype="float32").model)


def test_an_incomplete_checkpoint_is_reported(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "cut")
    weights = load_file(folder / SINGLE)
    del weights["language_model.model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / SINGLE)
    with pytest.raises(CheckpointError, match=r"1 missing \(language_model.model.layers.0.mlp.up_proj.weight\)"):
        load(folder, quantize="int8")
