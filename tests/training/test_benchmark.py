"""The benchmark of training runs both sides and compares them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_both_sides_learn_the_same_rows(folder: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "trainer.py"), "--model", str(folder), "--json"]
    small = ["--rounds", "1", "--steps", "1", "--rows", "2", "--longest", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run([*command, *small], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert set(found) == {"ours", "theirs", "ratio"}
    for key in ("tokens_per_second", "peak_gb"):
        assert found["ratio"][key] == found["ours"][key] / found["theirs"][key] > 0
