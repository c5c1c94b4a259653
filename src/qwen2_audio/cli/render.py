"""`qwen2-audio render`: exactly what the model gets to see, without the model."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.opening import find, hear_parts
from qwen2_audio.cli.terminal import patience
from qwen2_audio.errors import ConversationError, UsageError

if TYPE_CHECKING:
    from qwen2_audio.processing.conversation import Conversation
    from qwen2_audio.processing.processor import Processor, Prompt


def render(
    parts: Annotated[
        list[str] | None,
        typer.Argument(metavar="PART", help="Recordings (files, URLs, - for stdin) and text, in order."),
    ] = None,
    conversation: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A JSON list of messages in the original's form, instead of PARTs."),
    ] = None,
    base: Annotated[
        bool, typer.Option("--base", help="The base model's bare prompt: recordings, then one instruction.")
    ] = False,
    system: opt.System = None,
    as_json: opt.Json = False,
    model: opt.Model = opt.DEFAULT_MODEL,
    revision: opt.Revision = None,
    offline: opt.Offline = False,
) -> None:
    """Show the exact prompt of a conversation: its text, its token ids and their number.

    Needs the model's tokenizer, not its weights. In the list of ids, 7*3 is 7 7 7; --json writes them all out.
    """
    if bool(parts) == (conversation is not None):
        raise UsageError("give either PARTs (recordings and text) or --conversation FILE")
    if base and (system is not None or conversation is not None):
        raise UsageError("--base is a bare prompt: it goes with neither --system nor --conversation")
    with patience("starting"):
        message = hear_parts(parts) if parts else _read(conversation)
        chat = None if base else _conversation(message, system)
    processor = _processor(model, revision=revision, offline=offline)
    prompt = _base_prompt(processor, message) if chat is None else processor.prepare(chat)
    facts = _facts(processor, prompt)
    print(json.dumps(facts, ensure_ascii=False) if as_json else _for_people(facts))


def _read(file: Path | None) -> list[Any]:
    try:
        messages = json.loads(Path(file or "").read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror or error}; check the path") from error
    except ValueError as error:
        raise ConversationError(f"{file} is not JSON ({error}); it should hold a list of messages") from error
    if not isinstance(messages, list) or not messages or not all(isinstance(message, dict) for message in messages):
        raise ConversationError(f'{file} should hold a list of messages such as {{"role": "user", "content": "Hi"}}')
    return messages


def _processor(model: str, *, revision: str | None, offline: bool) -> Processor:
    folder = find(model, revision=revision, offline=offline, weights=False)
    from qwen2_audio.checkpoints.load import load_config
    from qwen2_audio.processing.processor import load_processor

    return load_processor(folder, load_config(folder))


def _conversation(message: list[Any], system: str | None) -> Conversation:
    """Checked before a model is fetched for it."""
    from qwen2_audio.processing.chat_template import check
    from qwen2_audio.processing.conversation import as_conversation

    conversation = as_conversation(message, system)
    check(conversation)
    return conversation


def _base_prompt(processor: Processor, message: list[Any]) -> Prompt:
    from qwen2_audio.processing.conversation import AudioPart, TextPart

    *audios, instruction = message
    if not isinstance(instruction, TextPart) or not all(isinstance(part, AudioPart) for part in audios):
        raise UsageError("--base takes recordings and then one text, the instruction")
    return processor.prepare_base([part.source for part in audios], instruction.text)


def _facts(processor: Processor, prompt: Prompt) -> dict[str, Any]:
    heard = sum(clip.tokens for clip in prompt.clips)
    return {
        "prompt": prompt.text,
        "ids": prompt.ids,
        "tokens": len(prompt.ids),
        "audio_tokens": heard,
        "text_tokens": len(prompt.ids) - heard,
        "context": processor.context_length,
        "clips": [{"seconds": clip.seconds, "frames": clip.frames, "tokens": clip.tokens} for clip in prompt.clips],
    }


def _for_people(facts: dict[str, Any]) -> str:
    clips = [
        f"Audio {number}: {clip['seconds']:.2f} s, {clip['frames']} mel frames, {clip['tokens']} tokens"
        for number, clip in enumerate(facts["clips"], 1)
    ]
    counts = "{tokens} tokens ({audio_tokens} audio, {text_tokens} text) of {context}".format_map(facts)
    return "\n".join([facts["prompt"].removesuffix("\n"), "", *clips, counts, "", _runs(facts["ids"])])


def _runs(ids: list[int]) -> str:
    """Ids with repetitions counted: `5 7*3 5`."""
    runs = [(token, sum(1 for _ in run)) for token, run in groupby(ids)]
    return " ".join(str(token) if count == 1 else f"{token}*{count}" for token, count in runs)
