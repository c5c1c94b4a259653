"""Speak the 50 test questions: the set `spoken_questions` of the scorecard (`qwen2-audio evaluate scorecard`).

    python recipes/mini/spoken_questions.py DATA_FOLDER

Writes DATA_FOLDER/spoken_questions/audio/NUMBER.flac, in a voice never trained on, and manifest.jsonl beside that folder. The
references are greedy answers to the same questions in writing: those of `mini-base`, whose answers mini is taught, so that
the set is the same for every mini; with `--model mini` they are mini's own.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import soundfile
from voices import HELD_OUT, speak

from qwen2_audio import load

QUESTIONS = Path(__file__).with_name("test_questions.txt")
ANSWER_TOKENS = 64
"""More than the 30 words that are scored."""


def make(folder: Path, model: str, voice: str) -> None:
    """The recordings and, last, their manifest."""
    questions = QUESTIONS.read_text().splitlines()
    answers = load(model).batch(questions, temperature=0.0, max_new_tokens=ANSWER_TOKENS)
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (question, answer) in enumerate(zip(questions, answers, strict=True), 1):
        wave = speak(voice, question)
        audio = f"audio/{number:02}.flac"
        soundfile.write(folder / audio, wave, 16_000)
        row = {"id": f"{number:02}", "audio": audio, "duration": round(len(wave) / 16_000, 3), "task": "voice_chat"}
        row |= {"prompt": "", "gt": answer.text, "source": "spoken_questions", "language": "en"}
        rows.append(row | {"speaker": voice, "split": "test", "chat": True, "text": question})
    part = folder / "manifest.jsonl.part"
    part.write_text("".join(json.dumps(row) + "\n" for row in rows))
    part.rename(folder / "manifest.jsonl")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="mini-base", help="whose written answers are the references")
    parser.add_argument("--voice", default=HELD_OUT[0])
    args = parser.parse_args()
    make(args.out / "spoken_questions", args.model, args.voice)


if __name__ == "__main__":
    main()
