"""What commands do before they come to their point: check options, hear recordings, open the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING

from qwen2_audio.cli.terminal import patience, say
from qwen2_audio.errors import AudioError, UsageError

if TYPE_CHECKING:
    from qwen2_audio.api import Assistant, Options
    from qwen2_audio.processing.conversation import AudioPart, AudioSource, Part

STDIN = "-"


def checked(options: Options) -> Options:
    """The same options; a wrong one is an error now, not after a model has been loaded."""
    from qwen2_audio.generation.options import GenerationOptions

    GenerationOptions().override(**options)
    return options


def hear(source: AudioSource) -> AudioPart:
    """Decode one recording, so that what is wrong with it shows at once; `-` is one on stdin."""
    from qwen2_audio.config import SAMPLE_RATE
    from qwen2_audio.processing.audio import load_audio
    from qwen2_audio.processing.conversation import AudioPart

    if source == STDIN:
        source = b"" if sys.stdin.isatty() else sys.stdin.buffer.read()
        if not source:
            raise AudioError("no recording on stdin; pipe one in, or give a file")
    return AudioPart((load_audio(source), SAMPLE_RATE))


def seconds_of(part: AudioPart) -> float:
    """Duration of a recording that `hear` has decoded."""
    if not isinstance(part.source, tuple):
        raise TypeError("the recording has not been decoded")
    samples, rate = part.source
    return len(samples) / rate


def hear_parts(words: Sequence[str]) -> list[Part]:
    """What stands on a command line as parts of a message, recordings decoded."""
    from qwen2_audio.processing.conversation import AudioPart, user_parts

    parts = user_parts([AudioPart(word) if word == STDIN else word for word in words])
    return [hear(part.source) if isinstance(part, AudioPart) else part for part in parts]


def find(model: str, *, revision: str | None, offline: bool, weights: bool = True) -> Path:
    """The folder of a model, fetched if need be, without its weights if they are not needed; whatever is said meanwhile
    goes to stderr."""
    with patience("starting"):
        from qwen2_audio.checkpoints.hub import find_checkpoint
    with redirect_stdout(sys.stderr):
        return find_checkpoint(model, revision=revision, offline=offline, weights=weights, say=say).resolve()


def open_assistant(
    model: str,
    *,
    device: str,
    dtype: str,
    revision: str | None,
    offline: bool,
    adapter: Path | None,
    quantize: str = "none",
    key_variable: str | None = None,
) -> Assistant:
    """`qwen2_audio.load`, with news on stderr.

    Args:
        key_variable: the environment variable with the key of a model at an address (openai:URL).
    """
    with patience("starting"):
        from qwen2_audio import api
        from qwen2_audio.remote.address import is_address
        from qwen2_audio.runtime import choose_runtime

        if is_address(model):
            return api.load(
                model, adapter=adapter, device=device, dtype=dtype, quantize=quantize, revision=revision, offline=offline,
                key_variable=key_variable,
            )  # fmt: skip
        if key_variable is not None:
            raise UsageError(f"--api-key-env is for a model at an address, openai:URL; {model} needs no key")
        choose_runtime(device, dtype, quantize)  # complain before anything large is fetched
    folder = find(model, revision=revision, offline=offline)
    with patience(f"loading {model}"):
        return api.load(folder, adapter=adapter, device=device, dtype=dtype, quantize=quantize, offline=True)
