"""On a GPU: everything that is quicker there gives what the plain layers give, and answers are those of a CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwen2_audio import load
from qwen2_audio.kernels.encoder_graphs import EncoderGraphs
from qwen2_audio.kernels.graphs import Graphs
from qwen2_audio.kernels.steps import lay_out
from qwen2_audio.model.kv_cache import KVCache
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from tests.tiny import VOCAB, sound, tiny_config, tiny_folder, tiny_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="wants a GPU")
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.1}
"""Root mean square of a difference, of that of the values."""


def far(found: torch.Tensor, plain: torch.Tensor) -> float:
    return float((found - plain).float().norm() / plain.float().norm())


def on_gpu(seed: int, dtype: torch.dtype, *, gqa: bool) -> Qwen2Audio:
    model = tiny_model(tiny_config(seed, gqa=gqa), seed).to("cuda", dtype)
    lay_out(model)
    return model


def held(cache: KVCache) -> torch.Tensor:
    layers = [cache.rows_of_layer(layer)[0] for layer in range(len(cache._keys))]
    return torch.stack([torch.stack(pair) for pair in layers])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gqa", [True, False])
def test_prompts_and_steps(dtype: torch.dtype, gqa: bool) -> None:
    model = on_gpu(1, dtype, gqa=gqa)
    quick = model.language_model.steps
    assert isinstance(quick, Graphs)
    draw = torch.Generator().manual_seed(0)
    for lengths in ([5], [9], [31], [33], [5, 1, 30], [70], [600], [3] * 9):
        caches = [model.new_cache(len(lengths), 700) for _ in "pg"]
        counts = lengths
        for _ in range(6):
            ids = torch.randint(VOCAB, (sum(counts),), generator=draw).cuda()
            last = torch.tensor(counts).cumsum(0).cuda() - 1
            with torch.inference_mode():
                model.language_model.steps = None
                plain = model(ids, counts, cache=caches[0], logits_at=last)
                model.language_model.steps = quick
                assert far(model(ids, counts, cache=caches[1], logits_at=last), plain) < TOLERANCE[dtype]
            counts = [1] * len(lengths)
        assert far(held(caches[1]), held(caches[0])) < TOLERANCE[dtype]
        assert caches[1].lengths == caches[0].lengths
    assert quick.works and quick.replayed > 30


def test_the_encoder() -> None:
    model = on_gpu(2, torch.bfloat16, gqa=True)
    encoder, quick = model.audio_tower, model.audio_tower.quick
    assert isinstance(quick, EncoderGraphs)
    for frames in (50, 53, 49, 64, 70, 2999, 3000, 2990, 2970, 2998, 3):
        mel = torch.randn(model.config.audio.num_mel_bins, min(frames + 2, 3000), device="cuda")
        with torch.inference_mode():
            encoder.quick = None
            plain = encoder([mel], [frames])
            encoder.quick = quick
            assert far(encoder([mel], [frames]), plain) < TOLERANCE[torch.bfloat16]
    assert quick.works and quick.replayed > 2


def test_answers_in_float32_are_those_of_a_cpu(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path / "tiny", seed=3)
    clips = [(sound(seconds, seed=number), 16_000) for number, seconds in enumerate((0.4, 2.0, 0.9))]
    items = [[clip, "what is this?"] for clip in clips] + ["hello", "the dog barked at the man"]
    answers = []
    for device in ("cpu", "cuda"):
        assistant = load(folder, device=device, dtype="float32")
        options = {"max_new_tokens": 30, "temperature": 0.0, "repetition_penalty": 1.0}
        for _ in range(3):
            answers.append([reply.text for reply in assistant.batch(items, **options)])  # type: ignore[arg-type]
            answers.append([assistant.chat(*items[0], **options).text])  # type: ignore[arg-type]
    assert any(answers[0])
    assert answers[::2] == [answers[0]] * 6 and answers[1::2] == [answers[1]] * 6
