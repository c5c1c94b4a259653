"""`qwen2-audio chat`: one question, or a conversation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.opening import checked, hear_parts, open_assistant
from qwen2_audio.cli.terminal import note, patience
from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    from qwen2_audio.api import Assistant, Options, ReplyStream
    from qwen2_audio.generation.reply import Reply


def chat(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PART", help="Recordings (files, URLs, - for stdin) and text, in order."),
    ] = None,
    system: opt.System = None,
    as_json: opt.Json = False,
    model: opt.Model = opt.DEFAULT_MODEL,
    adapter: opt.Adapter = None,
    device: opt.Device = "auto",
    dtype: opt.Dtype = "auto",
    quantize: opt.Quantize = "none",
    revision: opt.Revision = None,
    offline: opt.Offline = False,
    api_key_env: opt.ApiKeyEnv = None,
    max_new_tokens: opt.MaxNewTokens = None,
    temperature: opt.Temperature = None,
    top_p: opt.TopP = None,
    top_k: opt.TopK = None,
    min_p: opt.MinP = None,
    repetition_penalty: opt.RepetitionPenalty = None,
    seed: opt.Seed = None,
    stop: opt.Stop = None,
) -> None:
    """Ask about recordings, speak to the model, or just talk.

    With PARTs: one answer. Without: a conversation, at the terminal or with one turn a line from stdin.

        qwen2-audio chat question.wav

        qwen2-audio chat street.flac "What do you hear?"

        qwen2-audio chat
    """
    chosen = checked({
        "max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k, "min_p": min_p,
        "repetition_penalty": repetition_penalty, "seed": seed, "stop": stop or None,
    })  # fmt: skip
    show = _json_printer(model) if as_json else print_stream
    open_it = partial(
        open_assistant, model, device=device, dtype=dtype, quantize=quantize, revision=revision, offline=offline,
        adapter=adapter, key_variable=api_key_env,
    )  # fmt: skip
    if parts:
        message = hear_parts(parts)
        _note_if_cut(show(open_it().stream(message, system=system, **chosen)), chosen)
    else:
        _converse(open_it, model, system, chosen, show, as_json=as_json)


def _converse(
    open_it: Callable[[], Assistant],
    model: str,
    system: str | None,
    chosen: Options,
    show: Callable[[ReplyStream], Reply],
    *,
    as_json: bool,
) -> None:
    """Many turns, typed or piped in; the model is opened once it is clear that there is something to say."""
    from qwen2_audio.cli import conversing

    at_terminal = sys.stdin is not None and sys.stdin.isatty()
    if at_terminal and as_json:
        raise UsageError("--json needs a message: give recordings or text, or one turn a line on stdin")
    lines = None if at_terminal else conversing.piped_lines()
    talk = conversing.Talk(open_it(), system, chosen, show, chatty=at_terminal)
    if lines is None:
        conversing.at_terminal(talk, model)
    else:
        conversing.through_pipe(talk, lines)


def print_stream(stream: ReplyStream) -> Reply:
    """Print an answer as it is written."""
    pieces = iter(stream)
    try:
        with patience("thinking"):
            piece = next(pieces, "")
        print(piece, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        print(flush=True)
        raise
    print(flush=True)
    return stream.reply


def _json_printer(model: str) -> Callable[[ReplyStream], Reply]:
    def show(stream: ReplyStream) -> Reply:
        with patience("thinking"):
            reply = stream.run()
        answer = {
            "text": reply.text,
            "finish_reason": reply.finish_reason,
            "prompt_tokens": reply.prompt_tokens,
            "completion_tokens": reply.completion_tokens,
            "model": model,
        }
        print(json.dumps(answer, ensure_ascii=False), flush=True)
        return reply

    return show


def _note_if_cut(reply: Reply, options: Options) -> None:
    if reply.finish_reason == "length" and options.get("max_new_tokens") is None:
        note(f"the answer was cut after {reply.completion_tokens} tokens; --max-new-tokens allows more")
