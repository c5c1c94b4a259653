"""A frozen encoder's outputs, kept on disk: each recording is encoded once in a run of many repetitions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from qwen2_audio.model.audio_encoder import AudioEncoder
from qwen2_audio.processing.mel import Clip
from qwen2_audio.training.checkpointing import writing


class FeatureCache:
    """Audio states by the content of the clip and of the encoder's weights, and by the precision of products; a changed encoder
    finds nothing."""

    def __init__(self, folder: Path, encoder: AudioEncoder) -> None:
        kind = next(encoder.parameters()).device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else torch.float32
        weights = hashlib.sha256(str(dtype).encode())
        for name, tensor in encoder.state_dict().items():
            weights.update(name.encode())
            weights.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        self.folder = folder / weights.hexdigest()[:16]
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def encode(self, encoder: AudioEncoder, clips: Sequence[Clip], device: torch.device) -> Tensor:
        """What `encoder` gives for the clips, [audio_tokens, d_model]; what is not kept yet is computed and kept."""
        paths = [self._path(clip) for clip in clips]
        kept = {path: load_file(path)["states"] for path in set(paths) if path.exists()}
        new = {path: clip for path, clip in zip(paths, clips, strict=True) if path not in kept}
        if new:
            mels, frames = [clip.mel.to(device) for clip in new.values()], [clip.frames for clip in new.values()]
            states = encoder(mels, frames).split([clip.tokens for clip in new.values()])
            for path, state in zip(new, states, strict=True):
                kept[path] = state.float().cpu().contiguous()
                part = path.with_suffix(f".{os.getpid()}.part")
                with writing(path):
                    save_file({"states": kept[path].clone()}, part)
                    part.replace(path)
        return torch.cat([kept[path] for path in paths]).to(device)

    def _path(self, clip: Clip) -> Path:
        content = hashlib.sha256(clip.mel.contiguous().numpy().tobytes() + str(clip.frames).encode())
        return self.folder / f"{content.hexdigest()[:32]}.safetensors"
