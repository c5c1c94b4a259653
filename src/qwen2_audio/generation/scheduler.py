"""Who is worked on next, and whose memory it is. No tensors here: rows are opened, copied and closed through `Rows`.

An answer is *waiting* (it has no row), then *prefilling* (its row does not hold the whole prompt yet), then *running* (one
token a step). When memory runs out the newest answer gives up its row and waits again; what it had said already is
computed anew with its prompt. The oldest always goes on, so everybody's turn comes.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from qwen2_audio.errors import UsageError

LEAST_AWAITED = 64
"""A prompt waits for another one that is being read only if it gains at least so many tokens."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be in memory at once, and how much may be done in one step.

    Attributes:
        max_running: answers that have a row.
        budget_tokens: positions of the key-value cache, rows at their full size and retained beginnings together.
        retained_tokens: of these, positions kept of finished answers for prompts that begin alike; 0: none.
        clip_tokens: audio tokens whose encodings are kept for recordings that come again.
        prefill_chunk: prompt tokens computed in one step.
        encode_tokens: audio tokens encoded in one step (a single clip may be more).
        row_tokens: positions of the smallest row; others are 2, 4, 8, 16, 24, 32, ... times that.
        least_shared: a common beginning shorter than this is computed again rather than copied.
        whole_prompts: read a prompt in one step where it fits into one, rather than fill steps up.
    """

    max_running: int = 32
    budget_tokens: int = 32768
    retained_tokens: int = 8192
    clip_tokens: int = 8192
    prefill_chunk: int = 256
    encode_tokens: int = 1500
    row_tokens: int = 256
    least_shared: int = 16
    whole_prompts: bool = False

    def __post_init__(self) -> None:
        for name in ("max_running", "budget_tokens", "prefill_chunk", "encode_tokens", "row_tokens", "least_shared"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("retained_tokens", "clip_tokens"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} must be at least 0, got {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class ClipSpan:
    """A recording in a prompt: its content as a number, its audio tokens, and where its placeholders begin and end."""

    key: int
    tokens: int
    start: int
    stop: int


@dataclass(slots=True, eq=False)
class Entry:
    """One answer on its way.

    Attributes:
        id: unique, in order of arrival; also the name of its row.
        keys: the prompt's tokens, placeholders replaced by the content of their clip, and the tokens chosen so far.
        prompt: how many of these are the prompt.
        expected: how many tokens the answer is likely to have.
        computed: how many of `keys` its row holds.
        room: positions of its row; 0 while it waits.
        cached: how many tokens of the prompt were copied rather than computed.
        began: whether a part of it was computed since it has its row.
    """

    id: int
    keys: list[int]
    clips: Sequence[ClipSpan]
    prompt: int
    expected: int
    computed: int = 0
    room: int = 0
    cached: int = 0
    began: bool = False

    @property
    def remaining(self) -> int:
        """Tokens to compute before the next one can be chosen."""
        return len(self.keys) - self.computed

    @property
    def decoding(self) -> bool:
        """Whether its prompt was read and nothing but its newest token is to be computed."""
        return self.computed >= self.prompt and self.remaining == 1


@dataclass(slots=True)
class Plan:
    """One step: clips to encode, and the answers to work on with the number of tokens of each."""

    clips: list[ClipSpan] = field(default_factory=list)
    work: list[tuple[Entry, int]] = field(default_factory=list)


class Rows(Protocol):
    """Where keys and values are. Every row has a number as its name."""

    def open(self, name: int, room: int) -> None:
        """A new, empty row."""

    def resize(self, name: int, room: int) -> None:
        """Give a row more room."""

    def close(self, name: int) -> None:
        """Free a row."""

    def copy(self, source: int, name: int, length: int) -> None:
        """Let a row be the first `length` positions of another."""


@dataclass(slots=True, eq=False)
class _Retained:
    id: int
    keys: list[int]


class Scheduler:
    """Decides, step by step, who is worked on.

    Args:
        longest: positions that a single answer may ever need; rows are not larger.
    """

    def __init__(self, limits: Limits, rows: Rows, encoded: Container[int], longest: int) -> None:
        self.limits = limits
        self.running: list[Entry] = []  # both lists in order of arrival
        self.waiting: list[Entry] = []
        self._rows = rows
        self._encoded = encoded
        self._longest = min(longest, limits.budget_tokens)
        self._retained: list[_Retained] = []  # the least recently used first
        self._names = 0
        self._encoding = False  # whether the last step encoded clips

    @property
    def used_tokens(self) -> int:
        """Positions of all rows that answers have."""
        return sum(entry.room for entry in self.running)

    @property
    def retained_tokens(self) -> int:
        return sum(len(kept.keys) for kept in self._retained)

    def add(self, keys: list[int], clips: Sequence[ClipSpan] = (), expected: int = 256) -> Entry:
        """A new answer, the last in the queue. The prompt must leave room for one more token in `longest`."""
        entry = Entry(self._new_name(), keys, clips, len(keys), expected)
        self.waiting.append(entry)
        return entry

    def plan(self) -> Plan:
        """What to do in this step; everything it needs has its place in memory when this returns."""
        for entry in [entry for entry in self.running if entry.decoding]:
            self._grow(entry)
        self._admit()
        work = [(entry, 1) for entry in self.running if entry.decoding]
        reading = self._share([entry for entry in self.running if not entry.decoding])
        clips = self._to_encode(reading)
        heard = [entry for entry in reading if not self._missing(entry)]
        self._encoding = bool(clips) and not (self._encoding and heard)  # else encoder and prompts take turns
        return Plan(clips, work) if self._encoding else Plan([], work + self._chunks(heard))

    def advance(self, plan: Plan) -> None:
        """The step was done."""
        for entry, count in plan.work:
            entry.computed += count
            entry.began = True

    def finish(self, entry: Entry) -> None:
        """The answer is complete: its row is freed; what it holds may serve prompts that begin alike."""
        self.running.remove(entry)
        self._retain(entry)
        self._release(entry)

    def abort(self, entry: Entry) -> None:
        """Forget an answer, whatever its state."""
        if entry.room:
            self.running.remove(entry)
            self._release(entry)
        else:
            self.waiting.remove(entry)

    def forget(self) -> None:
        """Free what finished answers left behind."""
        for kept in self._retained:
            self._rows.close(kept.id)
        self._retained.clear()

    @property
    def needed_clips(self) -> set[int]:
        """Recordings that answers in memory have not read to the end."""
        return {clip.key for entry in self.running for clip in entry.clips if clip.stop > entry.computed}

    # Memory

    def _room_for(self, tokens: int) -> int:
        """The size of a row for so many positions: doubled while small, then in even steps, to waste little."""
        room, large = self.limits.row_tokens, self.limits.row_tokens * 8
        while room < min(tokens, large):
            room *= 2
        if tokens > large:
            room = -(-tokens // large) * large
        return min(room, self._longest)

    def _grow(self, entry: Entry) -> None:
        """Make sure that one more token has a place, or let the answer wait."""
        if not entry.room or entry.computed < entry.room:
            return
        room = self._room_for(entry.computed + 1)
        extra = room - entry.room
        self._evict(extra)
        while not self._fits(extra) and self.running[-1] is not entry:
            self._preempt(self.running[-1])
        if self._fits(extra):
            self._rows.resize(entry.id, room)
            entry.room = room
        else:
            self._preempt(entry)

    def _admit(self) -> None:
        while self.waiting and len(self.running) < self.limits.max_running:
            entry = self.waiting[0]
            room = self._room_for(max(entry.prompt + entry.expected, len(entry.keys) + 1))
            if room > self.limits.budget_tokens - self.used_tokens:
                return
            self.waiting.pop(0)
            self._place(entry, room)

    def _place(self, entry: Entry, room: int) -> None:
        """Give an answer its row. A retained beginning is copied before it has to make way for it."""
        source, shared = self._best_source(entry)
        kept = next((kept for kept in self._retained if kept.id == source), None)
        if kept is not None:
            self._retained.remove(kept)
            self._retained.append(kept)  # the most recently used
        self._evict(room, spared=1 if kept else 0)
        self._rows.open(entry.id, room)
        entry.room = room
        insort(self.running, entry, key=lambda one: one.id)
        if source is not None:
            self._copy(source, entry, shared)
        self._evict(0)

    def _fits(self, extra: int) -> bool:
        return self.used_tokens + self.retained_tokens + extra <= self.limits.budget_tokens

    def _evict(self, extra: int, spared: int = 0) -> None:
        """Drop retained beginnings until `extra` positions fit; not the `spared` most recent ones."""
        while len(self._retained) > spared and not self._fits(extra):
            self._rows.close(self._retained.pop(0).id)

    def _preempt(self, entry: Entry) -> None:
        self.running.remove(entry)
        self._release(entry)
        insort(self.waiting, entry, key=lambda one: one.id)

    def _release(self, entry: Entry) -> None:
        self._rows.close(entry.id)
        entry.room = entry.computed = 0
        entry.began = False

    # Prompts that begin alike

    def _retain(self, entry: Entry) -> None:
        keys, most = entry.keys[: entry.computed], self.limits.retained_tokens
        if not self.limits.least_shared <= len(keys) <= most:
            return
        for kept in list(self._retained):
            if kept.keys[: len(keys)] == keys:  # nothing new in it
                self._retained.remove(kept)
                self._retained.append(kept)
                return
            if keys[: len(kept.keys)] == kept.keys:  # an earlier turn of the same chat
                self._retained.remove(kept)
                self._rows.close(kept.id)
        while self.retained_tokens + len(keys) > most:
            self._rows.close(self._retained.pop(0).id)
        name = self._new_name()
        self._rows.open(name, len(keys))
        self._rows.copy(entry.id, name, len(keys))
        self._retained.append(_Retained(name, keys))
        self._evict(0)

    def _best_source(self, entry: Entry) -> tuple[int | None, int]:
        """The row that shares most with a prompt, and how much; None where copying is not worth while."""
        held = [(kept.id, kept.keys) for kept in self._retained]
        held += [(one.id, one.keys[: one.computed]) for one in self.running if one is not entry]
        wanted = entry.keys[:-1]  # at least one token must be computed to choose the next
        lengths = [(shared_length(wanted, keys), name) for name, keys in held]
        shared, source = max(lengths, default=(0, 0), key=lambda pair: pair[0])
        return (source, shared) if shared >= entry.computed + self.limits.least_shared else (None, 0)

    def _copy(self, source: int, entry: Entry, length: int) -> None:
        self._rows.copy(source, entry.id, length)
        entry.computed = length
        if len(entry.keys) == entry.prompt:
            entry.cached = length

    def _share(self, prefilling: Sequence[Entry]) -> list[Entry]:
        """Those that this step can come to, the oldest first, then the shortest; not one whose beginning another one ahead
        of it is just computing."""
        ready: list[Entry] = []
        left = self.limits.prefill_chunk
        for entry in [*prefilling[:1], *sorted(prefilling[1:], key=lambda one: one.remaining)]:
            if left <= 0:
                break
            if not entry.began:
                source, shared = self._best_source(entry)
                coming = max((shared_length(entry.keys[:-1], other.keys) for other in ready), default=0)
                if coming >= max(entry.computed, shared) + LEAST_AWAITED:
                    continue
                if source is not None:
                    self._copy(source, entry, shared)
            ready.append(entry)
            left -= entry.remaining if len(ready) > 1 else min(entry.remaining, self._half)
        return ready

    def _new_name(self) -> int:
        self._names += 1
        return self._names

    # Shares of a step

    @property
    def _half(self) -> int:
        return (self.limits.prefill_chunk + 1) // 2

    def _chunks(self, prompts: Sequence[Entry]) -> list[tuple[Entry, int]]:
        """Shares of a step: at least half for the first, so that a long prompt is read while shorter ones overtake it."""
        if not prompts:
            return []
        first, *others = prompts
        kept = min(first.remaining, self._half)
        work, left = [], self.limits.prefill_chunk - kept
        for entry in others:
            count = min(entry.remaining, left)
            later = self.limits.whole_prompts and count < entry.remaining <= self.limits.prefill_chunk
            if count and not later:
                work.append((entry, count))
                left -= count
        return [(first, min(first.remaining, kept + left)), *work]

    def _to_encode(self, prompts: Sequence[Entry]) -> list[ClipSpan]:
        """Clips that these need next, as many as go into one step of the encoder."""
        clips: dict[int, ClipSpan] = {}
        for clip in (clip for entry in prompts for clip in self._missing(entry)):
            after = sum(one.tokens for one in clips.values()) + clip.tokens
            if clips and clip.key not in clips and after > self.limits.encode_tokens:
                break
            clips[clip.key] = clip
        return list(clips.values())

    def _missing(self, entry: Entry) -> list[ClipSpan]:
        """Clips that its next share reaches and that are not encoded."""
        end = entry.computed + min(entry.remaining, self.limits.prefill_chunk)
        reached = [clip for clip in entry.clips if clip.start < end and clip.stop > entry.computed]
        return [clip for clip in reached if clip.key not in self._encoded]


def shared_length(a: Sequence[int], b: Sequence[int]) -> int:
    """How many items two lists have in common from their beginning."""
    same, differ = 0, min(len(a), len(b)) + 1
    while differ - same > 1:
        middle = (same + differ) // 2
        if a[same:middle] == b[same:middle]:
            same = middle
        else:
            differ = middle
    return same
