"""Cut real recordings at their pauses, and lay the pieces end to end in new orders: few recordings become many, none of
which can be learnt by heart.

    python recipes/mini/cut_real.py MODEL LIBRISPEECH_FOLDER OUT_FOLDER --joined 3500

Where each word stands comes from the model itself: the best path of connectionist temporal classification through the
transcript (see `SpokenTokenLoss`). A piece is kept when the model, asked to transcribe it, hears most of its words. Writes
OUT_FOLDER/audio/ID.flac and OUT_FOLDER/manifest.jsonl with `id, audio, duration, text, voice`.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from measure import edits, words
from numpy.typing import NDArray
from reading_texts import sentence_case
from torch.nn.functional import normalize

from qwen2_audio import load
from qwen2_audio.processing.audio import load_audio

RATE, HOP = 16_000, 640  # samples a second, samples an audio token
SHORTEST, LONGEST = 1.2, 11.0  # seconds
Wave = NDArray[np.float32]


def word_times(scores: NDArray[np.float32], blank: float) -> list[tuple[int, int]]:
    """First and last frame of every token on the best path: scores [frames, tokens], tokens in order, blanks between."""
    frames, tokens = scores.shape
    states = np.full((frames, 2 * tokens + 1), blank)
    states[:, 1::2] = scores
    total = np.full(2 * tokens + 1, -np.inf)
    total[:2] = states[0, :2]
    came = np.zeros((frames, 2 * tokens + 1), dtype=np.int8)
    skip = np.arange(2 * tokens + 1) % 2 == 1
    for t in range(1, frames):
        one = np.concatenate([[-np.inf], total[:-1]])
        two = np.where(skip, np.concatenate([[-np.inf, -np.inf], total[:-2]]), -np.inf)
        options = np.stack([total, one, two])
        came[t] = options.argmax(0)
        total = options.max(0) + states[t]
    at = int(2 * tokens - (total[-2] > total[-1]))
    spans = [(frames, -1)] * tokens
    for t in range(frames - 1, -1, -1):
        if at % 2:
            first, last = spans[at // 2]
            spans[at // 2] = (min(first, t), max(last, t))
        at -= int(came[t, at])
    return spans


def pauses(wave: Wave, spans: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """(word index after the pause, sample in its middle) of every gap between words that is quiet for 150 ms."""
    size = RATE // 50
    energy = np.log10(np.array([np.mean(wave[i : i + size] ** 2) for i in range(0, len(wave) - size, size)]) + 1e-10)
    quiet = energy < np.quantile(energy, 0.05) + 0.3 * (np.quantile(energy, 0.95) - np.quantile(energy, 0.05))
    out = []
    for word in range(1, len(spans)):
        low, high = (spans[word - 1][1] - 1) * HOP // size, (spans[word][0] + 2) * HOP // size
        best, run = (0, 0), 0
        for i in range(max(low, 0), min(high, len(quiet))):
            run = run + 1 if quiet[i] else 0
            best = max(best, (run, i))
        if best[0] >= 8:
            out.append((word, int((best[1] - best[0] / 2 + 1) * size)))
    return out


def pieces_of(assistant: Any, names: torch.Tensor, mean: torch.Tensor, wave: Wave, text: str) -> list[tuple[Wave, str]]:
    """A recording cut at its pauses, each piece with its words."""
    processor, model = assistant.processor, assistant.model
    clip = processor.clip(wave)
    with torch.inference_mode():
        audio = normalize(model.encode_audio([clip.mel], [clip.frames]) - mean, dim=-1)
    parts = [processor.tokenizer.encode(" " + word) for word in text.lower().split()]
    tokens = [token for part in parts for token in part]
    spans = word_times((audio @ normalize(names[tokens] - mean, dim=-1).T).numpy(), 0.25)
    of_words, start = [], 0
    for part in parts:
        of_words.append((spans[start][0], spans[start + len(part) - 1][1]))
        start += len(part)
    cuts = [(0, 0), *pauses(wave, of_words), (len(parts), len(wave))]
    out, begin = [], cuts[0]
    for number, end in enumerate(cuts[1:], 1):
        if (end[1] - begin[1]) / RATE < SHORTEST and number < len(cuts) - 1:
            continue
        out.append((wave[begin[1] : end[1]], " ".join(text.lower().split()[begin[0] : end[0]])))
        begin = end
    return [(piece, said) for piece, said in out if said and SHORTEST <= len(piece) / RATE <= LONGEST]


def understood(assistant: Any, pieces: list[tuple[Wave, str]]) -> list[tuple[Wave, str]]:
    """Those of which the model, asked to transcribe them, hears most words."""
    heard = assistant.transcribe_many([(piece, RATE) for piece, _ in pieces])
    wrong = [
        edits(words(text), words(reply.text)) / len(words(text)) for (_, text), reply in zip(pieces, heard, strict=True)
    ]
    return [piece for piece, share in zip(pieces, wrong, strict=True) if share <= 0.34]


def joined(pieces: list[tuple[Wave, str]], rng: random.Random) -> tuple[Wave, str]:
    """One to four pieces of different recordings, with short gaps, up to the longest."""
    waves: list[Wave] = []
    said: list[str] = []
    seconds = 0.0
    for piece, text in rng.sample(pieces, rng.choice([1, 2, 3, 4])):
        if waves and seconds + len(piece) / RATE > LONGEST:
            continue
        level = 0.05 / max(float(np.sqrt(np.mean(piece**2))), 1e-4)
        waves += [piece * level, np.zeros(int(rng.uniform(0.02, 0.3) * RATE), dtype=np.float32)]
        said.append(text)
        seconds += len(piece) / RATE
    return np.clip(np.concatenate(waves), -1, 1), " ".join(said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--joined", type=int, default=3500)
    parser.add_argument("--unheard", action="store_true", help="keep every piece, untranscribed: much quicker")
    args = parser.parse_args()
    rng = random.Random(4)
    assistant = load(args.model, device="cpu")
    names = assistant.model.language_model.model.embed_tokens.weight
    rows = [json.loads(line) for line in (args.folder / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["split"] == "train"]
    said = {token for row in rows for token in assistant.processor.tokenizer.encode(" " + row["gt"].lower())}
    mean = names[sorted(said)].mean(0)
    pieces: list[tuple[Wave, str]] = []
    for number, row in enumerate(rows, 1):
        found = pieces_of(assistant, names, mean, load_audio(args.folder / row["audio"]), row["gt"])
        pieces += found if args.unheard else understood(assistant, found)
        if number % 25 == 0:
            print(f"{number}/{len(rows)} recordings, {len(pieces)} pieces", flush=True)
    (args.out / "audio").mkdir(parents=True, exist_ok=True)
    part = args.out / "manifest.jsonl.part"
    with part.open("w") as manifest:
        for number in range(args.joined):
            wave, text = joined(pieces, rng)
            path = args.out / "audio" / f"real-{number:05d}.flac"
            soundfile.write(path, wave, RATE)
            out = {"id": path.stem, "audio": f"audio/{path.name}", "duration": len(wave) / RATE}
            manifest.write(json.dumps(out | {"text": sentence_case(text.split()), "voice": "real"}) + "\n")
    part.rename(args.out / "manifest.jsonl")
    print(f"{len(pieces)} pieces, {sum(len(p) for p, _ in pieces) / RATE / 60:.1f} minutes; {args.joined} recordings")


if __name__ == "__main__":
    main()
