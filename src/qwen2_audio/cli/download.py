"""`qwen2-audio download`: fetch a model before it is needed."""

from __future__ import annotations

from typing import Annotated

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.opening import find


def download(
    name: Annotated[str, typer.Argument(help="A model, as for --model of other commands.")] = opt.DEFAULT_MODEL,
    revision: opt.Revision = None,
    offline: opt.Offline = False,
) -> None:
    """Fetch a model and print its folder. What is here already is not fetched again."""
    print(find(name, revision=revision, offline=offline))
