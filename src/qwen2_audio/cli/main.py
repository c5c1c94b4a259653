"""The command `qwen2-audio`. What a command needs is imported when it runs, so that help is instant."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qwen2_audio import __version__
from qwen2_audio.cli.bench import bench
from qwen2_audio.cli.chat import chat
from qwen2_audio.cli.data import data
from qwen2_audio.cli.download import download
from qwen2_audio.cli.evaluate import evaluate
from qwen2_audio.cli.info import info
from qwen2_audio.cli.merge import merge
from qwen2_audio.cli.render import render
from qwen2_audio.cli.serve import serve
from qwen2_audio.cli.terminal import tidy_ends
from qwen2_audio.cli.train import train
from qwen2_audio.cli.transcribe import transcribe
from qwen2_audio.cli.ui import ui


class _Commands(TyperGroup):
    """Every command ends in the same tidy ways."""

    def invoke(self, ctx: Any) -> Any:
        with tidy_ends():
            return super().invoke(ctx)


app = typer.Typer(cls=_Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"qwen2-audio {__version__}")
        raise typer.Exit


@app.callback()
def _qwen2_audio(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """Ask recordings questions, speak with a model, transcribe: Qwen2-Audio on the command line."""


# one line a command, in the order of the help page; a command's name is its function's
app.command()(chat)
app.command()(transcribe)
app.command()(serve)
app.command()(ui)
app.command()(render)
app.command()(download)
app.command()(info)
app.add_typer(train, name="train")
app.command()(merge)
app.add_typer(data, name="data")
app.add_typer(evaluate, name="evaluate")
app.command()(bench)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (`sys.argv` by default) and exit."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # it was closed before this program began
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # an answer may hold what the terminal's encoding lacks
            stream.reconfigure(errors="replace")
    app(args=arguments, prog_name="qwen2-audio")


if __name__ == "__main__":
    main()
