"""Turn recordings into the rows of mini's stages: one JSON-lines file each.

    python recipes/mini/conversations.py OUT_FOLDER --read READ --many MANY --ask ASK --real REAL --data DATA_FOLDER

- hear.jsonl: recordings with their words, for the loss of spoken tokens alone;
- pretrain.jsonl: the base model's bare prompts: speech, sound events, emotion;
- sft.jsonl: conversations: transcription, spoken questions, questions about sounds, speakers, emotions; several turns;
- mix.jsonl: both kinds of prompts together, all sentences of MANY, sounds and emotions much oftener, a sound mostly as a
  stretch of 1.5 to 4 s; what they are called counts more than the words of long answers.

Every folder holds a manifest.jsonl. DATA_FOLDER has `librispeech_excerpt`, `esc10` and `emodb`; of each only the part for
training is used. OUT_FOLDER must lie where all of them can be reached by relative paths.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from reading_texts import sentence_case

Row = dict[str, Any]
Item = tuple[str, Row]
"""The path of a recording, and what its manifest says of it."""
HELD_OUT_SPEAKERS = ("09", "12")
"""Of EmoDB: a woman and a man, for measuring."""
HELD_OUT_FOLD = 4
"""Of ESC-10."""
NAME_WEIGHT = 6
"""Of a name's few tokens in the loss, beside the many of a transcript."""
TRANSCRIBE = "Transcribe the speech."
OTHER_WORDINGS = [
    "What is said?", "What does the person say?", "What did the speaker say?", "Write down what you hear.",
    "Transcribe this recording.", "Please transcribe the audio.", "Transcribe the audio.", "What do you hear?",
    "Repeat what was said.", "Please write down the speech.", "What is being said here?", "What are the words?",
    "Can you transcribe this?", "Detect the language and recognize the speech: <|en|>", "Transcribe.",
]  # fmt: skip
ANSWER = ["Answer the question.", "Please answer.", "Answer this question.", "What is the answer to this question?"]
WHICH_SOUND = [
    "What's that sound?",
    "What can you hear?",
    "What do you hear?",
    "What is making this sound?",
    "Describe the sound.",
]
FEELING = ["What is the emotion of the speaker?", "How does the speaker feel?", "What emotion do you hear?"]
EMOTION_PROMPT = "Recognize the emotion with keywords in English:"
SOUND_PROMPT, CAPTION_PROMPT = "What is the sound?", "Generate the caption in English:"
SENTENCES = {
    "dog bark": "A dog is barking.", "rain": "It is raining.", "sea waves": "Waves are breaking on a shore.",
    "baby cry": "A baby is crying.", "clock tick": "A clock is ticking.", "person sneeze": "A person sneezes.",
    "helicopter": "A helicopter is flying.", "chainsaw": "A chainsaw is running.", "rooster": "A rooster is crowing.",
    "fire crackling": "A fire is crackling.",
}  # fmt: skip
FEELS = {
    "anger": "The speaker sounds angry.", "neutral": "The speaker sounds neutral.", "boredom": "The speaker sounds bored.",
    "joy": "The speaker sounds happy.", "fear": "The speaker sounds afraid.", "sadness": "The speaker sounds sad.",
    "disgust": "The speaker sounds disgusted.",
}  # fmt: skip


def bare(audio: str, prompt: str, target: str, **more: Any) -> Row:
    return {"audio": audio, "prompt": prompt, "gt": target, **more}


def chat(*turns: tuple[Any, str], **more: Any) -> Row:
    """A conversation of (what the user says, the answer)."""
    messages = [
        m
        for user, answer in turns
        for m in ({"role": "user", "content": user}, {"role": "assistant", "content": answer})
    ]
    return {"messages": messages, **more}


def heard(audio: str, text: str = "", *, before: bool = False) -> list[Row]:
    """A recording and an instruction as the parts of a message."""
    parts: list[Row] = [{"type": "audio", "audio": audio}]
    if text:
        parts.insert(0 if before else 1, {"type": "text", "text": text + "\n" if before else text})
    return parts


