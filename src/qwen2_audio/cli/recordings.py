"""The recordings that a command line names: files, folders, patterns, addresses; and how long they are."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qwen2_audio.errors import AudioError
from qwen2_audio.processing.conversation import AUDIO_SUFFIXES, url_path

STDIN = "-"


@dataclass(frozen=True, slots=True)
class Recording:
    """One of them.

    Attributes:
        source: as it was given, or found.
        name: where its transcript belongs in an output folder, with the suffix of the recording.
        seconds: what its header says; None where that is not known without decoding it.
    """

    source: str
    name: Path
    seconds: float | None = None


def find_recordings(arguments: Iterable[str]) -> list[Recording | AudioError]:
    """All recordings in order; those in folders, however deep, and of patterns sorted by name. What cannot be found stands
    among them as an error; what is not audio by its suffix is left out of folders and patterns."""
    return [found for argument in arguments for found in _found(argument)]


def _found(argument: str) -> Iterator[Recording | AudioError]:
    path = os.path.expanduser(argument)
    if argument == STDIN:
        yield Recording(STDIN, Path("stdin"))
    elif argument.startswith(("http://", "https://", "data:")):
        name = os.path.basename(url_path(argument)) if argument.startswith("http") else ""
        yield Recording(argument, Path(name if name.strip(".") else "recording"))
    elif os.path.isdir(path):
        yield from _several(_in_folder(path), Path(path), f"there are no recordings in the folder {argument}")
    elif not os.path.exists(path) and any(sign in argument for sign in "*?["):
        matches = (found for found in glob.iglob(path, recursive=True) if not os.path.isdir(found))
        yield from _several(matches, None, f"no recording matches {argument}")
    else:
        yield Recording(argument, Path(os.path.basename(path.rstrip(os.sep)) or "recording"), seconds_in(path))


def _in_folder(folder: str, above: frozenset[str] = frozenset()) -> Iterator[str | AudioError]:
    """All files in a folder, through links too, but never round in a circle of them.

    Args:
        above: the real paths of the folders that it was reached through.
    """
    real = os.path.realpath(folder)
    if real in above:
        return
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        yield AudioError(f"cannot look into {folder}: {error.strerror}; check its permissions")
        return
    for entry in entries:
        if os.path.isdir(entry.path):  # entry.is_dir raises on a link to itself
            yield from _in_folder(entry.path, above | {real})
        else:
            yield entry.path


def _several(
    paths: Iterable[str | AudioError], folder: Path | None, otherwise: str
) -> Iterator[Recording | AudioError]:
    paths = list(paths)
    errors = [path for path in paths if isinstance(path, AudioError)]
    files = [path for path in paths if isinstance(path, str)]
    found = sorted(path for path in files if os.path.splitext(path)[1].lower() in AUDIO_SUFFIXES)
    if not found and not errors:
        yield AudioError(f"{otherwise}; check the path")
    yield from errors
    for path in found:
        yield Recording(path, Path(path).relative_to(folder) if folder else Path(Path(path).name), seconds_in(path))


def seconds_in(path: str) -> float | None:
    """What a file's header says of its length; None where it does not say, or cannot be read, or only once, as a pipe."""
    if not os.path.isfile(path):
        return None
    import soundfile

    try:
        return float(soundfile.info(path).duration)
    except (soundfile.LibsndfileError, OSError, ValueError, ZeroDivisionError):
        pass
    import av

    from qwen2_audio.processing.decoding import DEMUXERS

    try:
        with av.open(path, metadata_errors="ignore", options={"format_whitelist": DEMUXERS}) as container:
            return container.duration / 1e6 if container.duration else None
    except (av.FFmpegError, OSError, ValueError):
        return None
