"""Log-probabilities of a preference run's answers before it began, computed once and kept beside the run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from qwen2_audio.training.checkpointing import writing
from qwen2_audio.training.collate import Pack, pack_by_tokens, pack_pairs
from qwen2_audio.training.datasets import Example, Rows

LogProbs = dict[int, tuple[float, float]]
"""By the number of a row: of its chosen and of its rejected answer, in nats."""


def kept_log_probs(
    dataset: Rows[tuple[Example, Example]],
    path: Path,
    log_probs: Callable[[Pack], Tensor],
    batch_tokens: int,
    run: str,
    say: Callable[[str], None],
) -> LogProbs:
    """Read what is kept and compute the rest, each process a share of the rows.

    Args:
        path: each process keeps its share beside it, under a name of its own.
        log_probs: of a pack of pairs, [2 * pairs].
        run: what makes the reference what it is; values kept for another are computed anew.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    files = [path.with_suffix(f".{number}-of-{world}.jsonl") for number in range(world)]
    marks = {row: _mark(dataset, row, run) for row in range(len(dataset))}
    kept = {row: pair for row, pair in _read(files[rank], marks).items() if row % world == rank}
    lines = [json.dumps([row, *pair, marks[row]]) + "\n" for row, pair in kept.items()]
    with writing(files[rank]):
        files[rank].write_text("".join(lines), encoding="utf-8")
    missing = [row for row in range(rank, len(dataset), world) if row not in kept]
    items = ((row, *dataset.row(row)) for row in missing)
    with files[rank].open("a", encoding="utf-8") as file, torch.no_grad():
        for group in pack_by_tokens(items, batch_tokens, lambda item: len(item[1].ids) + len(item[2].ids)):
            pairs = log_probs(pack_pairs(group)).unflatten(0, (-1, 2)).tolist()
            lines = [json.dumps([row, *pair, marks[row]]) + "\n" for (row, *_), pair in zip(group, pairs, strict=True)]
            with writing(files[rank]):
                file.write("".join(lines))
                file.flush()
            say(f"reference: row {group[-1][0] + 1} of {len(dataset)}")
    if dist.is_initialized():
        dist.barrier()
    return _merged(_read(file, marks) for file in files)


def stamp(name: str) -> str:
    """What tells a file, or a folder's weights, from others that had the same name before: sizes and times of writing."""
    path = Path(name)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors")) if name else []
    return "\n".join([name, *(f"{file.name} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in files)])


def _mark(dataset: Rows[tuple[Example, Example]], row: int, run: str) -> str:
    """What tells whether a kept value is of this very row and run."""
    content = json.dumps(dataset.raw(row), sort_keys=True, default=repr)
    return hashlib.sha256(f"{run}\n{content}".encode()).hexdigest()[:16]


def _read(path: Path, marks: Mapping[int, str]) -> LogProbs:
    kept: LogProbs = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                row, chosen, rejected, mark = json.loads(line)
            except ValueError:  # the last line of a process that was killed
                continue
            if marks.get(row) == mark:
                kept[row] = (chosen, rejected)
    return kept


def _merged(parts: Iterable[LogProbs]) -> LogProbs:
    return {row: pair for part in parts for row, pair in part.items()}
