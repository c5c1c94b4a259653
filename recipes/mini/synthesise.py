"""Speak a list of texts with random voices, in clean recordings (training adds rooms, noise and other vocal tracts).

    python recipes/mini/synthesise.py TEXTS.jsonl OUT_FOLDER --processes 2

Reads rows with at least `id` and `text`; writes OUT_FOLDER/audio/ID.flac and OUT_FOLDER/manifest.jsonl, whose rows are
those read plus `audio`, `duration` and `voice`. Can be stopped and run again: what is there is kept.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import zlib
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import soundfile
from voices import pick_voice, speak


def make(job: tuple[dict[str, Any], Path]) -> dict[str, Any] | None:
    """Speak one row; None when the voice cannot say it or the result is too long."""
    row, folder = job
    path = folder / "audio" / f"{row['id']}.flac"
    seed = zlib.crc32(row["id"].encode())
    rng = random.Random(seed)
    voice = row.get("voice") or pick_voice(rng)
    if not path.exists():
        try:
            wave = speak(voice, row["text"], rng.uniform(0.85, 1.3), seed)
        except Exception as error:  # one unspeakable text must not end the run
            print(f"{row['id']}: {voice} failed: {error}", file=sys.stderr)
            return None
        if not 0.3 < len(wave) / 16_000 < 25:
            return None
        part = path.with_suffix(".part.flac")
        soundfile.write(part, wave, 16_000)
        part.rename(path)
    duration = soundfile.info(path).duration
    return {**row, "audio": f"audio/{path.name}", "duration": round(duration, 3), "voice": voice}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.texts.read_text().splitlines()]
    (args.out / "audio").mkdir(parents=True, exist_ok=True)
    seconds = 0.0
    part = args.out / "manifest.jsonl.part"
    with Pool(args.processes) as pool, part.open("w") as manifest:
        for count, row in enumerate(pool.imap(make, [(row, args.out) for row in rows], chunksize=4), 1):
            if row is not None:
                seconds += row["duration"]
                manifest.write(json.dumps(row) + "\n")
                manifest.flush()
            if count % 100 == 0:
                print(f"{count}/{len(rows)} texts, {seconds / 3600:.2f} h of speech", flush=True)
    part.rename(args.out / "manifest.jsonl")


if __name__ == "__main__":
    main()
