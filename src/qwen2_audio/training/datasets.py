"""Training examples: rows of a JSON-lines file to token ids, clips and the mask of what is learnt.

Two row shapes:

- pre-training (the official evaluation's): `{"audio": "clip.flac", "prompt": "...", "gt": "..."}`; the base model's bare
  prompt, the target followed by `<|endoftext|>`;
- conversations: `{"messages": [{"role": ..., "content": ...}, ...]}`; every assistant turn is learnt, `<|im_end|>`
  included. With `"complete": false` the last answer was cut off: its end is not learnt.

Recordings are paths relative to the file. `"spoken"`, where a row has it, is what is said in its only recording.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from qwen2_audio.errors import UsageError
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.chat_template import GENERATION_PROMPT, check, render_base, render_turn, with_system
from qwen2_audio.processing.conversation import AudioSource, Conversation
from qwen2_audio.processing.mel import Clip
from qwen2_audio.processing.processor import Processor
from qwen2_audio.processing.tokenizer import END_OF_TEXT, IM_END
from qwen2_audio.training.augment import augment


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence.

    Attributes:
        ids: int [tokens], placeholders expanded.
        learnt: bool [tokens], whether the loss counts the prediction of this token.
        clips: the recordings, in order.
        spoken: the tokens said in the only recording, [] where they are not known.
    """

    ids: list[int]
    learnt: list[bool]
    clips: list[Clip]
    spoken: list[int] = field(default_factory=list)


class JsonLinesDataset:
    """The examples of one JSON-lines file, built when asked for.

    Args:
        augmented: share of the recordings that are changed at random, each time anew; see `augment`.
        seed: of those changes.
    """

    def __init__(self, path: Path, processor: Processor, *, augmented: float = 0.0, seed: int = 0) -> None:
        self.path = path
        self._processor = processor
        self._augmented, self._seed = augmented, seed
        try:
            self._lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot read the training data {path}: {reason}") from error

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, position: int) -> Example:
        """The example at `position`, which counts on over the end of the file into its next repetition."""
        index = position % len(self)
        rng = np.random.default_rng((self._seed, position))
        change = rng if rng.random() < self._augmented else None
        try:
            return build_example(json.loads(self._lines[index]), self.path.parent, self._processor, change)
        except (ValueError, TypeError) as error:
            raise UsageError(f"{self.path}, line {index + 1}: {error}") from error

    def spoken_vocabulary(self, most: int) -> list[int]:
        """The `most` most frequent tokens among all that is known to be said."""
        counts: Counter[int] = Counter()
        for line in self._lines:
            if text := json.loads(line).get("spoken"):
                counts.update(spoken_tokens(text, self._processor))
        return [token for token, _ in counts.most_common(most)]


def spoken_tokens(text: str, processor: Processor) -> list[int]:
    """The tokens of a text as it is heard: in lower case, without the mark at its end."""
    return processor.tokenizer.encode(" " + text.rstrip(".?!").lower())


def build_example(
    row: Mapping[str, Any], folder: Path, processor: Processor, change: np.random.Generator | None = None
) -> Example:
    """One row to ids, mask and clips; `folder` is what relative paths start from, `change` says how to augment."""
    pieces: list[tuple[str, bool]]
    if not isinstance(row, Mapping):
        raise UsageError(f"a row is a JSON object, got {type(row).__name__}")
    if "messages" in row:
        conversation = Conversation.parse(row["messages"])
        check(conversation)
        pieces, sources = _chat_pieces(conversation, complete=row.get("complete", True))
    elif {"audio", "prompt", "gt"} <= row.keys():
        pieces = [(render_base(1, row["prompt"]), False), (row["gt"] + END_OF_TEXT, True)]
        sources = [row["audio"]]
    else:
        raise UsageError('a row needs "messages", or "audio", "prompt" and "gt"')
    waves = [load_audio(_resolve(source, folder)) for source in sources]
    clips = [processor.clip(wave if change is None else augment(wave, change)) for wave in waves]
    ids: list[int] = []
    learnt: list[bool] = []
    waiting = iter(clips)
    for text, target in pieces:
        part = processor.expand(processor.tokenizer.encode(text), waiting)
        ids += part
        learnt += [target] * len(part)
    if not any(learnt):
        raise UsageError("the row holds nothing to learn; give it an answer of the assistant")
    spoken = spoken_tokens(row["spoken"], processor) if row.get("spoken") and len(clips) == 1 else []
    return Example(ids, learnt, clips, spoken)


def _chat_pieces(conversation: Conversation, *, complete: bool) -> tuple[list[tuple[str, bool]], list[AudioSource]]:
    """The rendered prompt cut where learning starts and stops; together equal to `chat_template.render`."""
    pieces: list[tuple[str, bool]] = []
    audios = 0
    for message in with_system(conversation).messages:
        turn, audios = render_turn(message, audios)
        if message.role == "assistant":
            answer = turn.removeprefix(GENERATION_PROMPT).removesuffix("\n")
            pieces += [(GENERATION_PROMPT, False), (answer, True), ("\n", False)]
        else:
            pieces.append((turn, False))
    if pieces[-1] == ("\n", False):
        pieces.pop()
    if not complete:
        text, target = pieces.pop()
        pieces.append((text.removesuffix(IM_END), target))
    return pieces, list(conversation.audios)


def _resolve(source: AudioSource, folder: Path) -> AudioSource:
    if not isinstance(source, str) or "://" in source or source.startswith("data:"):
        return source
    return folder / source
