"""Make the recordings of the page's ready examples: two spoken by a synthetic voice, the others computed here.

    python recipes/page/sounds.py src/qwen2_audio/serving/ui/sounds

Speech wants the package hibari-tts (Apache-2.0). All is written at 16 kHz, one channel.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

RATE = 16_000
SPOKEN = {
    "question": "What is the capital of France?",
    "sentence": "The train to the airport leaves at half past seven from platform four.",
}
TUNE = (57, 60, 64, 69, 67, 64, 60, 62)
"""MIDI notes; a broken chord of A minor that comes to rest on its fourth."""


def rain(seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A hiss whose lower half is taken away, and drops that hit something hollow."""
    count = int(seconds * RATE)
    hiss = np.diff(rng.standard_normal(count + 1)) * (0.10 + 0.02 * np.sin(2 * np.pi * 0.3 * np.arange(count) / RATE))
    for start in rng.integers(0, count - 800, int(45 * seconds)):
        t = np.arange(800) / RATE
        drop = np.sin(2 * np.pi * rng.uniform(900, 3500) * t) * np.exp(-t * rng.uniform(150, 400))
        hiss[start : start + 800] += rng.uniform(0.1, 0.5) * drop
    return hiss


def plucked(note: int, seconds: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """A string, as Karplus and Strong pluck it: noise that runs in a circle and is smoothed in every round."""
    period = round(RATE / (440 * 2 ** ((note - 69) / 12)))
    ring, out = rng.uniform(-1, 1, period), np.empty(int(seconds * RATE))
    for start in range(0, out.size, period):
        piece = out[start : start + period]
        piece[:] = ring[: piece.size]
        ring = 0.996 * 0.5 * (ring + np.roll(ring, 1))
    return out


def tune(note_seconds: float, shift: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The tune on a plucked string, each note left ringing."""
    out = np.zeros(int((len(TUNE) * note_seconds + 1.2) * RATE))
    for index, note in enumerate(TUNE):
        start = int(index * note_seconds * RATE)
        sound = plucked(note + shift, 1.2, rng)
        out[start : start + sound.size] += 0.35 * sound
    return out


def faded(samples: NDArray[Any]) -> NDArray[np.float32]:
    """At the same loudness, without clicks at the ends."""
    ramp = np.minimum(1, np.arange(samples.size) / 400)
    quiet = samples * ramp * ramp[::-1]
    return (0.7 * quiet / np.abs(quiet).max()).astype(np.float32)


def main() -> None:
    """Write all recordings into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    rng = np.random.default_rng(2026)
    computed = {
        "sound": rain(4.0, rng),
        "music": tune(0.45, 0, rng),
        "slow": tune(0.4, 0, rng),
        "quick": tune(0.16, 7, rng),
    }
    for name, samples in computed.items():
        soundfile.write(folder / f"{name}.ogg", faded(samples), RATE, format="OGG", subtype="VORBIS")
    from hibari import Hibari

    voice = Hibari(threads=1)
    for name, text in SPOKEN.items():
        samples = soxr.resample(np.asarray(voice(text), dtype=np.float32), 24_000, RATE)
        soundfile.write(folder / f"{name}.ogg", faded(samples), RATE, format="OGG", subtype="VORBIS")


if __name__ == "__main__":
    main()
