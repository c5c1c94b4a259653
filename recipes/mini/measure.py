"""How well does a model listen? Word error rate on real recordings, and answers to spoken questions.

    python recipes/mini/measure.py --model mini --read LIBRISPEECH_FOLDER
    python recipes/mini/measure.py --model mini --ask
    python recipes/mini/measure.py --model BEFORE AFTER --faithful ESC10_FOLDER
    python recipes/mini/measure.py --model mini --sounds ESC10_FOLDER --emotions EMODB_FOLDER --faithful ESC10_FOLDER

`--read` transcribes the clips of split "test" of a folder with a manifest.jsonl (fields audio, gt, split); with `--split train`
those that were learnt from, with `--spoken VOICE` the same sentences in a voice of `voices.py`. `--ask` speaks the
50 questions of test_questions.txt with a voice never trained on, and compares each answer with the model's answer to the
same question in writing: both are printed, and counted as alike when at least half of their first 30 words agree (F1).
It also counts how many answers are to the question that was asked: those that the model, in writing, would rather give to it
than to any other of the 50, by the likelihood of their first tokens. For comparison the model is also asked in
writing what it heard the questions as, and the questions themselves, carelessly written.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from conversations import HELD_OUT_FOLD, HELD_OUT_SPEAKERS
from preferences import answers, loudest, questions
from voices import HELD_OUT, speak

from qwen2_audio import Assistant, Conversation, load
from qwen2_audio.evaluation.accuracy import word_f1
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.chat_template import render

QUESTIONS = Path(__file__).with_name("test_questions.txt")


def words(text: str) -> list[str]:
    """Lower case, without punctuation (apostrophes stay)."""
    return re.sub(r"[^a-z0-9' ]+", " ", text.lower()).split()


def edits(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """Word-level Levenshtein distance."""
    row = np.arange(len(hypothesis) + 1)
    for i, word in enumerate(reference, 1):
        change = row[:-1] + np.array([word != other for other in hypothesis], dtype=int)
        best = np.minimum(change, row[1:] + 1)
        row = np.minimum.accumulate(np.concatenate([[i], best]) - np.arange(len(row))) + np.arange(len(row))
    return int(row[-1])


def measure_reading(assistant: Assistant, folder: Path, batch: int, split: str = "test", voice: str = "") -> None:
    """Print the word error rate over the clips of a folder's split, or over the same sentences in a synthetic voice."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows = sorted((row for row in rows if row["split"] == split), key=lambda row: row["duration"])
    wrong = total = 0
    started = time.monotonic()
    for start in range(0, len(rows), batch):
        part = rows[start : start + batch]
        clips = [(speak(voice, row["gt"].lower()), 16_000) if voice else folder / row["audio"] for row in part]
        replies = assistant.transcribe_many(clips)
        for row, reply in zip(part, replies, strict=True):
            reference, heard = words(row["gt"]), words(reply.text)
            wrong += edits(reference, heard)
            total += len(reference)
            print(f"{row['id']}\n  said:  {' '.join(reference)}\n  heard: {' '.join(heard)}")
    print(
        f"word error rate {wrong / total:.1%} ({wrong}/{total} words, {len(rows)} clips, {time.monotonic() - started:.0f} s)"
    )


def measure_questions(assistant: Assistant, voice: str) -> None:
    """Print answers to spoken and to written questions side by side."""
    questions = QUESTIONS.read_text().split("\n")[:50]
    speech = [(speak(voice, question), 16_000) for question in questions]

    def answered(asked: Sequence[Any]) -> list[str]:
        options: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 40}
        return [reply.text for s in range(0, 50, 10) for reply in assistant.batch(asked[s : s + 10], **options)]

    def alike(answers: Sequence[str]) -> list[bool]:
        return [word_f1(a, b) >= 0.5 for a, b in zip(answers, written, strict=True)]

    written, spoken = answered(questions), answered(speech)
    heard = [reply.text for reply in assistant.transcribe_many(speech, max_new_tokens=40)]
    for same, question, a, b, text in zip(alike(spoken), questions, spoken, written, heard, strict=True):
        print(f"{'=' if same else ' '} {question}\n    heard as: {text}\n    spoken:  {a!r}\n    written: {b!r}")
    understood = answered([text or "..." for text in heard])  # nothing can't be asked
    careless = [question.lower().rstrip(".?") for question in questions]
    print(
        f"for comparison, alike in writing: {sum(alike(understood))} answers to what it heard the questions as, "
        f"{sum(alike(answered(careless)))} to the questions in small letters without their last mark"
    )
    own = [at_home(assistant, questions, answers) for answers in (spoken, written)]
    print(
        f"{own[0]} of {len(questions)} answers to spoken questions are to that question, {own[1]} of those to written ones"
    )
    errors = sum(edits(words(q), words(text)) for q, text in zip(questions, heard, strict=True))
    share = errors / sum(len(words(q)) for q in questions)
    print(
        f"{sum(alike(spoken))} of {len(questions)} answers alike ({voice}); asked to transcribe them: {share:.1%} word errors"
    )


