"""What Gradio is told by way of environment variables, as there is no other: no telemetry, no statistics, a private folder."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path


def prepare() -> Path:
    """Set the variables, before Gradio is used; gives the folder for uploads, which only this user can read.

    What the user has set stays. The folder is the caller's to remove.
    """
    folder = tempfile.mkdtemp(prefix="qwen2-audio-page-")
    os.environ["GRADIO_TEMP_DIR"] = folder
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", str(sys.maxsize))  # else a table is made of every event
    return Path(folder)
