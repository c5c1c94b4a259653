"""`qwen2-audio bench`: our engine and others on the same checkpoint, in one run, taking turns."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qwen2_audio.cli import options as opt
from qwen2_audio.cli.opening import find
from qwen2_audio.cli.terminal import patience, say
from qwen2_audio.errors import UsageError

if TYPE_CHECKING:
    from qwen2_audio.api import Assistant
    from qwen2_audio.bench.sides import Side
    from qwen2_audio.runtime import Runtime


_WARM_UPS_ON_GPU = 4
"""What is captured as a graph is on trial at first."""


def bench(
    model: opt.Model = opt.DEFAULT_MODEL,
    random: Annotated[
        str | None, typer.Option(metavar="7b|0.5b|mini", help="Random weights in this model's shape, made on the spot.")
    ] = None,
    runs: Annotated[int, typer.Option(min=1, help="Counted runs of each scenario, after one warm-up.")] = 3,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each answer.")] = 33,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only clips of 2, 5 and 15 s, and batches of 8 and 16.")
    ] = False,
    clip: Annotated[
        list[float] | None, typer.Option(min=0.1, max=30, help="Only single clips of so many seconds; may be repeated.")
    ] = None,
    streams: Annotated[int, typer.Option(min=1, help="With --clip: so many clips at once.")] = 1,
    alone: Annotated[bool, typer.Option("--alone", help="Measure only this package.")] = False,
    plain: Annotated[bool, typer.Option("--plain", help="Also this package without quicker decode steps.")] = False,
    compiled: Annotated[
        bool, typer.Option("--compiled", help="Also transformers with a static cache, compiled.")
    ] = False,
    server: Annotated[
        list[str] | None, typer.Option(help="Also the server at this address (ends in /v1); may be repeated.")
    ] = None,
    device: opt.Device = "cpu",
    dtype: opt.Dtype = "auto",
    quantize: opt.Quantize = "none",
    as_json: opt.Json = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw first tokens against clip length into this file (.svg, .png).")
    ] = None,
) -> None:
    """Time first tokens, decoding and batches against other engines, and against what the machine can do at best."""
    from qwen2_audio.bench.machine import floors, measure_machine
    from qwen2_audio.bench.report import Report
    from qwen2_audio.bench.report import plot as draw
    from qwen2_audio.bench.run import measure
    from qwen2_audio.bench.scenarios import standard
    from qwen2_audio.runtime import choose_runtime

    _refuse_contradictions(model, random, compiled_alone=compiled and alone, quick_clips=quick and bool(clip))
    if streams > 1:
        _refuse_with_streams(clips=bool(clip), plot=plot is not None)
    runtime = choose_runtime(device, dtype, quantize)
    with ExitStack() as held:
        folder = _folder(model, random, runtime, held)
        assistant, loading = _load(folder, runtime)
        sides = _sides(assistant, runtime, alone=alone, plain=plain, compiled=compiled, servers=server or [])
        with patience("comparing logits"):
            agreed = {} if alone or random else _agreement(sides)  # random weights agree on little
        with patience("measuring the machine"):
            machine = measure_machine(runtime)
        config = assistant.model.config
        scenarios = standard(tokens, quick=quick, clips=clip or [], streams=streams)
        warm_ups = _WARM_UPS_ON_GPU if runtime.device.type == "cuda" else 1
        found = measure(scenarios, sides, runs, lambda s: floors(config, runtime, machine, s), _progress, warm_ups)
    _progress("")
    about = _about(f"random {random}" if random else model, runtime, runs) | loading | agreed
    report = Report(about, machine.as_json(), found)
    print(report.as_json() if as_json else report.as_markdown())
    if plot is not None:
        draw(report, plot)


def _refuse_with_streams(*, clips: bool, plot: bool) -> None:
    if not clips:
        raise UsageError("--streams says how many clips of --clip are heard at once; give --clip, too")
    if plot:
        raise UsageError("--plot draws single clips; leave out --streams, or --plot")


def _refuse_contradictions(model: str, random: str | None, *, compiled_alone: bool, quick_clips: bool) -> None:
    if random and model != os.environ.get("QWEN2_AUDIO_MODEL", opt.DEFAULT_MODEL):
        raise UsageError("--model and --random are two models; give one")
    if compiled_alone:
        raise UsageError("--alone leaves out transformers, of which --compiled is a way; give one")
    if quick_clips:
        raise UsageError("--quick and --clip choose other scenarios; give one")


def _folder(model: str, random: str | None, runtime: Runtime, held: ExitStack) -> Path:
    if random is None:
        return find(model, revision=None, offline=False)
    from qwen2_audio.bench.random_model import audio_token_of, geometry, write_random, write_side_files

    tokens_from = find("mini", revision=None, offline=False)
    config = geometry(random, audio_token_of(tokens_from))
    folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="qwen2-audio-"))) / random
    with patience(f"making a random {random}"):
        import torch

        if runtime.device.type == "cuda":  # the weights are made there
            write_side_files(config, folder, tokens_from, runtime.dtype)
        else:
            write_random(config, folder, tokens_from, torch.bfloat16 if random == "7b" else runtime.dtype)
    return folder


def _load(folder: Path, runtime: Runtime) -> tuple[Assistant, dict[str, float]]:
    """Our model, how long loading took, and the memory of this process then: before another side loads the model, too."""
    from qwen2_audio.api import load
    from qwen2_audio.bench.random_model import has_weights, load_random

    started = time.perf_counter()
    with patience("loading"):
        if not has_weights(folder):
            assistant = load_random(folder, runtime)
        else:
            assistant = load(
                folder,
                device=str(runtime.device),
                dtype=str(runtime.dtype).removeprefix("torch."),
                quantize=runtime.quantize,
                offline=True,
            )
    loading = {"loaded in seconds": round(time.perf_counter() - started, 2)}
    resident = _resident()
    return assistant, loading | ({} if resident is None else {"resident GB": round(resident / 1e9, 2)})


def _sides(
    assistant: Assistant, runtime: Runtime, *, alone: bool, plain: bool, compiled: bool, servers: list[str]
) -> list[Side]:
    from qwen2_audio.bench.server_side import Server
    from qwen2_audio.bench.sides import Ours, Plain

    sides: list[Side] = [Ours(assistant), *([Plain(assistant)] if plain else [])]
    if not alone:
        from qwen2_audio.bench.transformers_side import Transformers

        for way in (False, True) if compiled else (False,):
            with patience("loading transformers"):
                sides.append(Transformers(assistant.folder, runtime.device, runtime.dtype, compiled=way))
    return [*sides, *(Server(url, url.split("//")[-1].split("/")[0]) for url in servers)]


def _agreement(sides: list[Side]) -> dict[str, float]:
    from qwen2_audio.bench.agreement import agreement
    from qwen2_audio.bench.sides import Ours
    from qwen2_audio.bench.transformers_side import Transformers

    ours = next(side for side in sides if isinstance(side, Ours))
    return agreement(ours, next(side for side in sides if isinstance(side, Transformers)))


def _progress(line: str) -> None:
    """On a terminal one line that changes; in a log a line each."""
    if sys.stderr.isatty():
        print(f"\r\033[K{line}", end="", file=sys.stderr, flush=True)
    elif line:
        say(line)


def _about(model: str, runtime: Runtime, runs: int) -> dict[str, str | int | float]:
    import torch

    return {
        "model": model,
        "weights": str(runtime.dtype).removeprefix("torch.") if runtime.quantize == "none" else runtime.quantize,
        "device": str(runtime.device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "runs": runs,
    }


def _resident() -> int | None:
    """Bytes of this process in memory now, on Linux."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096
    except OSError:
        return None
