"""Training speed and memory: our trainer and the Trainer of `transformers`, on the same model, rows and settings, in turns.

    python benchmarks/trainer.py --model mini --rounds 2 --steps 3

Every measurement is a process of its own (peak memory is the process'); each side takes its turn in each round. LoRA of rank
16 on the language model's linear layers, everything else frozen, AdamW, the loss on the answers alone. "Tokens" are those of
the rows, without padding. Prints medians and ratios; --json prints them as one object.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

WORDS = "the a man dog river house old young walked saw into over quickly never always bright morning".split()
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
QUESTION = "What is said?"


def make_rows(folder: Path, count: int, longest: float) -> list[dict[str, Any]]:
    """Clips of mixed length, most of them short, each with a sentence that fits into it; what is heard does not matter."""
    import numpy as np
    import soundfile

    rng = random.Random(0)
    rows = []
    for number in range(count):
        seconds = min(longest, 1.0 + rng.expovariate(1 / 5.0))
        noise = 0.1 * np.random.default_rng(number).standard_normal(int(16_000 * seconds))
        soundfile.write(folder / f"{number}.wav", noise, 16_000)
        text = " ".join(rng.choices(WORDS, k=max(2, round(2.5 * seconds))))
        content = [{"type": "audio", "audio": f"{number}.wav"}, {"type": "text", "text": QUESTION}]
        messages = [{"role": "user", "content": content}, {"role": "assistant", "content": text}]
        rows.append({"messages": messages, "seconds": seconds, "text": text})
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return rows


def ours(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    from qwen2_audio.training.config import GroupConfig, TrainConfig
    from qwen2_audio.training.tracking import memory_in_use
    from qwen2_audio.training.trainer import train

    config = TrainConfig(
        stage="sft", model=args.model, data=str(folder / "rows.jsonl"), out=str(folder / "run"), shuffle=False,
        projector=GroupConfig(), language_model=GroupConfig("lora", 1e-4, rank=16, targets=tuple(TARGETS)),
        batch_tokens=args.batch_tokens, steps=args.steps + 1, save_every=10**6, precision=args.precision,
        device=args.device, trackers=(),
    )  # fmt: skip
    train(config, lambda _: None)
    log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()][1:]  # one to warm up
    return {
        "tokens": sum(row["tokens"] for row in log),
        "seconds": sum(row["took"] for row in log),
        "bytes": memory_in_use(),
        "loss": log[-1]["loss"],
    }


def theirs(args: argparse.Namespace, folder: Path) -> dict[str, float]:
    import librosa
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoProcessor,
        Qwen2AudioForConditionalGeneration,
        Trainer,
        TrainerCallback,
        TrainingArguments,
    )

    from qwen2_audio.checkpoints.hub import find_checkpoint
    from qwen2_audio.training.tracking import memory_in_use

    path = find_checkpoint(args.model)
    processor = AutoProcessor.from_pretrained(path)
    dtype = torch.bfloat16 if args.precision == "bfloat16" else torch.float32
    model = Qwen2AudioForConditionalGeneration.from_pretrained(path, dtype=dtype)
    config = LoraConfig(r=16, lora_alpha=32, target_modules=r".*language_model.*\.(" + "|".join(TARGETS) + ")")
    model = get_peft_model(model, config)
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    started: list[float] = []
    tokens: list[int] = []

    def collate(batch: list[dict[str, Any]]) -> dict[str, Any]:
        texts, waves, sizes = [], [], []
        for row in batch:
            prompt = processor.apply_chat_template(row["messages"][:1], add_generation_prompt=True, tokenize=False)
            answer = row["text"] + "<|im_end|>"
            texts.append(prompt + answer)
            sizes.append(len(processor.tokenizer(answer)["input_ids"]))
            waves.append(librosa.load(folder / row["messages"][0]["content"][0]["audio"], sr=16_000)[0])
        settings = {"return_tensors": "pt", "padding": True, "sampling_rate": 16_000}
        whole = processor(text=texts, audio=waves, **settings)
        labels = torch.full_like(whole["input_ids"], -100)
        for i, size in enumerate(sizes):
            answer = whole["attention_mask"][i].nonzero()[-size:, 0]
            labels[i, answer] = whole["input_ids"][i, answer]
        tokens.append(int(whole["attention_mask"].sum()))
        return {**whole, "labels": labels}

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            started.append(time.monotonic())

    settings = TrainingArguments(
        output_dir=str(folder / "theirs"), per_device_train_batch_size=args.rows, max_steps=args.steps + 1,
        learning_rate=1e-4, lr_scheduler_type="cosine", report_to=[], save_strategy="no", logging_steps=1,
        remove_unused_columns=False, use_cpu=args.device == "cpu", disable_tqdm=True, bf16=args.precision == "bfloat16",
        train_sampling_strategy="sequential",
    )  # fmt: skip
    trainer = Trainer(model=model, args=settings, train_dataset=rows, data_collator=collate, callbacks=[Clock()])
    result = trainer.train()
    seconds = started[-1] - started[0]
    counted = sum(tokens[1 : args.steps + 1])
    return {"tokens": counted, "seconds": seconds, "bytes": memory_in_use(), "loss": result.training_loss}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=3, help="counted steps of each run")
    parser.add_argument("--rows", type=int, default=8, help="rows in a step of theirs; ours takes as many tokens")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds of the longest clip")
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--side", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--batch-tokens", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps((ours if args.side == "ours" else theirs)(args, args.folder)))
        return
    found: dict[str, list[dict[str, float]]] = {"ours": [], "theirs": []}
    for number in range(args.rounds):
        for side in ("theirs", "ours"):
            with tempfile.TemporaryDirectory() as name:
                rows = make_rows(Path(name), args.rows * (args.steps + 2), args.longest)
                own = 26 + len(QUESTION.split())  # about: the system prompt, the marks, the question
                size = (
                    sum(25 * row["seconds"] + 1.3 * len(row["text"].split()) + own for row in rows)
                    / len(rows)
                    * args.rows
                )
                command = [sys.executable, __file__, *sys.argv[1:], "--side", side, "--folder", name]
                result = subprocess.run([*command, "--batch-tokens", str(int(size))], capture_output=True, text=True)
            if result.returncode:
                sys.exit(f"{side} failed:\n{result.stderr[-3000:]}")
            row = json.loads(result.stdout.strip().splitlines()[-1])
            found[side].append(row)
            speed = row["tokens"] / row["seconds"]
            print(
                f"round {number + 1}, {side}: {speed:.0f} tokens/s, {row['bytes'] / 1e9:.2f} GB, "
                f"{row['tokens']:.0f} tokens in {row['seconds']:.1f} s",
                file=sys.stderr,
            )
    medians = {
        side: {
            "tokens_per_second": statistics.median(row["tokens"] / row["seconds"] for row in rows),
            "peak_gb": statistics.median(row["bytes"] for row in rows) / 1e9,
        }
        for side, rows in found.items()
    }
    ratio = {key: medians["ours"][key] / medians["theirs"][key] for key in ("tokens_per_second", "peak_gb")}
    if args.json:
        print(json.dumps({**medians, "ratio": ratio}))
        return
    for key, unit in (("tokens_per_second", "tokens/s"), ("peak_gb", "GB at most")):
        print(
            f"ours {medians['ours'][key]:8.2f}   theirs {medians['theirs'][key]:8.2f}   ratio {ratio[key]:.2f}   {unit}"
        )


if __name__ == "__main__":
    main()
