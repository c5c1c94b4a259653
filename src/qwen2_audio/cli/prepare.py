"""`qwen2-audio data prepare`: a published data set, as people download it, to rows that `evaluate` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qwen2_audio.cli.terminal import say


def prepare(
    name: Annotated[str, typer.Argument(metavar="DATASET", help="Such as librispeech.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where it was unpacked.", show_default=False)],
    out: Annotated[
        Path | None, typer.Option(help="The file to write; DIR/DATASET.jsonl by default.", show_default=False)
    ] = None,
) -> None:
    """Write the rows of a published data set, for `evaluate`. The last line of the output is the file."""
    from qwen2_audio.evaluation.prepare import prepare as write

    print(write(name, folder, out, say))
