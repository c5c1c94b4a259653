"""The training loop: packs in, gradients out, stoppable and resumable at any step, on one process or several.

Several processes are started by `torchrun`; each takes its own share of the data, and gradients are added up before they
are divided by the number of targets of the whole step, so that every target counts the same.
"""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.checkpoints.load import load_config, load_model
from qwen2_audio.errors import UsageError
from qwen2_audio.processing.processor import load_processor
from qwen2_audio.runtime import choose_runtime, has_native_bfloat16
from qwen2_audio.training.collate import Pack, pack_by_tokens
from qwen2_audio.training.config import TrainConfig
from qwen2_audio.training.lora import LoraLinear, add_lora, is_lora, trained_state
from qwen2_audio.training.memory import recompute_layers
from qwen2_audio.training.signals import stop_signals
from qwen2_audio.training.stages import make_stage

STATE, RESULT, LOG = "state.pt", "trained.safetensors", "log.jsonl"
MAY_CHANGE = frozenset(
    "steps minutes save_every recompute workers device out resume learning_rate lora_learning_rate".split()
)
"""What a resumed run may set anew; anything else would make it another run."""


def train(config: TrainConfig, say: Callable[[str], None] = print) -> Path:
    """Run or resume a training run; returns the file with what was trained (see `checkpoints.merge.merge_trained`)."""
    return Trainer(config, say).run()


