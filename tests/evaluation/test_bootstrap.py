"""Intervals cover the truth as often as they say; the paired test rejects as seldom as it says."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.bootstrap import BLEU_COUNTS, interval, paired
from qwen2_audio.evaluation.scores import Part, Score

TRIALS = 400
"""The standard error of a coverage of 95 % is then 1.1 points: 91.5 to 98 is what luck, and 150 utterances, can explain."""


def parts(numerators: object, denominators: object) -> list[Part]:
    pairs = zip(np.asarray(numerators).tolist(), np.asarray(denominators).tolist(), strict=True)
    return [Part(str(i), top, bottom) for i, (top, bottom) in enumerate(pairs)]


def score(found: list[Part], metric: str = "wer", profile: str = "official") -> Score:
    return Score("a_set", metric, profile, 0.0, len(found), parts=tuple(found))


def word_errors(rng: np.random.Generator) -> list[Part]:
    """Errors that come together in bad utterances, as they do; the rate of each is 0.1 on average."""
    words = 1 + rng.poisson(12, 150)
    return parts(rng.binomial(words, rng.beta(0.5, 4.5, 150)), words)


def right_or_wrong(rng: np.random.Generator) -> list[Part]:
    return parts(rng.binomial(1, 0.85, 150), np.ones(150))


def marks(rng: np.random.Generator) -> list[Part]:
    return parts(rng.integers(1, 11, 150), np.ones(150))


@pytest.mark.parametrize(("simulate", "truth"), [(word_errors, 0.1), (right_or_wrong, 0.85), (marks, 5.5)])
def test_95_percent_intervals_cover_the_truth_95_percent_of_the_time(
    simulate: Callable[[np.random.Generator], list[Part]], truth: float
) -> None:
    rng = np.random.default_rng(1)
    found = [interval(simulate(rng), seed=trial, resamples=300) for trial in range(TRIALS)]
    covered = sum(ends is not None and ends[0] <= truth <= ends[1] for ends in found) / TRIALS
    assert 0.915 <= covered <= 0.98


def test_a_wider_level_gives_a_wider_interval() -> None:
    found = word_errors(np.random.default_rng(2))
    (low95, high95), (low50, high50) = (interval(found, level=level) or (0, 0) for level in (0.95, 0.5))
    assert low95 < low50 < high50 < high95


def test_the_interval_of_a_share_is_the_binomial_one() -> None:
    """Of 400 answers 100 are right: 0.25 with a standard error of sqrt(0.25 * 0.75 / 400) = 0.02165."""
    ends = interval(parts([1] * 100 + [0] * 300, [1] * 400), resamples=20_000)
    assert ends == pytest.approx((0.25 - 1.96 * 0.02165, 0.25 + 1.96 * 0.02165), abs=0.004)


def test_neither_order_nor_a_second_call_changes_it() -> None:
    found = word_errors(np.random.default_rng(3))
    assert interval(found) == interval(found[::-1]) == interval(found)
    assert interval(found) != interval(found, seed=1)


def test_where_nothing_can_be_said() -> None:
    assert interval([]) is None
    assert interval(parts([1], [5])) is None
    assert interval(parts([1, 2], [0, 0])) is None
    assert interval(parts([1, 1, 1], [4, 4, 4])) == (0.25, 0.25)
    ends = interval(parts([1, 1], [0, 2]))  # a resample may hold the empty reference only
    assert ends is not None and not any(map(math.isnan, ends))


@pytest.mark.parametrize(("resamples", "level"), [(0, 0.95), (1000, 95), (1000, 0.0)])
def test_senseless_settings(resamples: int, level: float) -> None:
    with pytest.raises(UsageError, match=f"at least 100 resamples .*got {resamples} and {level}"):
        interval(parts([1, 0], [1, 1]), resamples=resamples, level=level)


def test_the_paired_difference_by_hand() -> None:
    a = parts([2, 0, 1, 3], [10, 10, 10, 10])
    b = parts([1, 0, 0, 3], [10, 10, 10, 10])
    found = paired(score(a), score(b[::-1]))  # by id, whatever the order
    assert found.value == pytest.approx(4 / 40 - 6 / 40)
    assert found.low <= found.value <= found.high <= 0  # in no sample is B worse
    # two samples differ, each by one error: only both tosses alike, 2 of 4, give a difference as large
    assert found.p == pytest.approx(0.5, abs=0.03)
    same = paired(score(a), score(a))
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert paired(score(b), score(a)).value == pytest.approx(2 / 40)


def test_pairing_sees_what_separate_intervals_cannot() -> None:
    rng = np.random.default_rng(4)
    words = 5 + rng.poisson(12, 400)
    errors = rng.binomial(words, rng.beta(0.5, 2, 400))
    a, b = parts(errors, words), parts(np.maximum(errors - rng.binomial(1, 0.3, 400), 0), words)
    ends_a, ends_b, found = interval(a), interval(b), paired(score(a), score(b))
    assert ends_a and ends_b and ends_a[0] < ends_b[1]  # they overlap
    assert found.high < 0 and found.p < 0.001


def test_equal_systems_differ_significantly_5_percent_of_the_time() -> None:
    rng = np.random.default_rng(5)
    low = inside = 0
    for trial in range(TRIALS):
        words = 1 + rng.poisson(12, 150)
        rates = rng.beta(0.5, 4.5, 150)
        a, b = (parts(rng.binomial(words, rates), words) for _ in "ab")
        found = paired(score(a), score(b), seed=trial, resamples=200)
        low += found.p < 0.05
        inside += found.low <= 0 <= found.high
    assert 0.02 <= low / TRIALS <= 0.085
    assert 0.915 <= inside / TRIALS <= 0.98


def test_pairs_that_make_no_sense() -> None:
    a = parts([1, 0], [2, 2])
    with pytest.raises(UsageError, match=r"a_set: samples are in one run only, 1 of them, such as '2'; compare"):
        paired(score(a), score(parts([1, 0, 1], [2, 2, 2])))
    with pytest.raises(UsageError, match="metric is 'wer', the other's 'cer'"):
        paired(score(a), score(a, metric="cer"))
    with pytest.raises(UsageError, match="profile is 'official', the other's 'clean'"):
        paired(score(a), score(a, profile="clean"))
    with pytest.raises(UsageError, match="the id '0' is there more than once"):
        paired(score([a[0], a[0]]), score(a))
    with pytest.raises(UsageError, match="no sample of it was scored"):
        paired(score([]), score([]))
    with pytest.raises(UsageError, match="references are all empty"):
        paired(score(parts([1], [0])), score(parts([1], [0])))


REFERENCES = [f"the {a} {b} sat on the {c} and {d} at me" for a in ("big", "old", "red") for b in ("cat", "dog", "hen")
              for c in ("mat", "sofa", "roof") for d in ("looked", "barked", "smiled")]  # fmt: skip


def translations(rng: np.random.Generator, wrong: float) -> list[str]:
    return [" ".join("x" if rng.random() < wrong else word for word in line.split()) for line in REFERENCES]


def bleu_parts(lines: list[str]) -> list[Part]:
    bleu = pytest.importorskip("sacrebleu").BLEU()
    found = []
    for i, (line, reference) in enumerate(zip(lines, REFERENCES, strict=True)):
        one = bleu.corpus_score([line], [[reference]])
        numbers = [one.sys_len, one.ref_len, *one.counts, *one.totals]
        found.append(Part(str(i), one.score, 1, counts=dict(zip(BLEU_COUNTS, numbers, strict=True))))
    return found


def test_bleu_is_put_together_as_sacrebleu_does() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    rng = np.random.default_rng(6)
    good, bad = translations(rng, 0.1), translations(rng, 0.4)
    short = [" ".join(line.split()[:6]) for line in good]  # the penalty for brevity
    ends = interval(bleu_parts(good))
    reference = sacrebleu.BLEU().corpus_score(good, [REFERENCES], n_bootstrap=1000)
    assert ends is not None
    assert (ends[1] - ends[0]) / 2 == pytest.approx(reference._ci, rel=0.15)
    assert sum(ends) / 2 == pytest.approx(reference.score, abs=1.5)
    base = sacrebleu.corpus_bleu(good, [REFERENCES]).score
    for other in (bad, short, ["x"] * len(good), ["the"] * len(good)):
        found = paired(score(bleu_parts(good), "bleu"), score(bleu_parts(other), "bleu"), resamples=200)
        assert found.value == pytest.approx(sacrebleu.corpus_bleu(other, [REFERENCES]).score - base, abs=1e-6)
        assert found.high < 0 and found.p < 0.01


def test_orders_without_a_match_are_smoothed_as_in_sacrebleu() -> None:
    sacrebleu = pytest.importorskip("sacrebleu")
    lines = ["the x cat x on x roof x at x" for _ in REFERENCES]  # no two words in a row are right
    none = ["x y z w" for _ in REFERENCES]
    found = paired(score(bleu_parts(none), "bleu"), score(bleu_parts(lines), "bleu"), resamples=200)
    assert found.value == pytest.approx(sacrebleu.corpus_bleu(lines, [REFERENCES]).score, abs=1e-6)
    assert found.value > 0.1
