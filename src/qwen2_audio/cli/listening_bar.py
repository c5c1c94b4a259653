"""One progress bar for all recordings, by seconds of sound."""

from __future__ import annotations

import sys


class ListeningBar:
    """On stderr, if somebody is looking; it must be stopped before something is printed."""

    def __init__(self, files: int, seconds: float) -> None:
        self._started = False
        self._progress = None
        self._files, self._done = files, 0
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                TextColumn("{task.fields[files]}"),
                BarColumn(),
                TextColumn("{task.fields[sound]}"),
                TimeRemainingColumn(),
            )
            self._progress = Progress(
                *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, speed_estimate_period=300
            )
            self._total = seconds
            self._task = self._progress.add_task("", total=seconds, files=self._count, sound="")

    @property
    def _count(self) -> str:
        return f"{self._done} of {self._files} files" if self._files > 1 else "transcribing"

    def start(self) -> None:
        """Show it from now on."""
        self._started = True
        if self._progress:
            self._progress.start()

    def stop(self) -> None:
        """Take it away."""
        if self._progress:
            self._progress.stop()

    def more(self, seconds: float) -> None:
        """There is more sound than was known."""
        if self._progress:
            self._total += seconds
            self._progress.update(self._task, total=self._total)

    def heard(self, seconds: float) -> None:
        """So much more has been heard."""
        if self._progress:
            self._progress.advance(self._task, seconds)
            done = self._progress.tasks[0].completed
            self._progress.update(self._task, sound=f"{_clock(done)} of {_clock(self._total)}")

    def finished(self) -> None:
        """One more recording is done; the bar goes on if it ever began."""
        self._done += 1
        if self._progress:
            self._progress.update(self._task, files=self._count)
            if self._started:
                self._progress.start()


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
