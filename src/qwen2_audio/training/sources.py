"""Where rows come from: files of JSON lines, webdataset tars, data sets of the `datasets` library, and mixtures of them.

- `rows.jsonl`: one row a line, in the shapes of `qwen2_audio.training.rows`; paths are relative to the file;
- `shard.tar`: files with the same stem are one row: `.json` holds it (or `.txt` the part of it that is said), the
  recording stands beside it;
- `datasets:NAME`, `datasets:NAME:SPLIT`: a data set of the `datasets` library (a name on the hub, or a folder that its
  `save_to_disk` wrote), whose columns are the keys of a row.
"""

from __future__ import annotations

import json
import tarfile
import threading
from collections.abc import Mapping
from copy import copy
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from qwen2_audio.errors import UsageError
from qwen2_audio.processing.conversation import AUDIO_SUFFIXES

_BLOCK = 1 << 14


class Source(Protocol):
    """Rows by number, from 0.

    Attributes:
        folder: what relative paths in the rows start from.
    """

    folder: Path

    def __len__(self) -> int: ...

    def row(self, index: int) -> Any:
        """A row; ValueError when it cannot be read."""

    def line(self, index: int) -> int:
        """The number of the row for people, from 1."""

    def place(self, index: int) -> str:
        """Where the row stands, for messages: "rows.jsonl, line 7"."""


class JsonLines:
    """One row a line; empty lines do not count."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        try:
            lines = path.read_text(encoding="utf-8").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot read the training data {path}: {reason}") from error
        self._lines = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        if not self._lines:
            raise UsageError(f"{path} holds no rows")

    def __len__(self) -> int:
        return len(self._lines)

    def row(self, index: int) -> Any:
        return json.loads(self._lines[index][1])

    def line(self, index: int) -> int:
        return self._lines[index][0]

    def place(self, index: int) -> str:
        return f"{self.path}, line {self.line(index)}"


class Tar:
    """A webdataset shard: read where it lies, nothing is unpacked."""

    def __init__(self, path: Path) -> None:
        self.path, self.folder = path, path.parent
        rows: dict[str, dict[str, tarfile.TarInfo]] = {}
        try:
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile():
                        folder, slash, name = member.name.rpartition("/")
                        stem, _, suffix = name.partition(".")
                        rows.setdefault(folder + slash + stem, {})[suffix.lower()] = member
        except (OSError, tarfile.TarError) as error:
            raise UsageError(f"cannot read the training data {path}: {error}") from error
        self._rows = list(rows.items())
        if not self._rows:
            raise UsageError(f"{path} holds no rows")

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Any:
        members = self._rows[index][1]
        row = json.loads(self._read(members["json"])) if "json" in members else {}
        if "txt" in members and isinstance(row, dict):
            row.setdefault("text", self._read(members["txt"]).decode().strip())
        sounds = [member for suffix, member in members.items() if PurePosixPath(f"x.{suffix}").suffix in AUDIO_SUFFIXES]
        if not isinstance(row, dict):
            raise UsageError(f"a row is a JSON object, got {type(row).__name__}")
        if sounds and not {"audio", "audios", "wav"} & row.keys():
            if len(sounds) > 1:
                raise UsageError("there are several recordings of this name; let the .json say which is heard where")
            row["audios" if {"messages", "conversations"} & row.keys() else "audio"] = {"bytes": self._read(sounds[0])}
        return row

    def _read(self, member: tarfile.TarInfo) -> bytes:
        with open(self.path, "rb") as file:  # one of its own: several threads read
            file.seek(member.offset_data)
            return file.read(member.size)

    def line(self, index: int) -> int:
        return index + 1

    def place(self, index: int) -> str:
        return f"{self.path}, {self._rows[index][0]}"


class HubDataset:
    """A data set of the `datasets` library; recordings come as the bytes of their files and are decoded here."""

    def __init__(self, name: str) -> None:
        try:
            import datasets
        except ImportError:
            raise UsageError("rows from datasets:NAME need the package datasets: pip install datasets") from None
        self._name, _, split = name.partition(":")
        self.folder = Path(self._name)
        try:
            if self.folder.is_dir() and (self.folder / "state.json").exists():
                if split:
                    raise ValueError(f"a saved folder has no splits; leave out :{split}")
                found: Any = datasets.load_from_disk(self._name)
            else:
                found = datasets.load_dataset(self._name, split=split or "train")
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise UsageError(f"cannot read the data set {name}: {error}") from error
        self._rows = found.cast(datasets.Features({name: _encoded(kind) for name, kind in found.features.items()}))

    def __len__(self) -> int:
        return len(self._rows)

    def row(self, index: int) -> Any:
        return _without_none(self._rows[index])

    def line(self, index: int) -> int:
        return index + 1

    def place(self, index: int) -> str:
        return f"{self._name}, row {index + 1}"


def _encoded(kind: Any) -> Any:
    """A column's type, whose recordings, however deep they lie in it, come as the bytes of their files."""
    from datasets import Audio

    if isinstance(kind, Audio):
        return Audio(decode=False)
    if isinstance(kind, dict):
        return {name: _encoded(inner) for name, inner in kind.items()}
    if isinstance(kind, list):
        return [_encoded(inner) for inner in kind]
    if hasattr(kind, "feature"):
        kind = copy(kind)
        kind.feature = _encoded(kind.feature)
    return kind


