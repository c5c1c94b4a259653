"""Reading ahead in code that Numba compiles: it has no name for that, but what it compiles with has (LLVM's `prefetch`).

A core that meets numbers which are not in its cache waits for memory; what it fetches by itself, from the pattern of its reads,
comes late where there is much to do with each byte.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from qwen2_audio.kernels.vectors import BYTE, WORD, arrays, function

_AHEAD = 16384
"""Bytes; tried out: half as many do as well, an eighth of it does not."""
_CACHE_LINE = 64


@intrinsic
def _prefetch(_: Any, array: Any, offset: Any) -> Any:
    """Ask for the line of cache that lies `offset` bytes behind the start of an array, for reading; it need not exist."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        (of_array,) = arrays(context, builder, signature, args, (0,))
        pointer = BYTE.as_pointer()
        place = builder.gep(builder.bitcast(of_array.data, pointer), [args[1]])
        ask = function(builder, "llvm.prefetch.p0i8", ir.VoidType(), [pointer, WORD, WORD, WORD])
        to_read, second_level, data_cache = WORD(0), WORD(2), WORD(1)
        builder.call(ask, [place, to_read, second_level, data_cache])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


@njit(inline="always")
def read_ahead(array: NDArray[Any], first: int, count: int) -> None:
    """Ask for what lies some way behind `count` numbers of a contiguous array, from the one at `first` on."""
    size = array.itemsize
    for offset in range(first * size, (first + count) * size, _CACHE_LINE):
        _prefetch(array, _AHEAD + offset)
