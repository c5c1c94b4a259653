"""The charts of a report: the radar of all published sets, bars for one table, error rates by length; PNG and SVG.

Figures are drawn through matplotlib's objects, never through pyplot, so that there is no state to leave behind. The colours
are Okabe and Ito's, which colour-blind people tell apart; ours also differs by width.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.document import printable
from qwen2_audio.evaluation.findings import LENGTHS, Slice
from qwen2_audio.evaluation.published import PublishedTable, in_table_unit, published
from qwen2_audio.evaluation.scores import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RADAR_CAPTION = (
    "Every axis is a published set. The distance from the centre is the score relative to the best published number: "
    "score / best where higher is better, best / score for error rates, so that outside is always better and the ring 1 "
    "is the best published. Sets that this run did not measure show the published systems only; the grey line is, on each "
    "axis, the best of all systems that have no line of their own."
)
_OURS, _BLACK, _GREY, _OTHERS = "#D55E00", "#000000", "#8C8C8C", "#BBBBBB"
_LINES = {"Qwen2-Audio hf": ("#0072B2", "-"), "Qwen2-Audio paper": ("#56B4E9", "--"), "Qwen-Audio": ("#009E73", "-")}
_RIM = 1.15
"""The outermost distance on the radar; what is further out is drawn there."""
_PER_ROW = 4
"""Panels beside each other."""
_LONGEST_NAME = 40
"""Characters of a name that a chart has room for."""


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write NAME.png and NAME.svg, the same bytes for the same figure.

    Raises:
        UsageError: a file cannot be written.
    """
    import matplotlib

    # in SVG text stays text, and ids are the same each time
    style = matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "qwen2-audio"})
    with style, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a name in Chinese is boxes in the PNG
        for suffix, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            part = folder / f"{name}.part.{suffix}"
            try:
                figure.savefig(part, dpi=144, metadata=metadata, facecolor="white")
                part.replace(folder / f"{name}.{suffix}")
            except OSError as error:
                raise UsageError(f"cannot write {part}: {error.strerror}; choose another folder") from error


def radar(label: str, scores: Sequence[Score]) -> Figure:
    """All published sets as axes, the Qwen-Audio family, the best of the rest, and this run.

    Args:
        label: of this run.
        scores: of one profile; those of other sets have no axis.
    """
    axes = [(table, column) for table in published() for column in range(len(table.columns))]
    ours = [score for table in published() for score in table.ours(scores)]
    lines = {name: [_relative(t, c, t.systems.get(name, ())[c : c + 1]) for t, c in axes] for name in _LINES}
    rest = [_relative(t, c, [row[c] for name, row in t.systems.items() if name not in _LINES]) for t, c in axes]
    mine = [
        _relative(t, c, [None if score is None else in_table_unit(score, score.value)])
        for (t, c), score in zip(axes, ours, strict=True)
    ]
    figure = _figure(10.0, 9.4, layout=None)
    figure.text(0.02, 0.965, "Relative to the best published number (ring 1); outside is better", fontsize=12)
    plot: Any = figure.add_axes((0.15, 0.13, 0.7, 0.745), projection="polar")
    angles = [2 * math.pi * i / len(axes) for i in range(len(axes))]
    plot.set_theta_zero_location("N")
    plot.set_theta_direction(-1)
    _line(plot, angles, rest, "best other system", color=_GREY, linestyle=":", linewidth=1.3)
    for name, (color, style) in _LINES.items():
        _line(plot, angles, lines[name], name, color=color, linestyle=style, linewidth=1.5)
    _line(plot, angles, mine, _name(label), color=_OURS, linestyle="-", linewidth=2.6, markersize=7, zorder=5)
    _dress_radar(plot, angles, axes)
    figure.legend(loc="lower center", ncols=3, frameon=False, fontsize=10, bbox_to_anchor=(0.5, 0.01))
    return figure


