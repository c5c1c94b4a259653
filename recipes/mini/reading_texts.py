"""Sentences that people read aloud, cut to many lengths, as texts to synthesise.

    python recipes/mini/reading_texts.py TRANSCRIPTS.tsv.gz OUT.jsonl --count 14000
    python recipes/mini/reading_texts.py TRANSCRIPTS.tsv.gz OUT.jsonl --skip 14000 --count 2000 --kokoro

The input has lines `id<TAB>SENTENCE` in capitals without punctuation (LibriSpeech's transcripts).
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from pathlib import Path

from voices import pick_kokoro


def sentence_case(words: list[str]) -> str:
    """`I` and the first letter in capitals, a full stop at the end: how `mini` writes what is read to it."""
    text = re.sub(r"\bi\b", "I", " ".join(words).lower())
    return text[0].upper() + text[1:] + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("transcripts", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--count", type=int, default=14000)
    parser.add_argument("--skip", type=int, default=0, help="of the shuffled sentences")
    parser.add_argument("--kokoro", action="store_true", help="each in a voice between two of Kokoro's")
    args = parser.parse_args()
    rng = random.Random(1)
    with gzip.open(args.transcripts, "rt") as file:
        sentences = [line.rstrip("\n").split("\t")[1].split() for line in file]
    rng.shuffle(sentences)
    if args.skip >= len(sentences):
        parser.error(f"--skip {args.skip} leaves none of the {len(sentences)} sentences")
    rows = []
    for number, words in enumerate(sentences[args.skip :][: args.count], args.skip):
        low, high = rng.choices([(2, 7), (7, 15), (15, 30), (30, 45)], [22, 38, 32, 8])[0]
        length = rng.randint(low, high)
        start = 0 if rng.random() < 0.6 else rng.randint(0, max(0, len(words) - length))
        row = {"id": f"read-{number:06d}", "task": "asr", "text": sentence_case(words[start : start + length])}
        rows.append({**row, "voice": pick_kokoro(rng)} if args.kokoro else row)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
