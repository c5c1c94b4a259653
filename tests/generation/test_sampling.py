"""Choosing tokens: the same scores as transformers' processors, and nothing that depends on the neighbours."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwen2_audio.errors import CheckpointError, UsageError
from qwen2_audio.generation.options import GenerationDefaults, GenerationOptions
from qwen2_audio.generation.sampling import Sampler, choose, penalise, restrict
from qwen2_audio.generation.sequence import Choice, Sequence
from qwen2_audio.processing.processor import Processor

VOCAB = 50


def pick(sampler: Sampler, logits: Tensor) -> int:
    return choose(logits[None], [sampler])[0].token


def reference(scores: Tensor, ids: list[int], options: GenerationOptions) -> Tensor:
    from transformers import (
        LogitsProcessorList,
        MinPLogitsWarper,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(options.repetition_penalty)])
    steps.append(TemperatureLogitsWarper(options.temperature))
    if options.top_k:
        steps.append(TopKLogitsWarper(options.top_k))
    if options.top_p < 1:
        steps.append(TopPLogitsWarper(options.top_p))
    if options.min_p:
        steps.append(MinPLogitsWarper(options.min_p))
    return steps(torch.tensor([ids]), scores[None])[0]


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 2.0),
    top_k=st.integers(0, 60),
    top_p=st.sampled_from([0.05, 0.3, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    penalty=st.sampled_from([1.0, 1.1, 2.0, 0.7]),
)
def test_scores_equal_transformers(
    seed: int, temperature: float, top_k: int, top_p: float, min_p: float, penalty: float
) -> None:
    torch.manual_seed(seed)
    scores = torch.randn(VOCAB) * 3
    ids = torch.randint(0, VOCAB, (12,)).tolist()
    options = GenerationOptions(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty
    )
    seen = torch.zeros(VOCAB, dtype=torch.bool)
    seen[ids] = True
    ours = restrict(penalise(scores, seen, penalty) / temperature, options)
    torch.testing.assert_close(ours, reference(scores.clone(), ids, options))


def test_seed_repeats_and_differs() -> None:
    scores = [torch.randn(VOCAB, generator=torch.Generator().manual_seed(i)) for i in range(20)]

    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(GenerationOptions(temperature=1.0, seed=seed), [1], VOCAB)
        return [pick(sampler, s) for s in scores]

    assert draw(3) == draw(3)
    assert draw(3) != draw(4)
    assert draw(None) != draw(None)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    least=st.integers(0, 5),
    temperature=st.sampled_from([0.0, 1.3]),
    penalty=st.sampled_from([1.0, 1.1, 0.7]),
)
def test_the_least_length_equals_transformers(seed: int, least: int, temperature: float, penalty: float) -> None:
    """Token by token against their processors in their order; likely end tokens, and one beyond the vocabulary."""
    from transformers import (
        LogitsProcessorList,
        MinNewTokensLengthLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
    )

    prompt, ends = [1, 2, 3, 7], [3, 8, VOCAB + 5]
    steps = LogitsProcessorList([RepetitionPenaltyLogitsProcessor(penalty)])
    steps.append(MinNewTokensLengthLogitsProcessor(len(prompt), least, ends))
    if temperature:
        steps.append(TemperatureLogitsWarper(temperature))
    options = GenerationOptions(min_new_tokens=least, temperature=temperature, repetition_penalty=penalty, seed=seed)
    sampler = Sampler(options, prompt, VOCAB, frozenset(ends))
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    ids = list(prompt)
    for _ in range(8):
        logits = torch.randn(VOCAB)
        logits[ends[:2]] += 5
        theirs = steps(torch.tensor([ids]), logits[None])[0]
        at = torch.rand(1, generator=random, dtype=torch.float64)
        sums = theirs.softmax(-1).double().cumsum(-1)
        ids.append(int((sums <= at * sums[-1]).sum() if temperature else theirs.argmax()))
        assert sampler.plain == (not temperature and penalty == 1 and len(ids) > len(prompt) + least)
        assert pick(sampler, logits) == ids[-1]
    assert not set(ids[len(prompt) : len(prompt) + least]) & set(ends)


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), top_k=st.integers(1, 8), top_p=st.sampled_from([0.5, 1.0]), tied=st.booleans())
def test_what_is_drawn_of_the_likeliest_is_what_is_drawn_of_all(
    seed: int, top_k: int, top_p: float, tied: bool
) -> None:
    """Also where so many are equally likely that the first look does not hold them all."""
    options = GenerationOptions(temperature=0.8, top_k=top_k, top_p=top_p, repetition_penalty=1.3, seed=seed)
    short, whole = Sampler(options, [1, 2], 400), Sampler(options, [1, 2], 400)
    torch.manual_seed(seed)
    for _ in range(6):
        logits = torch.randn(400) * 3
        logits = (logits / 4).round() * 4 if tied else logits
        assert len(short.candidates(logits)[0]) < 400
        assert pick(short, logits) == whole.draw(*whole.candidates(logits, all_of_them=True))


def test_more_equally_likely_tokens_than_were_looked_at() -> None:
    sampler = Sampler(GenerationOptions(temperature=1.0, top_k=3, seed=0), [], 400)
    assert sampler.draw(*sampler.candidates(torch.zeros(400))) is None
    assert len({pick(sampler, torch.zeros(400)) for _ in range(50)}) > 30


def test_fewer_possible_tokens_than_top_k() -> None:
    """What is impossible is never drawn, and does not change what is drawn of the rest."""
    bias = tuple((token, -100.0) for token in range(100))
    logits = torch.full((400,), -torch.inf)
    logits[[7, 300, 301]] = torch.tensor([100.0, 0.0, 0.5])
    options = GenerationOptions(temperature=1.0, top_k=20, seed=4, logit_bias=bias)
    chosen = [
        [pick(sampler, logits) for _ in range(30)] for sampler in (Sampler(options, [], 400), Sampler(options, [], 400))
    ]
    assert chosen[0] == chosen[1]
    assert set(chosen[0]) == {7, 300, 301}


def test_draws_have_the_likelihood_they_should() -> None:
    scores = torch.randn(300, generator=torch.Generator().manual_seed(1)) * 2
    options = GenerationOptions(temperature=0.9, top_k=6, top_p=0.9, seed=0)
    sampler = Sampler(options, [], 300)
    counts = torch.bincount(torch.tensor([pick(sampler, scores) for _ in range(4000)]), minlength=300) / 4000
    expected = reference(scores.clone(), [0], options).softmax(-1)
    torch.testing.assert_close(counts, expected, atol=0.03, rtol=0)
    assert not counts[expected == 0].any()


def test_penalty_counts_prompt_and_answer() -> None:
    sampler = Sampler(GenerationOptions(repetition_penalty=10.0), [0], 3)
    scores = torch.tensor([3.0, 2.0, 1.0])
    assert [pick(sampler, scores) for _ in range(3)] == [1, 2, 0]


def test_presence_and_frequency_count_the_answer_alone() -> None:
    """As OpenAI's API defines them: logit - count * frequency - (count > 0) * presence."""
    scores = torch.tensor([3.0, 2.6, 2.1])
    often = Sampler(GenerationOptions(frequency_penalty=0.5), [0, 0, 0], 3)
    assert [pick(often, scores) for _ in range(6)] == [0, 1, 0, 1, 2, 0]
    once = Sampler(GenerationOptions(presence_penalty=1.0), [0, 0, 0], 3)
    assert [pick(once, scores) for _ in range(5)] == [0, 1, 2, 0, 0]
    liked = Sampler(GenerationOptions(frequency_penalty=-2.0), [1], 3)
    assert [pick(liked, scores) for _ in range(3)] == [0, 0, 0]


