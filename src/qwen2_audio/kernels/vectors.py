"""Vectors in code that Numba compiles, where it would make narrower ones: they are written in LLVM's own language."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic
from numpy.typing import NDArray


def compiles_for(feature: str) -> bool:
    """Whether Numba compiles for a CPU with a feature, by LLVM's name of it."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return f"+{feature}" in features


BYTE, WORD, WIDE, FLOAT = *(ir.IntType(bits) for bits in (8, 32, 64)), ir.FloatType()
LANES = 16 if compiles_for("avx512f") else 8
"""Numbers of 32 bits in a vector."""
_FLOATS = ir.VectorType(FLOAT, LANES)
OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
"""Of everything that is compiled."""
TILE = 4
"""Outputs and rows that are worked on at once: what is added up fills half of a CPU's vectors."""


@njit(**OPTIONS)
def tiles_of_layers(weights: Sequence[NDArray[Any]]) -> int:
    """Tiles of four outputs in several layers, of at least four each."""
    count = 0
    for layer in range(len(weights)):
        count += (weights[layer].shape[0] + TILE - 1) // TILE
    return count


@njit(**OPTIONS)
def tile_of_layers(weights: Sequence[NDArray[Any]], number: int) -> tuple[int, int, int]:
    """The layer of a tile, its first output there, and its place among the outputs of all. The last one of a layer reaches back
    over the one before it."""
    layer, start, first = 0, 0, TILE * number
    while first >= (weights[layer].shape[0] + TILE - 1) // TILE * TILE:
        first -= (weights[layer].shape[0] + TILE - 1) // TILE * TILE
        start += weights[layer].shape[0]
        layer += 1
    first = min(first, weights[layer].shape[0] - TILE)
    return layer, first, start + first


def lanes(numbers: Iterable[int]) -> Any:
    """Which lanes a shuffle takes."""
    chosen = list(numbers)
    return ir.Constant(ir.VectorType(WORD, len(chosen)), chosen)


