"""`qwen2-audio merge`: a base model and what was trained on it to one ordinary checkpoint folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.terminal import patience, say
from qwen2_audio.errors import UsageError


def merge(
    trained: Annotated[Path, typer.Argument(help="What `train` gave, or an adapter of peft's.", show_default=False)],
    out: Annotated[Path, typer.Argument(help="The folder to write.", show_default=False)],
    model: opt.Model = opt.DEFAULT_MODEL,
    dtype: Annotated[str, typer.Option(help="Of the weights written: float32, bfloat16 or float16.")] = "float32",
    adapter: Annotated[bool, typer.Option("--adapter", help="Write an adapter for peft, not the whole model.")] = False,
) -> None:
    """Write a checkpoint folder with the training in it. The last line of the output is the folder."""
    if adapter:
        if dtype != "float32":
            raise UsageError("an adapter is always of float32; leave --dtype out")
        from qwen2_audio.checkpoints.adapter import write_adapter
        from qwen2_audio.checkpoints.hub import find_checkpoint
        from qwen2_audio.checkpoints.merge import read_trained
        from qwen2_audio.checkpoints.verify import check_base

        found = read_trained(trained)
        check_base(find_checkpoint(model), trained, found)
        write_adapter(out, found.whole, found.corrections, model, found.sample)
        print(out)
        return
    import torch

    from qwen2_audio.checkpoints.hub import find_checkpoint
    from qwen2_audio.checkpoints.load import load_model, read_json
    from qwen2_audio.checkpoints.merge import merge_trained, own_weights
    from qwen2_audio.checkpoints.save import new_folder, save
    from qwen2_audio.checkpoints.verify import verify_merged
    from qwen2_audio.runtime import choose_runtime

    folder = find_checkpoint(model)
    runtime = choose_runtime("cpu", dtype)
    with patience("merging"):
        stored = read_json(folder / "config.json")
        exact = stored.get("dtype", stored.get("torch_dtype")) == dtype  # else rounded once, when it is written
        network = load_model(folder, dtype=runtime.dtype if exact else torch.float32)
        own_weights(network)
        merge_trained(network, trained)
        with new_folder(out) as part:  # it gets its name when it was found right
            save(network.to(runtime.dtype), part, source=folder)
            changed = verify_merged(folder, part, trained)
    say(f"{changed} weights changed, as they should; the others are as they were")
    print(out)
