"""A training step of ours on a GPU: seconds, tokens a second, and the share of the arithmetic that the GPU could do (MFU).

    python benchmarks/training_step.py --random 7b --tokens 8192 --steps 8

Random weights in the shape of a published model, made on the device; LoRA of rank 16 on the language model's linear layers,
everything else frozen; clips of mixed length packed without padding, the loss on the answers alone. It is the trainer itself
that runs, with its reading of recordings. Counted are the products that the step cannot do without, forward and backward, once
each; recomputed ones and the corrections do not count. The shares are of this GPU's products as measured just before, and of
the 989 TFLOP/s that an H100 is sold with (bfloat16, dense).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from trainer import TARGETS, make_rows

from qwen2_audio.bench.machine import encoder, language, measure_machine
from qwen2_audio.bench.random_model import GEOMETRIES, audio_token_of, geometry, random_model, write_side_files
from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.config import Qwen2AudioConfig
from qwen2_audio.runtime import choose_runtime
from qwen2_audio.training.config import GroupConfig, TrainConfig
from qwen2_audio.training.trainer import Trainer

SOLD = 989e12


def needed(config: Qwen2AudioConfig, row: dict[str, float]) -> float:
    """Operations of a step, by its line in the log: the encoder forward; the language model forward and, as its weights do not
    learn, as much again for the gradients of what goes through it; its head for the targets alone."""
    head = config.text.hidden_size * config.text.vocab_size
    text = language(config, [1] * int(row["tokens"]), heads=0, size=0).operations + 2 * head * row["targets"]
    clips = [30.0] * int(row["audio_seconds"] // 30) + [row["audio_seconds"] % 30]  # attention is hardly anything of it
    return 2 * text + encoder(config, clips, 0).operations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--random", default="7b", choices=GEOMETRIES)
    parser.add_argument("--tokens", type=int, default=8192, help="in a step")
    parser.add_argument("--steps", type=int, default=8, help="counted steps, after two")
    parser.add_argument("--longest", type=float, default=20.0, help="seconds of the longest clip")
    parser.add_argument(
        "--workers", type=int, default=2, help="threads that read recordings; more only hold up the first one"
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    runtime = choose_runtime(args.device)
    machine = measure_machine(runtime)
    side = find_checkpoint("mini")
    config = geometry(args.random, audio_token_of(side))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_side_files(config, folder / "model", side, torch.float32)
        make_rows(folder, args.tokens * (args.steps + 4) // 120, args.longest)
        settings = TrainConfig(
            stage="sft", model=str(folder / "model"), data=str(folder / "rows.jsonl"), out=str(folder / "run"), shuffle=False,
            projector=GroupConfig(), language_model=GroupConfig("lora", 1e-4, rank=16, targets=tuple(TARGETS)),
            batch_tokens=args.tokens, steps=args.steps + 2, save_every=10**6, workers=args.workers, device=args.device,
            trackers=(),
        )  # fmt: skip
        Trainer(settings, lambda _: None, random_model(config, runtime.device, torch.float32)).run()
        log = [json.loads(line) for line in (folder / "run" / "log.jsonl").read_text().splitlines()][2:]
    rates = [needed(config, row) / row["took"] for row in log]
    result = {
        "seconds": statistics.median(row["took"] for row in log),
        "tokens_per_second": statistics.median(row["tokens"] / row["took"] for row in log),
        "audio_seconds_per_second": statistics.median(row["audio_seconds"] / row["took"] for row in log),
        "tflops": statistics.median(rates) / 1e12,
        "of_measured": statistics.median(rates) / machine.products,
        "of_sold": statistics.median(rates) / SOLD,
        "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if runtime.device.type == "cuda" else 0.0,
    }
    if args.json:
        print(json.dumps(result))
        return
    print(
        "{seconds:.3f} s a step, {tokens_per_second:.0f} tokens/s, {audio_seconds_per_second:.0f} s of sound a second, "
        "{peak_gb:.1f} GB at most".format(**result)
    )
    print(
        "{tflops:.3g} TFLOP/s: {of_measured:.0%} of what it multiplies at best, {of_sold:.0%} of 989".format(**result)
    )


if __name__ == "__main__":
    main()
