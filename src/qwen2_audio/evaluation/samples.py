"""What is asked (`Sample`) and what came back (`Answer`): one JSON line each, the currency of the whole of evaluation."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from qwen2_audio.errors import UsageError


@dataclass(frozen=True, slots=True)
class Sample:
    """One question about recordings with its reference answer.

    Attributes:
        id: unique within its task.
        audio: paths of the recordings, absolute or relative to the working folder; [] for a question in writing.
        prompt: the instruction that follows the recordings, "" for voice chat.
        gt: the reference.
        source: the data set and split that scores are put together by, such as "librispeech_test_other".
        chat: whether it is asked in a chat; else in the base model's bare form.
        language: ISO code of what is said, "" where it does not matter.
        speaker: who speaks, "" where unknown.
        duration: seconds of recording, 0 where unknown.
        more: what only some tasks know (choices, task_name, meta_info ...).
    """

    id: str
    audio: tuple[str, ...]
    prompt: str
    gt: str
    source: str
    chat: bool = False
    language: str = ""
    speaker: str = ""
    duration: float = 0.0
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A sample and what the model answered, or why there is no answer."""

    sample: Sample
    response: str
    error: str = ""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The row of a run's answers file; its first four keys are the official output's."""
        sample = self.sample
        row: dict[str, Any] = {
            "gt": sample.gt, "response": self.response, "source": sample.source, "audio_path": list(sample.audio),
            "id": sample.id, "prompt": sample.prompt, "chat": sample.chat, "language": sample.language,
            "speaker": sample.speaker, "duration": sample.duration, "seconds": round(self.seconds, 4),
        }  # fmt: skip
        if sample.more:
            row["more"] = dict(sample.more)
        if self.error:
            row["error"] = self.error
        return row

    @classmethod
    def from_json(cls, row: Mapping[str, Any], number: int) -> Answer:
        """Read a row of this project's or the official output; only `gt` and `response` must be there.

        Args:
            number: of the row, from 1; its id where it has none.

        Raises:
            UsageError: there is no `gt` or no `response`, or they are no text.
        """
        row = {key: value for key, value in row.items() if value is not None}
        for key in ("gt", "response"):
            if not isinstance(row.get(key), str):
                raise UsageError(f"row {number} needs a text under {key!r}, got {row.get(key)!r:.80}")
        named = "audio_path" if "audio_path" in row else "audio"
        audio = row.get(named, [])
        audio = [audio] if isinstance(audio, str) else audio
        paths = isinstance(audio, list | tuple) and all(isinstance(path, str) for path in audio)
        for key, valid, rule in (
            (named, paths, "a path or a list of paths"),
            ("chat", isinstance(row.get("chat", False), bool), "true or false"),
            ("prompt", isinstance(row.get("prompt", ""), str), "a text"),
            ("more", isinstance(row.get("more", {}), Mapping), "an object"),
            *((key, _is_number(row.get(key, 0)), "a number") for key in ("duration", "seconds")),
        ):
            if not valid:
                raise UsageError(f"row {number} needs {rule} under {key!r}, got {row.get(key)!r:.80}")
        sample = Sample(
            id=str(row.get("id", number)),
            audio=tuple(audio),
            prompt=row.get("prompt", ""),
            gt=row["gt"],
            source=str(row.get("source", "all")),
            chat=row.get("chat", False),
            language=str(row.get("language", "")),
            speaker=str(row.get("speaker", "")),
            duration=float(row.get("duration", 0)),
            more=row.get("more", {}),
        )
        return cls(sample, row["response"], str(row.get("error", "")), float(row.get("seconds", 0)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_answers(path: Path) -> list[Answer]:
    """Answers from JSON lines, or from the official output (one JSON list).

    Raises:
        UsageError: the file cannot be read, or a row of it (the message names the line).
    """
    return [Answer.from_json(row, number) for number, row in _rows(path)]


def read_samples(path: Path, *, chat: bool = False, keep: Mapping[str, Sequence[Any]] | None = None) -> list[Sample]:
    """Samples from JSON lines in the official row shape (`audio, prompt, gt, source, ...`); paths start at the file's folder.

    Args:
        chat: how to ask where a row does not say.
        keep: only rows whose values under these keys are among those given: `{"split": ("test",)}`.

    Raises:
        UsageError: the file cannot be read, or a row of it (the message names the line).
    """
    samples = []
    for number, row in _rows(path):
        known = {key: value for key, value in row.items() if value is not None}
        whole = {"response": "", "source": path.stem, "chat": chat, **known}
        if any(whole.get(key) not in values for key, values in (keep or {}).items()):
            continue
        sample = Answer.from_json(whole, number).sample
        strange = [key for key in _NOT_AUDIO if key in known]
        if strange and not sample.audio:
            raise UsageError(f"{path}, row {number} names its recording under {strange[0]!r}; name it under 'audio'")
        audio = tuple(a if "://" in a or a.startswith("data:") else str(path.parent / a) for a in sample.audio)
        samples.append(replace(sample, audio=audio))  # an absolute path stays one
    return samples


_NOT_AUDIO = ("audios", "audio_url", "wav", "path", "url")
"""Where other rows name their recordings; here the model would be asked without hearing them."""


def _rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    try:
        if text.lstrip().startswith("["):
            numbered = list(enumerate(json.loads(text), 1))
        else:
            numbered = [(n, json.loads(line)) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    except json.JSONDecodeError as error:
        raise UsageError(f"{path} is no JSON: {error}") from error
    for number, row in numbered:
        if not isinstance(row, Mapping):
            raise UsageError(f"{path}, row {number}: a row is an object, got {row!r:.80}")
        yield number, row
