"""`qwen2-audio ui`: the web page, over this machine's model or engines elsewhere."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.serve import (
    Engine,
    EngineKeyEnv,
    Host,
    Port,
    Setting,
    backend_of,
    check_installed,
    engine_settings,
    run,
    settings_given,
)
from qwen2_audio.cli.terminal import patience

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
    quantize: opt.Quantize = "none",
    offline: opt.Offline = False,
    engine: Engine = None,
    engine_key_env: EngineKeyEnv = None,
    host: Host = None,
    port: Port = None,
    inbrowser: Annotated[
        bool, typer.Option("--inbrowser", help="Open the page once it can answer.", rich_help_panel=_WHERE)
    ] = False,
    lang: Annotated[
        Lang, typer.Option(help="For browsers that ask for neither English nor Chinese.", rich_help_panel=_WHERE)
    ] = Lang.EN,
    setting: Setting = None,
) -> None:
    """Serve the web page: talk with the model, show it recordings, have long ones written down.

    The same as `serve --ui`, without a line of log a request. Once it can answer, its address goes to stdout.
    """
    with patience("starting"):
        check_installed(page=True)
        from qwen2_audio.serving.settings import Settings

    settings = Settings.read({"access_log": False} | settings_given(setting, host, port))
    from qwen2_audio.serving.local import LocalConfig

    own = LocalConfig(
        model, device=device, dtype=dtype, quantize=quantize, offline=offline, **engine_settings(settings)
    )
    language: Language = "zh" if lang is Lang.ZH else "en"
    run(backend_of(own, engine, engine_key_env, settings), settings, ui=True, inbrowser=inbrowser, language=language)
