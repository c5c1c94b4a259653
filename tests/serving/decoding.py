"""What decoders leave on the disk while they live."""

from __future__ import annotations

import tempfile
from pathlib import Path


def folders_of_decoders() -> set[Path]:
    """Those of all decoders of this machine."""
    return set(Path(tempfile.gettempdir()).glob("qwen2-audio-*"))
