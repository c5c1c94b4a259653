"""The training loop: packs in, gradients out, stoppable and resumable at any step, on one process or many.

Several processes are started by `accelerate launch` or `torchrun`; each takes its own share of the data. Every pack's loss is
a sum, divided once by what the whole step counts on all processes, so that every target weighs the same however the step
was cut into packs and processes.
"""

from __future__ import annotations

import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from qwen2_audio.checkpoints.adapter import write_adapter
from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.checkpoints.load import load_config, load_model
from qwen2_audio.checkpoints.merge import read_trained
from qwen2_audio.checkpoints.sample import sample_of
from qwen2_audio.config import HOP_LENGTH, SAMPLE_RATE
from qwen2_audio.errors import CheckpointError, Qwen2AudioError, UsageError
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import load_processor
from qwen2_audio.runtime import has_native_bfloat16
from qwen2_audio.training.checkpointing import (
    ADAPTER,
    BEST,
    RESULT,
    STATE,
    WEIGHTS,
    Checkpoints,
    content_of,
    plain,
    read_state,
    reading,
    save_trained,
    writing,
)
from qwen2_audio.training.collate import Pack, pack_by_tokens
from qwen2_audio.training.config import TrainConfig
from qwen2_audio.training.engines import choose_engine
from qwen2_audio.training.groups import choose_what_learns, exported, names_of_trained, optimizer_groups, start_from
from qwen2_audio.training.learner import Learner
from qwen2_audio.training.losses import head_pieces
from qwen2_audio.training.memory import multiply_in_bfloat16, recompute_layers
from qwen2_audio.training.processes import device_of_process, join_world
from qwen2_audio.training.quantize import quantize_frozen
from qwen2_audio.training.schedule import rate_factor
from qwen2_audio.training.signals import stop_signals
from qwen2_audio.training.stages import Shown, make_stage
from qwen2_audio.training.tracking import Tracking, open_trackers
from qwen2_audio.training.validation import LOWER_IS_BETTER, Validation

_ALONE = {
    "feature_cache": "lets processes skip layers that they share in this launch",
    "distil": "runs layers that processes share for some rows only",
    "quantize": "keeps weights in a form that processes cannot share",
}
"""What does not go together with layers that are shared, and why."""


