"""The key-value cache: a plain value that the caller owns, passes in and advances."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from qwen2_audio.config import TextConfig
from qwen2_audio.model.attention import attend, attend_cached, attend_step

_GROWTH = 256
_MOST_TOGETHER = 2 << 30
_places = itertools.count(1)


class Cache(Protocol):
    """What one forward writes to and sees: a `KVCache` or `PackedRows`."""

    @property
    def lengths(self) -> Sequence[int]: ...
    def reserve(self, new: Sequence[int]) -> None: ...
    def rows_of_layer(self, layer: int) -> list[tuple[Tensor, Tensor]]: ...
    @property
    def parts(self) -> Sequence[tuple[KVCache, int, int]]: ...
    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, new: Sequence[int]) -> Tensor: ...
    def advance(self, new: Sequence[int]) -> None: ...


class KVCache:
    """Keys and values of several sequences ("rows") of unlike length; every row starts at position 0.

    Attributes:
        lengths: number of cached positions of each row.
        place: a number that is another one once the tensors lie elsewhere, and no other cache's.
    """

    def __init__(self, config: TextConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (rows, config.num_key_value_heads, capacity, config.head_dim)
        self._keys, self._values = (_zeros(config.num_hidden_layers, shape, device, dtype) for _ in "kv")
        self.lengths = [0] * rows
        self.place = next(_places)
        self._steps: dict[int, _Step] = {}  # by the first of its rows

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        return self._values[-1].shape[2]  # the last to grow: holds too when memory ran out before it

    def reserve(self, new: Sequence[int]) -> None:
        """Make room for `new[i]` further positions in row i."""
        need = max(length + count for length, count in zip(self.lengths, new, strict=True))
        if need > self.capacity:
            self._resize(self.rows, max(need, self.capacity + max(_GROWTH, self.capacity // 2)))

    def rows_of_layer(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        """Keys and values [rows, kv_heads, capacity, head_dim] of all rows, in order, in as many parts as they lie in."""
        return [(self._keys[layer], self._values[layer])]

    @property
    def parts(self) -> list[tuple[KVCache, int, int]]:
        """See `PackedRows`."""
        return [(self, 0, self.rows)]

    def resize(self, rows: int) -> None:
        """Add empty rows, or drop the last ones."""
        self._resize(rows, self.capacity)
        self.lengths = [*self.lengths[:rows], *([0] * (rows - self.rows))]

    def _resize(self, rows: int, capacity: int) -> None:
        used = max(self.lengths[:rows], default=0)
        self.place = next(_places)
        for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            self._keys[layer] = _resized(keys, rows, capacity, used)
            self._values[layer] = _resized(values, rows, capacity, used)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, new: Sequence[int], first: int = 0
    ) -> Tensor:
        """Write the new tokens of neighbouring rows behind what is cached, and let them see all of their row up to
        themselves; `lengths` stay as they are until `advance`.

        Args:
            query: [tokens, heads, head_dim], the rows' new tokens laid end to end.
            key, value: [tokens, kv_heads, head_dim].
            new: number of new tokens of each row.
            first: the first of these rows.

        Returns:
            [tokens, heads, head_dim]
        """
        rows = slice(first, first + len(new))
        keys, values, past = self._keys[layer][rows], self._values[layer][rows], self.lengths[rows]
        key, value = key.to(keys.dtype), value.to(values.dtype)  # unlike under autocast
        if len(new) > 1 and all(count == 1 for count in new):
            step = self._steps.get(first)
            if step is None or step.past != past:  # in the first layer only: each copy to a GPU waits for it
                step = self._steps[first] = _Step(past, key.device)
            keys[step.rows, :, step.at], values[step.rows, :, step.at] = key, value
            return attend_step(query, keys, values, step.longest, step.seen)
        self._write(layer, key, value, new, first)
        if query.is_cuda and not any(past):
            return attend(query, key, value, new, causal=True)
        return attend_cached(query, keys, values, new, past)

    def _write(self, layer: int, key: Tensor, value: Tensor, new: Sequence[int], first: int) -> None:
        start = 0
        for row, many in enumerate(new, first):
            at, part = slice(self.lengths[row], self.lengths[row] + many), slice(start, start + many)
            self._keys[layer][row, :, at] = key[part].transpose(0, 1)
            self._values[layer][row, :, at] = value[part].transpose(0, 1)
            start += many

    def advance(self, new: Sequence[int], first: int = 0) -> None:
        """Declare the tokens written to these rows cached."""
        for row, count in enumerate(new, first):
            self.lengths[row] += count
        self._steps.clear()

    def copy(self, row: int, source: KVCache, source_row: int, length: int) -> None:
        """Let `row` be the first `length` positions of another row, perhaps of another cache."""
        if length:
            for mine, theirs in zip((*self._keys, *self._values), (*source._keys, *source._values), strict=True):
                mine[row, :, :length] = theirs[source_row, :, :length]
        self.lengths[row] = length

    def truncate(self, row: int, length: int) -> None:
        """Forget everything in `row` behind its first `length` positions."""
        self.lengths[row] = min(self.lengths[row], length)


def _zeros(layers: int, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Keys or values of so many layers, a tensor each: one that grows holds no more than itself twice. Small ones on a GPU are
    parts of one, as the driver takes its time for each."""
    if device.type == "cuda" and layers * math.prod(shape) * dtype.itemsize <= _MOST_TOGETHER:
        return list(torch.zeros(layers, *shape, device=device, dtype=dtype))
    return [torch.zeros(shape, device=device, dtype=dtype) for _ in range(layers)]


