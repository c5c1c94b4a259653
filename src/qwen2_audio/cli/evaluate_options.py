"""The options of `qwen2-audio evaluate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

_OWN, _SERVER, _JUDGE = "Rows of your own", "Server", "Judge"

Tasks = Annotated[
    list[str] | None,
    typer.Argument(metavar="[TASK]...", help="Tasks, data sets, `published`, `scorecard`.", show_default=False),
]
Data = Annotated[Path | None, typer.Option(help="The folder with the prepared data.", show_default=False)]
Out = Annotated[Path | None, typer.Option(help="The run's folder.", show_default=False)]
Limit = Annotated[int | None, typer.Option(min=1, help="Only so many samples of each task.", show_default=False)]
BatchSize = Annotated[int, typer.Option(min=1, help="Samples asked together.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
LongAudio = Annotated[str, typer.Option(help="Over 30 s: cut (as published) or windows (all is heard).")]
Profile = Annotated[str, typer.Option(help="official (as published, with every quirk) or clean.")]

OwnRows = Annotated[
    list[Path] | None,
    typer.Option(help="JSON lines with audio, prompt, gt; may be repeated.", rich_help_panel=_OWN, show_default=False),
]
OwnMetric = Annotated[
    str | None,
    typer.Option(
        help="wer, cer, bleu, accuracy, prefix, string_match, choice, word_f1 or judge.", rich_help_panel=_OWN
    ),
]
OwnChat = Annotated[
    bool, typer.Option("--chat", help="Ask them in a chat; else with bare prompts.", rich_help_panel=_OWN)
]
OwnLanguage = Annotated[
    str | None, typer.Option(help="Of what is said, where a row does not say.", rich_help_panel=_OWN)
]

BaseUrl = Annotated[
    str | None,
    typer.Option(
        help="Ask --model there: an OpenAI-compatible address (short: --model openai:URL).", rich_help_panel=_SERVER
    ),
]
ApiKeyEnv = Annotated[
    str | None,
    typer.Option(
        metavar="VARIABLE",
        help="Environment variable with its key; else OPENAI_API_KEY, over https or on this machine.",
        rich_help_panel=_SERVER,
    ),
]

JudgeUrl = Annotated[str | None, typer.Option(help="An OpenAI-compatible address.", rich_help_panel=_JUDGE)]
JudgeModel = Annotated[
    str | None, typer.Option(help="Its name there; gpt-4-0125-preview unless told otherwise.", rich_help_panel=_JUDGE)
]
JudgeMode = Annotated[
    str | None,
    typer.Option(help="deterministic (by default), or official: drawn, as published.", rich_help_panel=_JUDGE),
]
JudgeKeyEnv = Annotated[
    str | None,
    typer.Option(help="The environment variable with its key; OPENAI_API_KEY by default.", rich_help_panel=_JUDGE),
]
JudgeReplies = Annotated[
    Path | None,
    typer.Option(help="Where its replies are kept; without --judge-url, where they all are.", rich_help_panel=_JUDGE),
]

ScoredFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="JSON lines, or a JSON list, with gt and response.", show_default=False)
]
ScoredMetric = Annotated[str, typer.Option(help="wer, cer, bleu, accuracy, prefix, string_match, choice or word_f1.")]
ScoredLanguage = Annotated[
    str | None, typer.Option(help="Of what is said, such as en; else as the rows say.", show_default=False)
]
RunA = Annotated[Path, typer.Argument(metavar="RUN_A", help="A run's folder.", show_default=False)]
RunB = Annotated[Path, typer.Argument(metavar="RUN_B", help="Another's.", show_default=False)]
