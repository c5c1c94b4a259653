"""What was measured, as a table for the terminal, as Markdown, as JSON and as a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qwen2_audio.bench.figures import OURS, Figure, Spread
from qwen2_audio.errors import UsageError


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that one run of `bench` found.

    Attributes:
        about: what was measured on what: model, weights, threads, versions.
        machine: what it can do at best, "read" in bytes a second and "products" in operations a second.
        figures: what was timed, at least one.
    """

    about: Mapping[str, str | int | float]
    machine: Mapping[str, float]
    figures: Sequence[Figure]

    def as_json(self) -> str:
        """One line."""
        rows = [row.as_json() for row in self.figures]
        return json.dumps({"about": dict(self.about), "machine": dict(self.machine), "figures": rows})

    def as_markdown(self) -> str:
        """A table with a line for each figure: medians, their spread, ratios, and the share of the floor that was reached."""
        others = [side for side in self.figures[0].seconds if side != OURS]
        heads = ["what", OURS, *(f"{side} (ratio)" for side in others), "floor", "of it"]
        lines = [self._about(), "", _line(heads), _line(["---"] * len(heads))]
        for row in self.figures:
            ours = row.seconds[OURS]
            cells = [row.what, _spread(ours, row.tokens)]
            for side in others:
                told = row.seconds.get(side)
                cells.append("-" if told is None else f"{_spread(told, row.tokens)} ({row.ratio[side]:.2f})")
            floor = row.floor
            cells += ["-", "-"] if floor is None else [_shown(floor), f"{floor / ours.median:.0%}"]
            lines.append(_line(cells))
        return "\n".join(lines)

    def _about(self) -> str:
        told = ", ".join(f"{name} {value}" for name, value in self.about.items())
        best = f"reads {self.machine['read'] / 1e9:.1f} GB/s, multiplies {self.machine['products'] / 1e9:.0f} GFLOP/s"
        return f"{told}. The machine, at its best just now: {best}."


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _spread(spread: Spread, tokens: int) -> str:
    rate = f", {tokens / spread.median:.1f} tokens/s" if tokens else ""
    return f"{_shown(spread.median)} ({_shown(spread.low)} to {_shown(spread.high)}{rate})"


def _shown(seconds: float) -> str:
    return f"{seconds * 1000:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


def plot(report: Report, file: Path) -> None:
    """Draw time against seconds heard, a line for each side; the suffix of `file` says in which format.

    Raises:
        UsageError: matplotlib is missing, or cannot write that format.
    """
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        raise UsageError("a plot needs matplotlib: pip install matplotlib, or leave --plot out") from None
    canvas = Canvas(figsize=(7, 4.5), layout="constrained")
    axes = canvas.subplots()
    rows = [row for row in report.figures if row.what.endswith(": first token") and row.floor is not None]
    if not rows:
        raise UsageError("a plot shows the time to the first token of clips, which was not measured; leave --plot out")
    for side in report.figures[0].seconds:
        points = sorted((row.clip_seconds, row.seconds[side].median * 1000) for row in rows)
        axes.plot(*zip(*points, strict=True), marker="o", label=side)
    axes.plot(
        *zip(*sorted((row.clip_seconds, (row.floor or 0) * 1000) for row in rows), strict=True), "k:", label="floor"
    )
    axes.set(xlabel="clip, seconds", ylabel="first token, ms", yscale="log")
    axes.legend()
    try:
        canvas.savefig(file)
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot write the plot {file}: {error}; give a file ending in .svg or .png") from error
