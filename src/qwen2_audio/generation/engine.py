"""The engine: requests in, steps out. It does not know how the model was loaded."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence

import torch

from qwen2_audio.errors import ContextLengthError, UsageError
from qwen2_audio.generation.batch import ContinuousBatch
from qwen2_audio.generation.grammar import Grammars
from qwen2_audio.generation.request import Request
from qwen2_audio.generation.sampling import Sampler, choose
from qwen2_audio.generation.scheduler import Limits
from qwen2_audio.generation.sequence import Sequence as Text
from qwen2_audio.generation.sequence import Step
from qwen2_audio.model.kv_cache import KVCache
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.tokenizer import Tokenizer

__all__ = ["Engine", "Request"]

PREFILL_TOKENS = 4096
"""Where nobody waits for single words, so many tokens are prefilled together; more would only need more memory."""
BUDGET_TOKENS = 65536
SHARE_OF_MEMORY = 0.6
"""Of what is free on a GPU, for the key-value cache: its rows grow by a quarter and are copied as they do."""


class Engine:
    """Drives one model for any number of requests."""

    def __init__(self, model: Qwen2Audio, tokenizer: Tokenizer, end_ids: frozenset[int]) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.end_ids = end_ids
        self._grammars = Grammars(tokenizer, model.config.text.vocab_size, end_ids)

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
            UsageError: an option cannot be followed.
        """
        if cache is not None:
            yield from self._continue(requests[0], cache, cancelled)
            return
        batch = ContinuousBatch(self, self._limits())
        for index, request in enumerate(requests):
            batch.add(index, request)
        while (batch.running or batch.waiting) and not cancelled():
            yield from batch.step()

    def _limits(self) -> Limits:
        """On a GPU many small copies, and prompts in pieces, cost more than they save."""
        on_gpu = self.model.device.type == "cuda"
        return Limits(
            max_running=64,
            budget_tokens=self._budget(),
            retained_tokens=0,
            clip_tokens=0,
            prefill_chunk=PREFILL_TOKENS,
            encode_tokens=PREFILL_TOKENS,
            least_shared=256 if on_gpu else 16,
            whole_prompts=on_gpu,
        )

    def _budget(self) -> int:
        """Positions of the key-value cache that there is room for, rows that grow included."""
        return min(max(BUDGET_TOKENS, self.model.config.text.max_position_embeddings), self.room())

    def room(self) -> int:
        """Positions of the key-value cache that fit into what is free on a GPU; elsewhere there is no such limit."""
        text, device = self.model.config.text, self.model.device
        if device.type != "cuda":
            return sys.maxsize
        free = torch.cuda.mem_get_info(device)[0]
        free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        position = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self.model.dtype.itemsize
        return max(1, int(SHARE_OF_MEMORY * free) // position)

    def _continue(self, request: Request, cache: KVCache, cancelled: Callable[[], bool]) -> Iterator[Step]:
        """A single answer behind what a cache holds."""
        text, sampler = self.text(0, request), self.sampler(request)
        device = self.model.device
        audio = None
        if request.clips:
            mels = [clip.mel.to(device) for clip in request.clips]
            audio = self.model.encode_audio(mels, [clip.frames for clip in request.clips])
        ids = request.ids
        while not cancelled():
            last = torch.tensor([len(ids) - 1], device=device)
            logits = self.model(torch.tensor(ids, device=device), [len(ids)], audio, cache, logits_at=last)
            step = text.push(choose(logits, [sampler])[0], len(request.context))
            yield step
            if step.finish_reason:
                return
            ids, audio = [step.token], None

    def text(self, index: int, request: Request, budget: int | None = None) -> Text:
        """The text of an answer that is to be written.

        Args:
            budget: tokens that memory has room for, if that may be less than the context.

        Raises:
            ContextLengthError: the prompt does not fit.
            UsageError: the prompt is empty.
        """
        if not request.ids:
            raise UsageError("the prompt is empty; give a recording or a text")
        used, context = len(request.context) + len(request.ids), self.model.config.text.max_position_embeddings
        holder = "the model's context" if budget is None or budget >= context else "the memory set aside for answers"
        room = min(context, budget or context) - used
        if room <= 0:
            raise ContextLengthError(
                f"the prompt is too long: {used} tokens, {holder} holds {used + room} including the answer; "
                "use shorter or fewer recordings (25 tokens a second), or start a new conversation"
            )
        return Text(index, request.options, self.end_ids, room, self.tokenizer)

    def sampler(self, request: Request) -> Sampler:
        """What chooses the tokens of an answer.

        Raises:
            UsageError: an option cannot be followed.
        """
        options, vocab_size = request.options, self.model.config.text.vocab_size
        grammar = self._grammars.of(options.json_schema) if options.json_schema is not None else None
        return Sampler(options, request.context + request.ids, vocab_size, self.end_ids, grammar, self.model.device)