def test_bias_is_added_before_temperature() -> None:
    scores = torch.tensor([3.0, 2.0, 1.0])
    assert pick(Sampler(GenerationOptions(logit_bias=((2, 2.5),)), [], 3), scores) == 2
    forbidden = GenerationOptions(logit_bias=((0, -100.0), (1, -100.0)), temperature=2.0, seed=1)
    sampler = Sampler(forbidden, [], 3)
    assert {pick(sampler, scores) for _ in range(20)} == {2}
    twice = GenerationOptions(logit_bias=((2, 1.5), (2, 1.0)))
    assert pick(Sampler(twice, [], 3), scores) == 2
    with pytest.raises(UsageError, match="the token 3, the model has 3"):
        Sampler(GenerationOptions(logit_bias=((3, 1.0),)), [], 3)


def test_logprobs_are_those_of_the_model_whatever_is_done_to_its_choice() -> None:
    logits = torch.randn(2, VOCAB, generator=torch.Generator().manual_seed(0)) * 3
    exact = logits.log_softmax(-1)
    options = GenerationOptions(
        temperature=1.7,
        top_k=9,
        seed=2,
        repetition_penalty=2.0,
        frequency_penalty=1.0,
        logit_bias=((3, 5.0),),
        logprobs=4,
    )
    chosen = choose(logits, [Sampler(GenerationOptions(logprobs=0), [], VOCAB), Sampler(options, [1, 2], VOCAB)])
    assert chosen[0].token == int(logits[0].argmax())
    for choice, row, wanted in zip(chosen, exact, (0, 4), strict=True):
        assert choice.logprob == pytest.approx(float(row[choice.token]), abs=1e-5)
        assert [token for token, _ in choice.top] == row.topk(4).indices.tolist()[:wanted]
        assert [value for _, value in choice.top] == pytest.approx(row.topk(4).values.tolist()[:wanted], abs=1e-5)
    silent = choose(logits, [Sampler(GenerationOptions(), [], VOCAB)] * 2)
    assert [(choice.logprob, choice.top) for choice in silent] == [(None, ())] * 2


