"""How the learning rates rise and fall over a run."""

from __future__ import annotations

import math

FLOOR = 0.02
"""Share of the peak at which a run starts and ends."""


def rate_factor(kind: str, progress: float, warmup: float) -> float:
    """Share of the peak learning rate: a linear warm-up, then "cosine", "linear" or "constant".

    Args:
        progress: share of the run that is done, 0 to 1.
        warmup: share of the run in which the rates rise.
    """
    if progress < warmup:
        return max(progress / warmup, FLOOR)
    done = (progress - warmup) / (1 - warmup)
    if kind == "constant":
        return 1.0
    fall = 0.5 * (1 + math.cos(math.pi * done)) if kind == "cosine" else 1 - done
    return FLOOR + (1 - FLOOR) * fall
