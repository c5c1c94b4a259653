"""What a person types, pastes or drags into a chat: which of it names recordings, and which is text."""

from __future__ import annotations

import os
import re

from qwen2_audio.processing.conversation import AUDIO_SUFFIXES, url_path

_WORD = re.compile(r"""'[^']*'|"[^"]*"|(?:\\.|[^\s\\]|\\$)+""")


def split_line(line: str) -> tuple[list[str], str]:
    """The recordings that a line starts or ends with, and the text between them.

    A recording is a file that exists, or a URL, with an audio suffix; it may be quoted, have its spaces escaped, start
    with `~` or `file://`. A line that is nothing but a path or URL is a recording even if nothing is there, so that the
    mistake shows.
    """
    line = line.strip()
    if _is_recording(whole := clean_path(line)):
        return [whole], ""
    words = list(_WORD.finditer(line))
    paths = [clean_path(word.group()) for word in words]
    first, last = 0, len(words)
    while first < last and _is_recording(paths[first]):
        first += 1
    while last > first and _is_recording(paths[last - 1]):
        last -= 1
    if first == last:
        return paths, ""
    if last - first == len(words) and _means_a_path(line):
        return [whole], ""
    return paths[:first] + paths[last:], line[words[first].start() : words[last - 1].end()]


def clean_path(written: str) -> str:
    """A path as terminals and file managers hand it over, without its quotes and escapes."""
    path = written.strip()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = path[1:-1]
    elif os.sep == "/" and not os.path.isfile(path):
        path = re.sub(r"\\(.)", r"\1", path)
    if path.startswith("file://"):
        path = url_path(path)
    return os.path.expanduser(path)


def _is_url(text: str) -> bool:
    return text.startswith(("http://", "https://", "data:audio/"))


def _is_recording(path: str) -> bool:
    if _is_url(path):
        return " " not in path and (path.startswith("data:") or _suffix(url_path(path)) in AUDIO_SUFFIXES)
    return _suffix(path) in AUDIO_SUFFIXES and os.path.isfile(path)


def _means_a_path(line: str) -> bool:
    """Whether a whole line can only be meant as one path or URL."""
    word = _WORD.match(line)
    if word is None or (word.end() < len(line) and not line.startswith(("/", "~/", "./", "../"))):
        return False
    path = clean_path(line)
    return _is_url(path) or _suffix(path) in AUDIO_SUFFIXES or (os.sep in path and os.path.isfile(path))


def _suffix(path: str) -> str:
    return os.path.splitext(path)[1].lower()
