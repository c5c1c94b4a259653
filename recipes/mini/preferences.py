"""Pairs of answers for mini's third stage: one true to the recording, one that ignores it or makes something up.

    python recipes/mini/preferences.py MODEL ESC10_FOLDER OUT.jsonl --pairs 500

Questions about sound events, half of which take for granted, or ask about, what is not to be heard. The better answer follows
from the label; the worse one is the model's own wherever it contradicts the recording, else one that would. Only the folds for
training are used. `measure.py --faithful` counts contradictions with the same questions on the fold that is held out.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from conversations import HELD_OUT_FOLD, SENTENCES, heard
from numpy.typing import NDArray

from qwen2_audio import Assistant, load
from qwen2_audio.processing.audio import load_audio

SECONDS = 2.5
THINGS = {
    "dog bark": "a dog", "rain": "rain", "sea waves": "waves", "baby cry": "a baby", "clock tick": "a clock",
    "person sneeze": "a sneeze", "helicopter": "a helicopter", "chainsaw": "a chainsaw", "rooster": "a rooster",
    "fire crackling": "a fire",
}  # fmt: skip
LOADED = {
    "dog bark": "Why is the dog barking?", "rain": "How heavy is the rain?", "sea waves": "How high are the waves?",
    "baby cry": "Why is the baby crying?", "clock tick": "How fast does the clock tick?",
    "person sneeze": "How often does the person sneeze?", "helicopter": "Where is the helicopter flying?",
    "chainsaw": "What is being cut with the chainsaw?", "rooster": "Why is the rooster crowing?",
    "fire crackling": "How big is the fire?",
}  # fmt: skip
MARKS = {
    "dog bark": "dog|bark", "rain": "rain", "sea waves": "wave|sea|ocean", "baby cry": "baby|cry", "clock tick": "clock|tick",
    "person sneeze": "sneez", "helicopter": "helicopter", "chainsaw": "chainsaw", "rooster": "rooster|crow",
    "fire crackling": "fire|crackl",
}  # fmt: skip
NOT = re.compile(r"\b(no|not|don't|isn't|cannot|can't|nothing)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Question:
    """A question about a recording in which `kind` is to be heard, and which is about `about`."""

    text: str
    kind: str
    about: str
    loaded: bool

    @property
    def right(self) -> str:
        if self.kind == self.about:
            return SENTENCES[self.kind] if self.loaded else f"Yes. {SENTENCES[self.kind]}"
        return f"No, I do not hear {THINGS[self.about]}. {SENTENCES[self.kind]}"

    @property
    def wrong(self) -> str:
        if self.kind == self.about:
            return f"No, I do not hear {THINGS[self.about]}."
        return SENTENCES[self.about] if self.loaded else f"Yes. {SENTENCES[self.about]}"

    def contradicted_by(self, answer: str) -> bool:
        """Whether an answer denies what is there, or goes along with what is not."""
        denies = bool(NOT.search(answer))
        if self.kind == self.about:
            return denies
        names = re.search(MARKS[self.kind], answer, re.IGNORECASE)
        return not denies and not names


def questions(kind: str, rng: random.Random, each: int = 1) -> list[Question]:
    """Questions about what is there and about what is not, as many of either."""
    out = []
    for _ in range(each):
        other = rng.choice([name for name in THINGS if name != kind])
        for about in (kind, other):
            loaded = rng.random() < 0.5
            ask = rng.choice(["Do you hear {}?", "Can you hear {}?", "Is there {} in the recording?"])
            out.append(Question(LOADED[about] if loaded else ask.format(THINGS[about]), kind, about, loaded))
    return out


def loudest(wave: NDArray[np.float32], seconds: float = SECONDS) -> tuple[float, float]:
    """Start and end, in seconds, of the stretch with the most energy."""
    size, hop = int(seconds * 16_000), 1600
    if len(wave) <= size:
        return 0.0, len(wave) / 16_000
    energy = np.concatenate([[0.0], np.cumsum(wave.astype(np.float64) ** 2)])
    starts = np.arange(0, len(wave) - size, hop)
    best = int(starts[np.argmax(energy[starts + size] - energy[starts])])
    return best / 16_000, (best + size) / 16_000


def answers(assistant: Assistant, asked: list[tuple[NDArray[np.float32], Question]], batch: int = 16) -> list[str]:
    """What the model answers, greedily."""
    out: list[str] = []
    for start in range(0, len(asked), batch):
        part: list[Any] = [[(wave, 16_000), question.text] for wave, question in asked[start : start + batch]]
        out += [reply.text for reply in assistant.batch(part, temperature=0, max_new_tokens=24)]
        print(f"{len(out)}/{len(asked)} answers", flush=True)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("sounds", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=500)
    args = parser.parse_args()
    rng = random.Random(6)
    rows = [json.loads(line) for line in (args.sounds / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["fold"] != HELD_OUT_FOLD]
    asked, places = [], []
    while len(asked) < args.pairs:
        row = rng.choice(rows)
        wave = load_audio(args.sounds / row["audio"])
        start, end = loudest(wave)
        path = os.path.relpath(args.sounds / row["audio"], args.out.parent)
        for question in questions(row["gt"], rng):
            asked.append((wave[int(start * 16_000) : int(end * 16_000)], question))
            places.append({"path": path, "start": start, "end": end})
    given = answers(load(args.model), asked)
    contradicting = 0
    with args.out.open("w") as file:
        for (_, question), place, answer in zip(asked, places, given, strict=True):
            bad = question.contradicted_by(answer)
            contradicting += bad
            content = [{"type": "audio", **place}, heard("", question.text)[1]]
            pair = {"chosen": question.right, "rejected": answer if bad and answer else question.wrong}
            file.write(json.dumps({"messages": [{"role": "user", "content": content}], **pair}) + "\n")
    print(f"{len(asked)} pairs; in {contradicting} the model's own answer contradicts the recording")


if __name__ == "__main__":
    main()
