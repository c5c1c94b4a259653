"""What goes to the terminal beside the answers, all of it to stderr: errors, notes, a sign of patience."""

from __future__ import annotations

import errno
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import typer

from qwen2_audio.errors import AudioWarning, Qwen2AudioError

FAILED, INTERRUPTED, PIPE_CLOSED = 2, 130, 141
"""Exit codes: an error of the user's; Ctrl-C and a closed pipe as shells count them."""
PATIENCE_SECONDS = 2.0
_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_PACKAGE = str(Path(__file__).parents[1])


def say(text: str) -> None:
    """A message for the person at the terminal."""
    print(text, file=sys.stderr, flush=True)


def report(error: object) -> None:
    """An error on one line."""
    say(f"error: {' '.join(str(error).split())}")


def note(text: object) -> None:
    """Something that the person should know, on one line."""
    say(f"note: {' '.join(str(text).split())}")


@contextmanager
def tidy_ends() -> Iterator[None]:
    """Run a command: our errors, Ctrl-C and a reader that went away become exit codes, our warnings become notes."""
    try:
        with _warnings_as_notes():
            yield
            print(end="", flush=True)  # a closed pipe shows here, not when Python shuts down
    except Qwen2AudioError as error:
        report(error)
        raise typer.Exit(FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        _drop_output()
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as error:
        if error.errno in _FULL:
            _drop_output()
            report(f"cannot write the output: {error.strerror}; free some space and try again")
        elif error.filename is not None:  # of which nobody has said more
            report(f"cannot use {error.filename}: {error.strerror}; check the path and its permissions")
        else:
            raise
        raise typer.Exit(FAILED) from None
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        report("out of memory; try a smaller model, --dtype bfloat16, shorter recordings, or --device cpu")
        raise typer.Exit(FAILED) from None


def _is_out_of_memory(error: Exception) -> bool:
    """Python's, or torch's, which is not imported here: of a GPU an error of its own, of the CPU a plain RuntimeError."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in str(error)
    )


def _drop_output() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still buffered has nowhere to go


@contextmanager
def _warnings_as_notes() -> Iterator[None]:
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(
            message: Warning | str,
            category: type[Warning],
            filename: str,
            lineno: int,
            file: TextIO | None = None,
            line: str | None = None,
        ) -> None:
            if issubclass(category, AudioWarning) or filename.startswith(_PACKAGE):
                note(message)
            else:
                others(message, category, filename, lineno, file, line)

        warnings.showwarning = show
        warnings.simplefilter("always", AudioWarning)
        yield


@contextmanager
def patience(text: str) -> Iterator[None]:
    """Show `text` and a spinner when what is done inside takes long and somebody is looking."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    status = Console(stderr=True).status(text)
    timer = threading.Timer(PATIENCE_SECONDS, status.start)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()
