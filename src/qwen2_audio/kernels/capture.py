"""Work on a GPU as a captured graph: one launch instead of many. What a graph gives is on trial at first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

TRIALS = 2
"""So often what comes out of a graph is compared with what the plain layers give, which is what counts then."""
_TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.03, torch.bfloat16: 0.1}
"""Between both, which add up in another order: root mean square of the difference of a row, of that of the row itself."""


class Replay(Protocol):
    """What was captured."""

    def replay(self) -> None: ...


Capture = Callable[[Callable[[], object]], Replay]
"""Runs a function so that all it does to the device can be repeated."""


def cuda_capture(device: torch.device) -> Capture:
    """Captures on a GPU. All graphs of one such function share memory: what one gives is to be copied before another runs."""
    pool = torch.cuda.graph_pool_handle()
    side = torch.cuda.Stream(device)

    def capture(run: Callable[[], object]) -> Replay:
        current = torch.cuda.current_stream(device)
        with torch.cuda.device(device), torch.cuda.stream(current):  # which is in use again whatever fails
            side.wait_stream(current)
            try:
                with torch.cuda.stream(side):
                    run()  # what libraries set up at their first call must not be captured
            finally:
                current.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                run()
        return graph

    return capture


def difference(found: Tensor, plain: Tensor) -> float | None:
    """How many times more than it may what was found differs from what the plain layers gave; None: these gave no numbers, or
    nothing."""
    if not plain.numel() or not bool(plain.isfinite().all()):
        return None
    far = (found - plain).float().norm(dim=-1) / plain.float().norm(dim=-1)
    return float(far.nan_to_num(torch.inf).max()) / _TOLERANCE[plain.dtype]
