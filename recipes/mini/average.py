"""The average of what two training runs gave, of which one was gone on with from the other.

    python recipes/mini/average.py FIRST.safetensors SECOND.safetensors OUT.safetensors --share 0.5
    python recipes/mini/average.py FIRST.safetensors SECOND.safetensors OUT.safetensors --share 0.5 --start START.safetensors

Both are of the same family of solutions, so that the weights between them are good ones, often better than either (Wortsman et
al. 2022): what the second run learnt on few rows, without all that it forgot. A matrix of lower rank in the first is taken as
the first rows of the second's, with nothing in the others.

With `--start`, from which both runs set out, each tensor of the first is given that share of what the second changed in it
(Ilharco et al. 2023; of a correction's two factors that is about that share of the change). Ranks must then be the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a run, its scale multiplied into B."""
    with safe_open(path, framework="pt") as file:
        scale = float(file.metadata()["lora_scale"])
        tensors = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
    return {name: tensor * scale if name.endswith("lora_B") else tensor for name, tensor in tensors.items()}


def average(
    first: dict[str, Tensor], second: dict[str, Tensor], share: float, start: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """(1 - share) * first + share * second; first + share * (second - start) where there is a start."""
    out = {}
    for name, new in second.items():
        old = first[name]
        if old.shape != new.shape:
            grown = new.clone() if name.endswith("lora_A") else torch.zeros_like(new)
            grown[tuple(slice(size) for size in old.shape)] = old
            old = grown
        if start is not None and start[name].shape != new.shape:
            raise SystemExit(f"{name} has the shape {[*start[name].shape]} in the start, {[*new.shape]} in the second")
        mixed = old + share * (new - (old if start is None else start[name]))
        out[name] = mixed.half() if "lora_" in name else mixed
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the second")
    parser.add_argument("--start", type=Path, help="what both runs set out from")
    args = parser.parse_args()
    start = read(args.start) if args.start else None
    mixed = average(read(args.first), read(args.second), args.share, start)
    save_file(mixed, args.out, metadata={"lora_scale": "1.0"})


if __name__ == "__main__":
    main()