def at_home(assistant: Assistant, questions: Sequence[str], answers: Sequence[str], tokens: int = 12) -> int:
    """How many answers, by their first tokens, are likeliest after the question in the same place, asked in writing."""
    model, tokenizer = assistant.model, assistant.processor.tokenizer
    starts = [tokenizer.encode(answer)[:tokens] for answer in answers]
    lengths, wanted = list(map(len, starts)), torch.tensor([token for start in starts for token in start])
    rows = torch.repeat_interleave(torch.arange(len(starts)), torch.tensor(lengths))
    scores, device = [], model.device
    with torch.inference_mode():
        for question in questions:
            *prompt, last = tokenizer.encode(render(Conversation().user(question)))
            read, cache = model.new_cache(1, len(prompt)), model.new_cache(len(starts), len(prompt) + tokens)
            model(
                torch.tensor(prompt, device=device),
                [len(prompt)],
                cache=read,
                logits_at=torch.tensor([0], device=device),
            )
            for row in range(len(starts)):  # the prompt is read once for all of them
                cache.copy(row, read, 0, len(prompt))
            written = torch.tensor([token for start in starts for token in (last, *start[:-1])], device=device)
            logits = model(written, lengths, cache=cache).float().cpu()
            likely = logits.log_softmax(-1).gather(1, wanted[:, None])[:, 0]
            scores.append(torch.zeros(len(starts)).index_add(0, rows, likely))
    return int((torch.stack(scores).argmax(0) == torch.arange(len(starts))).sum())


def measure_labels(assistant: Assistant, folder: Path, name: str, held_out: Callable[[dict[str, Any]], bool]) -> None:
    """Print how often the model names the label, asked with the data set's own prompt in a chat and without one."""
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if held_out(row)]
    given: dict[str, list[str]] = {"in a chat": [], "bare": []}
    for start in range(0, len(rows), 16):
        part = rows[start : start + 16]
        asked: list[Any] = [[folder / row["audio"], row["prompt"]] for row in part]
        given["in a chat"] += [reply.text for reply in assistant.batch(asked, temperature=0, max_new_tokens=12)]
        for row in part:
            reply = assistant.complete([folder / row["audio"]], row["prompt"], temperature=0, max_new_tokens=12)
            given["bare"].append(reply.text)
    for how, replies in given.items():
        right = [words(row["gt"]) == words(text) for row, text in zip(rows, replies, strict=True)]
        wrong = Counter(f"{row['gt']} -> {text}" for row, text, ok in zip(rows, replies, right, strict=True) if not ok)
        print(f"{name}, {how}: {sum(right) / len(rows):.1%} of {len(rows)}; most often wrong: {wrong.most_common(4)}")


def measure_faithfulness(assistant: Assistant, folder: Path) -> None:
    """Print how many answers contradict the recording they are about."""
    rng = random.Random(7)
    rows = [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]
    asked = []
    for row in (row for row in rows if row["fold"] == HELD_OUT_FOLD):
        wave = load_audio(folder / row["audio"])
        start, end = loudest(wave)
        asked += [(wave[int(start * 16_000) : int(end * 16_000)], q) for q in questions(row["gt"], rng)]
    given = answers(assistant, asked)
    for name, about_what_is_there in (("is", True), ("is not", False)):
        pairs = [(q, a) for (_, q), a in zip(asked, given, strict=True) if (q.kind == q.about) == about_what_is_there]
        bad = [(q, a) for q, a in pairs if q.contradicted_by(a)]
        shown = "; ".join(f"[{q.kind}] {q.text} {a!r}" for q, a in bad[:3])
        print(f"about what {name} to be heard: {len(bad)} of {len(pairs)} answers contradict the recording. {shown}")
    total = sum(q.contradicted_by(a) for (_, q), a in zip(asked, given, strict=True))
    print(f"{total} of {len(asked)} answers contradict the recording ({total / len(asked):.1%})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=["mini"], help="several are measured one after the other")
    parser.add_argument("--read", type=Path)
    parser.add_argument("--split", default="test", help="of --read: test, or train, which was learnt from")
    parser.add_argument("--spoken", default="", metavar="VOICE", help="of --read: the sentences in a synthetic voice")
    parser.add_argument("--ask", action="store_true")
    parser.add_argument("--voice", default=HELD_OUT[0])
    parser.add_argument("--sounds", type=Path, help="ESC-10: share of right answers on the held-out fold")
    parser.add_argument("--emotions", type=Path, help="EmoDB: share of right answers on the held-out speakers")
    parser.add_argument(
        "--faithful", type=Path, help="ESC-10: answers that contradict the recording, on the held-out fold"
    )
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--quantize", default="none", help="none, int8, int4, fp8: how the weights lie in memory")
    args = parser.parse_args()
    if not any((args.read, args.ask, args.sounds, args.emotions, args.faithful)):
        sys.exit("say what to measure: --read, --ask, --sounds, --emotions, --faithful")
    for name in args.model:
        print(f"-- {name}")
        measure(load(name, dtype="float32" if args.quantize == "none" else "auto", quantize=args.quantize), args)


def measure(assistant: Assistant, args: argparse.Namespace) -> None:
    """Print what the arguments ask for, of one model."""
    if args.read:
        measure_reading(assistant, args.read, args.batch, args.split, args.spoken)
    if args.ask:
        measure_questions(assistant, args.voice)
    if args.sounds:
        measure_labels(assistant, args.sounds, "ESC-10", lambda row: row["fold"] == HELD_OUT_FOLD)
    if args.emotions:
        measure_labels(assistant, args.emotions, "EmoDB", lambda row: row["speaker"] in HELD_OUT_SPEAKERS)
    if args.faithful:
        measure_faithfulness(assistant, args.faithful)


if __name__ == "__main__":
    main()
