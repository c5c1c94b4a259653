"""Decode steps by compiled code, attached to a language model that lies on a CPU in float32 or int8."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib.util import find_spec
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from qwen2_audio.checkpoints.quantize import Int8Linear
from qwen2_audio.kernels.encoder_graphs import attach_encoder_graphs
from qwen2_audio.kernels.graphs import attach_graphs
from qwen2_audio.kernels.packing import align_linears, join_linears, pack_linears
from qwen2_audio.model.kv_cache import Cache, KVCache
from qwen2_audio.model.language_model import DecoderLayer, LanguageModel, rotary_angles
from qwen2_audio.model.linear import Linear, project
from qwen2_audio.model.qwen2_audio import Qwen2Audio

if TYPE_CHECKING:
    from types import ModuleType

_LOG = logging.getLogger("qwen2_audio.kernels")
_WITHOUT = "answers come more slowly, because numba does not work here: %s"
Array: TypeAlias = NDArray[np.float32]

MOST_ROWS = 64
"""With more sequences at once a step is arithmetic, and left to torch."""
_FEW_ROWS = 4
"""So many are multiplied while the weights are read once; with more, float32 goes in tiles, int8 to torch, unless the CPU
multiplies bytes."""
_LEAST_SHARED = 128
"""Positions to attend to, of all rows, from which on the threads share the attention."""


class Steps:
    """Runs the layers and the head for one new token of each sequence.

    It sees the weights where they lie, so what is changed in place counts; whoever replaces layers attaches anew.
    """

    def __init__(self, model: LanguageModel, kernels: ModuleType) -> None:
        self._kernels = kernels
        self._config = model.model.config
        self._norm = model.model.norm.weight
        self._address = self._norm.data_ptr()
        self._layers = [_Layer(cast("DecoderLayer", layer), kernels) for layer in model.model.layers]
        self._head = _Product([model.lm_head], kernels)
        self._works = True
        # compiled code is fetched from its cache, or made (seconds, once), while the model does other things
        self._ready = Thread(target=self._warm_up)
        self._ready.start()

    def __deepcopy__(self, _: object) -> None:
        """The copy of a model has none: its weights lie elsewhere."""

    def fits(self, x: Tensor, lengths: Sequence[int], cache: Cache) -> bool:
        """Whether this is work for these kernels; waits until they are compiled."""
        self._ready.join()
        return (
            self._works
            and len(lengths) <= MOST_ROWS
            and all(count == 1 for count in lengths)
            and not torch.is_grad_enabled()
            and x.dtype == torch.float32
            and self._norm.data_ptr() == self._address  # not moved
        )

    def __call__(self, embeddings: Tensor, lengths: Sequence[int], cache: Cache, logits_at: Tensor | None) -> Tensor:
        """Logits [n or rows, vocab_size] of embeddings [rows, hidden_size]; see `LanguageModel.forward`."""
        return self._run(embeddings, cache, logits_at, alone=sum(cache.lengths) < _LEAST_SHARED)

    def _run(self, embeddings: Tensor, cache: Cache, logits_at: Tensor | None, *, alone: bool) -> Tensor:
        kernels, config, new = self._kernels, self._config, [1] * len(embeddings)
        kernels.use_threads(torch.get_num_threads())
        past = torch.tensor(cache.lengths)
        cos, sin = (angle[:, 0].numpy() for angle in rotary_angles(config, past, torch.float32))
        cache.reserve(new)
        x = embeddings.clone().numpy()
        normed, mixed = np.empty_like(x), np.empty_like(x)
        inner = np.empty((len(x), config.intermediate_size), np.float32)
        attention = kernels.attention_alone if alone else kernels.attention
        for number, layer in enumerate(self._layers):
            kernels.normed(x, layer.first_norm, config.rms_norm_eps, normed)
            qkv = layer.qkv(normed)
            first = 0
            for keys, values in cache.rows_of_layer(number):
                rows = slice(first, first + len(keys))
                attention(qkv, cos, sin, keys.numpy(), values.numpy(), past[rows].numpy(), first, mixed)
                first += len(keys)
            kernels.add(x, layer.output(mixed))
            kernels.normed(x, layer.second_norm, config.rms_norm_eps, normed)
            kernels.activated(layer.gate_up(normed), inner)
            kernels.add(x, layer.down(inner))
        cache.advance(new)
        if logits_at is not None:
            x = x[logits_at.numpy()]
        kernels.normed(x, self._norm.detach().numpy(), config.rms_norm_eps, x)
        return torch.from_numpy(self._head(x))

    @torch.inference_mode()
    def _warm_up(self) -> None:
        try:
            for rows, alone in ((1, True), (_FEW_ROWS + 1, False)):
                cache = KVCache(self._config, rows, 1, self._norm.device, self._norm.dtype)
                self._run(torch.zeros(rows, self._config.hidden_size), cache, None, alone=alone)
        except Exception as error:  # whatever a compiler complains about
            self._works = False
            _LOG.warning(_WITHOUT, error)


class _Layer:
    """The weights of a decoder layer as the kernels take them."""

    def __init__(self, layer: DecoderLayer, kernels: ModuleType) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.first_norm = layer.input_layernorm.weight.detach().numpy()
        self.qkv = _Product([attention.q_proj, attention.k_proj, attention.v_proj], kernels)
        self.output = _Product([attention.o_proj], kernels)
        self.second_norm = layer.post_attention_layernorm.weight.detach().numpy()
        self.gate_up = _Product([mlp.gate_proj, mlp.up_proj], kernels)
        self.down = _Product([mlp.down_proj], kernels)


class _Product:
    """Linear layers with a common input, by our kernels, but int8 of more than a few rows by torch, unless bytes are
    multiplied."""

    def __init__(self, layers: Sequence[nn.Module], kernels: ModuleType) -> None:
        self._layers, self._kernels = list(layers), kernels
        self._block, parts = _parts(layers)
        self._weights, self._scales, self._biases = zip(*parts, strict=True)
        self._outputs = sum(map(len, self._scales))
        kinds, tiles = {weight.dtype.type for weight in self._weights}, min(map(len, self._weights)) >= kernels.TILE
        self._in_tiles = tiles and kinds == {np.float32}
        self._in_bytes = tiles and kinds == {np.int8} and kernels.multiplies_bytes()
        self._sums = tuple(weight.sum(1, dtype=np.int32) for weight in self._weights) if self._in_bytes else ()

    def __call__(self, x: Array) -> Array:
        """x [rows, in], which may be overwritten, to [rows, all outputs]."""
        if len(x) > _FEW_ROWS and not self._in_tiles and not self._in_bytes:
            return torch.cat(list(project(self._layers, torch.from_numpy(x))), dim=-1).numpy()
        out = np.empty((len(x), self._outputs), np.float32)
        if self._in_bytes:
            self._kernels.product_in_bytes(self._weights, self._scales, self._sums, self._biases, self._block, x, out)
        elif self._in_tiles:
            self._kernels.product_in_tiles(self._weights, self._biases, x, out)
        else:
            self._kernels.product(self._weights, self._scales, self._biases, self._block, x, out)
        return out


def _parts(layers: Sequence[nn.Module]) -> tuple[int, list[tuple[Any, Array, Array]]]:
    """Size of the blocks that are spread (1: none), and weights, scales and biases of layers with a common input."""
    first = layers[0]
    if isinstance(first, Int8Linear) and first.weight is not None:
        rounded = zip(first.weight.parts, first.weight.biases, strict=True)
        return first.weight.block, [(part.rows.numpy(), part.scales.numpy(), bias.numpy()) for part, bias in rounded]
    parts = []
    for layer in cast("Sequence[Linear]", layers):
        bias = layer.weight.new_zeros(layer.out_features) if layer.bias is None else layer.bias
        ones = np.ones(layer.out_features, np.float32)
        parts.append((layer.weight.detach().numpy(), ones, bias.detach().numpy()))
    return 1, parts


def lay_out(model: Qwen2Audio) -> None:
    """Make a model with its final weights ready for inference where it lies."""
    if find_spec("numba") is not None:
        align_linears(model.language_model)
    attach_steps(model.language_model)
    pack_linears(model, singles=model.language_model if model.language_model.steps is None else None)
    join_linears(model)
    attach_graphs(model.language_model)
    attach_encoder_graphs(model.audio_tower)


def attach_steps(model: LanguageModel) -> None:
    """Let decode steps run by compiled code where that can be: on a CPU, in float32 or int8, with the package numba."""
    model.steps = None
    linears = [module for module in model.modules() if isinstance(module, Linear | Int8Linear)]
    on_cpu = model.model.norm.weight.device.type == "cpu"
    if not on_cpu or find_spec("numba") is None or not all(map(_readable, linears)):
        return
    try:
        from qwen2_audio.kernels import decode_cpu
    except (ImportError, RuntimeError) as error:  # no place to keep what is compiled, a package that does not fit
        _LOG.warning(_WITHOUT, error)
        return
    if decode_cpu.can_share_work():
        model.steps = Steps(model, decode_cpu)
    else:
        _LOG.warning(_WITHOUT, "it finds no OpenMP (on Debian the package libgomp1)")


def _readable(layer: Linear | Int8Linear) -> bool:
    if isinstance(layer, Int8Linear):
        return layer.weight is None or len(layer.weight.parts) > 0  # of large models there is no second copy to read
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous()
