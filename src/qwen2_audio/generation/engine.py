"""The engine: requests in, steps out. It owns the cache and the batch; it does not know how the model was loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from qwen2_audio.errors import ContextLengthError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.sampling import Sampler
from qwen2_audio.generation.sequence import Sequence as Answer
from qwen2_audio.generation.sequence import Step
from qwen2_audio.model.kv_cache import KVCache
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.mel import Clip
from qwen2_audio.processing.tokenizer import Tokenizer

PREFILL_TOKENS = 4096
"""Prompts are prefilled together up to about so many tokens; more at once would only need more memory."""


@dataclass(frozen=True, slots=True)
class Request:
    """One answer that is wanted.

    Attributes:
        ids: the prompt, or only what is new in it when `cache` holds the rest.
        clips: the recordings whose placeholders stand in `ids`, in order.
        options: how to choose tokens and when to stop.
        context: the ids that `cache` holds (the repetition penalty counts them).
    """

    ids: list[int]
    clips: list[Clip] = field(default_factory=list)
    options: GenerationOptions = field(default_factory=GenerationOptions)
    context: list[int] = field(default_factory=list)


class Engine:
    """Drives one model for any number of requests."""

    def __init__(self, model: Qwen2Audio, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.end_ids = end_ids

    @torch.inference_mode()  # on the generator itself: a with-block would stay open between two tokens
    def run(
        self, requests: Sequence[Request], cache: KVCache | None = None, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Step]:
        """Answer all requests together, yielding every token as it is chosen.

        Args:
            cache: for a single request: what came before it; it is advanced in place and holds every token but the last.
            cancelled: asked before every step; once true, the answers that are not finished just end.

        Raises:
            ContextLengthError: a prompt does not fit into the context.
        """
        answers = [self._answer(index, request) for index, request in enumerate(requests)]
        vocab = self.model.config.text.vocab_size
        samplers = [Sampler(r.options, r.context + r.ids, vocab, self.end_ids) for r in requests]
        logits, cache = self._prefill(requests, cache)
        alive = list(range(len(requests)))
        while alive and not cancelled():
            chosen = self._choose(logits, [samplers[i] for i in alive])
            steps = [answers[i].push(token) for i, token in zip(alive, chosen, strict=True)]
            yield from steps
            keep = [row for row, step in enumerate(steps) if step.finish_reason is None]
            if not keep:
                return
            if len(keep) < len(alive):
                cache.keep(keep)
                alive, chosen = [alive[row] for row in keep], [chosen[row] for row in keep]
            ids = torch.tensor(chosen, device=self.model.device)
            logits = self.model(ids, [1] * len(alive), cache=cache)

    def _answer(self, index: int, request: Request) -> Answer:
        used = len(request.context) + len(request.ids)
        room = self.model.config.text.max_position_embeddings - used
        if room <= 0:
            raise ContextLengthError(
                f"the prompt is too long: {used} tokens, the model's context holds {used + room} including the answer; "
                "use shorter or fewer recordings (25 tokens a second), or start a new conversation"
            )
        return Answer(index, request.options, self.end_ids, room, self.tokenizer)

    def _prefill(self, requests: Sequence[Request], cache: KVCache | None) -> tuple[Tensor, KVCache]:
        """Logits [requests, vocab_size] of the first new token, and a cache with one row a request."""
        if cache is not None:
            return self._prefill_group(requests, cache), cache
        groups: list[list[Request]] = []
        size = PREFILL_TOKENS
        for request in requests:
            if size + len(request.ids) > PREFILL_TOKENS:
                groups.append([])
                size = 0
            groups[-1].append(request)
            size += len(request.ids)
        room = max(min(r.options.max_new_tokens or 256, 256) for r in requests)
        parts = []
        for group in groups:
            part = self.model.new_cache(len(group), max(len(r.ids) for r in group) + room)
            parts.append((self._prefill_group(group, part), part))
        if len(parts) == 1:
            return parts[0]
        logits = torch.cat([part[0] for part in parts])
        return logits, KVCache.join(self.model.config.text, [part[1] for part in parts], room)

    def _prefill_group(self, requests: Sequence[Request], cache: KVCache) -> Tensor:
        device = self.model.device
        clips = [clip for request in requests for clip in request.clips]
        audio = None
        if clips:
            audio = self.model.encode_audio([clip.mel.to(device) for clip in clips], [clip.frames for clip in clips])
        lengths = [len(request.ids) for request in requests]
        ids = torch.tensor([token for request in requests for token in request.ids], device=device)
        last = torch.tensor(lengths, device=device).cumsum(0) - 1
        return self.model(ids, lengths, audio, cache, logits_at=last)

    @staticmethod
    def _choose(logits: Tensor, samplers: Sequence[Sampler]) -> list[int]:
        if all(sampler.plain for sampler in samplers):
            return logits.argmax(-1).tolist()
        return [sampler.choose(row) for sampler, row in zip(samplers, logits, strict=True)]
