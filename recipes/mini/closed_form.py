"""Start the projector from a closed form: see qwen2_audio/training/alignment.py.

    python recipes/mini/closed_form.py BASE_FOLDER SPEECH_FOLDER OUT.safetensors --clips 900

SPEECH_FOLDER holds a manifest.jsonl with `audio` and `text`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from qwen2_audio.checkpoints.load import load_config, load_model
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.processor import load_processor
from qwen2_audio.training.alignment import fit_projector


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("base", type=Path)
    parser.add_argument("speech", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--clips", type=int, default=900)
    args = parser.parse_args()
    model = load_model(args.base)
    processor = load_processor(args.base, load_config(args.base))
    rows = [json.loads(line) for line in (args.speech / "manifest.jsonl").read_text().splitlines()]
    rows = [row for row in rows if 1.0 < row["duration"] < 8.0][: args.clips]
    features, loudness, tokens = [], [], []
    with torch.inference_mode():
        for row in rows:
            clip = processor.clip(load_audio(args.speech / row["audio"]))
            states = model.audio_tower([clip.mel], [clip.frames])
            features.append(states)
            loudness.append(clip.mel[:, : 4 * len(states)].mean(0).reshape(-1, 4).mean(1))
            words = row["text"].rstrip(".?!").lower()
            tokens.append(torch.tensor(processor.tokenizer.encode(" " + words)))
        weight, bias, hits = fit_projector(features, loudness, tokens, model.language_model.model.embed_tokens.weight)
    print(f"{len(rows)} clips; the linear map names the token of {hits:.1%} of the voiced frames it was fitted on")
    names = ("multi_modal_projector.linear.weight", "multi_modal_projector.linear.bias")
    save_file(dict(zip(names, (weight, bias), strict=True)), args.out, metadata={"lora_scale": "1.0"})


if __name__ == "__main__":
    main()
