"""`qwen2-audio data`: look at training data before training on it, prepare published data sets for evaluation."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer

from qwen2_audio.cli.prepare import prepare
from qwen2_audio.cli.terminal import FAILED, say
from qwen2_audio.errors import UsageError

data = typer.Typer(no_args_is_help=True, help="Look at training data, prepare data sets for evaluation.")
_SHOWN = 20


@data.callback()
def _data() -> None:
    """Look at training data before training on it; prepare published data sets for evaluation."""


@data.command()
def check(
    file: Annotated[
        str, typer.Argument(help="A file of JSON lines, a webdataset tar, or datasets:NAME.", show_default=False)
    ],
    model: Annotated[str, typer.Option("--model", "-m", help="Whose tokenizer and context count.")] = "mini",
    workers: Annotated[int, typer.Option(min=1, help="Recordings read at once.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Read every row and every recording: errors by line, counts, hours, how long the rows are. Exit code 2 on errors."""
    from qwen2_audio.checkpoints.hub import find_checkpoint
    from qwen2_audio.checkpoints.load import load_config
    from qwen2_audio.processing.processor import load_processor
    from qwen2_audio.training.check import check_data

    folder = find_checkpoint(model, weights=False)
    watched = sys.stderr.isatty()

    def progress(done: int, rows: int) -> None:
        if watched:
            typer.echo(f"\r{done} of {rows} rows", nl=done == rows, err=True)

    report = check_data(file, load_processor(folder, load_config(folder)), workers=workers, progress=progress)
    if as_json:
        typer.echo(json.dumps(asdict(report) | {"histogram": report.histogram()}))
    else:
        for number, reason in report.errors[:_SHOWN]:
            say(f"line {number}: {reason}")
        if len(report.errors) > _SHOWN:
            say(f"... and {len(report.errors) - _SHOWN} lines more (--json lists all)")
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report.kinds.items())) or "none"
        typer.echo(f"{len(report.lengths)} good rows ({kinds}), {len(report.errors)} with errors")
        typer.echo(f"{report.clips} recordings, {report.seconds / 3600:.2f} hours")
        typer.echo(f"{sum(report.lengths)} tokens, {report.targets} of them learnt; rows by tokens:")
        for span, count in report.histogram().items():
            typer.echo(f"{span:>14}  {count}")
    if not report.errors and {"preference"} < report.kinds.keys():
        say(
            "preferences are for `train dpo`, other rows for `train sft` and `train pretrain`; give them files of their own"
        )
    if not report.lengths and not report.errors:
        raise UsageError(f"{file} holds no rows")
    if report.errors:
        raise typer.Exit(FAILED)


data.command()(prepare)
