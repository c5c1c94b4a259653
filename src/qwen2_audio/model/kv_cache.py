"""The key-value cache: a plain value that the caller owns, passes in and advances."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qwen2_audio.config import TextConfig

_GROWTH = 256


class KVCache:
    """Keys and values of several sequences ("rows") of unlike length; every row starts at position 0.

    Attributes:
        lengths: number of cached positions of each row.
    """

    def __init__(self, config: TextConfig, rows: int, capacity: int, device: torch.device, dtype: torch.dtype) -> None:
        shape = (config.num_hidden_layers, rows, config.num_key_value_heads, capacity, config.head_dim)
        self._keys = torch.zeros(shape, device=device, dtype=dtype)
        self._values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = [0] * rows

    @property
    def rows(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        return self._values.shape[3]  # the last to grow: holds too when memory ran out between the two

    def reserve(self, new: Sequence[int]) -> None:
        """Make room for `new[i]` further positions in row i."""
        need = max(length + count for length, count in zip(self.lengths, new, strict=True))
        if need > self.capacity:
            extra = max(need - self.capacity, _GROWTH, self.capacity // 2)
            self._keys = torch.nn.functional.pad(self._keys, (0, 0, 0, extra))
            self._values = torch.nn.functional.pad(self._values, (0, 0, 0, extra))

    def store(self, layer: int, key: Tensor, value: Tensor, new: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Write the new tokens of every row behind what is cached; `lengths` stay as they are until `advance`.

        Args:
            key, value: [tokens, kv_heads, head_dim], the rows' new tokens laid end to end.
            new: number of new tokens of each row.

        Returns:
            all keys and values of this layer, [rows, kv_heads, capacity, head_dim].
        """
        keys, values = self._keys[layer], self._values[layer]
        if len(new) > 1 and all(count == 1 for count in new):
            rows = torch.arange(self.rows, device=key.device)
            at = torch.tensor(self.lengths, device=key.device)
            keys[rows, :, at], values[rows, :, at] = key, value
            return keys, values
        start = 0
        for row, count in enumerate(new):
            begin, stop = self.lengths[row], start + count
            keys[row, :, begin : begin + count] = key[start:stop].transpose(0, 1)
            values[row, :, begin : begin + count] = value[start:stop].transpose(0, 1)
            start = stop
        return keys, values

    def advance(self, new: Sequence[int]) -> None:
        """Declare the stored tokens cached."""
        self.lengths = [length + count for length, count in zip(self.lengths, new, strict=True)]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these (finished sequences leave the batch)."""
        index = torch.tensor(list(rows), device=self._keys.device)
        self._keys, self._values = self._keys.index_select(1, index), self._values.index_select(1, index)
        self.lengths = [self.lengths[row] for row in rows]

    def truncate(self, row: int, length: int) -> None:
        """Forget everything in `row` behind its first `length` positions."""
        self.lengths[row] = min(self.lengths[row], length)

    @classmethod
    def join(cls, config: TextConfig, caches: Sequence[KVCache], room: int) -> KVCache:
        """One cache with the rows of several, each with at least `room` free positions."""
        first = caches[0]._keys
        longest = max(max(cache.lengths) for cache in caches)
        joined = cls(config, sum(c.rows for c in caches), longest + room, first.device, first.dtype)
        joined.lengths = [length for cache in caches for length in cache.lengths]
        start = 0
        for cache in caches:
            stop, used = start + cache.rows, max(cache.lengths)
            joined._keys[:, start:stop, :, :used] = cache._keys[:, :, :, :used]
            joined._values[:, start:stop, :, :used] = cache._values[:, :, :, :used]
            start = stop
        return joined