class _Step:
    """Where one new token of each of several rows goes and what it sees, on the device; the same in every layer.

    Attributes:
        past: positions that each row holds.
        rows, at: int64 [rows], each row and where its new token goes.
        longest, seen: see `attend_step`.
    """

    def __init__(self, past: list[int], device: torch.device) -> None:
        self.past, self.longest = past, max(past) + 1
        self.rows, self.at = torch.arange(len(past), device=device), torch.tensor(past, device=device)
        self.seen: Tensor | None = None
        if min(past) + 1 < self.longest:
            self.seen = (torch.arange(self.longest, device=device) <= self.at[:, None])[:, None, None]


def _resized(old: Tensor, rows: int, capacity: int, used: int) -> Tensor:
    """A copy [rows, kv_heads, capacity, head_dim] of the first `used` positions; zero elsewhere."""
    new = old.new_zeros(rows, old.shape[1], capacity, old.shape[3])
    kept = min(rows, old.shape[0])
    new[:kept, :, :used] = old[:kept, :, :used]
    return new


class PackedRows:
    """Rows of several caches, in the order of a packed batch, as the one cache of a single forward.

    Decoding rows that are neighbours are attended to together, whatever cache they are in.
    """

    def __init__(self, parts: Sequence[tuple[KVCache, int, int]]) -> None:
        """Args: parts: a cache, the first of its rows meant, and how many."""
        self.parts = parts

    @property
    def lengths(self) -> list[int]:
        return [length for cache, first, count in self.parts for length in cache.lengths[first : first + count]]

    def reserve(self, new: Sequence[int]) -> None:
        """Check that there is room: rows of a pool do not grow by themselves."""
        start = 0
        for cache, first, count in self.parts:
            past = cache.lengths[first : first + count]
            if max(a + b for a, b in zip(past, new[start : start + count], strict=True)) > cache.capacity:
                raise RuntimeError(
                    f"rows of {cache.capacity} positions cannot take {new} more tokens at {self.lengths}"
                )
            start += count

    def rows_of_layer(self, layer: int) -> list[tuple[Tensor, Tensor]]:
        """See `KVCache.rows_of_layer`."""
        whole = ((*cache.rows_of_layer(layer)[0], first, count) for cache, first, count in self.parts)
        return [(keys[first : first + count], values[first : first + count]) for keys, values, first, count in whole]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, new: Sequence[int]) -> Tensor:
        """See `KVCache.attend`."""
        if len(self.parts) == 1:
            cache, first, _ = self.parts[0]
            return cache.attend(layer, query, key, value, new, first)
        sizes, counts, start = [], [], 0
        for _, _, count in self.parts:
            counts.append(new[start : start + count])
            sizes.append(sum(counts[-1]))
            start += count
        packed = zip(self.parts, counts, query.split(sizes), key.split(sizes), value.split(sizes), strict=True)
        return torch.cat([cache.attend(layer, q, k, v, of, first) for (cache, first, _), of, q, k, v in packed])

    def advance(self, new: Sequence[int]) -> None:
        """Declare the tokens written cached."""
        start = 0
        for cache, first, count in self.parts:
            cache.advance(new[start : start + count], first)
            start += count
