"""The benchmark of evaluation asks both sides the same clips and compares them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from tests.tiny import sound

ROOT = Path(__file__).parents[2]


def test_both_sides_answer_the_same_clips(folder: Path, tmp_path: Path) -> None:
    clips = tmp_path / "librispeech_excerpt"
    clips.mkdir()
    rows = []
    for number, split in enumerate(["test", "train", "test", "test"]):
        soundfile.write(clips / f"{number}.flac", sound(0.5 + 0.5 * number, seed=number), 16_000)
        row = {"id": str(number), "audio": f"{number}.flac", "duration": 0.5 + 0.5 * number, "gt": "one two"}
        rows.append({**row, "split": split, "source": "librispeech_test_other"})
    (clips / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [sys.executable, str(ROOT / "benchmarks" / "evaluation.py"), "--model", str(folder), "--json"]
    small = ["--data", str(tmp_path), "--rounds", "1", "--limit", "2", "--max-new-tokens", "8"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run([*command, *small], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["clips"] == found["same_answers"] == 2  # the same model, so the same words
    assert found["ours"]["word_error_rate"] == found["theirs"]["word_error_rate"]
    for side in (found["ours"], found["theirs"]):
        assert side["seconds"] * side["sound_per_second"] == pytest.approx(0.5 + 1.5)
    assert found["ratio"] == found["ours"]["sound_per_second"] / found["theirs"]["sound_per_second"] > 0
