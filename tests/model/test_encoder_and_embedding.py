"""The encoder sees each clip alone and unpadded; audio lands on its placeholders; weights may be tied."""

from __future__ import annotations

import pytest
import torch

from qwen2_audio.config import MAX_MEL_FRAMES, audio_tokens
from qwen2_audio.model.attention import attend
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing import mel as mel_module
from qwen2_audio.processing.mel import TAIL_FRAMES, Clip, log_mel
from tests.tiny import AUDIO_ID, sound_of, tiny_config, tiny_model


def clip(samples: int) -> Clip:
    return log_mel(sound_of(samples, samples), 128)


def test_features_are_the_same_under_autocast() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        mel = clip(16_000).mel
    torch.testing.assert_close(mel, clip(16_000).mel, atol=0, rtol=0)


def encode(model: Qwen2Audio, clips: list[Clip]) -> torch.Tensor:
    with torch.inference_mode():
        return model.encode_audio([c.mel for c in clips], [c.frames for c in clips])


def test_clips_together_equal_alone(model: Qwen2Audio) -> None:
    clips = [clip(n) for n in (321, 5_000, 16_000, 480_000, 12_321)]
    together = encode(model, clips)
    assert together.shape == (sum(c.tokens for c in clips), model.config.text.hidden_size)
    torch.testing.assert_close(together, torch.cat([encode(model, [c]) for c in clips]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("samples", [160 * 51, 160 * 52, 7_777])
def test_two_tail_frames_are_enough(model: Qwen2Audio, monkeypatch: pytest.MonkeyPatch, samples: int) -> None:
    """The encoder needs two mel frames past the last valid one, if their number is odd; more change nothing."""
    short = log_mel(sound_of(samples), 128)
    monkeypatch.setattr(mel_module, "TAIL_FRAMES", 40)
    long = log_mel(sound_of(samples), 128)
    assert (short.mel.shape[1], long.mel.shape[1]) == (short.frames + 2, short.frames + 40)
    wanted = encode(model, [long])
    torch.testing.assert_close(encode(model, [short]), wanted, atol=1e-6, rtol=0)
    for tail in (0, 1):
        fewer = encode(model, [Clip(long.mel[:, : long.frames + tail], long.frames)])
        needed = tail < (2 if long.frames % 2 else 1)
        assert torch.allclose(fewer, wanted, atol=1e-6) != needed


@pytest.mark.parametrize("frames", [3, 4, 5, 6, 7, 8, 299, 300, 1501, 2998, 2999, MAX_MEL_FRAMES])
def test_number_of_tokens(model: Qwen2Audio, frames: int) -> None:
    mel = torch.zeros(128, min(frames + TAIL_FRAMES, MAX_MEL_FRAMES))
    assert encode(model, [Clip(mel, frames)]).shape[0] == audio_tokens(frames)


def test_published_lengths() -> None:
    assert [audio_tokens(m) for m in (1, 3, 190, 300, 3000)] == [0, 1, 47, 75, 750]


def test_audio_replaces_placeholders_in_order(model: Qwen2Audio) -> None:
    ids = torch.tensor([5, AUDIO_ID, AUDIO_ID, 6, AUDIO_ID])
    audio = torch.arange(3.0)[:, None].expand(3, model.config.text.hidden_size)
    with torch.inference_mode():
        out = model.embed(ids, audio)
        plain = model.embed(ids, None)
    assert out[[1, 2, 4], 0].tolist() == [0.0, 1.0, 2.0]
    assert torch.equal(out[[0, 3]], plain[[0, 3]])


def test_tied_head_shares_the_embedding() -> None:
    model = tiny_model(tiny_config(tied=True))
    assert model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_attend_is_block_diagonal(causal: bool, kv_heads: int) -> None:
    """Against the plain formula with the whole mask written out."""
    lengths, heads, size = [3, 1, 6], 4, 8
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(10, heads, size, generator=generator)
    k, v = (torch.randn(10, kv_heads, size, generator=generator) for _ in range(2))
    sequence = torch.tensor([0, 0, 0, 1, 2, 2, 2, 2, 2, 2])
    mask = sequence[:, None] == sequence[None]
    if causal:
        mask = mask.tril()
    wide_k, wide_v = (x.repeat_interleave(heads // kv_heads, dim=1) for x in (k, v))
    scores = torch.einsum("qhd,khd->hqk", q, wide_k) / size**0.5
    wanted = torch.einsum("hqk,khd->qhd", scores.masked_fill(~mask, -torch.inf).softmax(-1), wide_v)
    torch.testing.assert_close(attend(q, k, v, lengths, causal=causal), wanted, atol=1e-5, rtol=0)


def test_gradients_reach_every_trained_part() -> None:
    model = tiny_model().requires_grad_(True)
    model.audio_tower.embed_positions.requires_grad_(False)
    sample = clip(9_000)
    ids = torch.tensor([1, *[AUDIO_ID] * sample.tokens, 2])
    audio = model.encode_audio([sample.mel], [sample.frames])
    model(ids, [len(ids)], audio).square().mean().backward()
    silent = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert silent == []
