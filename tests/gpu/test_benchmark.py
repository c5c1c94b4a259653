"""The products of a row compile for an H100 where there is none, and what is counted of them holds."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="wants Triton")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_instructions.py"


def test_instructions_of_a_product_are_counted() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows = re.findall(r"^\| ([a-z ]+) \| (bfloat16|4 bits) \| ([\d.]+) \| (\d+) \|", result.stdout, re.MULTILINE)
    assert len(rows) == 8
    in_4_bits = [(float(count), barriers) for _, kind, count, barriers in rows if kind == "4 bits"]
    assert all(1 < count < 5 and barriers == "0" for count, barriers in in_4_bits)  # threads wait for no other
