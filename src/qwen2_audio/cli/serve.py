"""`qwen2-audio serve`: the HTTP server, over this machine's model or engines elsewhere."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.terminal import note, patience
from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    from qwen2_audio.serving.backend import Backend
    from qwen2_audio.serving.local import LocalConfig
    from qwen2_audio.serving.settings import Settings
    from qwen2_audio.serving.ui.texts import Language

_WHO = "Who may come"


Engine = Annotated[
    list[str] | None,
    typer.Option(
        metavar="URL",
        help="Let servers elsewhere answer (vLLM or others of OpenAI's shape), as http://HOST:PORT/v1; repeatable.",
        rich_help_panel="Engine",
    ),
]
EngineKeyEnv = Annotated[
    str | None,
    typer.Option(metavar="VARIABLE", help="Environment variable with the engines' key.", rich_help_panel="Engine"),
]
Setting = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=VALUE",
        help="Any other setting of docs/serving.md, as max_clips=4; repeatable.",
        rich_help_panel=_WHO,
    ),
]
_Name = Annotated[
    str | None,
    typer.Option(help="What requests call the model; by default the last part of --model.", rich_help_panel="Model"),
]
_Adapters = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=FOLDER", help="An adapter that requests select by its name; repeatable.", rich_help_panel="Model"
    ),
]
Host = Annotated[
    str | None, typer.Option(help="Address to listen at; 127.0.0.1 unless told otherwise.", rich_help_panel=_WHO)
]
Port = Annotated[
    int | None,
    typer.Option(min=0, max=65535, help="8000 unless told otherwise; 0 takes a free one.", rich_help_panel=_WHO),
]
_ApiKeys = Annotated[
    list[str] | None,
    typer.Option(
        help="A key of which requests must carry one; repeatable. Better given as QWEN2_AUDIO_API_KEYS, which no list of "
        "processes shows.",
        rich_help_panel=_WHO,
    ),
]


def serve(
    model: opt.Model = opt.DEFAULT_MODEL,
    name: _Name = None,
    adapter: _Adapters = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    quantize: opt.Quantize = "none",
    offline: opt.Offline = False,
    engine: Engine = None,
    engine_key_env: EngineKeyEnv = None,
    host: Host = None,
    port: Port = None,
    api_key: _ApiKeys = None,
    setting: Setting = None,
    ui: Annotated[bool, typer.Option("--ui", help="Also serve the web page, at /.")] = False,
) -> None:
    """Serve chat, transcription and live voice over HTTP, in the shapes of OpenAI's API.

    Once requests would be answered, one line with the address goes to stdout; logs go to stderr as lines of JSON. Ends in
    order on SIGTERM or Ctrl-C: what runs is finished first. docs/serving.md has all routes and settings.
    """
    with patience("starting"):
        check_installed(page=ui)
        from qwen2_audio.serving.settings import Settings

    given = settings_given(setting, host, port)
    if api_key:
        given["api_keys"] = ",".join(api_key)
    settings = Settings.read(given)
    from qwen2_audio.serving.local import LocalConfig, parse_adapter

    adapters = tuple(parse_adapter(text) for text in adapter or ())
    own = LocalConfig(model, name, adapters, device, dtype, quantize, offline, **engine_settings(settings))
    run(backend_of(own, engine, engine_key_env, settings), settings, ui=ui)


_OF_OWN_ENGINE = ("cache_tokens", "max_running", "engine_timeout", "max_queue", "queue_timeout")


def engine_settings(settings: Settings) -> dict[str, Any]:
    """Those of the settings that this machine's engine follows."""
    return {name: getattr(settings, name) for name in _OF_OWN_ENGINE}


def check_installed(*, page: bool = False) -> None:
    """Raise `UsageError` unless the packages of the extra are there; with `page` also those of the web page."""
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401

        if page:
            import gradio  # noqa: F401
    except ImportError as error:
        extra = "ui" if page else "serve"
        raise UsageError(f'this needs the package {error.name}: pip install "qwen2-audio[{extra}]"') from None


def settings_given(texts: list[str] | None, host: str | None, port: int | None) -> dict[str, object]:
    """All settings of the command line; an option is stronger than a --setting of the same name."""
    given: dict[str, object] = dict(name_and_value(text) for text in texts or ())
    return given | {key: value for key, value in (("host", host), ("port", port)) if value is not None}


def name_and_value(text: str) -> tuple[str, str]:
    """NAME=VALUE, taken apart."""
    name, equals, value = text.partition("=")
    if not equals:
        raise UsageError(f"--setting takes NAME=VALUE, got {text!r}")
    return name.strip(), value.strip()


def backend_of(own: LocalConfig, engines: list[str] | None, key_variable: str | None, settings: Settings) -> Backend:
    """Servers elsewhere where some are given (or one by its address, as the model), else this machine's own model.

    Raises:
        UsageError: an option or a setting of the own model is given with servers elsewhere, which would not follow it.
    """
    from qwen2_audio.remote.address import is_address
    from qwen2_audio.serving.local import LocalBackend, LocalConfig
    from qwen2_audio.serving.upstream import UpstreamBackend

    usual = LocalConfig(model=os.environ.get("QWEN2_AUDIO_MODEL", opt.DEFAULT_MODEL))
    if not engines and is_address(own.model):
        engines, own = [own.model], replace(own, model=usual.model)
    if not engines:
        if key_variable is not None:
            raise UsageError("--engine-key-env goes with --engine; leave it out")
        return LocalBackend(own)
    options = {"adapters": "adapter"}
    for name in ("model", "name", "adapters", "device", "dtype", "quantize", "offline"):
        if getattr(own, name) != getattr(usual, name):
            option = options.get(name, name)
            raise UsageError(
                f"--{option} goes with a model of this machine, not with --engine; leave it out, or give it to the engine"
            )
    for name in _OF_OWN_ENGINE:
        if name in settings.model_fields_set:
            raise UsageError(f"the setting {name} is of this machine's engine and goes not with --engine; leave it out")
    return UpstreamBackend(engines, key_variable=key_variable)


def run(backend: Backend, settings: Settings, *, ui: bool, inbrowser: bool = False, language: Language = "en") -> None:
    """Serve until told to end; with `ui` also the page, which `inbrowser` opens once it can answer."""
    import asyncio
    import os
    import sys
    import webbrowser

    from qwen2_audio.serving.app import create_app
    from qwen2_audio.serving.logs import log_to
    from qwen2_audio.serving.server import Server, listen, serve, url_of

    app = create_app(backend, settings)
    if ui:
        from qwen2_audio.serving.ui.mount import mount_ui

        mount_ui(app, app.state.backend, settings, app.state.media, language=language)
    server = Server(app, settings)
    listener = listen(settings)
    if not settings.at_loopback and not settings.api_keys:
        note(
            f"without a key whoever reaches {settings.host}:{settings.port} can use this server; set QWEN2_AUDIO_API_KEYS"
        )

    def announce() -> None:
        names = ", ".join(card.name for card in backend.models)
        address = url_of(listener, "https" if settings.ssl_certfile else "http")
        print(f"qwen2-audio serves {names} at {address}", flush=True)
        if inbrowser:
            webbrowser.open(address)

    log_to(sys.stderr)
    asyncio.run(serve(server, app, listener, announce))
    if not backend.models:  # told to end during a download, whose threads Python would wait for
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
