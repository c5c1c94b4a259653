"""Logits, loss, cached decoding and generation equal those of `transformers`, in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qwen2_audio.processing.conversation import Conversation
from qwen2_audio.training.collate import pack
from qwen2_audio.training.datasets import Example
from qwen2_audio.training.losses import hear, next_token_loss
from tests.tiny import IM_END_ID, sound, sound_of

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers", "ignore::FutureWarning:transformers")

VARIANTS = [(0, 128, True), (1, 80, False), (2, 80, True), (3, 128, False)]
TOLERANCE = 1e-4


def question(*seconds: float, text: str = "What's that sound?", seed: int = 0) -> Conversation:
    clips = [(sound(s, seed + i), 16000) for i, s in enumerate(seconds)]
    return Conversation().user(*clips, text)


def multi_turn() -> Conversation:
    first = question(0.7, text="What's that sound?", seed=5).assistant("It is the sound of glass shattering.")
    return first.user((sound(1.3, 6), 16000), "How about this one?")


def assert_same_logits(pair: Any, conversations: list[Conversation], tolerance: float = TOLERANCE) -> None:
    ours = pair.logits([pair.processor.prepare(c) for c in conversations])
    theirs = pair.their_logits(conversations)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        assert other.std() > 0.5, "the logits are too small for the comparison to mean anything"
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize(("seed", "mel_bins", "gqa"), VARIANTS)
def test_one_clip(pair_of: Callable[..., Any], seed: int, mel_bins: int, gqa: bool) -> None:
    assert_same_logits(pair_of(seed, mel_bins, gqa), [question(2.345, seed=seed)])


@pytest.mark.parametrize(("seed", "mel_bins", "gqa"), VARIANTS)
def test_batch_of_unlike_lengths(pair_of: Callable[..., Any], seed: int, mel_bins: int, gqa: bool) -> None:
    lengths = (0.1, 0.333, 1.0, 4.7, 30.0)
    batch = [question(s, text="what " * (i + 1), seed=seed + i) for i, s in enumerate(lengths)]
    assert_same_logits(pair_of(seed, mel_bins, gqa), batch)


@pytest.mark.parametrize(("seed", "mel_bins", "gqa"), VARIANTS[:2])
def test_several_clips_and_turns(pair_of: Callable[..., Any], seed: int, mel_bins: int, gqa: bool) -> None:
    pair = pair_of(seed, mel_bins, gqa)
    assert_same_logits(pair, [question(0.5, 3.1, 1.7, seed=seed)])
    assert_same_logits(pair, [multi_turn()])
    assert_same_logits(pair, [multi_turn(), question(0.5, 2.0), question(1.1, text="hello")])


def test_text_alone(pair: Any) -> None:
    assert_same_logits(pair, [Conversation().user("the cat sat on the mat")])


@pytest.mark.parametrize("samples", [321, 480, 641, 16001, 479_999, 480_000])
def test_odd_lengths(pair: Any, samples: int) -> None:
    clip = (sound_of(samples, samples), 16000)
    assert_same_logits(pair, [Conversation().user(clip, "hello"), question(1.0)])


def test_packed_equals_single(pair: Any) -> None:
    prompts = [pair.processor.prepare(c) for c in (question(0.2), multi_turn(), question(3.0, 0.9))]
    for together, prompt in zip(pair.logits(prompts), prompts, strict=True):
        torch.testing.assert_close(together, pair.logits([prompt])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("seed", "mel_bins", "gqa"), VARIANTS)
def test_loss(pair_of: Callable[..., Any], seed: int, mel_bins: int, gqa: bool) -> None:
    """Theirs is the mean over labels that are not -100; ours a sum, divided by the number of targets."""
    pair = pair_of(seed, mel_bins, gqa)
    conversations = [multi_turn(), question(0.4, seed=seed), question(2.0, 0.3, seed=seed + 9)]
    prompts = [pair.processor.prepare(c) for c in conversations]
    generator = torch.Generator().manual_seed(seed)
    masks = [(torch.rand(len(p.ids), generator=generator) < 0.3).tolist() for p in prompts]
    batch = pack([Example(p.ids, mask, p.clips) for p, mask in zip(prompts, masks, strict=True)])
    with torch.inference_mode():
        ours = next_token_loss(pair.model, batch, hear(pair.model, batch)) / len(batch.targets)

    inputs = pair.their_inputs(conversations)
    labels = torch.full_like(inputs["input_ids"], -100)
    for row, (prompt, mask) in enumerate(zip(prompts, masks, strict=True)):
        valid = torch.where(torch.tensor([False, *mask[1:]]), torch.tensor(prompt.ids), -100)
        labels[row, -len(prompt.ids) :] = valid
    with torch.inference_mode():
        theirs = pair.their_model(**inputs, labels=labels).loss
    assert theirs > 1.0
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("seed", "mel_bins", "gqa"), VARIANTS[:2])
def test_greedy_generation(pair_of: Callable[..., Any], seed: int, mel_bins: int, gqa: bool) -> None:
    """Prefill and cached decoding choose the tokens that their `generate` chooses."""
    pair = pair_of(seed, mel_bins, gqa)
    conversations = [question(0.6, seed=seed), multi_turn(), question(4.0, text="a", seed=seed + 3)]
    inputs = pair.their_inputs(conversations)
    settings = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "repetition_penalty": 1.0}
    out = pair.their_model.generate(**inputs, **settings, max_new_tokens=12, min_new_tokens=12, eos_token_id=IM_END_ID)
    theirs = out[:, inputs["input_ids"].shape[1] :]

    prompts = [pair.processor.prepare(c) for c in conversations]
    clips = [clip for prompt in prompts for clip in prompt.clips]
    lengths = [len(prompt.ids) for prompt in prompts]
    cache = pair.model.new_cache(len(prompts), max(lengths))
    ends = torch.tensor(lengths).cumsum(0) - 1
    chosen = []
    with torch.inference_mode():
        audio = pair.model.encode_audio([c.mel for c in clips], [c.frames for c in clips])
        ids = torch.tensor([token for prompt in prompts for token in prompt.ids])
        logits = pair.model(ids, lengths, audio, cache=cache, logits_at=ends)
        for _ in range(12):
            logits[:, IM_END_ID] = -torch.inf  # as min_new_tokens does
            chosen.append(logits.argmax(-1))
            logits = pair.model(chosen[-1], [1] * len(prompts), cache=cache)
    assert torch.stack(chosen, 1).tolist() == theirs.tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_stays_close(pair: Any, dtype: torch.dtype) -> None:
    """Rounding differs in order, not in size: our low-precision logits are as near to float32 as theirs."""
    import copy

    prompt, conversation = pair.processor.prepare(question(1.5)), question(1.5)
    exact = pair.logits([prompt])[0]
    low = type(pair)(
        copy.deepcopy(pair.model).to(dtype),
        pair.processor,
        copy.deepcopy(pair.their_model).to(dtype),
        pair.their_processor,
    )
    inputs = low.their_inputs([conversation])
    inputs["input_features"] = inputs["input_features"].to(dtype)
    with torch.inference_mode():
        theirs = low.their_model(**inputs).logits[0].float()
    ours = low.logits([prompt])[0].float()
    assert (ours - exact).abs().mean() < 1.5 * (theirs - exact).abs().mean()
