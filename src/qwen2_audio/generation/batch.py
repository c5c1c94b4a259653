"""`ContinuousBatch`: answers come and go while others are being written."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qwen2_audio.errors import ConversationError, UsageError
from qwen2_audio.generation.clip_store import ClipStore
from qwen2_audio.generation.request import Request
from qwen2_audio.generation.rows import CacheRows
from qwen2_audio.generation.sampling import Arrival, Sampler, choose
from qwen2_audio.generation.scheduler import ClipSpan, Entry, Limits, Plan, Scheduler
from qwen2_audio.generation.sequence import Choice, Step
from qwen2_audio.generation.sequence import Sequence as Text
from qwen2_audio.processing.mel import Clip

if TYPE_CHECKING:
    from qwen2_audio.generation.engine import Engine

EXPECTED_TOKENS = 256
"""Room for so long an answer is set aside at first (or for `max_new_tokens`, if that is less)."""


@dataclass(slots=True)
class _Chosen:
    """Tokens that the device has chosen, or is about to, one for each of these answers."""

    answers: list[_Answer]
    tokens: Tensor
    arrived: Arrival


@dataclass(slots=True)
class _Answer:
    """What belongs to one request: `places` are its placeholders, positions in `ids` (the prompt)."""

    index: int
    entry: Entry
    ids: list[int]
    places: list[int]
    clips: dict[int, Clip]
    text: Text
    sampler: Sampler


class ContinuousBatch:
    """Answers any number of requests that come at any time, one `step` after another.

    In float32 every answer is what it would be alone. Not thread-safe: one thread owns it.
    """

    def __init__(self, engine: Engine, limits: Limits | None = None) -> None:
        self._engine = engine
        self._model = engine.model
        self._clips: ClipStore[Tensor] = ClipStore((limits or Limits()).clip_tokens)
        self._rows = CacheRows(engine.model.new_cache, (limits or Limits()).budget_tokens)
        context = engine.model.config.text.max_position_embeddings
        self._scheduler = Scheduler(limits or Limits(), self._rows, self._clips, context)
        self._answers: dict[int, _Answer] = {}
        self._ahead: _Chosen | None = None

    @property
    def running(self) -> int:
        """How many answers have a place in memory."""
        return len(self._scheduler.running)

    @property
    def waiting(self) -> int:
        """How many answers wait for one."""
        return len(self._scheduler.waiting)

    @property
    def cache_usage(self) -> float:
        """The share of the memory budget that answers have, 0 to 1; what finished ones left behind makes way for others and
        does not count."""
        return self._scheduler.used_tokens / self._scheduler.limits.budget_tokens

    @property
    def held(self) -> tuple[int, int, int]:
        """What is in memory, finished answers' beginnings included: rows, their positions, audio tokens."""
        scheduler = self._scheduler
        return self._rows.count, scheduler.used_tokens + scheduler.retained_tokens, self._clips.tokens

    @torch.inference_mode()
    def forget(self) -> None:
        """Free what finished answers left behind; those in progress go on."""
        self._scheduler.forget()
        self._clips.clear(self._scheduler.needed_clips)

    def add(self, index: int, request: Request) -> None:
        """Queue a request; its steps will carry `index`.

        Raises:
            ContextLengthError: the prompt does not fit into the context, or into the memory budget.
            ConversationError: placeholders and clips do not fit together.
            UsageError: `index` is in use, or an option cannot be followed.
        """
        if index in self._answers:
            raise UsageError(f"there is an answer {index} already; give every request a number of its own")
        text = self._engine.text(index, request, self._scheduler.limits.budget_tokens)
        sampler = self._engine.sampler(request)
        keys, places, spans = _keys(request, self._model.config.audio_token_id)
        clips = {span.key: clip for span, clip in zip(spans, request.clips, strict=True)}
        entry = self._scheduler.add(keys, spans, min(text.limit, EXPECTED_TOKENS))
        self._answers[index] = _Answer(index, entry, list(request.ids), places, clips, text, sampler)

    @torch.inference_mode()
    def abort(self, index: int) -> None:
        """Forget a request and free all it has at once; one that is over already or was never there is no error."""
        answer = self._answers.pop(index, None)
        if answer is not None:
            self._scheduler.abort(answer.entry)
            self._clips.trim(self._scheduler.needed_clips)

    @torch.inference_mode()
    def step(self) -> list[Step]:
        """Do a share of the work: encode some recordings or read a part of some prompts, and choose one token of every
        answer whose prompt was read. The list is empty when there was nothing to choose."""
        chosen, self._ahead = self._ahead, None
        if chosen is None:
            plan = self._scheduler.plan()
            by_entry = {answer.entry.id: answer for answer in self._answers.values()}
            if plan.clips:
                self._encode(plan.clips, by_entry.values())
            steps = self._advance(plan, by_entry) if plan.work else []
        else:
            steps = self._arrived(chosen)
        if self._clips.over:
            self._clips.trim(self._scheduler.needed_clips)
        return steps

    def _advance(self, plan: Plan, by_entry: Mapping[int, _Answer]) -> list[Step]:
        work = [(by_entry[entry.id], count) for entry, count in plan.work]
        logits, ready = self._forward(work)
        self._scheduler.advance(plan)
        if not ready:
            return []
        if self._goes_ahead and all(answer.sampler.greedy for answer in ready):
            return self._arrived(self._started(logits, ready))
        return self._choose(logits, ready)

    # Going ahead: on a GPU the next step begins before the host has seen the tokens of this one

    @property
    def _goes_ahead(self) -> bool:
        return self._model.device.type == "cuda"

    def _started(self, logits: Tensor, answers: list[_Answer]) -> _Chosen:
        tokens = logits.argmax(-1)
        return _Chosen(answers, tokens, Arrival(tokens))

    def _arrived(self, chosen: _Chosen) -> list[Step]:
        """The tokens that were chosen, of answers that still are; where it may, the next step begins before they are here."""
        answers = chosen.answers
        if self._may_go_ahead(answers):
            rows, order = self._rows.pack([(answer.entry.id, 1) for answer in answers])
            tokens = chosen.tokens if order == sorted(order) else chosen.tokens[order]
            embeddings = self._model.language_model.embed(tokens)
            logits = self._model.language_model(embeddings, [1] * len(order), rows)
            self._ahead = self._started(logits, [answers[at] for at in order])
            for answer in answers:
                answer.entry.computed += 1
        choices = [Choice(token) for token in chosen.arrived.tokens()]
        there = [(a, c) for a, c in zip(answers, choices, strict=True) if self._answers.get(a.index) is a]
        return self._push(there)

    def _may_go_ahead(self, answers: Sequence[_Answer]) -> bool:
        """Whether the next step will be one more token of just these, as far as can be known."""
        scheduler = self._scheduler
        return (
            not scheduler.waiting
            and len(answers) == len(scheduler.running)
            and all(answer.text.tokens for answer in answers)  # a first token is not kept waiting
            and not any(answer.text.at_last for answer in answers)
            and all(answer.entry.room > answer.entry.computed for answer in answers)
            and all(self._answers.get(answer.index) is answer for answer in answers)
        )

    def _encode(self, spans: Sequence[ClipSpan], answers: Iterable[_Answer]) -> None:
        known = {key: clip for answer in answers for key, clip in answer.clips.items()}
        clips, device = [known[span.key] for span in spans], self._model.device
        encoded = self._model.encode_audio([clip.mel.to(device) for clip in clips], [clip.frames for clip in clips])
        parts = encoded.split([span.tokens for span in spans])
        for span, part in zip(spans, parts, strict=True):
            self._clips.put(span.key, span.tokens, part.clone() if len(parts) > 1 else part)

    def _forward(self, work: Sequence[tuple[_Answer, int]]) -> tuple[Tensor, list[_Answer]]:
        """Compute the next tokens of each; the logits [rows, vocab_size] of those whose next token can be chosen."""
        rows, order = self._rows.pack([(answer.entry.id, count) for answer, count in work])
        work = [work[at] for at in order]
        ids: list[int] = []
        overlaid: list[int] = []
        audio: list[Tensor] = []
        ends: dict[int, int] = {}
        for answer, count in work:
            begin, stop = answer.entry.computed, answer.entry.computed + count
            first, last = bisect_left(answer.places, begin), bisect_left(answer.places, stop)
            if first < last:
                overlaid += [len(ids) + place - begin for place in answer.places[first:last]]
                audio += self._audio(answer, first, last)
            ids += answer.ids[begin:stop]
            if count == answer.entry.remaining:
                ends[answer.entry.id] = len(ids) - 1
        device = self._model.device
        embeddings = self._model.language_model.embed(torch.tensor(ids, device=device))
        if audio:
            at = torch.tensor(overlaid, device=device)
            embeddings = embeddings.index_put((at,), torch.cat(audio).to(embeddings.dtype))
        ready = sorted((a for a, _ in work if a.entry.id in ends), key=lambda answer: answer.entry.id)
        wanted = torch.tensor([ends[answer.entry.id] for answer in ready], device=device, dtype=torch.long)
        counts = [count for _, count in work]
        return self._model.language_model(embeddings, counts, rows, logits_at=wanted), ready

    def _audio(self, answer: _Answer, first: int, last: int) -> list[Tensor]:
        """Encodings of an answer's audio tokens `first` to `last`, [audio_tokens, hidden_size] each."""
        parts, start = [], 0
        for span in answer.entry.clips:
            begin, stop = max(first - start, 0), min(last - start, span.tokens)
            if begin < stop:
                parts.append(self._clips.get(span.key)[begin:stop])
            start += span.tokens
        return parts

    def _choose(self, logits: Tensor, ready: Sequence[_Answer]) -> list[Step]:
        choices = choose(logits, [answer.sampler for answer in ready])
        return self._push(list(zip(ready, choices, strict=True)))

    def _push(self, chosen: Sequence[tuple[_Answer, Choice]]) -> list[Step]:
        steps = []
        for answer, choice in chosen:
            step = answer.text.push(choice, answer.entry.cached)
            steps.append(step)
            answer.ids.append(choice.token)
            answer.entry.keys.append(choice.token)
            if step.finish_reason is not None:
                self._scheduler.finish(answer.entry)
                del self._answers[answer.index]
        return steps


def clip_key(clip: Clip) -> int:
    """The content of a clip as a number, larger than any token."""
    mel = clip.mel.contiguous().cpu()
    digest = hashlib.blake2b(mel.numpy().tobytes(), digest_size=16, salt=clip.frames.to_bytes(8, "big"))
    return int.from_bytes(digest.digest(), "big") | 1 << 128


def _keys(request: Request, audio_token: int) -> tuple[list[int], list[int], list[ClipSpan]]:
    """A prompt's tokens with the content of clips in place of their placeholders; where these are; the clips' spans."""
    places = [place for place, token in enumerate(request.ids) if token == audio_token]
    wanted = sum(clip.tokens for clip in request.clips)
    if len(places) != wanted:
        raise ConversationError(
            f"the prompt has {len(places)} audio tokens, its {len(request.clips)} recordings make {wanted}; "
            "prepare prompts with a Processor"
        )
    keys, spans, start = list(request.ids), [], 0
    for clip in request.clips:
        of_clip = places[start : start + clip.tokens]
        key = clip_key(clip)
        for place in of_clip:
            keys[place] = key
        spans.append(ClipSpan(key, clip.tokens, of_clip[0], of_clip[-1] + 1))
        start += clip.tokens
    return keys, places, spans