def bars(table: PublishedTable, ours: Mapping[str, Sequence[Score | None]]) -> Figure:
    """One published table: a panel for each column, a bar with its number for each system.

    Args:
        ours: by the name of this run, the scores that `table.ours` gives; one entry a profile.
    """
    names = [*table.systems, *ours]
    columns = len(table.columns)
    across = min(_PER_ROW, columns)
    down = -(-columns // across)
    figure = _figure(2.0 + 2.3 * across, down * (0.7 + 0.26 * len(names)) + 0.5)
    grid: Any = figure.subplots(down, across, squeeze=False, sharey=True)
    for column, panel in enumerate(grid.flat):
        if column >= columns:
            panel.set_visible(False)
            continue
        rows = [_Bar(name, values[column], _color(name)) for name, values in table.systems.items()]
        rows += [_our_bar(name, scores[column]) for name, scores in ours.items()]
        _draw_bars(panel, rows, table.digits)
        panel.set_title(table.columns[column], fontsize=10, fontweight="bold", loc="left")
    figure.suptitle(f"{table.title}: {table.unit}", fontsize=11, x=0.01, ha="left")
    return figure


def own_bars(title: str, scores: Sequence[Score], digits: int) -> Figure:
    """Scores of one metric that have no published table: a bar with its interval for each.

    Args:
        digits: after the point.
    """
    figure = _figure(7.5, 0.9 + 0.34 * len(scores))
    panel: Any = figure.subplots()
    several = len({score.profile for score in scores}) > 1
    names = [f"{score.source} ({score.profile})" if several else score.source for score in scores]
    _draw_bars(panel, [_our_bar(name, score) for name, score in zip(names, scores, strict=True)], digits)
    panel.set_title(title, fontsize=11, loc="left")
    return figure


def by_length(slices: Sequence[Slice]) -> Figure:
    """Error rates by length of recording: a panel for each source, with intervals and the number of recordings.

    Args:
        slices: those by length, of error rates.
    """
    scores = list(dict.fromkeys(one.of for one in slices))
    several = len({(metric, profile) for _, metric, profile in scores}) > 1
    across = min(3, len(scores))
    down = -(-len(scores) // across)
    figure = _figure(0.6 + 3.6 * across, 2.7 * down + 0.4)
    grid: Any = figure.subplots(down, across, squeeze=False)
    names = [name for name, _ in LENGTHS]
    for number, panel in enumerate(grid.flat):
        if number >= len(scores):
            panel.set_visible(False)
            continue
        source, metric, profile = scores[number]
        found = [one for one in slices if one.of == scores[number]]
        places = [names.index(one.name) for one in found]
        panel.bar(places, [100 * one.value for one in found], color="#56B4E9", width=0.7)
        for place, one in zip(places, found, strict=True):
            low, high = (100 * x for x in (one.interval or (one.value, one.value)))
            panel.plot([place, place], [low, high], color=_BLACK, linewidth=1)
        panel.set_xticks(places, [f"{one.name.removesuffix(' s')}\nn={one.samples}" for one in found], fontsize=8)
        panel.set_xlim(-0.6, len(names) - 0.4)
        panel.set_ylim(bottom=0)
        panel.set_title(_name(f"{source} ({metric}, {profile})" if several else source), fontsize=9, loc="left")
        panel.grid(axis="y", alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    figure.supxlabel("length of the recording in seconds", fontsize=9)
    figure.supylabel("error rate %", fontsize=9)
    return figure


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """An empty one, in inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError('drawing needs matplotlib: pip install "qwen2-audio[eval]"') from None
    return Figure(figsize=(width, height), layout=layout)


def _relative(table: PublishedTable, column: int, values: Sequence[float | None]) -> float | None:
    """The best of some values as a distance on the radar."""
    there = [value for value in values if value is not None and math.isfinite(value)]
    if not there:
        return None
    best = table.best(column)
    if table.lower_is_better:
        return min(_RIM, best / min(there)) if min(there) > 0 else _RIM
    return min(_RIM, max(there) / best)


def _line(plot: Any, angles: Sequence[float], values: Sequence[float | None], label: str, **look: Any) -> None:
    """A closed line with a gap at every axis that has no value; a value between two gaps is a dot."""
    gaps = [math.nan if value is None else value for value in values]
    plot.plot([*angles, angles[0]], [*gaps, gaps[0]], label=label, marker="o", **{"markersize": 4, **look})


def _dress_radar(plot: Any, angles: Sequence[float], axes: Sequence[tuple[PublishedTable, int]]) -> None:
    plot.set_ylim(0, _RIM)
    plot.set_yticks([0.25, 0.5, 0.75, 1.0], ["0.25", "0.5", "0.75", "1"], fontsize=8, color="#444444")
    plot.set_rlabel_position(math.degrees(angles[1]) / 2)
    plot.grid(color="#CCCCCC", linewidth=0.6)
    plot.spines["polar"].set_visible(False)
    plot.set_xticks(angles, [""] * len(angles))
    for angle, (table, column) in zip(angles, axes, strict=True):
        sideways = math.sin(angle)
        side = "center" if abs(sideways) < 0.2 else "left" if sideways > 0 else "right"
        name = table.title if table.columns == ("test",) else f"{table.title}\n{table.columns[column]}"
        plot.text(angle, _RIM + 0.07, name, ha=side, va="center", fontsize=9)


class _Bar(NamedTuple):
    name: str
    value: float | None
    color: str
    interval: tuple[float, float] | None = None


def _our_bar(name: str, score: Score | None) -> _Bar:
    if score is None or not math.isfinite(score.value):
        return _Bar(name, None, _OURS)
    interval = score.interval and (in_table_unit(score, score.interval[0]), in_table_unit(score, score.interval[1]))
    return _Bar(name, in_table_unit(score, score.value), _OURS, interval)


def _name(text: str) -> str:
    """A name as short as there is room, in which a dollar is a dollar and not the beginning of a formula."""
    short = text if len(text) <= _LONGEST_NAME else text[: _LONGEST_NAME - 1] + "…"
    return printable(short).replace("$", r"\$")


def _color(name: str) -> str:
    return _LINES[name][0] if name in _LINES else _OTHERS


def _draw_bars(panel: Any, bars: Sequence[_Bar], digits: int) -> None:
    """Horizontal, the first on top, each with its number; a whisker for an interval."""
    longest = max(max(bar.value or 0.0, bar.interval[1] if bar.interval else 0.0) for bar in bars) or 1.0
    for place, bar in enumerate(bars):
        panel.barh(place, bar.value or 0.0, color=bar.color, height=0.7)
        end = bar.value or 0.0
        if bar.interval is not None:
            panel.plot(bar.interval, [place, place], color=_BLACK, linewidth=1.2)
            end = max(end, bar.interval[1])
        text = "–" if bar.value is None else f"{bar.value:.{digits}f}"
        panel.text(end + 0.03 * longest, place, text, va="center", fontsize=8.5)
    panel.set_yticks(range(len(bars)), [_name(bar.name) for bar in bars])
    panel.set_ylim(len(bars) - 0.4, -0.6)
    panel.set_xlim(0, 1.28 * longest)
    panel.set_xticks([])
    panel.tick_params(axis="y", length=0)
    panel.spines[["top", "right", "bottom"]].set_visible(False)
