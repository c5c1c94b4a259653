"""Instructions that products of a single row take for each weight on a GPU, counted in the code that Triton compiles for it.

    python benchmarks/gpu_instructions.py            # an H100 (compute capability 9.0), the layers of the 7B; needs no GPU
    python benchmarks/gpu_instructions.py --compute 80

Counted is the loop over the inputs. A GPU begins so many instructions a second and no more: an H100 about 29 * 10^12, those of
all threads counted one by one, of which a product that also waits for memory can use about half.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from qwen2_audio.gpu import product_int4, products

_TOOL = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
_LAYER = {
    "qkv": (4096, 3 * 4096, {"BIAS": True}),
    "output": (4096, 4096, {"ADD": True}),
    "gate and up": (4096, 11008, {"GATED": True}),
    "down": (11008, 4096, {"ADD": True}),
}
_KINDS = {"inputs": "i32", "outputs": "i32", "padded": "i32", "eps": "fp32", "words": "*i32", "sums": "*fp32"}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--compute", type=int, default=90, help="compute capability, 90 for 9.0")
    compute: int = parser.parse_args().compute
    print(f"Triton {triton.__version__}, compute capability {compute / 10}")
    print(
        "| product | weights | instructions a weight | barriers in the loop | registers |\n| --- | --- | --- | --- | --- |"
    )
    for kind in ("bfloat16", "4 bits"):
        total = count = 0.0
        for name, (inputs, outputs, options) in _LAYER.items():
            weights = inputs * outputs * (1 + bool(options.get("GATED")))
            instructions, of_loop, registers = _compiled(kind, inputs, outputs, options, compute)
            print(f"| {name} | {kind} | {instructions:.2f} | {of_loop['BAR']} | {registers} |")
            total, count = total + instructions * weights, count + weights
        print(f"| a layer | {kind} | {total / count:.2f} | | |")


def _compiled(
    kind: str, inputs: int, outputs: int, options: dict[str, bool], compute: int
) -> tuple[float, Counter[str], str]:
    """Instructions a weight in the loop of a product, what they are, and registers a thread."""
    gated = bool(options.get("GATED"))
    constants: dict[str, Any] = {"BIAS": False, "GATED": False, "ADD": False, "EARLY": compute >= 90, **options}
    if kind == "bfloat16":
        rows, tile, warps = products._tile(outputs, inputs, gated)
        kernel, floats = products._plain, "*bf16"
        constants |= {"NORM": "ADD" not in options, "OUTPUTS": rows, "TILE": tile}
        at_once = rows * tile * (1 + gated)
    else:
        kernel, floats, warps = product_int4._in_4_bits, "*fp32", 1
        constants |= {"TILE": product_int4._TILE}
        at_once = 4 * 128 * product_int4._TILE
    kinds = {"x": floats, "scales": "*fp16", "lows": "*fp16", **_KINDS}
    names: list[str] = kernel.arg_names
    signature = {name: "constexpr" if name in constants else kinds.get(name, "*bf16") for name in names}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(names)
        if signature[name].startswith("*") or signature[name] == "i32"
    }
    source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()}, divisible)
    made = triton.compile(source, target=GPUTarget("cuda", compute, 32), options={"num_warps": warps})
    of_loop, registers = _longest_loop(made.asm["cubin"])
    return of_loop.total() * 32 * warps / at_once, of_loop, registers


def _longest_loop(code: bytes) -> tuple[Counter[str], str]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        listing, usage = (
            subprocess.run([_TOOL, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-sass", "-res-usage")
        )
    lines = [
        (int(at, 16), text) for at, text in re.findall(r"^\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", listing, re.MULTILINE)
    ]
    loops: list[Counter[str]] = [Counter()]
    for at, text in lines:
        jump = re.search(r"BRA.*?(0x[0-9a-f]+)", text)
        if jump and int(jump[1], 16) < at:
            inside = [line for place, line in lines if int(jump[1], 16) <= place <= at]
            loops.append(Counter(re.sub(r"^@!?U?P\w+\s+", "", line).split()[0].split(".")[0] for line in inside))
    found = re.search(r"REG:(\d+)", usage)
    return max(loops, key=Counter.total), found[1] if found else "?"


if __name__ == "__main__":
    main()
