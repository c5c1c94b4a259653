"""What was measured: spreads of seconds, ratios, floors. No tensors here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Times:
    """One run of a scenario, in seconds.

    Attributes:
        first: until every stream has its first token.
        step: of one more token of every stream, on average over the tokens that come after `first`; None where a side does not
            show how many these are.
        whole: until the end.
    """

    first: float
    step: float | None
    whole: float


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, least and greatest of several runs, in seconds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        return cls(statistics.median(seconds), min(seconds), max(seconds))


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the report.

    Attributes:
        what: the part of the scenario that was timed.
        seconds: by side, those of which it is known; ours is "ours".
        ratio: by the other sides: the median over the rounds of their time by ours; above 1 we are quicker.
        floor: seconds that the machine would need at its measured best, None where that is not known.
        tokens: how many tokens came out in that time, 0 where it is not about tokens.
        clip_seconds: what was heard in all, for the curves.
    """

    what: str
    seconds: Mapping[str, Spread]
    ratio: Mapping[str, float] = field(default_factory=dict)
    floor: float | None = None
    tokens: int = 0
    clip_seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        sides = {
            side: {"median": spread.median, "low": spread.low, "high": spread.high}
            for side, spread in self.seconds.items()
        }
        ours = self.seconds["ours"].median
        return {
            "what": self.what,
            "seconds": sides,
            "ratio": dict(self.ratio),
            "floor": self.floor,
            "of_floor": None if self.floor is None else self.floor / ours,
            "tokens": self.tokens,
        }


OURS = "ours"


def figure(
    what: str,
    runs: Mapping[str, Sequence[float]],
    *,
    floor: float | None = None,
    tokens: int = 0,
    clip_seconds: float = 0.0,
) -> Figure:
    """A figure from the seconds of every side, one a round; the ratio is taken within the rounds, where the machine was in the
    same mood."""
    ratio = {
        side: statistics.median(b / a for a, b in zip(runs[OURS], seconds, strict=True))
        for side, seconds in runs.items()
        if side != OURS
    }
    spreads = {side: Spread.of(seconds) for side, seconds in runs.items()}
    return Figure(what, spreads, ratio, floor, tokens, clip_seconds)
