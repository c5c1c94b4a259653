"""The load test runs, compares what it should, and would notice what it looks for."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def test_every_ratio_says_how_many_times_quicker_we_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the requests a second; four and three times sooner."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    ratios = importlib.import_module("serving").ratios

    def side(rate: float, alone: float, together: float) -> dict[str, Any]:
        of = {"alone": alone, "together": together}
        return {name: {"requests_per_second": rate, "first_token_ms": {"p50": first}} for name, first in of.items()}

    assert ratios(side(2.0, 100, 200), side(1.0, 400, 600)) == {
        "ratio": 2.0, "first_token_ratio": 4.0, "first_token_ratio_together": 3.0
    }  # fmt: skip


def test_a_small_crowd(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "serving.py"), "--model", str(folder), "--json"]
    small = "--clients 4 --seconds 2 --warm-up 0.5 --alone 0.5 --known 4 --again 4 --max-tokens 8".split()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [*command, *small], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert result.returncode == 0, result.stderr + result.stdout
    found = json.loads(result.stdout)
    assert found["together"]["requests"] >= 4
    assert found["together"]["failed"] == found["different"] == 0
    assert found["compared"] > 0 and found["leaks"] == []
    assert found["ratio"] > 0
    assert set(found["together"]["first_token_ms"]) <= {"p50", "p90", "p99"}
