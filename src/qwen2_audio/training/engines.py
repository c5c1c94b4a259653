"""Who adds up the gradients and keeps the optimizer: one process, several with a whole model each, several with a share of it
(FSDP2), or DeepSpeed's ZeRO. The trainer sees no difference.

Which one it is, the launcher says: `accelerate launch` (see configs/accelerate/) or `torchrun` set the environment.
Objectives come in as shares of one sum over all processes and packs, so gradients are added, never averaged.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from qwen2_audio.errors import UsageError
from qwen2_audio.model.audio_encoder import EncoderLayer
from qwen2_audio.model.language_model import DecoderLayer

MakeOptimizer = Callable[[nn.Module], Optimizer]
_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
OPTIMIZER = "optimizer.pt"


class Engine(Protocol):
    """What the trainer needs.

    Attributes:
        name: for checkpoints and messages.
        sharded: whether no process has the whole model.
        in_step: whether all processes must run the very same layers in the same order.
    """

    name: str
    sharded: bool
    in_step: bool

    def prepare(self, learner: nn.Module, make_optimizer: MakeOptimizer, clip_norm: float) -> nn.Module:
        """Take over the module whose forward gives the objective; what it returns is called in its place."""

    def set_rates(self, factor: float) -> None:
        """Set every group's learning rate to a share of its peak."""

    def backward(self, objective: Tensor, *, last: bool) -> None:
        """Add the gradients of one pack; `last` is the last of a step."""

    def step(self) -> float:
        """Clip, change the weights, forget the gradients; the norm before clipping. Nothing changes if it is not finite."""

    def whole(self, names: list[str]) -> dict[str, Tensor]:
        """Whole copies of parameters on the CPU, for the first process only; called by all."""

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Put whole tensors back."""

    def save(self, folder: Path) -> None:
        """Write the optimizer's state into a folder that exists; called by all processes."""

    def load(self, folder: Path) -> None:
        """Read what `save` wrote."""


def choose_engine(rank: int) -> Engine:
    """The engine that the launcher's environment asks for."""
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true":
        return DeepSpeedEngine(rank)
    if os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true":
        if os.environ.get("FSDP_VERSION", "1") != "2":
            raise UsageError(
                "FSDP is supported in its second version; set fsdp_version: 2 in accelerate's configuration"
            )
        return FsdpEngine(rank)
    return PlainEngine(rank)