def train(config: TrainConfig, say: Callable[[str], None] = print) -> Path:
    """Run or resume a training run; returns the file with what was trained (see `checkpoints.merge.merge_trained`)."""
    try:
        result = Trainer(config, say).run()
        if dist.is_initialized():
            dist.barrier()  # nobody hangs up while others still talk
        return result
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class Trainer:
    """One run. `step` is the number of finished optimizer steps, `seconds` the training time spent."""

    def __init__(self, config: TrainConfig, say: Callable[[str], None], model: Qwen2Audio | None = None) -> None:
        """Args: model: in place of what is in the folder `config.model`, in float32 on the device."""
        self.config = config
        self.rank, self.world = join_world(config.device)
        self.say = say if self.rank == 0 else lambda _: None
        torch.manual_seed(config.seed)
        self.out = Path(config.out)
        self.checkpoints = Checkpoints(self.out, config.keep)
        self.checkpoints.check_place(config)
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        folder = find_checkpoint(config.model)
        self.device = device_of_process(config.device, self.world)
        self.engine = choose_engine(self.rank)
        for name, why in _ALONE.items():
            if getattr(config, name) and self.engine.in_step:
                raise UsageError(f"{name} {why}; launch with ddp, or leave it out")
        self.model = model or load_model(folder, device=self.device)
        self.sample = sample_of(self.model.state_dict())
        choose_what_learns(self.model, config)
        started = start_from(self.model, Path(config.start)) if config.start else []
        self.start = content_of(config.start)  # as it was read; it may be rewritten while this run goes on
        if config.recompute:
            recompute_layers(self.model)
        native = config.precision == "auto" and has_native_bfloat16(self.device)
        self.bfloat16 = config.precision == "bfloat16" or native
        if config.quantize:
            quantize_frozen(self.model, self.device)
        elif self.bfloat16 and not self.engine.in_step:
            multiply_in_bfloat16(self.model, started)
        self.learns = list(dict.fromkeys([*names_of_trained(self.model), *started]))
        processor = load_processor(folder, load_config(folder))
        with self._autocast():
            self.stage = make_stage(config, self.model, processor, self.say)
            self.validation = Validation(config, self.model, processor) if config.evaluation.data else None
        learner = Learner(self.model, bfloat16=self.bfloat16, device=self.device, everywhere=self.engine.in_step)
        self.learner = self.engine.prepare(learner, self._optimizer, config.clip_norm)
        self.asked_to_stop = False
        self.step, self.seconds, self.cursor, self.best = 0, 0.0, self.rank, float("nan")
        self.saved = 0
        self._resume()
        mine = config.trackers if self.rank == 0 else ()
        trackers = open_trackers(mine, self.out, plain(asdict(config)), say, self.step + 1)
        with writing(self.out):
            self.tracking = Tracking(self.out, trackers, self.say, active=self.rank == 0)
            self.tracking.forget_after(self.step or -1)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16)

    def _optimizer(self, learner: Any) -> torch.optim.Optimizer:
        groups = optimizer_groups(learner.model, self.config)
        fused = not self.engine.in_step
        return torch.optim.AdamW(groups, betas=(0.9, 0.98), weight_decay=self.config.weight_decay, fused=fused)

    def run(self) -> Path:
        """Train to the end of the schedule, or until told to stop (SIGTERM, Ctrl-C): then a checkpoint is written first.

        Raises:
            UsageError: the loss is no number any more; the last checkpoint stays.
            KeyboardInterrupt: it was stopped.
        """
        try:
            with stop_signals(self._stop):
                self._train()
        finally:
            self.tracking.close()
        result = self.out / RESULT
        trained = self._trained()
        if self.rank == 0:
            save_trained(result, exported(self.model, trained), self.sample)
            self._write_adapter(result)
        return result

    def _stop(self) -> None:
        self.asked_to_stop = True

    def _train(self) -> None:
        packs = self._packs()
        if self.validation and self.step == 0:
            self._evaluate(self.validation)
        while self.progress < 1:
            first = self.cursor
            started = time.monotonic()
            row = self._one_step(self._next(packs))
            if row is None:
                places = "; ".join(self.stage.dataset.places(range(first, self.cursor, self.world)))
                raise UsageError(
                    f"the loss is no number any more at step {self.step + 1} (this process read {places}); lower the "
                    "learning rates, and run again to go on from the last checkpoint"
                )
            took, stopping = self._agree(time.monotonic() - started)
            self.seconds += took
            self.step += 1
            row = {"step": self.step, **row, "took": round(took, 4), "seconds": round(self.seconds, 1)}
            self.tracking.step(row, self.progress, self.seconds * (1 / max(self.progress, 1e-9) - 1))
            if self.validation and (self.step % self.config.evaluation.every == 0 or self.progress >= 1):
                self._evaluate(self.validation)
            if stopping or self.step % self.config.save_every == 0 or self.progress >= 1:
                self._save()
            if stopping:
                self.say(f"stopped after step {self.step}, saved; run it again to go on")
                raise KeyboardInterrupt

    def _next(self, packs: Iterator[Pack]) -> list[Pack]:
        """What the next step learns from. Where a row cannot be used, in any process, what was learnt is saved first."""
        first, problem, found = self.cursor, None, []
        try:
            found = list(islice(packs, self.config.accumulate))
        except Qwen2AudioError as error:
            problem = error
        if not float(self._all(torch.tensor([float(problem is not None)], dtype=torch.float64))[0]):
            return found
        self.cursor = first
        if self.step and self.step != self.saved:
            self._save()
        raise problem or UsageError("another process cannot use a row of its own, and says which")

    def _agree(self, took: float) -> tuple[float, bool]:
        """The clock steers the schedule, and a signal may reach one process first: all go by the greatest of either."""
        both = self._all(torch.tensor([took, float(self.asked_to_stop)], dtype=torch.float64), dist.ReduceOp.MAX)
        return float(both[0]), bool(both[1])

    def _all(self, numbers: Tensor, op: Any = dist.ReduceOp.SUM) -> Tensor:
        """Numbers put together over all processes."""
        if self.world == 1:
            return numbers
        numbers = numbers.to(self.device)
        dist.all_reduce(numbers, op)
        return numbers.cpu()

    @property
    def progress(self) -> float:
        """Share of the schedule that is done, 0 to 1."""
        if self.config.minutes:
            return min(self.seconds / 60 / self.config.minutes, 1.0)
        return min(self.step / self.config.steps, 1.0)

    def _items(self) -> Iterator[Any]:
        """The items of this process from `cursor` on, which always points at the next one to be used."""
        # beside a GPU, threads of their own for each of these threads would only keep the launching of kernels waiting
        alone = partial(torch.set_num_threads, 1) if self.device.type == "cuda" else None
        with ThreadPoolExecutor(max(self.config.workers, 1), initializer=alone) as pool:
            ahead: deque[Future[Any]] = deque()
            nearest = self.cursor
            while True:
                while len(ahead) < 4 * self.config.workers:
                    ahead.append(pool.submit(self.stage.item, nearest))
                    nearest += self.world
                yield ahead.popleft().result() if ahead else self.stage.item(self.cursor)
                self.cursor += self.world

    def _packs(self) -> Iterator[Pack]:
        groups = pack_by_tokens(self._items(), self.config.batch_tokens, self.stage.size)
        return (self.stage.pack(group) for group in groups)

    def _one_step(self, packs: list[Pack]) -> dict[str, float] | None:
        """One optimizer step; what it showed, or None when loss or gradients are no numbers (then nothing was changed)."""
        self.engine.set_rates(rate_factor(self.config.schedule, self.progress, self.config.warmup))
        audio = sum(clip.frames for pack in packs for clip in pack.clips) * HOP_LENGTH / SAMPLE_RATE
        sizes = [sum(self.stage.count(pack) for pack in packs), sum(len(pack.ids) for pack in packs), audio]
        count, tokens, audio = self._all(torch.tensor(sizes, dtype=torch.float64)).tolist()
        shown: dict[str, list[float]] = {}
        for number, pack in enumerate(packs, 1):
            objective, of_pack = self.learner(self.stage, self._agreed(pack), 1 / count if count else 1.0)
            self.engine.backward(objective, last=number == len(packs))
            _add(shown, of_pack)
        sums = self._all(torch.tensor([value for pair in shown.values() for value in pair], dtype=torch.float64))
        norm = self.engine.step() if bool(sums.isfinite().all()) else float("nan")
        if norm != norm or norm == float("inf"):
            return None
        means = {name: float(sums[2 * i]) / (float(sums[2 * i + 1]) or 1.0) for i, name in enumerate(shown)}
        rounded = {name: round(mean, 6) for name, mean in means.items()}
        totals = {"targets": int(count), "tokens": int(tokens), "audio_seconds": round(audio, 2)}
        return {**rounded, "gradient_norm": round(norm, 5), **totals}

    def _agreed(self, pack: Pack) -> Pack:
        """Processes that share layers must run the head equally often."""
        if not self.engine.in_step:
            return pack
        most = self._all(torch.tensor([float(head_pieces(pack))]), dist.ReduceOp.MAX)
        return replace(pack, pieces=int(most[0]))

    def _evaluate(self, validation: Validation) -> None:
        found = validation.losses(self.learner, self._agreed, self.rank, self.world, self._all)
        if self.engine.sharded and validation.settings.metric != "loss":
            self.say("answers are not generated while the model is shared between processes; only the loss is measured")
        elif self.rank == 0:
            with self._autocast():
                found |= validation.answers(self.model)
        if self.world > 1 and not self.engine.sharded:
            dist.barrier()  # the others wait while the first generates
        self.tracking.evaluation({"step": self.step, **{name: round(value, 6) for name, value in found.items()}})
        metric = validation.settings.metric if f"eval_{validation.settings.metric}" in found else "loss"
        value = found[f"eval_{metric}" if f"eval_{metric}" in found else "eval_spoken"]  # where no text is learnt
        better = self.best != self.best or (value < self.best if LOWER_IS_BETTER[metric] else value > self.best)
        mine = float(better and self.rank == 0)  # only the first knows the answers' metric
        if bool(self._all(torch.tensor([mine]), dist.ReduceOp.MAX)[0]):
            self.best = value
            trained = self._trained()
            if self.rank == 0:
                save_trained(self.out / BEST, exported(self.model, trained), self.sample)

    def _trained(self) -> dict[str, Tensor]:
        """What learns, whole, by published names."""
        whole = self.engine.whole([f"model.{name}" for name in self.learns])
        return {name.removeprefix("model."): tensor for name, tensor in whole.items()}

    def _write_adapter(self, result: Path) -> None:
        found = read_trained(result)
        shutil.rmtree(self.out / ADAPTER, ignore_errors=True)  # of the same run, before it was gone on with
        try:
            write_adapter(self.out / ADAPTER, found.whole, found.corrections, self.config.model, self.sample)
        except CheckpointError as error:
            self.say(f"no adapter was written: {error}")

    def _save(self) -> None:
        """Write a checkpoint beside and rename it; all processes take part."""
        cursors = self._gather([self.cursor])
        states = self._gather([torch.get_rng_state()])
        if self.rank == 0:
            self.checkpoints.begin(self.step)
        self._barrier()
        part = self.checkpoints.part(self.step)
        with writing(part):
            self.engine.save(part)
            trained = self._trained()
            if self.rank == 0:
                torch.save(trained, part / WEIGHTS)
                state = {"config": plain(asdict(self.config)), "step": self.step, "seconds": self.seconds}
                state |= {"best": self.best, "engine": self.engine.name, "rows": len(self.stage.dataset)}
                state |= {"cursors": cursors, "random": states, "sample": self.sample}
                state |= {"start": self.start}
                torch.save(state, part / STATE)
        self._barrier()
        if self.rank == 0:
            self.checkpoints.finish(self.step)
        self.saved = self.step
        self._barrier()

    def _gather(self, mine: list[Any]) -> list[Any]:
        if self.world == 1:
            return mine
        every: list[Any] = [None] * self.world
        dist.all_gather_object(every, mine)
        return [value for part in every for value in part]

    def _barrier(self) -> None:
        if self.world > 1:
            dist.barrier()

    def _resume(self) -> None:
        finished = self.checkpoints.finished()
        folder = finished[-1] if finished else None
        seen = set(self._gather([folder.name if folder else "no checkpoint"]))
        if len(seen) > 1:
            raise UsageError(
                f"processes find different checkpoints in {self.out} ({', '.join(seen)}); it must be a shared folder"
            )
        if folder is None:
            return
        state, rows = read_state(folder, self.config, self.sample), len(self.stage.dataset)
        if state.get("rows", rows) != rows:
            raise UsageError(
                f"the data has {rows} rows, and had {state['rows']} when the run in {self.out} began; put the rows back "
                "(mend a bad one in its line), or give another out"
            )
        cursors = state["cursors"]
        as_before = state["engine"] == self.engine.name and len(cursors) == self.world
        if "deepspeed" in (state["engine"] + self.engine.name) and not as_before:
            raise UsageError(
                f"the run in {self.out} was launched with {state['engine']} on {len(cursors)} processes, now it is "
                f"{self.engine.name} on {self.world}; DeepSpeed's checkpoints are gone on with as they were begun"
            )
        with reading(folder):
            weights = torch.load(folder / WEIGHTS, weights_only=True, map_location="cpu")
            self.engine.restore({f"model.{name}": tensor for name, tensor in weights.items()})
            self.engine.load(folder)
        self.step, self.seconds = state["step"], state["seconds"]
        self.saved = self.step
        measures_alike = self.config.evaluation.metric == "loss" or state["engine"] == self.engine.name
        if measures_alike and {**state["config"]["evaluation"], "every": 0} == {
            **plain(asdict(self.config.evaluation)),
            "every": 0,
        }:
            self.best = state["best"]
        if len(cursors) == self.world:
            self.cursor = cursors[self.rank]
            torch.set_rng_state(state["random"][self.rank])
        else:
            self.cursor = max(cursors) + self.rank
            self.say(f"the run had {len(cursors)} processes and now has {self.world}; a few rows may be skipped")
        self.say(f"resumed at step {self.step}")


def _add(shown: dict[str, list[float]], more: Shown) -> None:
    for name, (total, count) in more.items():
        both = shown.setdefault(name, [0.0, 0.0])
        both[0] += total
        both[1] += count
