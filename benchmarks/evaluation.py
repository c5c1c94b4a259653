"""Throughput of an evaluation: `qwen2-audio evaluate` and a plain loop over `generate` of `transformers`, in turns.

    python benchmarks/evaluation.py --data FOLDER --model mini --rounds 3

FOLDER holds `librispeech_excerpt`, whose test clips are transcribed by the same checkpoint with the published prompt, greedily,
up to 256 tokens. Ours is the command with its own batch size; theirs takes the clips in the order of the file, 20 at a time, as
the official evaluation does, padded on the left. Timed is everything from the files of sound to the texts; models are loaded
and warm before. Prints medians over the rounds, their ratio, and both word error rates; --json prints them as one object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen2_audio.evaluation.samples import Answer, Sample

TASK = "librispeech_excerpt"
OFFICIAL_BATCH = 20
PROMPT = "<|audio_bos|><|AUDIO|><|audio_eos|>{prompt}"


class Ours:
    """The command's own way: `evaluate` with an `AssistantAnswerer`."""

    def __init__(self, args: argparse.Namespace) -> None:
        from qwen2_audio import load
        from qwen2_audio.evaluation.answerers import AssistantAnswerer

        self.data, self.limit = args.data, args.limit
        assistant = load(args.model, device=args.device, dtype=args.dtype)
        self.answerer = AssistantAnswerer(assistant, args.model, max_new_tokens=args.max_new_tokens)

    def warm(self, samples: Sequence[Sample]) -> None:
        self.answerer.answer(samples)

    def measure(self, _samples: Sequence[Sample]) -> tuple[float, list[Answer]]:
        """Seconds, and the answers; scoring and the report are not timed."""
        from qwen2_audio.evaluation.run import EvaluateConfig, evaluate
        from qwen2_audio.evaluation.samples import read_answers
        from qwen2_audio.evaluation.tasks import find_task

        with tempfile.TemporaryDirectory() as folder:
            config = EvaluateConfig((find_task(TASK),), Path(folder), self.data, limit=self.limit)
            evaluate(config, self.answerer, lambda line: print(line, file=sys.stderr))
            answers = read_answers(Path(folder) / f"answers.{TASK}.jsonl")
        return sum(answer.seconds for answer in answers), answers


class Theirs:
    """The official evaluation's way: processor, `generate`, decode, batch after batch."""

    def __init__(self, args: argparse.Namespace) -> None:
        import torch
        import transformers

        from qwen2_audio.checkpoints.hub import find_checkpoint

        transformers.logging.set_verbosity_error()
        folder = find_checkpoint(args.model)
        self.processor = transformers.AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "left"
        kind = transformers.Qwen2AudioForConditionalGeneration
        self.model = kind.from_pretrained(folder, dtype=getattr(torch, args.dtype)).to(args.device).eval()
        self.max_new_tokens = args.max_new_tokens

    def warm(self, samples: Sequence[Sample]) -> None:
        self.measure(samples)

    def measure(self, samples: Sequence[Sample]) -> tuple[float, list[Answer]]:
        """Seconds, and the answers."""
        from qwen2_audio.evaluation.samples import Answer

        started = time.perf_counter()
        texts: list[str] = []
        for start in range(0, len(samples), OFFICIAL_BATCH):
            texts += self.answer(samples[start : start + OFFICIAL_BATCH])
        seconds = time.perf_counter() - started
        return seconds, [Answer(sample, text) for sample, text in zip(samples, texts, strict=True)]

    def answer(self, samples: Sequence[Sample]) -> list[str]:
        import librosa
        import torch

        inputs: Any = self.processor(
            text=[PROMPT.format(prompt=sample.prompt) for sample in samples],
            audio=[librosa.load(sample.audio[0], sr=16_000)[0] for sample in samples],
            sampling_rate=16_000, return_tensors="pt", padding=True,
        )  # fmt: skip
        inputs = inputs.to(self.model.device)
        inputs["input_features"] = inputs["input_features"].to(self.model.dtype)
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, min_new_tokens=1, do_sample=False)
        return self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Let both sides take their turn in each round."""
    from qwen2_audio.evaluation.scoring import score
    from qwen2_audio.evaluation.task import load_samples
    from qwen2_audio.evaluation.tasks import find_task

    samples = load_samples(find_task(TASK), args.data, args.limit)
    sides: dict[str, Ours | Theirs] = {"theirs": Theirs(args), "ours": Ours(args)}
    for side in sides.values():
        side.warm(samples[:2])
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    answers: dict[str, list[Answer]] = {}
    for number in range(args.rounds):
        for name, side in sides.items():
            took, answers[name] = side.measure(samples)
            seconds[name].append(took)
            print(f"round {number + 1}, {name}: {len(samples)} clips in {took:.1f} s", file=sys.stderr)
    sound = sum(sample.duration for sample in samples)
    found: dict[str, Any] = {
        name: {
            "seconds": statistics.median(seconds[name]),
            "sound_per_second": sound / statistics.median(seconds[name]),
            "word_error_rate": score(answers[name], "wer")[0].value,
        }
        for name in ("ours", "theirs")
    }
    found["ratio"] = found["ours"]["sound_per_second"] / found["theirs"]["sound_per_second"]
    texts = ({answer.sample.id: answer.response.strip() for answer in answers[name]} for name in ("ours", "theirs"))
    mine, other = texts
    return found | {"clips": len(samples), "same_answers": sum(mine[key] == other[key] for key in mine)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help=f"the folder that holds {TASK}")
    parser.add_argument("--model", default="mini")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--limit", type=int, help="only so many clips, for a quick try")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    found = compare(args)
    if args.json:
        print(json.dumps(found))
        return
    for key, unit, digits in (
        ("sound_per_second", "seconds of sound a second", 2),
        ("word_error_rate", "word error rate", 4),
    ):
        ours, theirs = found["ours"][key], found["theirs"][key]
        ratio = f"   ratio {found['ratio']:.2f}" if key == "sound_per_second" else ""
        print(f"ours {ours:8.{digits}f}   theirs {theirs:8.{digits}f}{ratio}   {unit}")
    print(f"{found['same_answers']} of {found['clips']} answers are the same, letter by letter")


if __name__ == "__main__":
    main()
