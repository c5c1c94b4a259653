"""Who is asked: `Answerer`, samples in, answers out, is all that evaluation sees; here, a model in this process.

A model on a server is `qwen2_audio.evaluation.server_answerer.OpenAIAnswerer`.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from qwen2_audio import __version__
from qwen2_audio.config import MAX_CLIP_SECONDS, MAX_SAMPLES, SAMPLE_RATE
from qwen2_audio.errors import (
    AudioError,
    AudioWarning,
    ContextLengthError,
    ConversationError,
    Qwen2AudioError,
    UsageError,
)
from qwen2_audio.evaluation.samples import Answer, Sample

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from qwen2_audio.api import Assistant, Options
    from qwen2_audio.generation.reply import Reply

MAX_NEW_TOKENS = 256
"""The official limit."""
MIN_NEW_TOKENS = 1
"""The official least: an answer has at least one token before its end."""
LONG_AUDIO = ("cut", "windows")
"""What happens to recordings over 30 s: "cut": only their first 30 s are heard, as in the official evaluation, with an
`AudioWarning`; "windows": all of it, in consecutive parts of at most 30 s (a server hears them as it does)."""
_OF_THE_SAMPLE = (AudioError, ConversationError, ContextLengthError)
"""What one sample can be at fault for; anything else is everybody's and ends the run."""
_SAMPLED = 64
"""Numbers of each parameter that the fingerprint looks at."""


class Answerer(Protocol):
    """Whoever can be asked."""

    def answer(self, samples: Sequence[Sample]) -> Iterable[Answer]:
        """Answers, one a sample, as they come; what goes wrong with one of them is its `error`."""

    def identity(self) -> dict[str, Any]:
        """All that answers depend on beside the samples: the model, its weights, dtype, options, versions."""


class AssistantAnswerer:
    """A model in this process, asked greedily; all else is as the checkpoint's `generation_config.json` says."""

    def __init__(
        self,
        assistant: Assistant,
        name: str,
        *,
        max_new_tokens: int = MAX_NEW_TOKENS,
        long_audio: str = "cut",
    ) -> None:
        """
        Args:
            name: of the model, for the report.
            long_audio: one of `LONG_AUDIO`.

        Raises:
            UsageError: an unknown `long_audio`.
        """
        check_long_audio(long_audio)
        self._assistant = assistant
        self._name = name
        self._options: Options = {
            "max_new_tokens": max_new_tokens, "min_new_tokens": MIN_NEW_TOKENS, "temperature": 0.0,
        }  # fmt: skip
        self._long_audio = long_audio

    def answer(self, samples: Sequence[Sample]) -> list[Answer]:
        """Each as if it were alone: in a chat or in the bare form, as the sample says."""
        started = time.monotonic()
        outcomes: dict[int, str | Qwen2AudioError] = {}
        heard: dict[int, list[Any]] = {}
        for index, sample in enumerate(samples):
            try:
                heard[index] = [(hear(path, self._long_audio), SAMPLE_RATE) for path in sample.audio]
            except AudioError as error:
                outcomes[index] = error
        for chat in (False, True):
            alike = [index for index in heard if samples[index].chat == chat]
            outcomes.update(zip(alike, self._ask([(heard[i], samples[i].prompt) for i in alike], chat), strict=True))
        seconds = (time.monotonic() - started) / max(len(samples), 1)
        return [_answer(sample, outcomes[index], seconds) for index, sample in enumerate(samples)]

    def identity(self) -> dict[str, Any]:
        """The model by its name and a fingerprint of its weights; the options in force."""
        import torch

        model, chosen = self._assistant.model, self._assistant.options(self._options)
        return {
            "kind": "assistant",
            "model": self._name,
            "weights": _fingerprint(model),
            "device": model.device.type,
            "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
            "max_new_tokens": chosen.max_new_tokens,
            "min_new_tokens": chosen.min_new_tokens,
            "temperature": chosen.temperature,
            "repetition_penalty": chosen.repetition_penalty,
            "stop": list(chosen.stop),
            "end_ids": sorted(self._assistant.engine.end_ids),
            "long_audio": self._long_audio,
            "qwen2_audio": __version__,
            "torch": torch.__version__,
        }

    def _ask(self, prompts: list[tuple[list[Any], str]], chat: bool) -> list[str | Qwen2AudioError]:
        """Texts of all; when one of them spoils the batch, each is tried alone."""
        if not prompts:
            return []
        try:
            return [reply.text for reply in self._replies(prompts, chat)]
        except _OF_THE_SAMPLE as error:
            if len(prompts) == 1:
                return [error]
        return [outcome for prompt in prompts for outcome in self._ask([prompt], chat)]

    def _replies(self, prompts: list[tuple[list[Any], str]], chat: bool) -> list[Reply]:
        if not chat:
            return self._assistant.complete_many(prompts, **self._options)
        from qwen2_audio.processing.conversation import AudioPart, TextPart

        messages: list[Any] = [
            [*map(AudioPart, audios), *([TextPart(text)] if text else [])] for audios, text in prompts
        ]
        return self._assistant.batch(messages, **self._options)


def _answer(sample: Sample, outcome: str | Qwen2AudioError, seconds: float) -> Answer:
    if isinstance(outcome, Qwen2AudioError):
        return Answer(sample, "", str(outcome) or type(outcome).__name__, seconds)
    return Answer(sample, outcome, seconds=seconds)


def hear(path: str, long_audio: str) -> NDArray[np.float32]:
    """A recording as it is asked about, float32 [samples] at 16 kHz; see `LONG_AUDIO` for what is over 30 s.

    Raises:
        AudioError: it cannot be read.
    """
    from qwen2_audio.processing.audio import load_audio

    samples = load_audio(path)
    if long_audio == "cut" and len(samples) > MAX_SAMPLES:
        seconds = len(samples) / SAMPLE_RATE
        note = (
            f"{path} is {seconds:.1f} s long; as in the official evaluation, its first {MAX_CLIP_SECONDS} s are heard"
        )
        warnings.warn(note, AudioWarning, stacklevel=2)
        return samples[:MAX_SAMPLES]
    return samples


def check_long_audio(given: str) -> None:
    """Raise `UsageError` unless it is one of `LONG_AUDIO`."""
    if given not in LONG_AUDIO:
        raise UsageError(f"long_audio must be one of {', '.join(LONG_AUDIO)}, got {given!r}")


def _fingerprint(model: Any) -> str:
    """Sixteen hexadecimal digits that differ when weights do: some numbers of every parameter, hashed."""
    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        flat = parameter.detach().flatten()
        some = flat[:: max(1, flat.numel() // _SAMPLED)].float().cpu()
        digest.update(f"{name} {tuple(parameter.shape)}".encode() + some.numpy().tobytes())
    return digest.hexdigest()[:16]
