"""`qwen2-audio ui`: the web page, over this machine's model or engines elsewhere."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.serve import check_installed, engines, local, name_and_value, run
from qwen2_audio.cli.terminal import patience
from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    from qwen2_audio.serving.ui.texts import Language

_WHERE = "Where"


class Lang(StrEnum):
    """Languages of the page."""

    EN = "en"
    ZH = "zh"


def ui(
    model: opt.Model = opt.DEFAULT_MODEL,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    offline: opt.Offline = False,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Let servers elsewhere answer, as http://HOST:PORT/v1; repeatable.",
            rich_help_panel="Engine",
        ),
    ] = None,
    engine_key_env: Annotated[
        str | None,
        typer.Option(metavar="VARIABLE", help="Environment variable with the engines' key.", rich_help_panel="Engine"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 is open to the network.", rich_help_panel=_WHERE)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.", rich_help_panel=_WHERE)] = 8000,
    inbrowser: Annotated[
        bool, typer.Option("--inbrowser", help="Open the page once it can answer.", rich_help_panel=_WHERE)
    ] = False,
    lang: Annotated[
        Lang, typer.Option(help="For browsers that ask for neither English nor Chinese.", rich_help_panel=_WHERE)
    ] = Lang.EN,
    setting: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A setting of docs/serving.md; repeatable.", rich_help_panel=_WHERE),
    ] = None,
) -> None:
    """Serve the web page: talk with the model, show it recordings, have long ones written down.

    The same as `serve --ui`, without a line of log a request. Once it can answer, its address goes to stdout.
    """
    with patience("starting"):
        check_installed()
        _check_gradio()
        from qwen2_audio.serving.settings import Settings

    given: dict[str, object] = {"access_log": False}
    given |= dict(name_and_value(text) for text in setting or ())
    settings = Settings.read(given | {"host": host, "port": port})
    backend = engines(engine, engine_key_env) if engine else local(model, None, [], device, dtype, offline, settings)
    language: Language = "zh" if lang is Lang.ZH else "en"
    run(backend, settings, ui=True, inbrowser=inbrowser, language=language)


def _check_gradio() -> None:
    try:
        import gradio  # noqa: F401
    except ImportError as error:
        raise UsageError(f'the page needs the package {error.name}: pip install "qwen2-audio[ui]"') from None
