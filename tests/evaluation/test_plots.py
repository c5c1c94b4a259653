"""The charts say what the scores say: every number is in the SVG's text, at its place on the radar, and nothing overlaps."""

from __future__ import annotations

import itertools
import math
import re
from pathlib import Path
from typing import Any

import pytest

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation import plots
from qwen2_audio.evaluation.findings import Slice
from qwen2_audio.evaluation.published import PublishedTable, published
from qwen2_audio.evaluation.scores import Score

pytest.importorskip("matplotlib")

TEST_CLEAN = Score("librispeech_test_clean", "wer", "official", 0.032, 100, interval=(0.03, 0.035))
MELD = Score("meld_test", "accuracy", "official", 0.557, 100)
NONE = Score("librispeech_dev_clean", "wer", "official", math.nan, 0, 2)


def table(name: str) -> PublishedTable:
    return next(table for table in published() if table.dataset == name)


def texts(path: Path) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text(encoding="utf-8"))


def radii(figure: Any, label: str) -> dict[int, float]:
    """Distances from the centre by the number of the axis."""
    line = next(line for line in figure.axes[0].lines if line.get_label() == label)
    return {i: r for i, r in enumerate(line.get_ydata()[:-1]) if not math.isnan(r)}


def test_the_radar_turns_error_rates_round_and_leaves_gaps() -> None:
    figure = plots.radar("ours", [NONE, TEST_CLEAN, MELD])
    # test-clean is the 3rd of 25 columns: the best published is 1.6 %; MELD the 20th: the best published is 0.557
    assert radii(figure, "ours") == pytest.approx({2: 1.6 / 3.2, 19: 1.0})
    hf = radii(figure, "Qwen2-Audio hf")
    assert len(hf) == 25
    assert (hf[0], hf[8], hf[12], hf[24]) == pytest.approx((1.3 / 1.7, 1.0, 29.6 / 29.9, 6.42 / 6.77))
    assert radii(figure, "Qwen-Audio").keys() == set(range(25)) - set(
        range(4, 9)
    )  # Common Voice, Fleurs: none published
    assert radii(figure, "best other system")[10] == pytest.approx(1.0)  # Paraformer-large: 2.9 on AISHELL-2 iOS
    assert len(radii(plots.radar("ours", []), "Qwen2-Audio hf")) == 25


def test_a_perfect_score_stays_on_the_radar() -> None:
    figure = plots.radar("ours", [Score("librispeech_dev_clean", "wer", "official", 0.0, 5)])
    assert radii(figure, "ours") == {0: 1.15}


def test_every_number_of_a_table_stands_in_its_bars(tmp_path: Path) -> None:
    librispeech = table("librispeech")
    plots.save(plots.bars(librispeech, {"ours": librispeech.ours([NONE, TEST_CLEAN])}), tmp_path, "bars")
    found = texts(tmp_path / "bars.svg")
    for name, values in librispeech.systems.items():
        assert name in found
        for value in values:
            assert ("–" if value is None else f"{value:.1f}") in found
    assert {"ours", "3.2", "test-clean", "LibriSpeech: WER %, lower is better"} <= set(found) and "nan" not in found
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_names_are_taken_as_they_are(tmp_path: Path) -> None:
    score = Score("a$x_1$ <b> & " + "long" * 20, "wer", "official", 0.5, 10, interval=(0.4, 0.6))
    plots.save(plots.own_bars("WER %", [score], 2), tmp_path, "own")
    plots.save(plots.radar("m$^", []), tmp_path, "radar")
    assert "a$x_1$ &lt;b&gt; &amp; longlonglonglonglonglonglo…" in texts(tmp_path / "own.svg")
    assert "50.00" in texts(tmp_path / "own.svg")
    assert "m$^" in texts(tmp_path / "radar.svg")
    plots.save(plots.own_bars("mark", [Score("千问", "judge", "clean", math.nan, 0)], 2), tmp_path, "own")
    assert {"–", "千问"} <= set(texts(tmp_path / "own.svg"))
    with pytest.raises(UsageError, match=r"cannot write .*nowhere.*: No such file or directory; choose another folder"):
        plots.save(plots.own_bars("x", [MELD], 2), tmp_path / "nowhere", "own")


def test_error_rates_by_length(tmp_path: Path) -> None:
    cer = Score("fsdd", "cer", "official", 0.5, 9)
    found = [
        Slice(TEST_CLEAN, "length", "0–5 s", 17, 0.25, (0.2, 0.3)),
        Slice(TEST_CLEAN, "length", "over 30 s", 3, 0.75, None),
        Slice(cer, "length", "5–10 s", 9, 0.1, None),
    ]
    figure = plots.by_length(found)
    bars: list[Any] = [axes.patches for axes in figure.axes]
    heights = [{round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in panel} for panel in bars]
    assert heights == [{0: 25, 4: 75}, {1: 10}]
    plots.save(figure, tmp_path, "by_length")
    assert {"n=17", "over 30", "librispeech_test_clean (wer, official)", "fsdd (cer, official)"} <= set(
        texts(tmp_path / "by_length.svg")
    )


def test_the_same_chart_is_the_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        plots.save(plots.bars(table("meld"), {"ours": (MELD,)}), tmp_path / name, "meld")
    for suffix in ("png", "svg"):
        assert (tmp_path / f"a/meld.{suffix}").read_bytes() == (tmp_path / f"b/meld.{suffix}").read_bytes()
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["meld.png", "meld.svg"]


@pytest.mark.parametrize("name", ["radar", "covost2", "air_bench_chat", "fleurs"])
def test_no_label_lies_on_another_or_outside(name: str) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    label = "Qwen2-Audio-7B-Instruct (this run)"
    if name == "radar":
        figure = plots.radar(label, [TEST_CLEAN])
    else:
        ours = [Score("x", "wer", "official", 0.4, 9) for _ in table(name).columns]
        figure = plots.bars(table(name), {label: ours})
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    from matplotlib.text import Text

    found: Any = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
    found = [t for t in found if t.axes is None or t.axes.get_visible()]
    boxes = [(t.get_text(), t.get_window_extent(canvas.get_renderer())) for t in found]
    shown = [(text, box) for text, box in boxes if box.width > 0 and box.height > 0]
    width, height = canvas.get_width_height()
    for text, box in shown:
        assert box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1, text
    for (one, a), (two, b) in itertools.combinations(shown, 2):
        overlap = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert not (overlap[0] > 1 and overlap[1] > 1 and one != two), (one, two)
