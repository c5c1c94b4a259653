"""The average of what two training runs gave, of which one was gone on with from the other; or less of one.

    python recipes/mini/average.py FIRST.safetensors SECOND.safetensors OUT.safetensors --share 0.5
    python recipes/mini/average.py FIRST.safetensors SECOND.safetensors OUT.safetensors --share 0.5 --share-of-encoder 0.2
    python recipes/mini/average.py FIRST.safetensors SECOND.safetensors OUT.safetensors --share 0.5 --start START.safetensors
    python recipes/mini/average.py RUN.safetensors RUN.safetensors OUT.safetensors --encoder 0.5
    python recipes/mini/average.py RUN.safetensors RUN.safetensors OUT.safetensors --encoder-from 3

Both are of the same family of solutions, so that the weights between them are good ones, often better than either (Wortsman et
al. 2022): what the second run learnt on few rows, without all that it forgot. A matrix of lower rank in the first is taken as
the first rows of the second's, with nothing in the others.

With `--start`, from which both runs set out, each tensor of the first is given that share of what the second changed in it
(Ilharco et al. 2023; of a correction's two factors that is about that share of the change). Ranks must then be the same.

With `--encoder`, the result's encoder goes back towards Whisper's own and keeps that share of what it learnt: what it hears of
unfamiliar speakers suffers from what it learnt of few (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models"). With
`--encoder-from`, the layers of the encoder below that one go back altogether: the first ones hear voices, the last ones words.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from qwen2_audio.checkpoints.sample import SAMPLE


def read(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a run, its scale multiplied into B, and the sample of the model that it was trained on, if any."""
    with safe_open(path, framework="pt") as file:
        scale, sample = float(file.metadata()["lora_scale"]), file.metadata().get(SAMPLE)
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    return {name: tensor * scale if name.endswith("lora_B") else tensor for name, tensor in tensors.items()}, sample


def with_all(run: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Tensor]:
    """A run with corrections of nothing where only the other one learnt."""
    lacking = {name: tensor for name, tensor in other.items() if name not in run}
    whole = [name for name in lacking if not name.endswith(("lora_A", "lora_B"))]
    if whole:
        raise SystemExit(f"only one of the files holds {whole[0]}, and the other no correction of it; train it in both")
    return run | {
        name: tensor if name.endswith("lora_A") else torch.zeros_like(tensor) for name, tensor in lacking.items()
    }


def average(
    first: dict[str, Tensor],
    second: dict[str, Tensor],
    share: float,
    start: dict[str, Tensor] | None = None,
    of_encoder: float | None = None,
) -> dict[str, Tensor]:
    """(1 - share) * first + share * second; first + share * (second - start) where there is a start.

    Args:
        of_encoder: the share for the encoder's tensors, where it is another.
    """
    out = {}
    first, second = with_all(first, second), with_all(second, first)
    start = start and with_all(start, second)
    for name, new in second.items():
        old = first[name]
        if old.shape != new.shape:
            grown = new.clone() if name.endswith("lora_A") else torch.zeros_like(new)
            grown[tuple(slice(size) for size in old.shape)] = old
            old = grown
        if start is not None and start[name].shape != new.shape:
            raise SystemExit(f"{name} has the shape {[*start[name].shape]} in the start, {[*new.shape]} in the second")
        own = share if of_encoder is None or not name.startswith("audio_tower.") else of_encoder
        mixed = old + own * (new - (old if start is None else start[name]))
        out[name] = mixed.half() if "lora_" in name else mixed
    return out


def keep_of_encoder(tensors: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """The same with that share of the encoder's corrections, which must be all that was trained of it."""
    if not 0 <= share <= 1:
        raise SystemExit(f"--encoder must be from 0 to 1, got {share}")
    whole = [name for name in tensors if name.startswith("audio_tower.") and not name.endswith(("lora_A", "lora_B"))]
    if whole and share < 1:
        raise SystemExit(f"--encoder goes with corrections of low rank, and {whole[0]} is whole; leave it out")
    ours = {name for name in tensors if name.startswith("audio_tower.") and name.endswith("lora_B")}
    return {name: (tensor * share if name in ours else tensor) for name, tensor in tensors.items()}


def without_first_layers(tensors: dict[str, Tensor], first: int) -> dict[str, Tensor]:
    """The same without what the encoder's layers below `first`, counted from 0, learnt."""
    back = tuple(f"audio_tower.layers.{number}." for number in range(first))
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(back)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the second")
    parser.add_argument("--share-of-encoder", type=float, help="the same for the encoder, where it is another")
    parser.add_argument("--start", type=Path, help="what both runs set out from")
    parser.add_argument("--encoder", type=float, default=1.0, help="share that stays of what the encoder learnt")
    parser.add_argument("--encoder-from", type=int, default=0, help="first layer that keeps what it learnt")
    args = parser.parse_args()
    (first, sample), (second, other) = read(args.first), read(args.second)
    start = read(args.start)[0] if args.start else None
    mixed = average(first, second, args.share, start, args.share_of_encoder)
    mixed = without_first_layers(keep_of_encoder(mixed, args.encoder), args.encoder_from)
    metadata = {"lora_scale": "1.0"}
    if sample and other and sample != other:
        raise SystemExit(
            f"{args.first} and {args.second} were trained on different models; average runs of the same one"
        )
    if sample or other:
        metadata[SAMPLE] = sample or other
    save_file(mixed, args.out, metadata=metadata)


if __name__ == "__main__":
    main()
