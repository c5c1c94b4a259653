"""Questions that people ask aloud, each with the text model's own answer, as texts to synthesise.

    python recipes/mini/question_texts.py BASE_FOLDER OUT.jsonl --templates 3000 --sampled 3000

Two sources: the templates of topics.json, and the text model itself, asked to go on after `<|im_start|>user`. The target
is the text model's greedy answer to the written question: what it should answer when it hears it (distillation).
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from pathlib import Path

import torch
from torch import Tensor

from qwen2_audio.checkpoints.load import load_model
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.tokenizer import Tokenizer, load_tokenizer

OPENINGS = ["What", "How", "Why", "Who", "Where", "When", "Which", "Can you", "Is", "Do", "Does", "Are", "Tell me"]
OPENINGS += ["Explain", "Should I", "Could you", "What is the", "How do I", "What are", "Describe", "Give me", "I"]
ANSWER_TOKENS = 36
BATCH = 128


def complete(
    model: Qwen2Audio, prompts: list[list[int]], limit: int, stop: set[int], temperature: float
) -> list[list[int]]:
    """Continue every prompt by up to `limit` tokens; the stop token, where one came, is kept."""
    heads = [ids[:-1] for ids in prompts]
    cache = model.new_cache(len(prompts), max(map(len, prompts)) + limit)
    packed = torch.tensor([token for ids in heads for token in ids])
    model(packed, [len(ids) for ids in heads], cache=cache, logits_at=torch.tensor([0]))
    out: list[list[int]] = [[] for _ in prompts]
    alive, last = list(range(len(prompts))), torch.tensor([ids[-1] for ids in prompts])
    for _ in range(limit):
        logits = model(last, [1] * len(alive), cache=cache)
        last = _choose(logits, temperature)
        for row, token in zip(alive, last.tolist(), strict=True):
            out[row].append(token)
        keep = [i for i, token in enumerate(last.tolist()) if token not in stop]
        if len(keep) < len(alive):
            if not keep:
                break
            for place, row in enumerate(keep):
                if place < row:
                    cache.copy(place, cache, row, cache.lengths[row])
            cache.resize(len(keep))
            alive, last = [alive[i] for i in keep], last[keep]
    return out


def _choose(logits: Tensor, temperature: float) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1)[:, 0]


def from_templates(count: int, rng: random.Random) -> list[str]:
    """The fixed questions, and `count` draws from the templates."""
    topics = json.loads(Path(__file__).with_name("topics.json").read_text())
    out = list(topics["fixed"])
    for _ in range(count):
        template = rng.choice(topics["templates"])
        fill = {name: rng.choice(values) for name, values in topics.items()}
        fill |= {name + "2": rng.choice(topics[name]) for name in ("number", "nouns")}
        if "baby" in template:
            fill["animal"] = fill["animal"].split(" ", 1)[1]
        out.append(template.format(**fill))
    return out


def sampled(model: Qwen2Audio, tokenizer: Tokenizer, count: int, rng: random.Random) -> list[str]:
    """Questions the text model asks itself: the first sentence of what it puts into the user's mouth."""
    head = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    stop = {tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|endoftext|>"), *tokenizer.encode("\n")}
    found: set[str] = set()
    started = time.monotonic()
    while len(found) < count:
        openings = [rng.choice(OPENINGS) for _ in range(BATCH)]
        prompts = [tokenizer.encode(head + opening) for opening in openings]
        for opening, ids in zip(openings, complete(model, prompts, 22, stop, 0.8), strict=True):
            text = opening + tokenizer.decode(ids, skip_special=True)
            sentence = re.match(r"[A-Z][A-Za-z0-9,'\- ]{8,110}[.?]", text)
            if sentence and 4 <= len(sentence[0].split()) <= 18:
                found.add(sentence[0])
        print(f"{len(found)} sampled questions, {time.monotonic() - started:.0f} s", flush=True)
    return sorted(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--templates", type=int, default=3000)
    parser.add_argument("--sampled", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=2)
    parser.add_argument(
        "--without", type=Path, nargs="*", default=[], help="files of rows whose texts are not asked again"
    )
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    model, tokenizer = load_model(args.base), load_tokenizer(args.base)
    old = {json.loads(line)["text"] for path in args.without for line in path.read_text().splitlines()}
    with torch.inference_mode():
        questions = from_templates(args.templates, rng) + sampled(model, tokenizer, args.sampled, rng)
        questions = [question for question in dict.fromkeys(questions) if question not in old]
        rng.shuffle(questions)
        rows = []
        end = tokenizer.id_of("<|im_end|>")
        for start in range(0, len(questions), BATCH):
            part = questions[start : start + BATCH]
            prompts = [
                tokenizer.encode(
                    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
                    f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
                )
                for question in part
            ]
            for question, ids in zip(part, complete(model, prompts, ANSWER_TOKENS, {end}, 0), strict=True):
                row = {"id": f"ask-{len(rows):06d}", "task": "voice_chat", "text": question}
                row |= {"answer": tokenizer.decode(ids, skip_special=True), "complete": ids[-1] == end}
                rows.append(row)
            print(f"{len(rows)}/{len(questions)} answers", flush=True)
    args.out.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
