"""Losses, as sums: whoever knows how many targets a whole step has divides once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, ctc_loss, logsigmoid, normalize
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from qwen2_audio.config import audio_tokens
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.training.alignment import BLANK_COSINE
from qwen2_audio.training.collate import Pack
from qwen2_audio.training.distil import divergences, places, read, state_losses, tapped
from qwen2_audio.training.feature_cache import FeatureCache

HEAD_CHUNK = 256
"""Targets whose logits exist at once: with a vocabulary of 156,032, all of them would be most of a step's memory."""


def head_pieces(batch: Pack) -> int:
    """Parts in which the head is run over a pack's targets."""
    return -(-len(batch.targets) // HEAD_CHUNK)


def target_losses(
    model: Qwen2Audio, batch: Pack, audio: Tensor | None, distil: float = 0.0, distil_states: float = 0.0
) -> Tensor:
    """Cross-entropy of every target of a pack, float32 [targets], in nats. The head runs on those positions only, a chunk
    at a time, and again in the backward pass.

    Args:
        audio: what `hear` gives for the pack.
        distil: share of the loss of answers to what is asked by voice alone, or in writing alone, that is, instead, the
            divergence from what the language model without LoRA expects after the same words in writing.
        distil_states: weight of how far the states of its layers are beside it; see `training.distil`.
    """
    ids, at, targets = (tensor.to(model.device) for tensor in (batch.ids, batch.predict_at, batch.targets))
    written = batch.in_writing if distil else None
    where = places(model, batch, written, audio) if written is not None and distil_states else None
    with tapped(model, None if where is None else where.at) as layers:
        hidden = model.language_model.model(model.embed(ids, audio), batch.lengths)[at]
    head = model.language_model.lm_head

    def losses(part: Tensor, wanted: Tensor) -> Tensor:
        return cross_entropy(head(part).float(), wanted, reduction="none")

    result = _in_pieces(losses, batch.pieces or head_pieces(batch), hidden, targets)
    if written is None:
        return result
    reader, its_layers = read(model, written, None if where is None else where.read_at)
    aloud = batch.aloud.to(model.device)
    far = _in_pieces(lambda ours, its: divergences(head(ours), head(its)), head_pieces(written), hidden[aloud], reader)
    mixed = (1 - distil) * result[aloud] + distil * far
    if where is not None:
        mixed = mixed * where.of_targets.to(model.device)
        mixed = mixed + distil_states * state_losses(layers, its_layers, where)
    return result.index_copy(0, aloud, mixed)


def _in_pieces(losses: Callable[[Tensor, Tensor], Tensor], pieces: int, hidden: Tensor, wanted: Tensor) -> Tensor:
    if pieces <= 1:
        return losses(hidden, wanted)
    parts = zip(hidden.tensor_split(pieces), wanted.tensor_split(pieces), strict=True)
    return torch.cat([checkpoint(losses, part, other, use_reentrant=False) for part, other in parts])


def next_token_loss(
    model: Qwen2Audio, batch: Pack, audio: Tensor | None, distil: float = 0.0, distil_states: float = 0.0
) -> Tensor:
    """Sum of the losses of all targets of a pack, in nats, each times its weight; see `target_losses`."""
    losses = target_losses(model, batch, audio, distil, distil_states)
    return (losses * batch.weights.to(losses.device)).sum()


def hear(model: Qwen2Audio, batch: Pack, cache: FeatureCache | None = None) -> Tensor | None:
    """Audio embeddings [audio_tokens, hidden_size] of the pack's clips, without gradients for a frozen encoder, whose outputs
    may be kept in `cache`."""
    if not batch.clips:
        return None
    mels, frames = [clip.mel.to(model.device) for clip in batch.clips], [clip.frames for clip in batch.clips]
    frozen = not any(p.requires_grad for p in model.audio_tower.parameters())
    with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
        if cache is not None:
            states = cache.encode(model.audio_tower, batch.clips, model.device)
        else:
            states = model.audio_tower(mels, frames)
    audio = model.multi_modal_projector(states)
    if batch.hears == list(range(len(batch.clips))):
        return audio
    if not batch.hears:
        return audio[:0]
    parts = audio.split([audio_tokens(clip.frames) for clip in batch.clips])
    return torch.cat([parts[clip] for clip in batch.hears])


def answer_log_probs(model: Qwen2Audio, batch: Pack, audio: Tensor | None) -> Tensor:
    """Log-probability, in nats, of all that is learnt in each sequence of a pack: float32 [sequences]."""
    losses = target_losses(model, batch, audio)
    owners = batch.sequence_of_targets.to(losses.device)
    return losses.new_zeros(len(batch.lengths)).index_add(0, owners, -losses)


def preference_loss(
    chosen: Tensor, rejected: Tensor, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    """-log sigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected))), [pairs], of log-probabilities
    [pairs] (direct preference optimisation, Rafailov et al. 2023, equation 7)."""
    return -logsigmoid(beta * ((chosen - reference_chosen) - (rejected - reference_rejected)))


class SpokenTokenLoss:
    """Connectionist temporal classification (Graves et al. 2006) of audio embeddings as the tokens being spoken.

    The classes are the token embeddings themselves, compared by cosine; an embedding that is like none of them counts as
    blank. It draws each audio embedding to the token that it carries, along a much shorter way than through the whole
    language model, and needs no time stamps.
    """

    SHARPNESS = 25.0

    def __init__(self, embeddings: Tensor, vocabulary: list[int]) -> None:
        """
        Args:
            embeddings: [vocab_size, hidden_size], of the language model.
            vocabulary: the tokens that compete; those said in a pack always do.
        """
        self._embeddings = embeddings.detach()
        self._vocabulary = torch.tensor(vocabulary)
        self._mean = self._embeddings[self._vocabulary].float().mean(0)

    def __call__(self, audio: Tensor, batch: Pack) -> Tensor:
        """Sum over the clips whose words are known, in nats. Clips too short for their tokens count nothing."""
        if not any(batch.spoken):
            return audio.sum() * 0
        said = [torch.tensor(tokens) for tokens in batch.spoken]
        parts = audio.float().split([audio_tokens(clip.frames) for clip in batch.clips])
        pairs = [(part, tokens) for part, tokens in zip(parts, said, strict=True) if len(tokens)]
        classes, index = torch.cat([*(tokens for _, tokens in pairs), self._vocabulary]).unique(return_inverse=True)
        names = normalize(self._embeddings[classes.to(audio.device)].float() - self._mean, dim=-1)
        heard = normalize(torch.cat([part for part, _ in pairs]) - self._mean, dim=-1)
        with torch.autocast(audio.device.type, enabled=False):
            likeness = heard @ names.T
        blank = heard.new_full((len(heard), 1), BLANK_COSINE)
        scores = (self.SHARPNESS * torch.cat([likeness, blank], dim=-1)).log_softmax(-1)
        frames, lengths = (torch.tensor([len(pair[i]) for pair in pairs]) for i in (0, 1))
        return ctc_loss(
            pad_sequence(scores.split(frames.tolist())),
            index[: int(lengths.sum())].to(audio.device),
            frames,
            lengths,
            blank=len(classes),
            reduction="sum",
            zero_infinity=True,
        )
