"""Transcripts as files: which there are, which are there already; written beside and renamed, so that none is ever half."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from qwen2_audio.cli.recordings import Recording
from qwen2_audio.errors import UsageError
from qwen2_audio.longform.segments import Segment
from qwen2_audio.longform.subtitles import FORMATS, Format, write

ALL = "all"


@dataclass(frozen=True, slots=True)
class Transcripts:
    """Where transcripts go.

    Attributes:
        folder: None: to stdout.
    """

    formats: tuple[Format, ...]
    folder: Path | None
    overwrite: bool = False

    @classmethod
    def of(cls, format: str, folder: Path | None, *, overwrite: bool) -> Transcripts:
        """
        Raises:
            UsageError: no such format, or several formats and no folder.
        """
        formats = FORMATS if format == ALL else tuple(known for known in FORMATS if known == format)
        if not formats:
            raise UsageError(f"--format must be one of {', '.join(FORMATS)} or {ALL}, got {format!r}")
        if len(formats) > 1 and folder is None:
            raise UsageError(f"--format {ALL} makes several files of a recording; give --output-dir")
        if overwrite and folder is None:
            raise UsageError("--overwrite is for files; give --output-dir")
        if folder is not None:
            place = next(path for path in (folder, *folder.parents) if os.path.exists(path))
            if not os.path.isdir(place) or not os.access(place, os.W_OK):
                raise UsageError(f"cannot write into {folder}: {place} is no folder to write into; give another one")
        return cls(formats, folder, overwrite)

    def refuse_collisions(self, recordings: Sequence[Recording]) -> None:
        """Raise `UsageError` where two recordings would be written to one file."""
        known: dict[Path, str] = {}
        for recording in recordings:
            name = recording.name.with_suffix("")
            if self.folder and known.setdefault(name, recording.source) != recording.source:
                target = self._path(self.folder, recording, self.formats[0])
                raise UsageError(
                    f"{known[name]} and {recording.source} would both become {target}; transcribe them into two folders"
                )

    def done(self, recording: Recording) -> bool:
        """Whether everything is there already."""
        folder = self.folder
        return bool(
            folder
            and not self.overwrite
            and all(os.path.isfile(self._path(folder, recording, format)) for format in self.formats)
        )

    def write(self, recording: Recording, segments: Sequence[Segment], duration: float) -> None:
        """Write the files of a recording.

        Raises:
            UsageError: one cannot be written there.
        """
        if self.folder is None:
            raise TypeError("there is no folder to write to")
        for format in self.formats:
            path = self._path(self.folder, recording, format)
            beside = path.with_name(f".{os.getpid()}.part")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                beside.write_text(write(segments, format, duration=duration), encoding="utf-8")
                beside.replace(path)
            except OSError as error:
                if error.errno == errno.ENOSPC:  # nor can the others be written
                    raise
                with suppress(OSError):
                    beside.unlink(missing_ok=True)
                raise UsageError(f"cannot write {path}: {error.strerror}; give another folder") from error

    @staticmethod
    def _path(folder: Path, recording: Recording, format: Format) -> Path:
        return folder / recording.name.with_suffix(f".{format}")
