"""What Gradio is told by way of environment variables, as there is no other: no telemetry, no statistics, a private folder."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path


def prepare() -> Path:
    """Set the variables, before Gradio is used; gives the folder for uploads, which only this user can read.

    What the user has set stays. The folder is the caller's to remove, who calls `admit_uploads` when the page is made.
    """
    folder = tempfile.mkdtemp(prefix="page-", dir=_root())
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(sys.maxsize))  # else a table is made of every event
    return Path(folder)


def admit_uploads() -> None:
    """Let Gradio take files that were uploaded to any page of this process: it asks the variable anew with each event."""
    os.environ["GRADIO_TEMP_DIR"] = str(_root())


@cache
def _root() -> Path:
    """Where the folders of all pages of this process are; it goes with the process."""
    root = tempfile.mkdtemp(prefix="qwen2-pages-")
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return Path(root)
