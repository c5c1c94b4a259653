"""How far one side's logits are from another's, so that a quicker way to compute them is known by what it costs."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from qwen2_audio.bench.sides import Wave, noise

PROSE = (
    "The harbour was quiet when the ferry came in. A boy with a lantern counted the crates, wrote down eleven, and asked the "
    "captain whether the letters from the island had been lost in the storm. They had not; they were wet, that was all, and "
    "by evening the whole street had read them aloud."
)
_SECONDS = 5.0


class Predicts(Protocol):
    """A side that shows its logits."""

    def predict(self, wave: Wave, answer: str) -> Tensor:
        """Log-probabilities [tokens, vocab_size] of what comes after each token of `answer` to a question about a clip."""


def agreement(ours: Predicts, theirs: Predicts) -> dict[str, float]:
    """The mean Kullback-Leibler divergence of ours from theirs, in nats, and the share of tokens for which both would choose
    the same, along a given answer."""
    wave = noise(_SECONDS)
    predicted, expected = ours.predict(wave, PROSE), theirs.predict(wave, PROSE)
    divergence = (expected.exp() * (expected - predicted)).sum(-1).mean()
    same = (expected.argmax(-1) == predicted.argmax(-1)).float().mean()
    return {
        "divergence from transformers in nats": float(f"{max(float(divergence), 0.0):.2g}"),
        "same choices": round(float(same), 3),
    }
