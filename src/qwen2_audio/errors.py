"""Every error a user can cause, in one tree. Each message says what was wrong, what was given and what to do.

    Qwen2AudioError
    ├── UsageError           an argument or option that makes no sense
    ├── AudioError           a recording that cannot be read or heard
    │   ├── TooLongError     one that lasts longer than is allowed
    │   └── TooLargeError    one of more bytes, encoded or decoded, than are allowed
    ├── ConversationError    messages, roles or placeholders that do not fit together
    ├── ContextLengthError   a prompt that does not fit into the model's context
    ├── ServerError          a model's server that cannot be reached, is busy or broke off
    └── CheckpointError      a model that cannot be found, read or written
        └── DownloadError    the network, the hub or the disk got in the way

The command line prints the message on one line and exits with 2; a server maps the same tree to HTTP errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def advice(unknown: str, known: Iterable[str], otherwise: str = "known are") -> str:
    """How a message about an unknown name ends: with the known one that is nearest to it, else with all of them."""
    names = list(known)
    near = difflib.get_close_matches(unknown[:100], names, n=1)  # slow where it is long
    return f"did you mean {near[0]!r}?" if near else f"{otherwise} {', '.join(names)}"


class Qwen2AudioError(Exception):
    """Base of all errors raised on purpose by this package."""


class UsageError(Qwen2AudioError, ValueError):
    """An argument or option that makes no sense."""


class AudioError(Qwen2AudioError, ValueError):
    """A recording that cannot be read, decoded or heard."""


class TooLongError(AudioError):
    """A recording that lasts longer than is allowed."""


class TooLargeError(AudioError):
    """A recording of more bytes, encoded or decoded, than are allowed."""


class ConversationError(Qwen2AudioError, ValueError):
    """Messages, roles or placeholders that do not fit together."""


class ContextLengthError(Qwen2AudioError, ValueError):
    """A prompt that does not fit into the model's context."""


class ServerError(Qwen2AudioError):
    """A model's server that cannot be reached, is too busy, or broke off; the same question may be answered later."""


class CheckpointError(Qwen2AudioError):
    """A model that cannot be found, read or written."""


class DownloadError(CheckpointError):
    """The network, the hub or the disk got in the way of a download."""


class AudioWarning(UserWarning):
    """Something about a recording that the user should know (for instance: it was split into windows)."""
