"""The benchmark of long recordings: joined and alone are compared, and a time that is off is seen."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile

from qwen2_audio.longform.segments import Segment
from qwen2_audio.processing.audio import load_audio

ROOT = Path(__file__).parents[2]
PROGRAM = ROOT / "benchmarks" / "long_audio.py"


@pytest.fixture(scope="module")
def program() -> ModuleType:
    spec = importlib.util.spec_from_file_location("long_audio", PROGRAM)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["long_audio"] = module
    spec.loader.exec_module(module)
    return module


def test_joined_and_alone(folder: Path, tmp_path: Path) -> None:
    clips = tmp_path / "librispeech_excerpt"
    clips.mkdir()
    rows = []
    for name in ("question", "sentence"):
        wave = load_audio(ROOT / "examples" / f"{name}.flac")
        soundfile.write(clips / f"{name}.wav", wave, 16_000)
        rows.append({"audio": f"{name}.wav", "gt": "what was said here", "split": "test"})
    (clips / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = [
        sys.executable,
        str(PROGRAM),
        "--model",
        str(folder),
        "--data",
        str(tmp_path),
        "--minutes",
        "0.2",
        "--json",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["minutes"] >= 0.2 and found["clips"] >= 2 and found["words"] == 4 * found["clips"]
    difference = 100 * (found["word_error_rate"] - found["word_error_rate_alone"])
    assert found["difference_points"] == pytest.approx(difference)
    company = 100 * (found["word_error_rate"] - found["word_error_rate_cut_out"])
    assert found["difference_points_cut_out"] == pytest.approx(company)
    assert found["peak_mebibytes"] >= found["loaded_mebibytes"] > 0


def test_what_is_lost_and_late_is_seen(program: ModuleType) -> None:
    words = ["the cat was here".split(), "every dog sleeps now".split()]
    clips = [program.Clip(Path(f"{n}"), words[n], (0.1, 0.2), (3.8, 3.9), 4.0) for n in range(2)]
    placed = [program.Placed(clips[0], 10.0, 0), program.Placed(clips[1], 20.0, 4)]
    alone = {Path("0"): words[0], Path("1"): words[1]}
    again = [words[0], words[1][:2]]

    def compared(*segments: Segment) -> dict[str, float]:
        found: dict[str, float] = program.compare(placed, segments, alone, again)
        return found

    first = Segment(10.15, 13.85, "The cat was here.")
    right = compared(first, Segment(20.0, 23.0, "every dog sleeps now"))
    assert (right["word_error_rate"], right["sentences_lost"], right["starts_compared"]) == (0, 0, 2)
    assert right["largest_start_error"] == pytest.approx(0.1) and right["largest_end_error"] == pytest.approx(0.8)
    lost = compared(first, Segment(20.0, 23.0, "every"))
    assert (lost["word_error_rate"], lost["sentences_lost"], lost["word_error_rate_alone"]) == (3 / 8, 1, 0)
    assert lost["word_error_rate_cut_out"] == 2 / 8 and lost["difference_points_cut_out"] == 12.5


def test_a_clip_is_cut_out_without_its_neighbours(program: ModuleType, tmp_path: Path) -> None:
    """So much around its sound, as far as no pause is shorter; never before the recording's beginning."""
    soundfile.write(tmp_path / "long.wav", np.arange(160_000) / 160_000, 16_000, subtype="FLOAT")
    clip = program.Clip(Path("0"), ["word"], (0.4, 0.5), (2.5, 2.9), 3.0)

    def places(start: float, around: float = 0.5, **changes: tuple[float, float]) -> list[float]:
        wave = program.cut_out(program.Placed(replace(clip, **changes), start, 0), tmp_path / "long.wav", around)
        return [round(float(at) * 10, 3) for at in (wave[0], wave[-1])]

    assert places(5.0) == [4.9, 8.3]
    assert places(5.0, begins=(1.0, 1.1), ends=(2.0, 2.1)) == [5.5, 7.6]
    assert places(5.0, around=0.2) == [5.2, 8.1]
    assert places(0.0) == [0.0, 3.3]