class PlainEngine:
    """The whole model in every process; gradients are added up between them."""

    name = "ddp"
    sharded = in_step = False

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.learner: nn.Module = nn.Identity()
        self.optimizer: Optimizer
        self.clip_norm = 0.0

    def prepare(self, learner: nn.Module, make_optimizer: MakeOptimizer, clip_norm: float) -> nn.Module:
        self.learner, self.clip_norm = learner, clip_norm
        self.optimizer = make_optimizer(learner)
        return learner

    def set_rates(self, factor: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def backward(self, objective: Tensor, *, last: bool) -> None:
        if objective.requires_grad:  # not so where a pack has nothing that learns: written rows and an encoder
            objective.backward()
        if last and dist.is_initialized():
            _add_up_gradients(self.parameters)

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def step(self) -> float:
        for parameter in self.parameters:
            if (
                parameter.grad is None
            ):  # nothing in the step ran through its part; its optimizer's state is kept up all the same
                parameter.grad = torch.zeros_like(parameter)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        if bool(norm.isfinite()):
            self.optimizer.step()
        self.optimizer.zero_grad()
        return float(norm)

    def whole(self, names: list[str]) -> dict[str, Tensor]:
        found = dict(self.learner.named_parameters())
        return {name: found[name].detach().cpu().clone() for name in names} if self.rank == 0 else {}

    def restore(self, tensors: dict[str, Tensor]) -> None:
        set_model_state_dict(self.learner, dict(tensors), options=replace(_WHOLE, strict=False))

    def save(self, folder: Path) -> None:
        state = get_optimizer_state_dict(self.learner, self.optimizer, options=_WHOLE)
        if self.rank == 0:
            torch.save(state, folder / OPTIMIZER)

    def load(self, folder: Path) -> None:
        state = torch.load(folder / OPTIMIZER, weights_only=True, map_location="cpu")
        peaks = [group["peak"] for group in self.optimizer.param_groups]
        set_optimizer_state_dict(self.learner, self.optimizer, state, options=_WHOLE)
        for group, peak in zip(self.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak  # learning rates are the configuration's, which may have changed


def _add_up_gradients(parameters: list[nn.Parameter]) -> None:
    grads = [p.grad if p.grad is not None else torch.zeros_like(p) for p in parameters]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    for parameter, part in zip(parameters, flat.split([g.numel() for g in grads]), strict=True):
        parameter.grad = part.view_as(parameter)


class FsdpEngine(PlainEngine):
    """A share of every layer in each process, gathered while the layer runs (torch's fully_shard)."""

    name = "fsdp2"
    sharded = in_step = True

    def prepare(self, learner: nn.Module, make_optimizer: MakeOptimizer, clip_norm: float) -> nn.Module:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import CPUOffloadPolicy, OffloadPolicy, fully_shard

        device = next(learner.parameters()).device.type
        mesh = init_device_mesh(device, (dist.get_world_size(),))
        offload = os.environ.get("FSDP_OFFLOAD_PARAMS", "").lower() == "true" and device != "cpu"
        policy = CPUOffloadPolicy() if offload else OffloadPolicy()
        reshard = os.environ.get("FSDP_RESHARD_AFTER_FORWARD", "true").lower() == "true"
        for module in list(learner.modules()):
            if isinstance(module, EncoderLayer | DecoderLayer):
                fully_shard(module, mesh=mesh, offload_policy=policy, reshard_after_forward=reshard)
        fully_shard(learner, mesh=mesh, offload_policy=policy)
        return super().prepare(learner, make_optimizer, clip_norm)

    def backward(self, objective: Tensor, *, last: bool) -> None:
        learner: Any = self.learner
        learner.set_requires_gradient_sync(last)
        (objective * dist.get_world_size()).backward()  # it averages, we add

    def save(self, folder: Path) -> None:
        self._reshard()
        super().save(folder)

    def _reshard(self) -> None:
        """A forward without a backward, as in measuring, leaves a module gathered."""
        from torch.distributed.fsdp import FSDPModule

        for module in self.learner.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def whole(self, names: list[str]) -> dict[str, Tensor]:
        self._reshard()
        found: dict[str, Any] = dict(self.learner.named_parameters())
        out = {}
        for name in names:
            tensor = found[name].detach().full_tensor()
            if self.rank == 0:
                out[name] = tensor.cpu()
        return out


class DeepSpeedEngine:
    """DeepSpeed's ZeRO, of the stage that accelerate's configuration names."""

    in_step = True  # gradients are put together in the order in which they come

    def __init__(self, rank: int) -> None:
        try:
            import deepspeed  # noqa: F401
            from accelerate.utils import DeepSpeedPlugin
        except ImportError as error:
            raise UsageError(f"this launch asks for DeepSpeed: pip install deepspeed accelerate ({error})") from None
        plugin = DeepSpeedPlugin()
        self.settings: dict[str, Any] = dict(plugin.deepspeed_config)
        self.stage = int(plugin.zero_stage)
        self.name = f"deepspeed_z{self.stage}"
        self.sharded = self.stage == 3
        self.rank = rank
        self.engine: Any = None

    def prepare(self, learner: nn.Module, make_optimizer: MakeOptimizer, clip_norm: float) -> nn.Module:
        import deepspeed

        zero = {key: value for key, value in self.settings.get("zero_optimization", {}).items() if value != "auto"}
        # convolutions run once a clip, and processes have different numbers of clips: the encoder calls them as functions, for
        # which nothing is gathered, so layers so small are not shared out
        convolutions = [p for m in learner.modules() if isinstance(m, nn.Conv1d) for p in m.parameters()]
        zero["stage3_param_persistence_threshold"] = max(p.numel() for p in convolutions) + 1
        settings = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": clip_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
        }
        with contextlib.redirect_stdout(sys.stderr):
            self.engine, *_ = deepspeed.initialize(
                model=learner, optimizer=make_optimizer(learner), config=settings, dist_init_required=False
            )
        return self.engine

    def set_rates(self, factor: float) -> None:
        for group in self.engine.optimizer.param_groups:
            group["lr"] = group["peak"] * factor

    def backward(self, objective: Tensor, *, last: bool) -> None:
        self.engine.set_gradient_accumulation_boundary(is_boundary=last)
        self.engine.backward(objective * dist.get_world_size())  # it averages, we add

    def step(self) -> float:
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def whole(self, names: list[str]) -> dict[str, Tensor]:
        import deepspeed

        found = dict(self.engine.module.named_parameters())
        out = {}
        for name in names:
            with deepspeed.zero.GatheredParameters([found[name]], enabled=self.stage == 3):
                if self.rank == 0:
                    out[name] = found[name].detach().cpu().clone()
        return out

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """`load` does it: DeepSpeed keeps the weights with its optimizer."""

    def save(self, folder: Path) -> None:
        self.engine.save_checkpoint(str(folder), tag="deepspeed", exclude_frozen_parameters=True)

    def load(self, folder: Path) -> None:
        peaks = [group["peak"] for group in self.engine.optimizer.param_groups]
        self.engine.load_checkpoint(str(folder), tag="deepspeed", load_module_strict=False)
        for group, peak in zip(self.engine.optimizer.param_groups, peaks, strict=True):
            group["peak"] = peak
