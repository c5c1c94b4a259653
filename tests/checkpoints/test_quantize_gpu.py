"""Language models rounded by torchao: on a CPU only int8 runs; the rest must refuse in one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen2_audio import UsageError, api, load, runtime
from qwen2_audio.checkpoints import quantize_gpu
from qwen2_audio.checkpoints.load import load_model
from qwen2_audio.checkpoints.quantize_gpu import is_rounded, round_language_model
from qwen2_audio.model.linear import Linear
from qwen2_audio.runtime import Runtime, choose_runtime
from tests.tiny import tiny_config, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")  # torchao's, of its parts for other machines


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_language_models_products_change(tied: bool) -> None:
    exact, small = (tiny_model(tiny_config(tied=tied), 1) for _ in range(2))
    if tied:
        small.language_model.lm_head.weight = small.language_model.model.embed_tokens.weight
    round_language_model(small, "int8")
    assert is_rounded(small)
    assert not is_rounded(exact)
    changed = {name for name, weight in small.named_parameters() if type(weight) is not torch.nn.Parameter}
    projections = {name for name in dict(exact.named_parameters()) if name.startswith("language_model.model.layers.")}
    assert changed == {name for name in projections if name.endswith("proj.weight")} | {"language_model.lm_head.weight"}
    ids = torch.arange(40)
    with torch.inference_mode():
        assert torch.equal(small.language_model.embed(ids), exact.language_model.embed(ids))
        ours, theirs = small(ids, [40]), exact(ids, [40])
        assert 0 < ((ours - theirs).norm() / theirs.norm()).item() < 0.05
        cache = small.new_cache(1, 64)
        steps = [small(ids[:39], [39], cache=cache), small(ids[39:], [1], cache=cache)]
        torch.testing.assert_close(torch.cat(steps), ours, atol=1e-4, rtol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_what_runs_on_a_gpu_only_says_so() -> None:
    model = tiny_model(tiny_config(), 1).bfloat16()
    with pytest.raises(UsageError, match=r"torchao cannot round to fp8 here: .*CUDA"):
        round_language_model(model, "fp8")
    for kind in ("int4", "fp8"):
        with pytest.raises(UsageError, match=f"quantize {kind} runs on NVIDIA's GPUs only"):
            choose_runtime("cpu", quantize=kind)


def test_int4_wants_sizes_that_fit() -> None:
    with pytest.raises(UsageError, match="int4 wants layers whose inputs are a multiple of 128, not 64"):
        round_language_model(tiny_model(tiny_config(), 1), "int4")


def test_a_layer_that_stays_as_it_is_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchao.quantization.quantize_", lambda *_: None)
    with pytest.raises(UsageError, match=r"does not round model.layers.0.*\[64, 64\] to int8"):
        round_language_model(tiny_model(tiny_config(), 1), "int8")


def test_rows_of_zeros_keep_a_scale() -> None:
    layer = Linear(8, 3, bias=False)
    layer.weight.data[1] = 0
    before = layer.weight.data.clone()
    quantize_gpu._fill_empty_rows([layer])
    assert layer.weight[1].abs().max() > 0
    assert torch.equal(layer.weight[[0, 2]], before[[0, 2]])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_on_a_gpu(folder: Path, kind: str) -> None:
    """Not run by us: rounded answers exist, and are the same when they are repeated."""
    small = load(folder, device="cuda", quantize=kind)
    texts = {small.chat("hello", max_new_tokens=12, temperature=0, ignore_eos=True).text for _ in range(2)}
    assert len(texts) == 1


def test_what_a_gpu_must_have(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, choose = torch.device("cuda"), runtime._rounded_on_cuda
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    assert choose(gpu, "auto", "int4") == Runtime(gpu, torch.bfloat16, "int4")  # by our own layers
    with pytest.raises(UsageError, match="fp8 needs a newer GPU"):
        choose(gpu, "auto", "fp8")
    with pytest.raises(UsageError, match="computes in bfloat16"):
        choose(gpu, "float32", "int8")
    monkeypatch.setattr(runtime, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"needs the package torchao: pip install 'torchao>=0\.18'"):
        choose(gpu, "auto", "int8")
    with pytest.raises(UsageError, match=r"needs the package triton: pip install 'triton>=3\.6'"):
        choose(gpu, "auto", "int4")


def test_a_rounded_model_answers_and_is_not_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU, but on a CPU."""
    gpu = Runtime(torch.device("meta"), torch.bfloat16, "int8")
    monkeypatch.setattr(api, "choose_runtime", lambda *_: gpu)
    monkeypatch.setattr(api, "load_model", lambda folder, **_: load_model(folder, dtype=torch.bfloat16))
    small = load(folder)
    assert is_rounded(small.model)
    alone = small.chat("hello", max_new_tokens=3, temperature=0)
    assert alone.text == small.batch(["hello"], max_new_tokens=3, temperature=0)[0].text
    with pytest.raises(UsageError, match="cannot be saved"):
        small.save(tmp_path / "out")
