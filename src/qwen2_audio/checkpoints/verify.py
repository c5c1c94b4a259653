"""Looking again at what a merge wrote: W' - W = s * B A where something was trained, and everything else as it was."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from qwen2_audio.checkpoints.load import EMBEDDING, HEAD, load_config, weight_files
from qwen2_audio.checkpoints.merge import Trained, other_model, read_changes
from qwen2_audio.checkpoints.names import canonical
from qwen2_audio.checkpoints.sample import differs
from qwen2_audio.errors import CheckpointError


def verify_merged(base: Path, merged: Path, path: Path) -> int:
    """Compare two checkpoint folders on the disk, one tensor at a time.

    Args:
        path: what was merged; see `merge.merge_trained`.

    Returns:
        how many tensors differ from those of the base in the dtype that was written.

    Raises:
        CheckpointError: one is not what it should be, up to rounding.
    """
    trained, written, before = read_changes(path), _Tensors(merged), _Tensors(base)
    tied = load_config(base).text.tie_word_embeddings and {EMBEDDING, HEAD} <= before.files.keys()
    # a head of its own wins over the setting, see `load_model`
    tied = tied and torch.equal(before.read(EMBEDDING), before.read(HEAD))
    changed = 0
    for name, old in before:
        if name not in written.files:  # the head of a model that shares it with its embeddings
            continue
        new = written.read(name)
        wanted, source = old, EMBEDDING if tied and name == HEAD else name
        if name in trained.corrections:
            wanted = trained.corrections[name].apply(old)
        elif source in trained.whole:
            wanted = trained.whole[source]
        rounding = torch.finfo(new.dtype).eps if wanted is not old else 0.0
        if not torch.allclose(new.float(), wanted.to(new.dtype).float(), rtol=rounding, atol=rounding * 1e-3):
            raise CheckpointError(f"the merged checkpoint has another {name} than it should; merge again")
        changed += not torch.equal(new, old.to(new.dtype))
    return changed


def check_base(base: Path, path: Path, trained: Trained) -> None:
    """Raise `CheckpointError` where what was trained was trained on another model than the one in a checkpoint folder."""
    before, kept = _Tensors(base), json.loads(trained.sample or "{}")
    there = {name: before.read(name) for name in kept if name in before.files and name not in trained.whole}
    if other := differs(there, trained.sample or "{}"):
        raise other_model(path, other)


class _Tensors:
    """The tensors of a checkpoint folder by their published names; read when asked for."""

    def __init__(self, folder: Path) -> None:
        self.files: dict[str, tuple[Path, str]] = {}
        for file in weight_files(folder):
            with safe_open(file, framework="pt") as weights:
                names = {canonical(name): name for name in weights.keys()}  # noqa: SIM118
            self.files |= {published: (file, name) for published, name in names.items() if published is not None}

    def read(self, name: str) -> Tensor:
        file, own = self.files[name]
        with safe_open(file, framework="pt") as weights:
            tensor: Tensor = weights.get_tensor(own)
        return tensor

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, self.read(name)) for name in self.files)
