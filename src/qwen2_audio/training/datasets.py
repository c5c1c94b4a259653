"""Training examples: rows as token ids, clips and the mask of what is learnt.

Of a conversation every answer is learnt, its `<|im_end|>` included; of the base model's form the target, followed by
`<|endoftext|>`. The shapes of rows are those of `qwen2_audio.training.rows`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np

from qwen2_audio.errors import UsageError
from qwen2_audio.processing.audio import load_part
from qwen2_audio.processing.chat_template import (
    GENERATION_PROMPT,
    check,
    check_text,
    render_base,
    render_turn,
    with_system,
)
from qwen2_audio.processing.conversation import AudioPart, Conversation, TextPart
from qwen2_audio.processing.mel import Clip
from qwen2_audio.processing.processor import Processor
from qwen2_audio.processing.tokenizer import CONTROL_TOKENS, END_OF_TEXT, IM_END
from qwen2_audio.processing.windows import check_length
from qwen2_audio.training.augment import augment, augment_mel
from qwen2_audio.training.rows import ChatRow, PreferenceRow, parse_row
from qwen2_audio.training.sources import Mixture, Source


@dataclass(frozen=True, slots=True)
class Example:
    """One training sequence.

    Attributes:
        ids: int [tokens], placeholders expanded.
        learnt: bool [tokens], whether the loss counts the prediction of this token.
        clips: the recordings, in order.
        said: what is said in the only recording, as it is heard: in lower case, without the mark at its end; "" where that is
            not known.
        weight: of each learnt token in the loss.
        transcript: whether what is learnt is what is said.
        in_writing: the same with what is said in the place of the recording, where that alone is asked and answered, once;
            itself, where there is no recording.
        spoken: its tokens, which a stage that learns from them fills in.
        read: the ids as the model reads them back, where they are not the ids that it should write; see `misread`.
        asked: where the recording stands that is asked by voice alone, and in `in_writing` the tokens of its words.
    """

    ids: list[int]
    learnt: list[bool]
    clips: list[Clip]
    said: str = ""
    weight: float = 1.0
    transcript: bool = False
    in_writing: Example | None = None
    spoken: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)


Built = TypeVar("Built", covariant=True)


class _TooLongError(UsageError):
    """A row that does not fit into the context."""


class Build(Protocol[Built]):
    """`build_example` or `build_pair`."""

    def __call__(
        self, row: Mapping[str, Any], folder: Path, processor: Processor, change: np.random.Generator | None
    ) -> Built:
        """One row to what is learnt from it."""


class Rows(Generic[Built]):
    """The examples of a mixture of sources, built when asked for.

    Args:
        data: a source, or several with weights; see `qwen2_audio.training.sources`.
        build: what becomes of a row.
        augmented: share of the recordings that are changed at random, each time anew; see `augment`.
        shuffle: another order in each repetition.
        seed: of the order and of those changes.
    """

    def __init__(
        self,
        data: str | Mapping[str, float],
        processor: Processor,
        build: Build[Built],
        *,
        augmented: float = 0.0,
        shuffle: bool = False,
        seed: int = 0,
    ) -> None:
        self.mixture = Mixture(data, shuffle=shuffle, seed=seed)
        self._processor, self._build = processor, build
        self._augmented, self._seed = augmented, seed

    def __len__(self) -> int:
        return len(self.mixture)

    def __getitem__(self, position: int) -> Built:
        """The example at `position`, which counts on over the end of the data into its next repetition."""
        rng = np.random.default_rng((self._seed, position))
        return self._example(*self.mixture.at(position), rng if rng.random() < self._augmented else None)

    def row(self, number: int) -> Built:
        """The example of a row by its number among those of all sources, as it is."""
        return self._example(*self.mixture.locate(number), None)

    def _example(self, source: Source, index: int, change: np.random.Generator | None) -> Built:
        with _at(source, index):
            row = source.row(index)
            try:
                return self._build(row, source.folder, self._processor, change)
            except _TooLongError:
                if change is None:
                    raise
                return self._build(row, source.folder, self._processor, None)  # it was slowed down too far

    def places(self, positions: Iterable[int]) -> list[str]:
        """Where the rows of positions stand."""
        return [source.place(index) for source, index in map(self.mixture.at, positions)]

    def raw(self, number: int) -> Any:
        """A row by its number among those of all sources, as it was written.

        Raises:
            UsageError: it cannot be read.
        """
        source, index = self.mixture.locate(number)
        with _at(source, index):
            return source.row(index)

    def said(self) -> Iterator[str]:
        """All that is known to be said, as it is heard, without decoding the recordings."""
        for source in self.mixture.sources:
            for index in range(len(source)):
                with _at(source, index):
                    row = parse_row(source.row(index), source.folder)
                if not isinstance(row, PreferenceRow) and row.spoken:
                    yield _as_heard(row.spoken)


@contextmanager
def _at(source: Source, index: int) -> Iterator[None]:
    """Say where a row stands that makes no sense."""
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UsageError(f"{source.place(index)}: {error}") from error


def misread(example: Example, share: float, rng: np.random.Generator) -> Example:
    """The example with that share of its learnt tokens read back as other ones of them, while all are still to be written: a
    model that cannot trust what it wrote has to hear what comes next (after the word dropout of Bowman et al. 2016)."""
    answer = [i for i, learnt in enumerate(example.learnt) if learnt]
    read = list(example.ids)
    for i in answer:
        if rng.random() < share:
            read[i] = example.ids[rng.choice(answer[:-1] or answer)]  # not the mark of the end
    return replace(example, read=read)


def _as_heard(text: str) -> str:
    return text.rstrip(".?!").lower()


def build_example(
    row: Mapping[str, Any], folder: Path, processor: Processor, change: np.random.Generator | None = None
) -> Example:
    """One row to ids, mask and clips; `folder` is what relative paths start from, `change` says how to augment.

    Raises:
        UsageError: the row cannot be read, holds nothing to learn, or does not fit into the context (it is never cut).
        AudioError: a recording cannot be had or is longer than 30 s.
    """
    parsed = parse_row(row, folder)
    if isinstance(parsed, PreferenceRow):
        raise UsageError("the row has a chosen and a rejected answer; that is for preference training")
    if isinstance(parsed, ChatRow):
        check(parsed.conversation)
        pieces = _chat_pieces(parsed.conversation, parsed.learnt, complete=parsed.complete)
        audios = _audios(parsed.conversation)
        answers = [
            message.text for message, learnt in zip(parsed.conversation.messages, parsed.learnt, strict=True) if learnt
        ]
        _check_answers(answers)
    else:
        _check_language_tag(parsed.target, processor)
        tag = _tag_of(parsed.target)
        answers = [parsed.target if tag in CONTROL_TOKENS else parsed.target.removeprefix(tag)]
        _check_answers(answers)
        check_text(answers[0], "the answer")
        pieces = [(render_base(len(parsed.audios), parsed.prompt), False), (parsed.target + END_OF_TEXT, True)]
        audios = list(parsed.audios)
    check_text(parsed.spoken, '"spoken"')
    clips = _hear(audios, processor, change)
    said = _as_heard(parsed.spoken) if len(clips) == 1 else ""
    transcript = bool(said) and [_as_heard(answer) for answer in answers] == [said]
    example = replace(_assemble(pieces, clips, processor), said=said, weight=parsed.weight, transcript=transcript)
    if not isinstance(parsed, ChatRow) or transcript:
        return example
    if not clips:
        return replace(example, in_writing=example)
    written = _in_writing(parsed, processor) if said else None
    asked = [i for i, token in enumerate(example.ids) if token == processor.audio_token_id and written is not None]
    return replace(example, in_writing=written, asked=asked)


def _check_answers(answers: list[str]) -> None:
    if not all(answer.strip() for answer in answers):
        raise UsageError("the answer is empty; give the row a text, or leave it out")


def _in_writing(row: ChatRow, processor: Processor) -> Example | None:
    """What is asked by voice alone, and answered once, as if it had been written."""
    messages = row.conversation.messages
    with_audio = [i for i, message in enumerate(messages) if any(isinstance(part, AudioPart) for part in message.parts)]
    if sum(row.learnt) != 1 or not row.learnt[-1] or any(len(messages[i].parts) > 1 for i in with_audio):
        return None
    words = (TextPart(row.spoken),)
    written = [replace(m, parts=words) if i in with_audio else m for i, m in enumerate(messages)]
    example = _assemble(_chat_pieces(Conversation(tuple(written)), row.learnt, complete=row.complete), [], processor)
    before_answer = example.ids[: example.learnt.index(True)]
    return replace(example, asked=_words(row.spoken, before_answer, processor))


def _words(text: str, ids: list[int], processor: Processor) -> list[int]:
    """Where the tokens stand that tell a text's letters and digits, not those of its marks, where it is in the ids last;
    [] where it is not."""
    tokens = processor.tokenizer.encode(text)
    start = next((i for i in reversed(range(len(ids))) if ids[i : i + len(tokens)] == tokens), None)
    if start is None:
        return []
    letters = (any(map(str.isalnum, processor.tokenizer.decode([token]))) for token in tokens)
    return [start + i for i, told in enumerate(letters) if told]


def build_pair(
    row: Mapping[str, Any], folder: Path, processor: Processor, change: np.random.Generator | None = None
) -> tuple[Example, Example]:
    """A preference row to two examples that differ in the answer alone: chosen and rejected, with the very same clips.

    Raises:
        UsageError, AudioError: as `build_example`.
    """
    parsed = parse_row(row, folder)
    if not isinstance(parsed, PreferenceRow):
        raise UsageError('preference training needs rows with "chosen" and "rejected" answers')
    clips = _hear(_audios(parsed.conversation), processor, change)
    examples = []
    for answer in (parsed.chosen, parsed.rejected):
        conversation = parsed.conversation.assistant(answer)
        check(conversation)
        learnt = [False] * len(parsed.conversation.messages) + [True]
        examples.append(_assemble(_chat_pieces(conversation, learnt, complete=True), clips, processor))
    return examples[0], examples[1]


def _audios(conversation: Conversation) -> list[AudioPart]:
    return [part for message in conversation.messages for part in message.parts if isinstance(part, AudioPart)]


def _hear(audios: Sequence[AudioPart], processor: Processor, change: np.random.Generator | None) -> list[Clip]:
    waves = [load_part(audio) for audio in audios]
    for wave in waves:  # as it came: a quicker voice would fit
        check_length(len(wave))
    if change is None:
        return [processor.clip(wave) for wave in waves]
    return [augment_mel(processor.clip(augment(wave, change)), change) for wave in waves]


def _assemble(pieces: Sequence[tuple[str, bool]], clips: list[Clip], processor: Processor) -> Example:
    ids: list[int] = []
    learnt: list[bool] = []
    waiting = iter(clips)
    for text, target in pieces:
        part = processor.expand(processor.tokenizer.encode(text), waiting)
        ids += part
        learnt += [target] * len(part)
    if not any(learnt):
        raise UsageError("the row holds nothing to learn; give it an answer of the assistant")
    if len(ids) > processor.context_length:
        raise _TooLongError(
            f"the row has {len(ids)} tokens, the model's context holds {processor.context_length}; split it"
        )
    return Example(ids, learnt, clips)


def _tag_of(target: str) -> str:
    """The language tag that a target begins with, "" without one."""
    found = re.match(r"<\|\w+\|>", target)
    return found[0] if found else ""


def _check_language_tag(target: str, processor: Processor) -> None:
    tag = _tag_of(target)
    if tag and len(processor.tokenizer.encode(tag)) != 1:
        raise UsageError(f"the model's tokenizer has no language tag {tag}; see its tokenizer_config.json")


def _chat_pieces(conversation: Conversation, learnt: Sequence[bool], *, complete: bool) -> list[tuple[str, bool]]:
    """The rendered prompt cut where learning starts and stops; together equal to `chat_template.render`."""
    pieces: list[tuple[str, bool]] = []
    audios = 0
    whole = with_system(conversation).messages
    for message, target in zip(whole, [False] * (len(whole) - len(learnt)) + list(learnt), strict=True):
        turn, audios = render_turn(message, audios)
        if message.role == "assistant":
            answer = turn.removeprefix(GENERATION_PROMPT).removesuffix("\n")
            pieces += [(GENERATION_PROMPT, False), (answer, target), ("\n", False)]
        else:
            pieces.append((turn, False))
    if pieces[-1] == ("\n", False):
        pieces.pop()
    if not complete:
        text, target = pieces.pop()
        pieces.append((text.removesuffix(IM_END), target))
    return pieces
