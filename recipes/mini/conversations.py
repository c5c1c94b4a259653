"""Turn spoken texts into training rows, easy ones first.

    python recipes/mini/conversations.py OUT.jsonl --read READ_FOLDER --ask ASK_FOLDER --real LIBRISPEECH_FOLDER

Two abilities, asked for in many ways: writing down what is said, and answering what is asked. OUT must lie where all
folders can be reached by relative paths.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

from reading_texts import sentence_case

TRANSCRIBE = "Transcribe the speech."
OTHER_WORDINGS = [
    "What is said?", "What does the person say?", "What did the speaker say?", "Write down what you hear.",
    "Transcribe this recording.", "Please transcribe the audio.", "Transcribe the audio.", "What do you hear?",
    "Repeat what was said.", "Please write down the speech.", "What is being said here?", "What are the words?",
    "Can you transcribe this?", "Detect the language and recognize the speech: <|en|>", "Transcribe.",
]  # fmt: skip
BASE_PROMPT = "Detect the language and recognize the speech: <|en|>"
ANSWER = ["Answer the question.", "Please answer.", "Answer this question.", "What is the answer to this question?"]


def transcription(audio: str, text: str, rng: random.Random) -> dict[str, Any]:
    """Audio and an instruction, then the words; a sixth in the base model's bare form."""
    if rng.random() < 1 / 6:
        return {"audio": audio, "prompt": BASE_PROMPT, "gt": text, "spoken": text}
    wording = TRANSCRIBE if rng.random() < 0.5 else rng.choice(OTHER_WORDINGS)
    parts: list[Any] = [{"type": "audio", "audio": audio}, {"type": "text", "text": wording}]
    if rng.random() < 0.1:
        parts = [{"type": "text", "text": wording + "\n"}, parts[0]]
    messages = [{"role": "user", "content": parts}, {"role": "assistant", "content": text}]
    return {"messages": messages, "spoken": text}


def answer(audio: str, row: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """The question spoken, mostly alone, sometimes with a request to answer it; then the text model's answer."""
    parts: list[Any] = [{"type": "audio", "audio": audio}]
    if rng.random() < 0.1:
        parts.append({"type": "text", "text": rng.choice(ANSWER)})
    return _answered(parts, row) | {"spoken": row["text"]}


def written(row: dict[str, Any]) -> dict[str, Any]:
    """The same question in writing, so that the model goes on answering what is written."""
    return _answered(row["text"], row)


def _answered(content: Any, row: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": row["answer"]}]
    return {"messages": messages, "complete": row["complete"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--read", type=Path, required=True)
    parser.add_argument("--ask", type=Path)
    parser.add_argument("--real", type=Path, help="an optional folder of real recordings")
    parser.add_argument("--real-times", type=int, default=5, help="how often each real recording is used")
    parser.add_argument("--short", type=int, default=700, help="rows of short transcription that come first")
    parser.add_argument(
        "--warm", type=int, default=3500, help="further rows of nothing but transcription, before the mixture"
    )
    args = parser.parse_args()
    rng = random.Random(3)

    def load(folder: Path | None) -> list[tuple[str, dict[str, Any]]]:
        if folder is None:
            return []
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        base = os.path.relpath(folder, args.out.parent)
        return [(f"{base}/{row['audio']}", row) for row in rows]

    read = load(args.read)
    rng.shuffle(read)
    first = [item for item in read if item[1]["duration"] < 5][: args.short]
    used = {audio for audio, _ in first}
    later = [item for item in read if item[0] not in used]
    warm = [transcription(audio, row["text"], rng) for audio, row in first + later[: args.warm]]
    rest = [transcription(audio, row["text"], rng) for audio, row in later[args.warm :]]
    for audio, row in load(args.real):
        if row["split"] == "train":
            rest += [transcription(audio, sentence_case(row["gt"].split()), rng) for _ in range(args.real_times)]
    kept_back = set(Path(__file__).with_name("test_questions.txt").read_text().split("\n"))
    for audio, row in load(args.ask):
        if row["text"] in kept_back:
            continue
        rest.append(answer(audio, row, rng))
        if rng.random() < 0.3:
            rest.append(transcription(audio, row["text"], rng))
        if rng.random() < 0.12:
            rest.append(written(row))
    rng.shuffle(rest)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in warm + rest))
    print(f"{len(warm) + len(rest)} rows")


if __name__ == "__main__":
    main()