def function(builder: Any, name: str, result: Any, arguments: Sequence[Any]) -> Any:
    """One of LLVM's own functions."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, list(arguments)), name)


def arrays(context: Any, builder: Any, signature: Any, args: Any, places: Sequence[int]) -> list[Any]:
    """The arguments at these places, arrays, as the structures they are."""
    if any(signature.args[i].layout != "C" for i in places):
        raise TypeError("these products are for contiguous arrays")
    return [context.make_array(signature.args[i])(context, builder, args[i]) for i in places]


def everywhere(builder: Any, number: Any, count: int) -> Any:
    """A vector of so many times the same number."""
    vector = ir.VectorType(number.type, count)(ir.Undefined)
    vector = builder.insert_element(vector, number, WORD(0))
    return builder.shuffle_vector(vector, vector, lanes([0] * count))


def read(builder: Any, kind: Any, start: Any, offset: Any) -> Any:
    """A vector that lies `offset` numbers, of those that are pointed to, behind the start."""
    return builder.load(builder.bitcast(builder.gep(start, [offset]), kind.as_pointer()), align=1)


def write(builder: Any, vector: Any, start: Any, offset: Any) -> None:
    """Put a vector there."""
    builder.store(vector, builder.bitcast(builder.gep(start, [offset]), vector.type.as_pointer()), align=1)


def starts(builder: Any, array: Any, size: Any, first: Any, count: int) -> list[Any]:
    """Where lines of so many numbers begin, from the first on."""
    places = [builder.mul(builder.add(first, WIDE(i)), size) for i in range(count)]
    return [builder.gep(array.data, [place]) for place in places]


def write_rows(builder: Any, vector: Any, array: Any, row: Any, place: Any, outputs: int) -> None:
    """Put a vector [rows * outputs] into an array [any, any], from that row and place on."""
    rows = vector.type.count // outputs
    lines = starts(builder, array, builder.extract_value(array.shape, 1), row, rows)
    for number, line in enumerate(lines):
        part = builder.shuffle_vector(vector, vector, lanes(range(number * outputs, (number + 1) * outputs)))
        write(builder, part, line, place)


def added_up(builder: Any, add: Any, vectors: list[Any]) -> Any:
    """What each of several vectors adds up to, as one vector: neighbours are added, of two vectors at a time."""
    parts = vectors[0].type.count  # of a sum
    while parts > 1 or len(vectors) > 1:
        alone = len(vectors) == 1
        pairs = [(vectors[0], vectors[0])] if alone else list(zip(vectors[::2], vectors[1::2], strict=True))
        known = vectors[0].type.count * (1 if alone else 2)
        if parts == 1:
            vectors = [builder.shuffle_vector(*pair, lanes(range(known))) for pair in pairs]
        else:
            even, odd = lanes(range(0, known, 2)), lanes(range(1, known, 2))
            vectors = [add(builder.shuffle_vector(*pair, even), builder.shuffle_vector(*pair, odd)) for pair in pairs]
            parts //= 2
    return vectors[0]


def through(builder: Any, kind: Any, size: Any, body: Callable[[Callable[[Any], Any]], None]) -> None:
    """Run `body` for each vector of `size` numbers: it is given what reads that vector of a line that starts at a pointer; in
    the last one what is past the end is zero."""
    count = kind.count
    end = builder.and_(size, WIDE(-count))
    with cgutils.for_range_slice(builder, WIDE(0), end, WIDE(count), WIDE) as (offset, _):
        body(lambda start: read(builder, kind, start, offset))
    with builder.if_then(builder.icmp_signed("<", end, size)):
        left = builder.trunc(builder.sub(size, end), WORD)
        inside = builder.icmp_signed("<", lanes(range(count)), everywhere(builder, left, count))
        name = f"v{count}f32" if kind.element == FLOAT else f"v{count}i{kind.element.width}"
        masked = function(
            builder, f"llvm.masked.load.{name}.p0{name}", kind, [kind.as_pointer(), WORD, inside.type, kind]
        )

        def rest(start: Any) -> Any:
            place = builder.bitcast(builder.gep(start, [end]), kind.as_pointer())
            return builder.call(masked, [place, WORD(1), inside, kind(None)])

        body(rest)


def _tile_of(rows: int) -> Any:
    """An intrinsic that multiplies four outputs by so many rows, a power of two.

    Its arguments: weights [any, size], biases [any] and the first output; x [any, size] and the first row; out [any, any], and
    the place of the first output there; all float32.
    """

    @intrinsic
    def tile(_: Any, weights: Any, biases: Any, output: Any, x: Any, row: Any, out: Any, place: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            of_weights, of_biases, of_x, of_out = arrays(context, builder, signature, args, (0, 1, 3, 5))
            _, _, output, _, row, _, place = args
            size = builder.extract_value(of_weights.shape, 1)
            multiply_add = function(builder, f"llvm.fmuladd.v{LANES}f32", _FLOATS, [_FLOATS] * 3)
            lines = starts(builder, of_weights, size, output, TILE)
            lines_of_x = starts(builder, of_x, size, row, rows)
            totals = [[cgutils.alloca_once_value(builder, _FLOATS(None)) for _ in lines] for _ in lines_of_x]

            def add(vector: Callable[[Any], Any]) -> None:
                known = [vector(line) for line in lines]
                for line, of_row in zip(lines_of_x, totals, strict=True):
                    given = vector(line)
                    for weight, total in zip(known, of_row, strict=True):
                        builder.store(builder.call(multiply_add, [weight, given, builder.load(total)]), total)

            through(builder, _FLOATS, size, add)
            found = added_up(builder, builder.fadd, [builder.load(total) for of_row in totals for total in of_row])
            bias = read(builder, ir.VectorType(FLOAT, TILE), of_biases.data, output)
            bias = builder.shuffle_vector(bias, bias, lanes(list(range(TILE)) * rows))
            write_rows(builder, builder.fadd(found, bias), of_out, row, place, TILE)
            return context.get_dummy_value()

        return types.void(weights, biases, output, x, row, out, place), generate

    return tile


tile_of_one, tile_of_four = _tile_of(1), _tile_of(TILE)
