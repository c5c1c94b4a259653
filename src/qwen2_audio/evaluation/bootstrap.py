"""How sure a score is: percentile bootstrap over utterances, and the paired comparison of two runs.

A corpus score is a function of sums over utterances (errors and words; n-gram matches and lengths), so a resample is a vector
of how often each utterance is drawn. Utterances with the same numbers are interchangeable: only their multiplicities are
drawn, which is the same distribution, many times faster, and leaves the result independent of the order of the answers.

Sources: Bisani and Ney 2004 (error rates), Koehn 2004 (BLEU), Riezler and Maxwell 2005 (the randomisation test).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.scores import Part, Score

Numbers: TypeAlias = npt.NDArray[np.float64]

BLEU_COUNTS = (
    "hypothesis_length", "reference_length",
    "matches_1", "matches_2", "matches_3", "matches_4", "ngrams_1", "ngrams_2", "ngrams_3", "ngrams_4",
)  # fmt: skip
"""What the parts of a BLEU score carry in `Part.counts`, besides a sentence's own score in numerator and denominator."""

_BLOCK = 1 << 22
"""Numbers drawn at once: 32 MB."""


@dataclass(frozen=True, slots=True)
class Difference:
    """Score B less score A on the same samples.

    Attributes:
        value: b - a, in the unit of the scores.
        low, high: the paired bootstrap interval of `value`.
        p: of the two-sided randomisation test: how often a difference as large appears when every answer is given to A or B
            by the toss of a coin.
    """

    value: float
    low: float
    high: float
    p: float


def combined(parts: Sequence[Part]) -> float | None:
    """The corpus score of parts, in the unit of `Score.value`; None where there is nothing to divide by.

    Parts with the counts of `BLEU_COUNTS` are put together as BLEU (0 to 100), all others as the quotient of their sums.
    """
    value = float(_value(_rows(parts).sum(0, keepdims=True))[0]) if parts else np.nan
    return None if np.isnan(value) else value


def interval(
    parts: Sequence[Part], *, seed: int = 0, resamples: int = 2000, level: float = 0.95
) -> tuple[float, float] | None:
    """The bootstrap interval of `combined(parts)`.

    Returns:
        Its ends, or None where nothing can be said: fewer than two parts, or denominators that sum to zero.

    Raises:
        UsageError: `resamples` or `level` make no sense.
    """
    _check(resamples, level)
    if len(parts) < 2 or combined(parts) is None:
        return None
    values, times = np.unique(_rows(parts), axis=0, return_counts=True)
    return _percentiles(_value(_resampled(values, times, resamples, np.random.default_rng(seed))), level)


def paired(a: Score, b: Score, *, seed: int = 0, resamples: int = 2000, level: float = 0.95) -> Difference:
    """B less A on the same samples: drawing a sample draws both its answers, so that what is hard for both cancels out.

    Raises:
        UsageError: the scores are of different metrics, profiles or samples, there is nothing to compare, or `resamples` or
            `level` make no sense.
    """
    _check(resamples, level)
    for name in ("metric", "profile"):
        if getattr(a, name) != getattr(b, name):
            raise UsageError(
                f"cannot compare {a.source}: one run's {name} is {getattr(a, name)!r}, the other's {getattr(b, name)!r}; "
                "score both alike"
            )
    both = _aligned(a, b)
    width = both.shape[1] // 2
    sums = both.sum(0, keepdims=True)
    observed = (_value(sums[:, width:]) - _value(sums[:, :width]))[0]
    if np.isnan(observed):
        raise UsageError(f"cannot compare {a.source}: its references are all empty")
    values, times = np.unique(both, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = _resampled(values, times, resamples, rng)
    low, high = _percentiles(_value(drawn[:, width:]) - _value(drawn[:, :width]), level)
    gain = values[:, width:] - values[:, :width]
    moved = np.concatenate([rng.binomial(times, 0.5, (size, len(times))) @ gain for size in _blocks(resamples, times)])
    tossed = _value(sums[:, width:] - moved) - _value(sums[:, :width] + moved)
    as_large = int((np.abs(tossed) >= abs(observed) - 1e-12).sum())
    return Difference(float(observed), low, high, (as_large + 1) / (resamples + 1))


def _aligned(a: Score, b: Score) -> Numbers:
    """The numbers of both scores beside each other, a row a sample."""
    ids = [[part.id for part in score.parts] for score in (a, b)]
    for found in ids:
        if twice := [name for name, count in Counter(found).items() if count > 1]:
            raise UsageError(
                f"cannot compare {a.source}: the id {twice[0]!r} is there more than once; ids must be unique"
            )
    if other := set(ids[0]) ^ set(ids[1]):
        raise UsageError(
            f"cannot compare {a.source}: samples are in one run only, {len(other)} of them, such as {min(other)!r}; "
            "compare runs over the same data"
        )
    if not ids[0]:
        raise UsageError(f"cannot compare {a.source}: no sample of it was scored")
    of_b = {part.id: part for part in b.parts}
    return np.concatenate([_rows(a.parts), _rows([of_b[name] for name in ids[0]])], axis=1)


def _rows(parts: Sequence[Part]) -> Numbers:
    """What is summed, a row a part: BLEU's counts where every part has them, else numerator and denominator."""
    if parts and all(part.counts.keys() >= set(BLEU_COUNTS) for part in parts):
        return np.array([[part.counts[name] for name in BLEU_COUNTS] for part in parts], float)
    return np.array([[part.numerator, part.denominator] for part in parts], float)


def _value(sums: Numbers) -> Numbers:
    """Corpus scores `[n]` of sums `[n, 2]` or, for BLEU, `[n, 10]`; nan where there is nothing to divide by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if sums.shape[1] == 2:
            return np.where(sums[:, 1] > 0, sums[:, 0] / sums[:, 1], np.nan)
        return _bleu(sums)


def _bleu(sums: Numbers) -> Numbers:
    """BLEU as sacrebleu defines it: n-grams up to 4, exponential smoothing of orders without a match."""
    hypothesis, reference, matches, ngrams = sums[:, 0], sums[:, 1], sums[:, 2:6], sums[:, 6:10]
    halvings = np.cumsum(matches == 0, axis=1)  # the n-th order without a match counts as 2^-n matches
    precision = np.where(matches == 0, 0.5**halvings, matches) / ngrams
    brevity = np.exp(np.minimum(0.0, 1 - reference / hypothesis))
    score = 100 * brevity * np.exp(np.log(precision).mean(1))
    return np.where((ngrams > 0).all(1) & (matches > 0).any(1), score, 0.0)


def _resampled(values: Numbers, times: npt.NDArray[np.int64], resamples: int, rng: np.random.Generator) -> Numbers:
    """Sums `[resamples, k]` over draws with replacement from rows `values` that are there `times` times."""
    total = int(times.sum())
    blocks = (rng.multinomial(total, times / total, size) for size in _blocks(resamples, times))
    return np.concatenate([block.astype(float) @ values for block in blocks])


def _blocks(resamples: int, times: npt.NDArray[np.int64]) -> list[int]:
    """How many resamples to draw at once, so that memory stays small."""
    size = max(1, _BLOCK // len(times))
    return [min(size, resamples - start) for start in range(0, resamples, size)]


def _percentiles(values: Numbers, level: float) -> tuple[float, float]:
    tail = 50 * (1 - level)
    low, high = np.nanpercentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _check(resamples: int, level: float) -> None:
    if resamples < 100 or not 0 < level < 1:
        raise UsageError(
            f"a bootstrap needs at least 100 resamples and a level between 0 and 1, got {resamples} and {level}"
        )
