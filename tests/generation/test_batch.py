"""The continuous batch on tiny random models: whatever else comes and goes, every answer is what it would be alone."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from qwen2_audio.api import Assistant, load
from qwen2_audio.errors import ContextLengthError, ConversationError, UsageError
from qwen2_audio.generation.batch import ContinuousBatch, clip_key
from qwen2_audio.generation.engine import Engine
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.generation.request import Request
from qwen2_audio.generation.scheduler import Limits
from qwen2_audio.generation.sequence import Step
from qwen2_audio.processing.conversation import Conversation, TextPart
from tests.tiny import sound, tiny_folder

SECONDS = (0.1, 1.33, 3.0, 0.7)
SMALL = Limits(
    max_running=3,
    budget_tokens=700,
    retained_tokens=200,
    clip_tokens=40,
    prefill_chunk=17,
    encode_tokens=50,
    row_tokens=16,
)


@pytest.fixture(scope="module", params=[0, 2])
def assistant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Assistant:
    seed = request.param
    folder = tmp_path_factory.mktemp("tiny") / "model"
    return load(tiny_folder(folder, seed=seed, mel_bins=80 if seed else 128, gqa=seed < 2), device="cpu")


@pytest.fixture(scope="module")
def engine(assistant: Assistant) -> Engine:
    """Answers do not end by themselves."""
    return Engine(assistant.engine.model, assistant.engine.tokenizer, frozenset())


@pytest.fixture(scope="module")
def requests(assistant: Assistant) -> list[Request]:
    """Greedy and drawn ones, with clips, several and none, some beginning alike."""
    clips = [(sound(seconds, seed=i), 16_000) for i, seconds in enumerate(SECONDS)]
    items = [Conversation().user(clip, TextPart("what is this?")) for clip in clips]
    items.append(Conversation().user(clips[0], clips[1]).assistant("hello").user(TextPart("the dog"), clips[2]))
    items.append(Conversation().user(clips[2], TextPart("what is this?")).assistant("hello").user("and the cat?"))
    items += [Conversation().user("hello world"), Conversation().user(clips[2], TextPart("who barked at the man?"))]
    chosen: list[dict[str, Any]] = [
        {},
        {"temperature": 1.0, "seed": 3},
        {"repetition_penalty": 1.3},
        {"temperature": 0.8, "top_k": 30, "top_p": 0.9, "seed": 4, "frequency_penalty": 0.5},
    ]
    out = []
    for number, item in enumerate(items):
        prompt = assistant.processor.prepare(item)
        options = GenerationOptions(max_new_tokens=6 + 5 * (number % 4), **chosen[number % 4])
        out.append(Request(prompt.ids, prompt.clips, options))
    return out


@pytest.fixture(scope="module")
def alone(engine: Engine, requests: list[Request]) -> list[list[int]]:
    return [[step.token for step in engine.run([request])] for request in requests]


def drain(batch: ContinuousBatch) -> list[Step]:
    steps = []
    while batch.running or batch.waiting:
        steps += batch.step()
    return steps


def tokens_of(steps: list[Step]) -> dict[int, list[int]]:
    out: dict[int, list[int]] = {}
    for step in steps:
        out.setdefault(step.index, []).append(step.token)
    return out


@pytest.mark.parametrize("limits", [SMALL, Limits()], ids=["small", "default"])
@pytest.mark.parametrize("order", range(2))
def test_any_order_of_arrival_equals_alone(
    engine: Engine, requests: list[Request], alone: list[list[int]], limits: Limits, order: int
) -> None:
    chance = random.Random(order)
    batch, steps = ContinuousBatch(engine, limits), []
    coming = [which for which in range(len(requests)) for _ in range(2)]
    chance.shuffle(coming)
    for number, which in enumerate(coming):
        batch.add(number, requests[which])
        for _ in range(chance.choice([0, 0, 1, 4])):
            steps += batch.step()
    steps += drain(batch)
    assert tokens_of(steps) == {number: alone[which] for number, which in enumerate(coming)}
    assert [step.finish_reason for step in steps if step.finish_reason] == ["length"] * len(coming)
    assert all(step.cached_tokens < len(requests[coming[step.index]].ids) for step in steps)


def test_memory_returns_to_where_it_was(engine: Engine, requests: list[Request]) -> None:
    batch = ContinuousBatch(engine, SMALL)
    assert batch.held == (0, 0, 0) and batch.step() == []
    for index, request in enumerate(requests):
        batch.add(index, request)
    drain(batch)
    rows, tokens, clips = batch.held
    assert tokens <= SMALL.retained_tokens and clips <= SMALL.clip_tokens and rows
    assert batch.cache_usage == 0
    batch.forget()
    assert batch.held == (0, 0, 0)


@pytest.mark.parametrize(("limits", "after"), [(SMALL, 0), (SMALL, 2), (SMALL, 5), (SMALL, 13), (Limits(), 4)])
def test_abort_frees_everything_and_disturbs_nobody(
    engine: Engine, requests: list[Request], alone: list[list[int]], limits: Limits, after: int
) -> None:
    batch, steps = ContinuousBatch(engine, limits), []
    for index, request in enumerate(requests):
        batch.add(index, request)
    for _ in range(after):
        steps += batch.step()
    gone = [1, 2, 4, 7]
    for index in gone:
        batch.abort(index)
        batch.abort(index)  # once more is no error
    batch.abort(1000)
    finished = {step.index for step in steps if step.finish_reason}
    assert batch.running + batch.waiting == len(set(range(len(requests))) - set(gone) - finished)
    after_that = drain(batch)
    assert not {step.index for step in after_that} & set(gone)
    said = tokens_of(steps + after_that)
    assert {index: said[index] for index in (0, 3, 5, 6)} == {index: alone[index] for index in (0, 3, 5, 6)}
    batch.forget()
    assert batch.held == (0, 0, 0)


def test_aborting_all_leaves_nothing(engine: Engine, requests: list[Request]) -> None:
    batch = ContinuousBatch(engine, Limits(retained_tokens=0, clip_tokens=0))
    for index, request in enumerate(requests):
        batch.add(index, request)
    for _ in range(3):
        batch.step()
    for index in range(len(requests)):
        batch.abort(index)
    assert batch.held == (0, 0, 0) and (batch.running, batch.waiting, batch.cache_usage) == (0, 0, 0.0)


def test_preempted_equals_never_preempted(engine: Engine, requests: list[Request]) -> None:
    """All were thought to be short, and together they need more than there is: what is said already is computed anew."""
    asked = [
        Request(requests[i].ids, requests[i].clips, replace(requests[i].options, max_new_tokens=40))
        for i in (6, 0, 3, 1)
    ]
    batch = ContinuousBatch(engine, Limits(budget_tokens=160, row_tokens=8, retained_tokens=0, prefill_chunk=20))
    for index, request in enumerate(asked):
        batch.add(index, request)
        batch._answers[index].entry.expected = 1
    steps: list[Step] = []
    preempted = 0
    while batch.running or batch.waiting:
        before, over = {entry.id for entry in batch._scheduler.running}, len(steps)
        steps += batch.step()
        ended = sum(step.finish_reason is not None for step in steps[over:])
        preempted += len(before - {entry.id for entry in batch._scheduler.running}) - ended
    assert preempted > 0
    assert tokens_of(steps) == {i: [step.token for step in engine.run([one])] for i, one in enumerate(asked)}


def test_chunked_prefill_equals_whole(engine: Engine, requests: list[Request], alone: list[list[int]]) -> None:
    for chunk in (1, 5, 64):
        batch = ContinuousBatch(engine, Limits(prefill_chunk=chunk))
        batch.add(0, requests[4])
        assert tokens_of(drain(batch)) == {0: alone[4]}


def test_a_second_turn_and_a_second_user_reuse_what_was_heard(
    assistant: Assistant,
    engine: Engine,
    requests: list[Request],
    alone: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    heard: list[int] = []
    encode = engine.model.encode_audio

    def counted(mels: Any, frames: Any) -> Any:
        heard.extend(frames)
        return encode(mels, frames)

    monkeypatch.setattr(engine.model, "encode_audio", counted)
    batch = ContinuousBatch(engine)
    cached = {}
    for index in (2, 5, 7, 2):
        batch.add(index, requests[index])
        steps = drain(batch)
        assert tokens_of(steps) == {index: alone[index]}
        cached[index] = steps[0].cached_tokens
    clip = requests[2].clips[0]
    assert heard == [clip.frames]
    assert cached[2] == len(requests[2].ids) - 1
    assert min(cached[5], cached[7]) > clip.tokens


def test_users_of_one_clip_at_the_same_time_share_its_encoding(engine: Engine, requests: list[Request]) -> None:
    batch = ContinuousBatch(engine)
    for index in (2, 5, 7):
        batch.add(index, requests[index])
    batch.step()
    assert batch.held[2] == requests[2].clips[0].tokens


def test_the_content_of_a_clip_is_its_key(assistant: Assistant) -> None:
    a, b, c = (assistant.processor.clip(sound(seconds, seed)) for seconds, seed in ((1, 0), (1, 0), (1, 1)))
    assert clip_key(a) == clip_key(b) != clip_key(c)
    assert clip_key(a) > assistant.model.config.text.vocab_size


def test_other_clips_behind_the_same_text_are_not_confused(assistant: Assistant, engine: Engine) -> None:
    prompts = [
        assistant.processor.prepare(Conversation().user((sound(1.0, seed), 16_000), TextPart("what is this?")))
        for seed in (0, 1)
    ]
    assert prompts[0].ids == prompts[1].ids
    options = GenerationOptions(max_new_tokens=12)
    batch = ContinuousBatch(engine)
    for index, prompt in enumerate(prompts):
        batch.add(index, Request(prompt.ids, prompt.clips, options))
    said = tokens_of(drain(batch))
    assert said[0] != said[1]


def test_what_cannot_be_done_is_refused_and_disturbs_nobody(
    engine: Engine, requests: list[Request], alone: list[list[int]]
) -> None:
    batch = ContinuousBatch(engine, SMALL)
    batch.add(0, requests[0])
    batch.step()
    with pytest.raises(UsageError, match="an answer 0 already"):
        batch.add(0, requests[1])
    with pytest.raises(ContextLengthError, match="700 tokens, the memory set aside for answers holds 700"):
        batch.add(1, Request([5] * 700))
    with pytest.raises(ContextLengthError, match="4096 tokens, the model's context holds 4096"):
        ContinuousBatch(engine).add(1, Request([5] * 4096))
    with pytest.raises(ConversationError, match=r"0 audio tokens, its 1 recordings make 2"):
        batch.add(1, Request([5], requests[0].clips))
    with pytest.raises(UsageError, match="logit_bias names the token 384"):
        batch.add(1, Request([5], options=GenerationOptions(logit_bias=((384, 1.0),))))
    with pytest.raises(UsageError, match="empty"):
        batch.add(1, Request([]))
    assert (batch.running, batch.waiting) == (1, 0)
    assert tokens_of(drain(batch)) == {0: alone[0]}


def test_an_answer_ends_where_memory_does(engine: Engine) -> None:
    batch = ContinuousBatch(engine, SMALL)
    batch.add(0, Request([5] * 690))
    steps = drain(batch)
    assert (len(steps), steps[-1].finish_reason) == (10, "length")


def test_every_row_of_a_pool_can_leave_in_any_order(engine: Engine) -> None:
    """Answers of unlike length in one pool, ending one after the other."""
    ask = [Request([5, 6, 7 + i], options=GenerationOptions(max_new_tokens=3 + (7 * i) % 11)) for i in range(11)]
    together = tokens_of(list(engine.run(ask)))
    assert together == {i: [step.token for step in engine.run([request])] for i, request in enumerate(ask)}
