"""The options that commands share, each declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_MODEL = "mini"
_MODEL, _ANSWER = "Model", "Answer"

Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        envvar="QWEN2_AUDIO_MODEL",
        help="mini, a checkpoint folder, OWNER/NAME on Hugging Face, modelscope:OWNER/NAME, or openai:http://HOST:PORT/v1.",
        rich_help_panel=_MODEL,
    ),
]
Adapter = Annotated[
    Path | None,
    typer.Option(
        help="What was trained on the model: what `train` gave, or an adapter of peft's.", rich_help_panel=_MODEL
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.", rich_help_panel=_MODEL)]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.", rich_help_panel=_MODEL)]
Quantize = Annotated[
    str,
    typer.Option(
        help="none; int8: several times quicker on a CPU, slightly less exact; auto: int8 where that pays; int4, fp8: on GPUs.",
        rich_help_panel=_MODEL,
    ),
]
Revision = Annotated[
    str | None, typer.Option(help="Branch, tag or commit of a model on a hub.", rich_help_panel=_MODEL)
]
Offline = Annotated[bool, typer.Option("--offline", help="Use only what is on this machine.", rich_help_panel=_MODEL)]

ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="VARIABLE",
        help="Environment variable with the key of openai:URL; else OPENAI_API_KEY, over https or on this machine.",
        rich_help_panel=_MODEL,
    ),
]

System = Annotated[
    str | None, typer.Option("--system", "-s", help="System message, in place of the usual one.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]

MaxNewTokens = Annotated[
    int | None, typer.Option(help="Longest answer, in tokens.", rich_help_panel=_ANSWER, show_default=False)
]
Temperature = Annotated[
    float | None,
    typer.Option(help="0 takes the likeliest token; more is freer.", rich_help_panel=_ANSWER, show_default=False),
]
TopP = Annotated[
    float | None,
    typer.Option(help="Draw among the likeliest tokens that make up this share.", rich_help_panel=_ANSWER),
]
TopK = Annotated[int | None, typer.Option(help="Draw among so many tokens; 0 is off.", rich_help_panel=_ANSWER)]
MinP = Annotated[
    float | None,
    typer.Option(help="Drop tokens below this share of the likeliest one's probability.", rich_help_panel=_ANSWER),
]
RepetitionPenalty = Annotated[
    float | None, typer.Option(help="Above 1 discourages what was said before; 1 is off.", rich_help_panel=_ANSWER)
]
Seed = Annotated[int | None, typer.Option(help="Makes drawing repeatable.", rich_help_panel=_ANSWER)]
Stop = Annotated[
    list[str] | None, typer.Option(help="End the answer before this text; may be repeated.", rich_help_panel=_ANSWER)
]
