"""Who is worked on next: whatever comes and goes, nobody starves, memory holds, and every row is what it says it is."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen2_audio.errors import UsageError
from qwen2_audio.generation.clip_store import ClipStore
from qwen2_audio.generation.scheduler import ClipSpan, Entry, Limits, Plan, Scheduler, shared_length

CLIP = 1 << 128


@dataclass
class FakeRows:
    """Rows whose positions are the tokens themselves."""

    room: dict[int, int] = field(default_factory=dict)
    content: dict[int, list[int]] = field(default_factory=dict)

    def open(self, name: int, room: int) -> None:
        assert name not in self.room
        self.room[name], self.content[name] = room, []

    def resize(self, name: int, room: int) -> None:
        assert room > self.room[name]
        self.room[name] = room

    def close(self, name: int) -> None:
        del self.room[name], self.content[name]

    def copy(self, source: int, name: int, length: int) -> None:
        assert length <= min(len(self.content[source]), self.room[name])
        self.content[name] = self.content[source][:length]


@dataclass
class Wanted:
    entry: Entry
    prompt: list[int]
    tokens: int
    said: list[int] = field(default_factory=list)
    aborted: bool = False


class Bench:
    """A scheduler whose model says the sum of what it was told."""

    def __init__(self, limits: Limits, longest: int = 4096) -> None:
        self.rows = FakeRows()
        self.store: ClipStore[str] = ClipStore(limits.clip_tokens)
        self.scheduler = Scheduler(limits, self.rows, self.store, longest)
        self.limits = limits
        self.wanted: list[Wanted] = []
        self.plans: list[Plan] = []

    def add(self, prompt: list[int], tokens: int, expected: int, clip_at: int | None = None, clip: int = 0) -> Wanted:
        keys, spans = list(prompt), []
        if clip_at is not None:
            length = min(6, len(keys) - clip_at)
            keys[clip_at : clip_at + length] = [CLIP + clip * 100 + length] * length
            spans = [ClipSpan(keys[clip_at], length, clip_at, clip_at + length)]
        one = Wanted(self.scheduler.add(list(keys), spans, expected), keys, tokens)
        self.wanted.append(one)
        return one

    def abort(self, one: Wanted) -> None:
        if one in self.open:
            one.aborted = True
            rows = set(self.rows.room) - {one.entry.id}
            self.scheduler.abort(one.entry)
            assert set(self.rows.room) == rows

    @property
    def open(self) -> list[Wanted]:
        return [one for one in self.wanted if not one.aborted and len(one.said) < one.tokens]

    def step(self) -> None:
        running = list(self.scheduler.running)
        plan = self.scheduler.plan()
        self.plans.append(plan)
        self.check(plan)
        assert not running or running[0] in self.scheduler.running  # the oldest never gives way to anybody
        for span in plan.clips:
            self.store.put(span.key, span.tokens, "heard")
        self.store.trim(self.scheduler.needed_clips)
        for entry, count in plan.work:
            self.rows.content[entry.id] += entry.keys[entry.computed : entry.computed + count]
        self.scheduler.advance(plan)
        for entry, _ in plan.work:
            if entry.remaining == 0:
                one = next(one for one in self.wanted if one.entry is entry)
                token = sum(self.rows.content[entry.id]) % 997
                one.said.append(token)
                if len(one.said) == one.tokens:
                    self.scheduler.finish(entry)
                else:
                    entry.keys.append(token)

    def check(self, plan: Plan) -> None:
        scheduler, limits = self.scheduler, self.limits
        assert sum(self.rows.room.values()) == scheduler.used_tokens + scheduler.retained_tokens <= limits.budget_tokens
        assert scheduler.retained_tokens <= limits.retained_tokens
        assert len(scheduler.running) <= limits.max_running
        for queue in (scheduler.running, scheduler.waiting):
            assert [entry.id for entry in queue] == sorted(entry.id for entry in queue)
        for entry in scheduler.running:
            assert self.rows.content[entry.id] == entry.keys[: entry.computed]
            assert self.rows.room[entry.id] == entry.room > entry.computed
        assert all(entry.room == entry.computed == 0 for entry in scheduler.waiting)
        assert len({id(entry) for entry, _ in plan.work}) == len(plan.work)
        assert all(1 <= count <= entry.remaining for entry, count in plan.work)
        decoding = [entry for entry in scheduler.running if entry.decoding]
        assert [entry for entry, _ in plan.work[: len(decoding)]] == decoding  # whoever decodes does so in every step
        assert sum(count for _, count in plan.work[len(decoding) :]) <= limits.prefill_chunk
        for entry, count in plan.work:
            reached = [s for s in entry.clips if s.start < entry.computed + count and s.stop > entry.computed]
            assert all(span.key in self.store for span in reached)
        assert len(plan.clips) <= 1 or sum(span.tokens for span in plan.clips) <= limits.encode_tokens
        assert not any(span.key in self.store for span in plan.clips)
        assert plan.work or plan.clips or not (scheduler.running or scheduler.waiting)

    def drain(self) -> None:
        steps = 0
        while self.open:
            self.step()
            steps += 1
            assert steps < 5000, "somebody starves"
        assert not self.scheduler.running and not self.scheduler.waiting and self.scheduler.used_tokens == 0


def alone(prompt: list[int], tokens: int) -> list[int]:
    keys, said = list(prompt), []
    for _ in range(tokens):
        said.append(sum(keys) % 997)
        keys.append(said[-1])
    return said


def limits_from(draw: st.DrawFn) -> Limits:
    return Limits(
        max_running=draw(st.integers(1, 6)),
        budget_tokens=draw(st.integers(100, 400)),
        retained_tokens=draw(st.sampled_from([0, 40, 200])),
        clip_tokens=draw(st.sampled_from([0, 6, 30])),
        prefill_chunk=draw(st.sampled_from([1, 7, 30, 500])),
        encode_tokens=draw(st.sampled_from([1, 6, 13])),
        row_tokens=draw(st.sampled_from([1, 8, 32])),
        least_shared=draw(st.sampled_from([1, 16, 50])),
        whole_prompts=draw(st.booleans()),
    )


@st.composite
def stories(draw: st.DrawFn) -> tuple[Limits, list[tuple[str, int, int, int, int | None, int]]]:
    event = st.tuples(
        st.sampled_from(["add", "add", "step", "step", "step", "abort"]),
        st.integers(1, 80),  # length of a prompt; or which is aborted
        st.integers(1, 18),  # tokens of the answer
        st.integers(1, 30),  # how many it was thought to have
        st.one_of(st.none(), st.integers(0, 40)),  # where its clip begins
        st.integers(0, 2),  # which clip, and which beginning
    )
    return limits_from(draw), draw(st.lists(event, max_size=40))


@settings(max_examples=200)
@given(stories())
def test_whatever_comes_and_goes(story: tuple[Limits, list[tuple[str, int, int, int, int | None, int]]]) -> None:
    limits, events = story
    bench = Bench(limits)
    for what, number, tokens, expected, clip_at, which in events:
        if what == "add":
            prompt = [which * 500 + place for place in range(number)]
            tokens = min(tokens, limits.budget_tokens - number)
            bench.add(prompt, tokens, expected, clip_at if clip_at is not None and clip_at < number else None, which)
        elif what == "abort" and bench.wanted:
            bench.abort(bench.wanted[number % len(bench.wanted)])
        else:
            bench.step()
    bench.drain()
    for one in bench.wanted:
        if not one.aborted:
            assert one.said == alone(one.prompt, one.tokens)
    bench.scheduler.forget()
    assert not bench.rows.room


def test_a_long_prompt_does_not_stall_those_who_speak() -> None:
    bench = Bench(Limits(prefill_chunk=10, row_tokens=8))
    speaking = bench.add([1, 2, 3], 30, 30)
    bench.step()
    bench.add(list(range(100, 200)), 2, 2)
    for said in range(2, 11):
        bench.step()
        assert len(speaking.said) == said
    assert bench.wanted[1].said == []
    bench.step()
    assert len(bench.wanted[1].said) == 1


def test_short_prompts_overtake_a_long_one_which_goes_on() -> None:
    bench = Bench(Limits(prefill_chunk=20, row_tokens=8))
    long = bench.add(list(range(200)), 1, 1)
    bench.step()
    short = [bench.add([1000 * n] * 20, 1, 1, clip_at=3, clip=n) for n in (1, 2, 3)]
    before = long.entry.computed
    for _ in range(10):
        bench.step()
    assert all(one.said for one in short) and not long.said
    assert long.entry.computed >= before + 6 * 10  # at least half of every step that did not encode
    bench.drain()


def test_clips_are_encoded_in_steps_of_their_own_and_only_once() -> None:
    bench = Bench(Limits(encode_tokens=12))
    prompts = [list(range(start, start + 30)) for start in (0, 100, 200, 0)]
    for prompt, clip in zip(prompts, (1, 2, 3, 1), strict=True):
        bench.add(prompt, 3, 3, clip_at=5, clip=clip)
    bench.drain()
    assert [len(plan.clips) for plan in bench.plans if plan.clips] == [2, 1]
    assert bench.plans[0].clips and not bench.plans[0].work


def test_a_recording_at_the_very_end_of_a_prompt_is_waited_for() -> None:
    bench = Bench(Limits(prefill_chunk=9))
    bench.add(list(range(10)), 3, 3, clip_at=9)
    bench.drain()


def test_a_recording_is_encoded_again_only_if_it_was_forgotten() -> None:
    for kept, encoded in ((100, 1), (0, 2)):
        bench = Bench(Limits(clip_tokens=kept, retained_tokens=0))
        for _ in range(2):
            bench.add(list(range(30)), 2, 2, clip_at=5)
            bench.drain()
        assert sum(len(plan.clips) for plan in bench.plans) == encoded
        assert bench.store.tokens == min(kept, 6)


def test_prompts_that_begin_alike_are_computed_once() -> None:
    bench = Bench(Limits(retained_tokens=1000))
    turn = list(range(100))
    first = bench.add(turn, 5, 5)
    bench.drain()
    assert first.entry.cached == 0
    again, longer = bench.add(turn, 5, 5), bench.add([*turn, *first.said, 7, 8, 9], 5, 5)
    other = bench.add([5000, *turn], 5, 5)
    bench.drain()
    assert again.entry.cached == 99  # one must be computed
    assert longer.entry.cached == 104  # all but the answer's last token
    assert other.entry.cached == 0
    assert bench.scheduler.retained_tokens == 112 + 105  # what begins another is not kept twice


def test_those_who_come_together_wait_for_the_first() -> None:
    bench = Bench(Limits(prefill_chunk=50))
    together = [bench.add(list(range(120)), 3, 3, clip_at=20) for _ in range(4)]
    bench.drain()
    cached = [one.entry.cached for one in together]
    assert cached[0] == 0 and min(cached[1:]) >= 100  # the last few tokens are not worth waiting for


def test_beginnings_that_are_too_short_are_computed_again() -> None:
    cached = []
    for least in (100, 101):
        bench = Bench(Limits(prefill_chunk=50, least_shared=least))
        bench.add([*range(100), 1000], 3, 3)
        bench.step()
        bench.step()
        bench.step()
        cached.append(bench.add([*range(100), 2000, 2001], 3, 3))
        bench.drain()
    assert [one.entry.cached for one in cached] == [100, 0]


def test_whole_prompts_are_not_cut_where_they_fit_into_a_step() -> None:
    for whole, shares in ((False, [20, 20, 20, 4]), (True, [16, 16, 16, 16])):
        bench = Bench(Limits(prefill_chunk=20, whole_prompts=whole))
        for start in (0, 1000, 2000, 3000):
            bench.add(list(range(start, start + 16)), 1, 1)
        bench.drain()
        assert [sum(count for _, count in plan.work) for plan in bench.plans if plan.work] == shares


def test_the_clip_counts_not_its_placeholders() -> None:
    bench = Bench(Limits())
    first = bench.add([9] * 60, 2, 2, clip_at=30, clip=1)
    bench.drain()
    second = bench.add([9] * 60, 2, 2, clip_at=30, clip=2)
    bench.drain()
    assert (first.entry.cached, second.entry.cached) == (0, 30)


def test_the_newest_gives_way_and_says_the_same() -> None:
    bench = Bench(Limits(budget_tokens=64, row_tokens=16, retained_tokens=0))
    old, new = bench.add([1] * 10, 40, 5), bench.add([2] * 10, 30, 5)
    bench.step()
    assert len(bench.scheduler.running) == 2
    while bench.scheduler.waiting == []:
        bench.step()
    assert bench.scheduler.running == [old.entry] and bench.scheduler.waiting == [new.entry]
    assert 0 < len(new.said) < 30
    bench.drain()
    assert (old.said, new.said) == (alone([1] * 10, 40), alone([2] * 10, 30))


def test_what_finished_answers_left_makes_way() -> None:
    bench = Bench(Limits(budget_tokens=128, row_tokens=16, retained_tokens=128))
    for start in (0, 1000):
        bench.add(list(range(start, start + 40)), 2, 2)
        bench.drain()
    assert bench.scheduler.retained_tokens == 82
    whole = bench.add(list(range(1000, 1030)), 95, 95)
    bench.drain()
    assert whole.entry.cached == 29 and whole.said == alone(whole.prompt, 95)


@pytest.mark.parametrize(
    "name", ["max_running", "budget_tokens", "prefill_chunk", "encode_tokens", "row_tokens", "least_shared"]
)
def test_limits_that_make_no_sense_are_named(name: str) -> None:
    with pytest.raises(UsageError, match=f"{name} must be at least 1, got 0"):
        Limits(**{name: 0})


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_shared_length(a: list[int], b: list[int]) -> None:
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert shared_length(a, b) == same
