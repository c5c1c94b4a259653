"""Reading lines at a terminal, with history and completion where Python's readline is there."""

from __future__ import annotations

import glob
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

HISTORY_LINES = 1000


@contextmanager
def line_editor(commands: Sequence[str]) -> Iterator[Callable[[str], str]]:
    """A function that reads one line. Lines are remembered in `history` in the cache folder; Tab completes commands and
    paths."""
    readline = _readline()
    if readline is None or not sys.stdout.isatty():
        yield _read_plainly
        return
    from qwen2_audio.checkpoints.hub import cache_folder

    history = cache_folder() / "history"
    with suppress(OSError):
        readline.read_history_file(history)
    readline.set_history_length(HISTORY_LINES)
    readline.set_completer_delims("")
    readline.set_completer(lambda text, index: _completion(text, index, commands))
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
    try:
        yield input
    finally:
        _write_history(readline, history)


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # Windows
        return None
    return readline


def _read_plainly(prompt: str) -> str:
    print(prompt, end="", file=sys.stderr, flush=True)
    return input()


def _write_history(readline: ModuleType, history: Path) -> None:
    with suppress(OSError):  # a cache folder that cannot be written to is no reason to fail
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.write_history_file(history)


def _completion(text: str, index: int, commands: Sequence[str]) -> str | None:
    """The `index`-th way to complete a line.

    Spaces in paths come out escaped, so that text may follow. They stay as they are after /audio, which takes the rest of the
    line, and where such a space was typed already."""
    command = "/audio " if text.startswith("/audio ") else ""
    typed = text.removeprefix(command)
    path, escaped = typed, False
    if os.sep == "/":  # elsewhere a backslash is no escape
        path = re.sub(r"\\(.)", r"\1", typed)
        escaped = not command and " " not in re.sub(r"\\.", "", typed)
    found = [] if command else [name for name in commands if text and name.startswith(text)]
    for match in sorted(glob.glob(glob.escape(os.path.expanduser(path)) + "*")) if path or command else ():
        shown = re.sub(r"([\s\\'\"])", r"\\\1", match) if escaped else match
        found.append(command + shown + (os.sep if os.path.isdir(match) else ""))
    return found[index] if index < len(found) else None
