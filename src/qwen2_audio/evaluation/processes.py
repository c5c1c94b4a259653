"""Several processes that share an evaluation: which one this is, and how they wait for each other."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta

from qwen2_audio.errors import UsageError

_PATIENCE = timedelta(days=7)
"""How long the quickest process waits for the slowest; a process that dies ends the wait at once."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process, by its number from 0, among `size` of them."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the one that merges, scores and reports."""
        return self.rank == 0

    def wait(self) -> None:
        """Return when all processes have come here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def leave(self) -> None:
        """End the group, where there is one."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


def join_processes() -> Processes:
    """The processes that `accelerate launch` or `torchrun` started, by their environment; else this one alone.

    Raises:
        UsageError: the environment names several processes, but not where they meet.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if size == 1:
        return Processes()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if name not in os.environ:
            raise UsageError(f"WORLD_SIZE is {size} and {name} is not set; start with torchrun or accelerate launch")
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=_PATIENCE)
    return Processes(rank, size)
