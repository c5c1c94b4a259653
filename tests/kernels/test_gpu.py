"""On a GPU: everything that is quicker there gives what the plain layers give, and answers are those of a CPU."""

from __future__ import annotations

import copy
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
    """In float32 they equal the plain layers; in bfloat16 they are no further from what float32 gives for the same weights than
    the plain layers are, but for chance."""
    model = on_gpu(1, dtype, gqa=gqa)
    exact = copy.deepcopy(model).float()
    quick = model.language_model.steps
    assert isinstance(quick, Graphs) and exact.language_model.steps is None
    draw = torch.Generator().manual_seed(0)
    for lengths in ([5], [9], [31], [33], [5, 1, 30], [70], [600], [3] * 9):
        caches = [one.new_cache(len(lengths), 700) for one in (exact, model, model)]
        counts, found = lengths, []
        for _ in range(6):
            ids = torch.randint(VOCAB, (sum(counts),), generator=draw).cuda()
            last = torch.tensor(counts).cumsum(0).cuda() - 1
            with torch.inference_mode():
                logits = []
                for one, steps, cache in zip((exact, model, model), (None, None, quick), caches, strict=True):
                    one.language_model.steps = steps
                    logits.append(one(ids, counts, cache=cache, logits_at=last).float())
                found.append(torch.stack(logits))
            counts = [1] * len(lengths)
        for of_exact, of_plain, of_quick in (torch.cat(found, 1), [held(cache).float() for cache in caches]):
            if dtype == torch.float32:
                assert far(of_quick, of_plain) < 1e-4
            else:
                assert far(of_quick, of_exact) < 1.5 * far(of_plain, of_exact) < 0.1
        assert caches[2].lengths == caches[1].lengths
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
            assert far(encoder([mel], [frames]), plain) < 1e-2
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
