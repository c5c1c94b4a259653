"""`qwen2-audio train`: one of the three stages, from a configuration file; and the curves of a run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from qwen2_audio.cli.terminal import say

train = typer.Typer(no_args_is_help=True, help="Train a model, or look at how it went.")

Config = Annotated[Path, typer.Option("--config", "-c", help="A YAML file; see configs/.")]
Resume = Annotated[
    str | None,
    typer.Option("--resume", help="auto: go on with the run in `out`; never: refuse it. The same as resume=..."),
]
Changes = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="In place of what the file says.")]


def _stage(name: str, about: str) -> None:
    def run(config: Config, changes: Changes = None, resume: Resume = None) -> None:
        from qwen2_audio.training.config import load_train_config
        from qwen2_audio.training.trainer import train as start

        given = [*(changes or ()), *([f"resume={resume}"] if resume else [])]
        result = start(load_train_config(config, given, name), say)
        if os.environ.get("RANK", "0") == "0":
            print(result, flush=True)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # all is written; torch's own threads may abort a tidy exit
            os._exit(0)

    ends = (
        "The same command goes on where a run was stopped; Ctrl-C and SIGTERM save first. Started by accelerate or torchrun, "
        "all processes train together. The last line of the output is the file with what was trained."
    )
    command: Callable[[Callable[..., None]], object] = train.command(name, help=f"{about}\n\n{ends}")
    command(run)


_stage("pretrain", "Stage 1: learn the next token, from recordings with the base model's bare prompts.")
_stage("sft", "Stage 2: learn the answers of conversations; also fine-tuning.")
_stage("dpo", "Stage 3: learn which of two answers is better.")


@train.command()
def plot(run: Annotated[Path, typer.Argument(help="The run's folder.", show_default=False)]) -> None:
    """Draw the curves of a run to RUN/curves.png. The last line of the output is that file."""
    from qwen2_audio.training.plot import plot as draw

    print(draw(run))
