"""`qwen2-audio train`: one of the three stages, from a configuration file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qwen2_audio.cli.terminal import say


class Stage(StrEnum):
    """The stages in the order in which a model goes through them."""

    PRETRAIN = "pretrain"
    SFT = "sft"
    DPO = "dpo"


def train(
    stage: Annotated[Stage, typer.Argument(help="pretrain and sft learn to answer, dpo which answer is better.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="A YAML file; see configs/.")],
    changes: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="In place of what the file says.")
    ] = None,
) -> None:
    """Train, or go on where a run was stopped. Started by torchrun or accelerate, all processes train together.

    The last line of the output is the file with what was trained. Ctrl-C and SIGTERM save first.
    """
    from qwen2_audio.training.config import load_train_config
    from qwen2_audio.training.trainer import train as run

    print(run(load_train_config(config, [*(changes or []), f"stage={stage.value}"]), say))