class Trainer:
    """One run. `step` is the number of finished optimizer steps, `seconds` the training time spent."""

    def __init__(self, config: TrainConfig, say: Callable[[str], None]) -> None:
        self.config, self.say = config, say
        self.rank, self.world = _join_world()
        torch.manual_seed(config.seed)
        self.out = Path(config.out)
        self.out.mkdir(parents=True, exist_ok=True)
        folder = find_checkpoint(config.model)
        self.device = choose_runtime(config.device).device
        if self.device.type == "cuda" and self.world > 1:
            self.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        native = has_native_bfloat16(self.device)
        self.bfloat16 = config.precision == "bfloat16" or (config.precision == "auto" and native)
        self.model = load_model(folder, device=self.device)
        if config.start:
            self._start_from(Path(config.start))
        if config.lora:
            add_lora(self.model, config.lora, config.lora_rank, config.lora_scale)
        if config.recompute:
            recompute_layers(self.model)
        if self.bfloat16:  # once, not at every product
            for module in self.model.modules():
                if isinstance(module, LoraLinear):
                    module.base.bfloat16()
        for name, parameter in self.model.named_parameters():
            if re.fullmatch(config.train, name):
                parameter.requires_grad_(True)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        if not self.parameters:
            raise UsageError(f"nothing to train: neither train={config.train!r} nor lora={config.lora!r} matches")
        self.optimizer = _optimizer(self.model, config)
        self.stage = make_stage(config, self.model, load_processor(folder, load_config(folder)), say)
        self.asked_to_stop = False
        self.step, self.seconds, self.cursor = 0, 0.0, self.rank
        self._resume()

    def _start_from(self, path: Path) -> None:
        try:
            unknown = self.model.load_state_dict(load_file(path), strict=False).unexpected_keys
        except (OSError, SafetensorError, RuntimeError) as error:
            raise UsageError(f"cannot start from {path}: {error}") from error
        if unknown:
            raise UsageError(f"{path} holds tensors that the model does not have: {', '.join(unknown[:5])}")

    def run(self) -> Path:
        """Train to the end of the schedule, or until told to stop (SIGTERM, Ctrl-C): then the state is saved first.

        Raises:
            UsageError: the loss is no number any more; the last saved state stays.
            KeyboardInterrupt: it was stopped.
        """
        with stop_signals(self._stop):
            self._train()
        result = self.out / RESULT
        if self.rank == 0:
            trained = {name: tensor.cpu() for name, tensor in trained_state(self.model).items()}
            state = {name: t.half() if is_lora(name) else t for name, t in trained.items()}
            save_file(state, result, metadata={"lora_scale": str(self.config.lora_scale)})
        return result

    def _stop(self) -> None:
        self.asked_to_stop = True

    def _train(self) -> None:
        batches = self._batches()
        while self.progress < 1:
            first = self.cursor
            started = time.monotonic()
            row = self._one_step(next(batches))
            if row is None:
                lines = self.stage.dataset.lines(range(first, self.cursor, self.world))
                raise UsageError(
                    f"the loss is no number any more at step {self.step + 1} (this process read the lines {lines} of "
                    f"{self.config.data}); lower the learning rates, and run again to go on from the last saved state"
                )
            took, stopping = self._agree(time.monotonic() - started)
            self.seconds += took
            self.step += 1
            if self.rank == 0:
                self._log({"step": self.step, **row, "seconds": round(self.seconds, 1), "row": self.cursor})
            if stopping or self.step % self.config.save_every == 0:
                self._save()
            if stopping:
                self.say(f"stopped after step {self.step}, saved; run it again to go on")
                raise KeyboardInterrupt
        self._save()

    def _agree(self, took: float) -> tuple[float, bool]:
        """The clock steers the schedule, and a signal may reach one process first: all go by the greatest of either."""
        both = torch.tensor([took, float(self.asked_to_stop)], device=self.device)
        if self.world > 1:
            dist.all_reduce(both, dist.ReduceOp.MAX)
        return float(both[0]), bool(both[1])

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, 0 to 1."""
        if self.config.minutes:
            return min(self.seconds / 60 / self.config.minutes, 1.0)
        return min(self.step / self.config.steps, 1.0)

    def _items(self) -> Iterator[Any]:
        """The items of this process from `cursor` on, which always points at the next one to be used."""
        with ThreadPoolExecutor(max(self.config.workers, 1)) as pool:
            ahead: deque[Future[Any]] = deque()
            nearest = self.cursor
            while True:
                while len(ahead) < 4 * self.config.workers:
                    ahead.append(pool.submit(self.stage.item, nearest))
                    nearest += self.world
                yield ahead.popleft().result() if ahead else self.stage.item(self.cursor)
                self.cursor += self.world

    def _batches(self) -> Iterator[Pack]:
        groups = pack_by_tokens(self._items(), self.config.batch_tokens, self.stage.size)
        return (self.stage.pack(group) for group in groups)

    def _one_step(self, batch: Pack) -> dict[str, float] | None:
        """One optimizer step; what it showed, or None when loss or gradients are no numbers (then nothing was changed)."""
        factor = _schedule(self.progress, self.config.warmup)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            sums = self.stage.sums(self.model, batch)
        sums.objective.backward()
        numbers = [float(sums.objective.detach()), sums.count, len(batch.ids), *chain(*sums.shown.values())]
        totals = torch.tensor(numbers, device=self.device, dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(totals)
            self._add_up_gradients()
        if not bool(totals.isfinite().all()):
            return None
        _, count, tokens, *shown = totals.tolist()
        for parameter in self.parameters:
            if parameter.grad is not None:
                parameter.grad /= count
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.clip_norm)
        if not bool(norm.isfinite()):
            return None
        self.optimizer.step()
        means = [total / max(number, 1) for total, number in zip(shown[0::2], shown[1::2], strict=True)]
        row = {name: round(mean, 4) for name, mean in zip(sums.shown, means, strict=True)}
        return row | {"targets": int(count), "tokens": int(tokens)}

    def _add_up_gradients(self) -> None:
        grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in self.parameters]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        for parameter, part in zip(self.parameters, flat.split([g.numel() for g in grads]), strict=True):
            parameter.grad = part.view_as(parameter)

    def _log(self, row: dict[str, Any]) -> None:
        with (self.out / LOG).open("a") as log:
            log.write(json.dumps(row) + "\n")
        if self.step % 10 == 0 or self.step == 1:
            self.say(" ".join(f"{key} {value}" for key, value in row.items()) + f" progress {self.progress:.1%}")

    def _save(self) -> None:
        """Keep the state beside the log, by renaming a finished file; one a process, since each reads its own rows."""
        state = {
            "config": asdict(self.config),
            "step": self.step,
            "seconds": self.seconds,
            "cursor": self.cursor,
            "trained": trained_state(self.model),
            "optimizer": self.optimizer.state_dict(),
        }
        path = self._state_path()
        part = path.with_suffix(".part")
        torch.save(state, part)
        part.rename(path)

    def _resume(self) -> None:
        path = self._state_path()
        if not path.exists():
            return
        if self.config.resume == "never":
            raise UsageError(f"{self.out} holds a run already; give another out, or resume=auto to go on with it")
        state = torch.load(path, weights_only=True, map_location=self.device)
        now = asdict(self.config)
        for key, value in state["config"].items():
            if key not in MAY_CHANGE and now[key] != value:
                raise UsageError(
                    f"the run in {self.out} was started with {key}={value!r}, not {now[key]!r}; "
                    "go on with that, or give another out"
                )
        self.model.load_state_dict(state["trained"], strict=False)
        peaks = [group["peak"] for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak  # learning rates are the configuration's, which may have changed
        self.step, self.seconds, self.cursor = state["step"], state["seconds"], state["cursor"]
        self.say(f"resumed at step {self.step}")

    def _state_path(self) -> Path:
        return self.out / (STATE if self.rank == 0 else f"{STATE}.{self.rank}")


def _join_world() -> tuple[int, int]:
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return int(os.environ.get("RANK", "0")), world


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    lora = [p for name, p in named if is_lora(name)]
    whole = [p for name, p in named if not is_lora(name)]
    groups = [(lora, config.lora_learning_rate), (whole, config.learning_rate)]
    settings = [{"params": params, "lr": 0.0, "peak": rate} for params, rate in groups if params]
    return torch.optim.AdamW(settings, betas=(0.9, 0.98), weight_decay=config.weight_decay, fused=True)


def _schedule(progress: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine down to 2 %."""
    if progress < warmup:
        return max(progress / warmup, 0.02)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
