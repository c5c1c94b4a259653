"""What scoring gives: one `Score` a source and metric, with the parts that it was put together from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isnan
from typing import Any


@dataclass(frozen=True, slots=True)
class Part:
    """What one answer adds to a corpus score, and how it looked to the scorer.

    Attributes:
        id: of the sample.
        numerator, denominator: the corpus score is the quotient of their sums (word errors and reference words; 1 or 0 and 1).
        reference, response: after normalisation.
        counts: what else there is to know: substitutions, deletions, insertions.
    """

    id: str
    numerator: float
    denominator: float
    reference: str = ""
    response: str = ""
    counts: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one source.

    Attributes:
        source: data set and split.
        metric: one of qwen2_audio.evaluation.task.METRICS.
        profile: "official" or "clean".
        value: as published: an error rate or accuracy as a fraction, BLEU 0 to 100, a judge's mark 0 to 10; nan of no samples.
        samples: how many answers were scored.
        failed: how many gave no answer (an unreadable clip ...); named, and never hidden.
        interval: 95 % bootstrap interval of `value`.
        parts: one a scored answer, in their order.
        details: totals and settings: substitutions ..., sacrebleu's signature, the judge's name.
    """

    source: str
    metric: str
    profile: str
    value: float
    samples: int
    failed: int = 0
    interval: tuple[float, float] | None = None
    parts: tuple[Part, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)

    def line(self) -> str:
        """The score on one line: how sure it is, and all that it does not count."""
        interval = "" if self.interval is None else " (95 % {:.6f} to {:.6f})".format(*self.interval)
        value = "-" if isnan(self.value) else f"{self.value:.6f}{interval}"
        left_out = {"failed": self.failed, "without a letter": self.details.get("fail_num", 0)}
        counts = [f"{self.samples} samples", *(f"{count} {what}" for what, count in left_out.items() if count)]
        return f"{self.source}\t{self.metric} {value}, {', '.join(counts)}, profile {self.profile}"

    @property
    def lower_is_better(self) -> bool:
        return self.metric in ("wer", "cer")
