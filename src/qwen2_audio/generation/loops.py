"""Noticing that a model goes round in circles: greedy answers that lost the thread repeat the same words for ever."""

from __future__ import annotations

from collections.abc import Sequence

LONGEST_PERIOD = 32
TIMES, LEAST_TOKENS = 3, 12


def repeated_tail(tokens: Sequence[int]) -> int:
    """How many tokens at the end only repeat what stands before them; 0 where that is no loop.

    A loop is the same 1 to 32 tokens at least three times in a row, and at least twelve tokens altogether: a person may
    well say "no, no, no", or a line of a song twice.
    """
    for period in range(1, min(LONGEST_PERIOD, len(tokens) // TIMES) + 1):
        same = 0
        while same + period < len(tokens) and tokens[-1 - same] == tokens[-1 - same - period]:
            same += 1
        if same + period >= max(TIMES * period, LEAST_TOKENS):
            return same
    return 0
