"""The announcements of a telephone system with their texts, as recordings to learn from: a real voice, at 8 kHz.

    python recipes/mini/prompts.py SOUNDS_FOLDER TEXTS.txt.gz OUT_FOLDER

From Debian's packages asterisk-core-sounds-en-wav (the folder) and asterisk-core-sounds-en (the texts, lines of `name: text`;
CC BY-SA 3.0). Writes OUT_FOLDER/audio/NAME.flac and OUT_FOLDER/manifest.jsonl.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
from pathlib import Path

import soundfile


def sayable(text: str) -> bool:
    """Whether a text is just what is said: no description of a sound, no digits, no alternatives."""
    return bool(re.search(r"[a-z]", text)) and not re.search(r"[\[(<\d]", text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sounds", type=Path)
    parser.add_argument("texts", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    (args.out / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    with gzip.open(args.texts, "rt", encoding="utf-8", errors="replace") as file:
        lines = file.read().splitlines()
    for line in lines:
        name, colon, text = line.partition(": ")
        path = args.sounds / f"{name}.wav"
        if line.startswith(";") or not colon or not sayable(text) or not path.exists():
            continue
        wave, rate = soundfile.read(path, dtype="float32")
        if not 0.6 < len(wave) / rate < 20:
            continue
        out = args.out / "audio" / (name.replace("/", "_") + ".flac")
        soundfile.write(out, wave, rate)
        row = {"id": out.stem, "audio": f"audio/{out.name}", "duration": len(wave) / rate}
        rows.append(row | {"text": re.sub(r"\.{2,}", ".", text.strip().strip('"')), "voice": "allison"})
    (args.out / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} announcements, {sum(row['duration'] for row in rows) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
