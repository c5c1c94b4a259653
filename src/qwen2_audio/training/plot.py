"""The curves of a run, drawn from its log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qwen2_audio.errors import UsageError
from qwen2_audio.training.tracking import LOG

CURVES = "curves.png"
_BESIDE = {"step", "took", "seconds", "tokens", "audio_seconds", "targets", "memory_gb"}
_UNITS = {
    "loss": "nats a target",
    "spoken": "nats a spoken token",
    "tokens_per_second": "tokens/s",
    "audio_seconds_per_second": "s of audio/s",
    "gradient_norm": "norm",
}
_SMOOTH = 0.05
"""Share of the run over which the thick line averages."""


def read_log(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of every quantity in a run's log.

    Raises:
        UsageError: there is no log, or nothing in it.
    """
    path = run / LOG
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot read the log {path}: {reason}; give the folder of a run") from error
    found: dict[str, tuple[list[int], list[float]]] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            for name, value in row.items():
                if name not in _BESIDE:
                    steps, values = found.setdefault(name, ([], []))
                    steps.append(int(row["step"]))
                    values.append(float(value))
        except (ValueError, TypeError, KeyError, AttributeError):
            if number < len(lines):  # the last may be half written: the run may be going on
                raise UsageError(f"{path}, line {number} is not a step of a run: {line:.60}") from None
    if not found:
        raise UsageError(f"{path} holds no steps yet")
    return found


def plot(run: Path) -> Path:
    """Draw RUN/curves.png: a panel for each loss and metric, what was measured on held-out rows over what was learnt."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError("drawing needs matplotlib: pip install matplotlib") from None
    found = read_log(run)
    alone = [name for name in found if not name.startswith("eval_") or name.removeprefix("eval_") not in found]
    columns = 2 if len(alone) > 1 else 1
    rows = -(-len(alone) // columns)
    figure = Figure(figsize=(6.0 * columns, 3.2 * rows), layout="constrained")
    for number, name in enumerate(alone, 1):
        axes: Any = figure.add_subplot(rows, columns, number)
        steps, values = found[name]
        if name.startswith("eval_"):
            axes.plot(steps, values, "o-", color="C1", label="held-out")
        else:
            axes.plot(steps, values, color="C0", alpha=0.25, linewidth=0.8)
            axes.plot(steps, _smoothed(values), color="C0", label="learnt from" if f"eval_{name}" in found else None)
        if f"eval_{name}" in found:
            axes.plot(*found[f"eval_{name}"], "o-", color="C1", label="held-out")
            axes.legend(frameon=False)
        axes.set_title(name.removeprefix("eval_").replace("_", " "), loc="left")
        axes.set_xlabel("step")
        axes.set_ylabel(_UNITS.get(name.removeprefix("eval_"), ""))
        axes.grid(alpha=0.2)
        axes.spines[["top", "right"]].set_visible(False)
    path = run / CURVES
    part = path.with_name("part-" + CURVES)
    figure.savefig(part, dpi=120)
    part.replace(path)
    return path


def _smoothed(values: list[float]) -> list[float]:
    """Means over a window that ends at each value."""
    width = max(1, round(_SMOOTH * len(values)))
    return [sum(values[max(0, i + 1 - width) : i + 1]) / min(i + 1, width) for i in range(len(values))]
