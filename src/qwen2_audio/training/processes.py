"""The processes that train together: who this one is, and the device that it computes on."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

from qwen2_audio.runtime import choose_runtime

_PATIENCE = timedelta(hours=6)
"""For the first process, which alone writes checkpoints and answers what is measured."""


def join_world(device: str) -> tuple[int, int]:
    """Join the processes that the launcher started; this one's number and how many there are (0 and 1 without a launcher)."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if "RANK" in os.environ and not dist.is_initialized():
        on_gpu = torch.cuda.is_available() and device != "cpu"
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", timeout=_PATIENCE)
    return int(os.environ.get("RANK", "0")), world


def device_of_process(name: str, world: int) -> torch.device:
    """The device of this name; of several processes on one machine with GPUs each takes its own."""
    if world > 1 and torch.cuda.is_available() and name.partition(":")[0] in ("auto", "cuda"):
        own = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(own)  # before anything else makes a context on the first one
        return own
    return choose_runtime(name).device
