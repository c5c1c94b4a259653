"""Train what makes `mini` listen; resumes when run again.

torchrun --nproc-per-node 2 recipes/mini/train.py configs/mini/hear.yaml [KEY=VALUE ...]
"""

from __future__ import annotations

import sys
from pathlib import Path

from qwen2_audio.training.config import load_train_config
from qwen2_audio.training.trainer import train

if __name__ == "__main__":
    print(train(load_train_config(Path(sys.argv[1]), sys.argv[2:])))
