"""AIR-Bench's two lists, `Chat_meta.json` and `Foundation_meta.json`, and its recordings to rows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.prepare.rows import Absent, Row, below, read_items
from qwen2_audio.evaluation.tasks.air_bench import CHAT_GROUPS, FOUNDATION_INSTRUCTION, source_of

_LETTERS = "ABCD"


def read_chat(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of the open questions; the judge needs `meta_info`, a description of the recording, and `question`."""
    root = below(folder, "Chat")
    meta = root / "Chat_meta.json"
    if not meta.is_file():
        absent(meta)
        return
    keys = ("path", "question", "answer_gt", "task_name", "dataset_name", "meta_info", "uniq_id")
    for item in read_items(meta, keys):
        task = item["task_name"]
        if task not in CHAT_GROUPS:
            raise UsageError(f"{meta}: unknown task_name {task!r}; known are {', '.join(CHAT_GROUPS)}")
        yield Row(
            id=str(item["uniq_id"]),
            audio=root / f"{task}_{item['dataset_name']}" / item["path"],
            prompt=item["question"],
            gt=item["answer_gt"],
            source=source_of(CHAT_GROUPS[task]),
            chat=True,
            more={key: item[key] for key in ("question", "task_name", "dataset_name", "meta_info")},
        )


def read_foundation(folder: Path, absent: Absent) -> Iterator[Row]:
    """Rows of the choices; the reference is the letter of the right one."""
    root = below(folder, "Foundation")
    meta = root / "Foundation_meta.json"
    if not meta.is_file():
        absent(meta)
        return
    keys = ("path", "question", "choice_a", "choice_b", "answer_gt", "task_name", "dataset_name", "uniq_id")
    for item in read_items(meta, keys):
        task = f"{item['task_name']}_{item['dataset_name']}"
        audio = root / task / item["path"]
        choices = [item.get(f"choice_{letter.lower()}") for letter in _LETTERS]
        yield Row(
            id=str(item["uniq_id"]),
            audio=audio.with_suffix(".flac") if item["task_name"] == "Audio_Grounding" else audio,
            prompt=_question(item["question"], choices),
            gt=_letter(item, choices, meta),
            source=f"air_bench_foundation_{task}",
            chat=True,
            more={"choices": [choice for choice in choices if choice is not None], "task_name": item["task_name"]},
        )


def _question(question: str, choices: list[Any]) -> str:
    """The prompt as published: a choice that is not there is written "None"."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True)]
    return "\n".join([FOUNDATION_INSTRUCTION, question, *lines])


def _letter(item: dict[str, Any], choices: list[Any], meta: Path) -> str:
    if item["answer_gt"] not in choices:
        raise UsageError(f"{meta}: the answer of {item['uniq_id']} is none of its choices: {item['answer_gt']!r:.80}")
    return _LETTERS[choices.index(item["answer_gt"])]
