"""A judge's replies, kept as JSON lines while they come, so that none is asked for (and paid) twice.

The file of one run is the recorded-reply file of a later one without a network. A line says whom it is about (`sample`,
`position`, `judge`, `mode`, `temperature`) for people, and who gave it (`address`) for the score's details; `key` alone
decides whether it is used.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen2_audio.errors import UsageError


def read_replies(path: Path) -> dict[str, tuple[str, str]]:
    """Replies by their key: the text, and the address of the server that gave it ("" where the line does not say). Of two lines
    with the same key the first counts.

    A last line that a killed run left unfinished is no error: its reply is as good as never given.

    Raises:
        UsageError: the file cannot be read, or a line of it (the message names it).
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"cannot read the judge's replies {path}: {getattr(error, 'strerror', None) or error}"
        ) from error
    lines = text.split("\n")
    replies: dict[str, tuple[str, str]] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or (number == len(lines) and not _is_json(line)):
            continue
        row = json.loads(line) if _is_json(line) else None
        if not isinstance(row, dict) or not isinstance(row.get("key"), str) or not isinstance(row.get("reply"), str):
            raise UsageError(
                f'{path}, line {number}: expected {{"key": ..., "reply": ...}}, got {line!r:.80}; '
                "mend or delete the line"
            )
        address = row.get("address")
        replies.setdefault(row["key"], (row["reply"], address if isinstance(address, str) else ""))
    return replies


class ReplyFile:
    """The file of a run's replies, open for more. Threads may share it, processes may not."""

    def __init__(self, path: Path) -> None:
        """
        Raises:
            UsageError: the file cannot be read or written.
        """
        self.path = path
        self.replies = read_replies(path) if path.exists() else {}
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _finish_last_line(path)
            self._file = path.open("ab", buffering=0)  # a reply is with the system before the next one is asked for
        except OSError as error:
            raise _cannot_write(path, error) from error

    def __enter__(self) -> ReplyFile:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def add(self, key: str, reply: str, about: Mapping[str, Any]) -> None:
        """Keep a reply.

        Args:
            about: what else its line says, perhaps its `address`.

        Raises:
            UsageError: the disk does not take it.
        """
        line = json.dumps({"key": key, **about, "reply": reply}) + "\n"  # ASCII: half a character is no error either
        with self._lock:
            try:
                self._file.write(line.encode("ascii"))
            except OSError as error:
                raise _cannot_write(self.path, error) from error
            self.replies[key] = reply, about.get("address", "")


def _finish_last_line(path: Path) -> None:
    """Let the file end at the end of a line: cut off what a killed run left of one."""
    data = path.read_bytes() if path.exists() else b""
    end = data.rfind(b"\n") + 1
    if end == len(data):
        return
    with path.open("r+b") as file:
        if _is_json(data[end:]):
            file.seek(0, 2)
            file.write(b"\n")
        else:
            file.truncate(end)


def _is_json(line: str | bytes) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _cannot_write(path: Path, error: OSError) -> UsageError:
    return UsageError(f"cannot write the judge's replies {path}: {error.strerror}; give another place")