def _without_none(value: Any) -> Any:
    """The same without the keys that a row lacks, and that its table has filled in."""
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return [_without_none(inner) for inner in value] if isinstance(value, list) else value


def open_source(name: str) -> Source:
    """The source that a name means."""
    if name.startswith("datasets:"):
        return HubDataset(name.removeprefix("datasets:"))
    return Tar(Path(name)) if name.endswith(".tar") else JsonLines(Path(name))


class Mixture:
    """Rows by position, which counts on without end: one source again and again, or several by weight.

    What stands at a position depends on nothing but the sources, the weights and the seed, so that a run can be gone on
    with anywhere.
    """

    def __init__(self, data: str | Mapping[str, float], *, shuffle: bool, seed: int) -> None:
        weights = {data: 1.0} if isinstance(data, str) else dict(data)
        self.sources = [open_source(name) for name in weights]
        self._weights = np.array(list(weights.values()), dtype=np.float64) / sum(weights.values())
        self._shuffle, self._seed = shuffle, seed
        self._lock = threading.Lock()
        self._orders: dict[tuple[int, int], Any] = {}
        self._drawn: list[tuple[Any, Any]] = []  # of each block: the source of each position, its number in that source
        self._taken = [0] * len(self.sources)  # of each source in all of these

    def __len__(self) -> int:
        """Rows of all sources together."""
        return sum(map(len, self.sources))

    def at(self, position: int) -> tuple[Source, int]:
        """The source, and the index in it, of a position."""
        with self._lock:  # several threads read ahead
            number, turn = self._turn(position)
            source = self.sources[number]
            again, index = divmod(turn, len(source))
            return source, int(self._order(number, again)[index]) if self._shuffle else index

    def number(self, position: int) -> int:
        """The number, among the rows of all sources, of what stands at a position."""
        source, index = self.at(position)
        return sum(map(len, self.sources[: self.sources.index(source)])) + index

    def locate(self, number: int) -> tuple[Source, int]:
        """The source, and the index in it, of a row's number."""
        for source in self.sources:
            if number < len(source):
                return source, number
            number -= len(source)
        raise IndexError(number)

    def _turn(self, position: int) -> tuple[int, int]:
        if len(self.sources) == 1:
            return 0, position
        block, inside = divmod(position, _BLOCK)
        while len(self._drawn) <= block:
            rng = np.random.default_rng((self._seed, len(self._drawn), 1))
            which = rng.choice(len(self.sources), _BLOCK, p=self._weights)
            turns = np.empty(_BLOCK, dtype=np.int64)
            for number, before in enumerate(self._taken):
                mine = which == number
                turns[mine] = before + np.arange(mine.sum())
                self._taken[number] += int(mine.sum())
            self._drawn.append((which, turns))
        which, turns = self._drawn[block]
        return int(which[inside]), int(turns[inside])

    def _order(self, number: int, again: int) -> Any:
        key = (number, again)
        if key not in self._orders:
            for old in [other for other in self._orders if other[0] == number and other[1] < again - 1]:
                del self._orders[old]
            rng = np.random.default_rng((self._seed, number, again, 2))
            self._orders[key] = rng.permutation(len(self.sources[number]))
        return self._orders[key]