def test_end_tokens_of_ones_own(processor: Processor) -> None:
    def reason(tokens: list[int], **options: Any) -> tuple[str | None, int]:
        text = Sequence(0, GenerationOptions(max_new_tokens=9, **options), frozenset({7}), 50, processor.tokenizer)
        for count, token in enumerate(tokens, 1):
            if (step := text.push(Choice(token))).finish_reason:
                return step.finish_reason, count
        return None, len(tokens)

    assert reason([5, 7, 6]) == ("stop", 2)
    assert reason([5, 7, 6], ignore_eos=True) == (None, 3)
    assert reason([5, 7, 6], ignore_eos=True, stop_token_ids=(6,)) == ("stop", 3)
    assert reason([5] * 20, ignore_eos=True) == ("length", 9)
    text = Sequence(0, GenerationOptions(stop_token_ids=(6,)), frozenset(), 50, processor.tokenizer)
    assert [text.push(Choice(token)).text for token in (5, 6)] == [processor.tokenizer.decode([5]), ""]


def test_end_tokens_of_ones_own_wait_for_the_least_length() -> None:
    sampler = Sampler(GenerationOptions(min_new_tokens=2, stop_token_ids=(0,)), [], 3)
    scores = torch.tensor([3.0, 2.0, 1.0])
    assert [pick(sampler, scores) for _ in range(3)] == [1, 1, 0]


def test_options_as_callers_spell_them() -> None:
    options = GenerationOptions().override(
        logit_bias={3: 1, 4: -2.5}, json_schema={"type": "object"}, stop_token_ids=[5], ignore_eos=True, logprobs=2
    )
    assert options.logit_bias == ((3, 1), (4, -2.5)) and options.stop_token_ids == (5,)
    assert options.json_schema == '{"type": "object"}' and options.ignore_eos and options.logprobs == 2
    assert options.override() == options


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("presence_penalty", 2.1),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", -3),
        ("logit_bias", {3: 101}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {"cat": 1}),
        ("logit_bias", {3: float("nan")}),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", ["x"]),
        ("ignore_eos", 1),
        ("logprobs", 21),
        ("logprobs", True),
        ("json_schema", "[]"),
        ("json_schema", "{"),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("top_p", 0),
        ("top_p", 1.5),
        ("top_k", -1),
        ("top_k", 2.5),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("max_new_tokens", 0),
        ("max_new_tokens", True),
        ("min_new_tokens", -1),
        ("min_new_tokens", 1.0),
        ("seed", -1),
        ("stop", ""),
    ],
)
def test_bad_options_are_named(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name):
        GenerationOptions().override(**{name: value})  # type: ignore[arg-type]


def test_defaults_of_a_checkpoint() -> None:
    published = {
        "do_sample": True, "temperature": 0.7, "top_p": 0.5, "top_k": 20, "repetition_penalty": 1.1,
        "eos_token_id": [151643, 151645],
    }  # fmt: skip
    defaults = GenerationDefaults.from_hf(published, [9])
    assert defaults.options == GenerationOptions(temperature=0.7, top_p=0.5, top_k=20, repetition_penalty=1.1)
    assert defaults.end_ids == {151643, 151645}
    greedy = GenerationDefaults.from_hf(published | {"do_sample": False}, [9])
    assert greedy.options == GenerationOptions(repetition_penalty=1.1)
    for drawn in (True, False):
        least = GenerationDefaults.from_hf(published | {"do_sample": drawn, "min_new_tokens": 3}, [9])
        assert least.options.min_new_tokens == 3 and least.options.override().min_new_tokens == 3
        assert least.options.override(min_new_tokens=0).min_new_tokens == 0
    with pytest.raises(CheckpointError, match=r"min_new_tokens must be a whole number, at least 0, got -1"):
        GenerationDefaults.from_hf({"min_new_tokens": -1}, [9])
    assert GenerationDefaults.from_hf({}, [9]).end_ids == {9}
    assert GenerationDefaults.from_hf({"stop_strings": ["###"]}, [9]).options.stop == ("###",)
    with pytest.raises(CheckpointError, match="stop must be texts"):
        GenerationDefaults.from_hf({"stop_strings": 5}, [9])
    assert GenerationOptions().override(stop_token_ids=5).stop_token_ids == (5,)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="stop_token_ids must be whole numbers"):
        GenerationOptions().override(stop_token_ids=0.5)  # type: ignore[arg-type]


def test_what_a_checkpoint_asks_for_in_vain_is_said() -> None:
    GenerationDefaults.from_hf({"num_beams": 1, "no_repeat_ngram_size": 0, "transformers_version": "5.0"}, [9])
    for key, value in (("top_h", 0.4), ("exponential_decay_length_penalty", [20, 1.5]), ("num_return_sequences", 2)):
        with pytest.warns(UserWarning, match=f"{key}=.* is not supported"):
            GenerationDefaults.from_hf({key: value}, [9])
    with pytest.warns(UserWarning, match=r"num_beams=5 in generation_config\.json is not supported"):
        GenerationDefaults.from_hf({"num_beams": 5}, [9])
