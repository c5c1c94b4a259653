"""`qwen2-audio merge`: a base model and what was trained on it to one ordinary checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.terminal import patience, say


def merge(
    trained: Annotated[Path, typer.Argument(help="What `train` gave: a .safetensors file.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    model: opt.Model = opt.DEFAULT_MODEL,
    dtype: Annotated[str, typer.Option(help="Of the weights written: float32, bfloat16 or float16.")] = "float32",
) -> None:
    """Write a checkpoint folder with the training in it. The last line of the output is the folder."""
    from qwen2_audio.checkpoints.hub import find_checkpoint
    from qwen2_audio.checkpoints.load import load_model
    from qwen2_audio.checkpoints.merge import merge_trained
    from qwen2_audio.checkpoints.save import save
    from qwen2_audio.runtime import choose_runtime

    folder = find_checkpoint(model)
    runtime = choose_runtime("cpu", dtype)
    with patience("merging"):
        network = load_model(folder, dtype=runtime.dtype)
        for parameter in network.parameters():  # the file's own bytes stay as they are
            parameter.data = parameter.data.clone()
        changed = merge_trained(network, trained)
        save(network, out, source=folder)
    say(f"{len(changed)} weights changed")
    print(out)