def read_aloud(audio: str, row: Row) -> Row:
    """Pre-training's row of speech: its target begins with the tag of the language."""
    return {"audio": audio, "text": row["text"], "task": "asr", "language": "en", "spoken": row["text"]}


def transcription(audio: str, text: str, rng: random.Random) -> Row:
    wording = TRANSCRIBE if rng.random() < 0.6 else rng.choice(OTHER_WORDINGS)
    return chat((heard(audio, wording, before=rng.random() < 0.1), text), spoken=text)


def answered(audio: str, row: Row, rng: random.Random) -> Row:
    """The question spoken, mostly alone, sometimes with a request to answer it; then the text model's answer."""
    request = rng.choice(ANSWER) if rng.random() < 0.1 else ""
    turn, rest = (heard(audio, request), row["answer"]), {"spoken": row["text"], "complete": row["complete"]}
    if not row["complete"] or rng.random() < 0.85:
        return chat(turn, **rest)
    again = rng.choice(["What did I ask?", "What did I say?", "Repeat my question.", "Write down my question."])
    return chat(turn, (again, row["text"]), spoken=row["text"])


def written(row: Row) -> Row:
    """The same question in writing, so that the model goes on answering what is written."""
    return chat((row["text"], row["answer"]), complete=row["complete"])


def stretch(audio: str, row: Row, rng: random.Random) -> Any:
    """The recording, or mostly a part of it, which is quicker to learn from and hard to learn by heart."""
    seconds = row["duration"]
    if rng.random() < 0.35 or seconds < 2:
        return audio
    length = min(seconds, rng.uniform(1.5, 4))
    start = rng.uniform(0, seconds - length)
    return {"path": audio, "start": round(start, 2), "end": round(start + length, 2)}


def named(item: Item, prompt: str, sentence: str, rng: random.Random, *, cut: bool) -> Row:
    """What a recording is an example of: asked for by name, or in a free wording; bare or in a chat."""
    audio, row = item
    part = stretch(audio, row, rng) if cut else audio
    if rng.random() < 0.45:
        return bare(part, prompt, row["gt"], loss_weight=NAME_WEIGHT)
    free = rng.random() < 0.4
    wording = rng.choice(WHICH_SOUND if prompt == SOUND_PROMPT else FEELING) if free else prompt
    content = [
        {"type": "audio", **(part if isinstance(part, dict) else {"audio": part})},
        {"type": "text", "text": wording},
    ]
    return chat((content, sentence if free else row["gt"]), loss_weight=NAME_WEIGHT)


def of_sounds(sounds: list[Item], rng: random.Random, times: int) -> Iterable[Row]:
    for _ in range(times):
        for audio, row in sounds:
            kind = row["gt"]
            other = rng.choice([name for name in SENTENCES if name != kind])
            pick = rng.random()
            if pick < 0.4:
                yield chat((heard(audio, SOUND_PROMPT), kind))
            elif pick < 0.7:
                yield chat((heard(audio, rng.choice(WHICH_SOUND)), SENTENCES[kind]))
            elif pick < 0.85:
                names = [kind, other] if rng.random() < 0.5 else [other, kind]
                yield chat((heard(audio, f"Is this the sound of {names[0]} or {names[1]}?"), kind))
            else:
                second, what = rng.choice(sounds)
                first = (heard(audio, rng.choice(WHICH_SOUND)), SENTENCES[kind])
                yield chat(first, (heard(second, "And this one?"), SENTENCES[what["gt"]]))


