"""Kernels that are made ready while the one before them ends (programmatic dependent launch): no gap between short
ones."""

from __future__ import annotations

import torch


def starts_early() -> bool:
    """Whether a kernel can be made ready while the one before it ends (programmatic dependent launch: Hopper and later)."""
    return torch.cuda.is_available() and torch.cuda.get_device_capability() >= (9, 0)


def launch(early: bool) -> dict[str, bool]:
    """How a kernel that waits by itself is launched."""
    return {"launch_pdl": True} if early else {}
