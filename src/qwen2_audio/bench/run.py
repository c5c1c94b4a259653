"""All scenarios, the sides taking turns in every round."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from qwen2_audio.bench.figures import Figure, Times, figure
from qwen2_audio.bench.scenarios import Scenario
from qwen2_audio.bench.sides import Side


def measure(
    scenarios: Sequence[Scenario],
    sides: Sequence[Side],
    runs: int,
    floors: Callable[[Scenario], tuple[float, float]],
    progress: Callable[[str], None],
    warm_ups: int = 1,
) -> list[Figure]:
    """Time every scenario `runs` times on every side, after `warm_ups` that do not count.

    Every run has clips that nobody has heard before, also not in an earlier measurement: servers keep what they have computed.

    Args:
        sides: ours is among them.
        floors: the least seconds to a scenario's first tokens, and of a later step.
        progress: told what is being run.
    """
    found = []
    fresh = itertools.count(time.time_ns())
    for number, scenario in enumerate(scenarios, 1):
        rounds: dict[str, list[Times]] = {side.name: [] for side in sides}
        for run in range(1 - warm_ups, runs + 1):
            for side in sides:
                progress(f"{number}/{len(scenarios)} {scenario.name}: {side.name}, {'warm-up' if run < 1 else run}")
                measured = side.run(scenario, next(fresh))
                if run > 0:
                    rounds[side.name].append(measured)
        found += _figures(scenario, rounds, floors(scenario))
    return found


def _figures(scenario: Scenario, rounds: dict[str, list[Times]], floors: tuple[float, float]) -> list[Figure]:
    least_first, least_step = floors
    together = scenario.kind in ("batch", "crowd")
    streams = len(scenario.seconds)
    heard = sum(scenario.seconds) if together else scenario.seconds[0]

    def of(name: str, part: str, floor: float | None, tokens: int = 0) -> Figure:
        every = {side: [getattr(run, part) for run in runs] for side, runs in rounds.items()}
        seconds = {side: times for side, times in every.items() if None not in times}
        return figure(
            f"{scenario.name}, {scenario.tokens} tokens: {name}",
            seconds,
            floor=floor,
            tokens=tokens,
            clip_seconds=heard,
        )

    if together and streams > 1:
        floor = least_first + (scenario.tokens - 1) * least_step
        return [
            of("first tokens", "first", least_first),
            of("a step", "step", least_step, streams),
            of("all", "whole", floor, streams * scenario.tokens),
        ]
    first = least_first if together else None  # of later turns, hardly anything is new
    return [of("first token", "first", first), of("a step", "step", least_step if together else None, 1)]