def of_voices(voices: list[Item], rng: random.Random, times: int) -> Iterable[Row]:
    for _ in range(times):
        for audio, row in voices:
            emotion = row["gt"]
            if rng.random() < 0.5:
                yield chat((heard(audio, EMOTION_PROMPT), emotion))
            else:
                yield chat((heard(audio, rng.choice(FEELING)), FEELS[emotion]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    for name in ("read", "many", "ask", "real", "prompts"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--pretrain-read", type=int, default=3500)
    parser.add_argument("--sft-read", type=int, default=1200)
    parser.add_argument("--mix-read", type=int, default=600, help="rows of read in mix.jsonl, besides all of many")
    parser.add_argument("--mix-ask", type=int, default=5000, help="spoken questions in mix.jsonl, at most")
    parser.add_argument("--mix-joined", type=int, default=1400, help="rows of joined speech in mix.jsonl")
    parser.add_argument(
        "--mix-times", type=int, default=11, help="times that each emotion stands in mix.jsonl; sounds half as often"
    )
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rng = random.Random(3)

    def load(folder: Path | None) -> list[Item]:
        if folder is None or not (folder / "manifest.jsonl").exists():
            return []
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
        base = os.path.relpath(folder, args.out)
        items = [(f"{base}/{row['audio']}", row) for row in rows]
        rng.shuffle(items)
        return items

    def write(name: str, rows: list[Row]) -> None:
        rng.shuffle(rows)
        (args.out / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        print(f"{name}: {len(rows)} rows")

    read, many, ask = load(args.read), load(args.many), load(args.ask)
    joined, prompts = load(args.real), load(args.prompts)
    whole = [
        (audio, {**row, "text": sentence_case(row["gt"].split())})
        for audio, row in load(args.data / "librispeech_excerpt")
        if row["split"] == "train"
    ]
    sounds = [item for item in load(args.data / "esc10") if item[1]["fold"] != HELD_OUT_FOLD]
    feelings = [item for item in load(args.data / "emodb") if item[1]["speaker"] not in HELD_OUT_SPEAKERS]
    write("hear.jsonl", [read_aloud(*item) for item in read + joined + joined + prompts + whole])

    pretrain = [read_aloud(*item) for item in read[: args.pretrain_read] + joined[:2500] + prompts + whole]
    for _ in range(3):
        pretrain += [
            bare(audio, SOUND_PROMPT if rng.random() < 0.8 else CAPTION_PROMPT, row["gt"]) for audio, row in sounds
        ]
        pretrain += [bare(audio, EMOTION_PROMPT, row["gt"]) for audio, row in feelings]
    write("pretrain.jsonl", pretrain)

    kept_back = set(Path(__file__).with_name("test_questions.txt").read_text().split("\n"))
    ask = [item for item in ask if item[1]["text"] not in kept_back]
    sft = [answered(audio, row, rng) for audio, row in ask]
    sft += [transcription(audio, row["text"], rng) for audio, row in ask if rng.random() < 0.12]
    sft += [written(row) for _, row in ask if rng.random() < 0.1]
    sft += [
        transcription(audio, row["text"], rng)
        for audio, row in read[args.pretrain_read :][: args.sft_read] + joined[2500:] + whole
    ]
    sft += [*of_sounds(sounds, rng, 3), *of_voices(feelings, rng, 2)]
    write("sft.jsonl", sft)

    mix = [
        read_aloud(audio, row) if rng.random() < 0.25 else transcription(audio, row["text"], rng)
        for audio, row in many + read[: args.mix_read] + joined[: args.mix_joined] + whole
    ]
    mix += [answered(audio, row, rng) for audio, row in ask[: args.mix_ask]]
    mix += [written(row) for _, row in ask if rng.random() < 0.3]
    for time in range(args.mix_times):
        if time % 2:  # sounds are learnt sooner
            mix += [named(item, SOUND_PROMPT, SENTENCES[item[1]["gt"]], rng, cut=True) for item in sounds]
        mix += [named(item, EMOTION_PROMPT, FEELS[item[1]["gt"]], rng, cut=False) for item in feelings]
    write("mix.jsonl", mix)


if __name__ == "__main__":
    main()
