"""What is said to a server: a conversation as messages, options as fields, each in the words that this kind of server knows."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import UsageError
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.audio import load_part
from qwen2_audio.processing.chat_template import check
from qwen2_audio.processing.conversation import AudioPart, Conversation, Message, TextPart
from qwen2_audio.processing.windows import cut_windows, windows

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_STANDARD = frozenset(
    "max_new_tokens temperature top_p seed stop presence_penalty frequency_penalty logit_bias logprobs json_schema".split()
)
"""Options that OpenAI's own API has."""
_WIDER = _STANDARD | frozenset("min_new_tokens top_k min_p repetition_penalty stop_token_ids ignore_eos".split())
_FIELDS = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
"""Options that have another name on the wire."""
_HANDLED_HERE = frozenset({"stop_loops"})
"""Options that need no server: whoever reads the stream ends it."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """What a kind of server knows beyond OpenAI's API.

    Attributes:
        options: the fields of `GenerationOptions` that it follows.
        top_k_off: what it takes for "draw among all tokens".
        counts: whether it can say in every chunk how many tokens there were.
        bare_prompts: whether its `/completions` take recordings.
        tokenizes: whether its `/tokenize` takes messages.
        health: the path, from its root, that says whether it can answer; None: ask for its models.
    """

    name: str
    options: frozenset[str]
    top_k_off: int = 0
    counts: bool = False
    bare_prompts: bool = False
    health: str | None = None
    tokenizes: bool = False


OPENAI = Dialect("openai", _STANDARD)
VLLM = Dialect("vllm", _WIDER, top_k_off=-1, counts=True, health="/health", tokenizes=True)
SGLANG = Dialect("sglang", _WIDER, top_k_off=-1, health="/health")
OURS = Dialect("qwen2-audio", _WIDER, bare_prompts=True, health="/ready", tokenizes=True)


def dialect_of(owner: str) -> Dialect:
    """The dialect of a server whose `/models` say `owned_by: owner`."""
    return next((known for known in (VLLM, SGLANG, OURS) if known.name == owner), OPENAI)


def chat_messages(conversation: Conversation, *, warn: bool = False) -> list[dict[str, Any]]:
    """A conversation as `messages`, recordings as base64 wav of 16 bits, those over 30 s as consecutive windows.

    Args:
        warn: say so by an `AudioWarning`.

    Raises:
        ConversationError, AudioError: it cannot be asked.
    """
    check(conversation)
    return [_message(message, warn) for message in conversation.messages]


def _message(message: Message, warn: bool) -> dict[str, Any]:
    if not any(isinstance(part, AudioPart) for part in message.parts):
        return {"role": message.role, "content": message.text}
    content: list[dict[str, Any]] = []
    for part in message.parts:
        if isinstance(part, TextPart):
            content.append({"type": "text", "text": part.text})
        else:
            samples = load_part(part)
            pieces = windows(samples, "a recording") if warn else cut_windows(samples)
            content += [audio_content(piece) for piece in pieces]
    return {"role": message.role, "content": content}


def bare_fields(recordings: Sequence[NDArray[np.float32]], text: str, dialect: Dialect, server: str) -> dict[str, Any]:
    """The base model's bare prompt, as the prompt fields of `/completions`.

    Raises:
        UsageError: the server takes no recordings there.
    """
    if not recordings:
        return {"prompt": text}
    if not dialect.bare_prompts:
        raise UsageError(
            f"{server} takes no bare prompts with recordings (its /completions takes text only); ask in a chat"
        )
    pieces = [piece for samples in recordings for piece in cut_windows(samples)]
    return {"prompt": text, "audio": [audio_content(piece) for piece in pieces]}


def audio_content(samples: NDArray[np.float32]) -> dict[str, Any]:
    """A recording, float32 [samples] at 16 kHz, as a part of a message."""
    return {"type": "input_audio", "input_audio": {"data": wav_base64(samples), "format": "wav"}}


def wav_base64(samples: NDArray[np.float32]) -> str:
    """float32 [samples] at 16 kHz as a wav file of 16 bits, which every server reads; nothing is lost of a 16-bit recording."""
    import numpy as np

    pcm = np.clip(np.rint(samples * 32768.0), -32768, 32767).astype("<i2").tobytes()
    head = struct.pack(
        "<4sI4s4sIHHIIHH4sI", b"RIFF", 36 + len(pcm), b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE, 2, 16,
        b"data", len(pcm),
    )  # fmt: skip
    return base64.b64encode(head + pcm).decode("ascii")


def option_fields(options: GenerationOptions, dialect: Dialect, server: str) -> dict[str, Any]:
    """Options as fields of a request. All that matter are said, for a server's own defaults may be other ones.

    Args:
        server: what messages call it.

    Raises:
        UsageError: it lacks one that is wanted.
    """
    neutral = GenerationOptions()
    wanted = {
        field.name: getattr(options, field.name)
        for field in fields(options)
        if getattr(options, field.name) != getattr(neutral, field.name)
    }
    refuse_lacking(wanted, dialect, server)
    if options.temperature:  # else nothing is drawn
        wanted |= {name: getattr(options, name) for name in ("top_p", "top_k", "min_p") if name in dialect.options}
    for name in ("temperature", "repetition_penalty"):
        if name in dialect.options:
            wanted[name] = getattr(options, name)
    return given_fields(wanted, dialect)


def refuse_lacking(wanted: Iterable[str], dialect: Dialect, server: str) -> None:
    """Raise `UsageError` for the first option that a server lacks: to leave it out would be another answer."""
    lacking = sorted(set(wanted) - dialect.options - _HANDLED_HERE)
    if lacking:
        known = ", ".join(sorted(dialect.options))
        raise UsageError(f"{server} has no option {lacking[0]!r}, so it was not asked; its options are {known}")


def given_fields(given: Mapping[str, Any], dialect: Dialect) -> dict[str, Any]:
    """Options by the names of `GenerationOptions`, as fields of a request; nothing is added to them."""
    out: dict[str, Any] = {}
    for name, value in given.items():
        if name in _HANDLED_HERE:
            continue
        if name == "logprobs":
            out |= {"logprobs": True, "top_logprobs": value}
        elif name == "json_schema":
            out["response_format"] = _response_format(value)
        elif name == "logit_bias":
            out["logit_bias"] = {str(token): bias for token, bias in value}
        elif name == "top_k" and value == 0:
            out["top_k"] = dialect.top_k_off
        elif name == "seed":
            out["seed"] = value if value < 2**63 else value - 2**64  # servers take signed numbers
        else:
            out[_FIELDS.get(name, name)] = list(value) if isinstance(value, tuple) else value
    return out


def completion_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of `/chat/completions` as those of `/completions`, which counts alternatives in `logprobs` itself."""
    out = dict(fields)
    if "top_logprobs" in out:
        out["logprobs"] = out.pop("top_logprobs")
    return out


def _response_format(schema: str) -> dict[str, Any]:
    parsed = json.loads(schema)
    if parsed == {}:
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": parsed, "strict": True}}
