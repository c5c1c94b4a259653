"""Put together what two runs trained: of what both hold, the second's counts.

    python recipes/mini/join.py FIRST.safetensors SECOND.safetensors OUT.safetensors

For a second run whose model was merged with what the first one's encoder had learnt, so that its file holds no encoder.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from average import read
from safetensors.torch import save_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    both = read(args.first) | read(args.second)
    save_file(
        {name: tensor.half() if "lora_" in name else tensor for name, tensor in both.items()},
        args.out,
        metadata={"lora_scale": "1.0"},
    )


if __name__ == "__main__":
    main()
