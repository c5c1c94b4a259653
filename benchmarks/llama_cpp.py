"""The language model alone beside llama.cpp: reading a prompt and decoding, in float32 and in 8 bits, in turns.

    pip install xllamacpp          # llama.cpp with prebuilt wheels
    python benchmarks/llama_cpp.py --rounds 5

The language model of a checkpoint is written as GGUF files (float32, and Q8_0 made by the package gguf) into --folder, once.
Both sides read the same random tokens and go on greedily. Printed are medians, as `ratio` llama.cpp's time by ours (above 1 we
are quicker), and how often the text is the same: in float32 always, but for ties.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import zlib
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from qwen2_audio import load
from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.checkpoints.mini_parts import GGUF_LAYER_NAMES
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.tokenizer import load_tokenizer

_NAMES = {ours: theirs for theirs, ours in GGUF_LAYER_NAMES.items()}
_KINDS = {"float32": gguf.GGMLQuantizationType.F32, "int8": gguf.GGMLQuantizationType.Q8_0}


def main() -> None:
    args = _arguments()
    torch.set_num_threads(args.threads)
    folder = Path(find_checkpoint(args.model))
    tokenizer = load_tokenizer(folder)
    ends = [tokenizer.id_of("<|endoftext|>"), tokenizer.id_of("<|im_end|>"), tokenizer.id_of("<|im_start|>")]
    draw = torch.Generator().manual_seed(0)
    for dtype, kind in _KINDS.items():
        model = load(
            folder, device="cpu", **({"quantize": "int8"} if dtype == "int8" else {"dtype": "float32"})
        ).engine.model
        config = model.config.text
        state = [(str(path), path.stat().st_mtime_ns) for path in sorted(folder.resolve().glob("*.safetensors"))]
        file = args.folder / f"{folder.name}-{zlib.crc32(repr(state).encode()):08x}-{kind.name}.gguf"
        if not file.exists():
            write_gguf(load(folder, device="cpu", dtype="float32").engine.model, tokens_of(folder), file, kind)
        sizes = (args.prompt, args.tokens, args.threads)
        theirs = get_context("spawn").Pool(1, _start, (str(file), *sizes))  # its own process: both bring an OpenMP
        rounds: list[tuple[list[float], list[float]]] = []
        same = 0
        for number in range(args.rounds + 1):  # the first warms up
            prompt = torch.randint(config.vocab_size - 300, (args.prompt,), generator=draw).tolist()
            ours_ids, *ours_times = run_ours(model, prompt, args.tokens, ends)
            text, *their_times = theirs.apply(_ask, (prompt, args.tokens))
            same += number > 0 and tokenizer.decode(ours_ids, skip_special=True) == text
            if number:
                rounds.append((ours_times, their_times))
        print(f"\n{folder.name}, {dtype} and {kind.name}, {args.threads} threads, {args.rounds} rounds")
        for at, what in enumerate((f"a prompt of {args.prompt} tokens", "a step")):
            ours, them = ([each[side][at] for each in rounds] for side in (0, 1))
            ratio = statistics.median(b / a for a, b in zip(ours, them, strict=True))
            print(
                f"{what}: ours {1e3 * statistics.median(ours):.1f} ms, llama.cpp {1e3 * statistics.median(them):.1f} ms,"
                f" ratio {ratio:.2f}"
            )
        print(f"the same text from both: {same} of {args.rounds}", flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mini", help="a model name or folder")
    parser.add_argument("--folder", type=Path, default=Path.home() / ".cache" / "qwen2-audio" / "gguf")
    parser.add_argument("--prompt", type=int, default=158, help="tokens")
    parser.add_argument("--tokens", type=int, default=33, help="of the answer")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


def tokens_of(folder: Path) -> tuple[list[str], list[str]]:
    """The vocabulary in order, and the merges, as GGUF wants them."""
    model = json.loads((folder / "tokenizer.json").read_text())
    names = {number: token for token, number in model["model"]["vocab"].items()}
    names |= {added["id"]: added["content"] for added in model["added_tokens"]}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["model"]["merges"]]
    return [names.get(number, f"<unused {number}>") for number in range(max(names) + 1)], merges


def write_gguf(
    model: Qwen2Audio, vocabulary: tuple[list[str], list[str]], file: Path, kind: gguf.GGMLQuantizationType
) -> None:
    """Write the language model; norms and biases stay in float32."""
    config, (tokens, merges) = model.config.text, vocabulary
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    out = gguf.GGUFWriter(part, "qwen2")
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_rope_freq_base(config.rope_theta)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("qwen2")
    tokens = [*tokens, *(f"<unused {number}>" for number in range(len(tokens), config.vocab_size))]
    out.add_token_list(tokens[: config.vocab_size])
    out.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    out.add_token_merges(merges)
    out.add_eos_token_id(config.vocab_size - 1)
    out.add_add_bos_token(False)
    for name, tensor in model.language_model.state_dict().items():
        array = tensor.detach().float().numpy()
        wanted = kind if array.ndim == 2 else gguf.GGMLQuantizationType.F32
        out.add_tensor(_their_name(name), gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file(progress=True)
    out.close()
    part.replace(file)


def _their_name(name: str) -> str:
    stem, _, end = name.rpartition(".")
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    if stem in fixed:
        return f"{fixed[stem]}.{end}"
    _, _, layer, inner = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[inner]}.{end}"


_server: Any = None


def _start(file: str, prompt: int, tokens: int, threads: int) -> None:
    import xllamacpp

    global _server
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = prompt + tokens + 64
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.cache_ram_mib = 0
    if file.endswith("-F32.gguf"):  # else keys and values are float16, and near ties fall otherwise
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.verbosity = 0
    _server = xllamacpp.Server(params)


def _ask(prompt: list[int], count: int) -> tuple[str, float, float]:
    """Text, seconds of the prompt (with its first token), seconds of a step; as llama.cpp times them."""
    asked = {"prompt": prompt, "n_predict": count, "temperature": 0, "ignore_eos": True, "cache_prompt": False}
    answer = _server.handle_completions(asked)
    timed = answer["timings"]
    step = timed["predicted_ms"] / 1e3 / (timed["predicted_n"] - 1)
    return answer["choices"][0]["text"], timed["prompt_ms"] / 1e3, step


@torch.inference_mode()
def run_ours(model: Qwen2Audio, prompt: list[int], count: int, ends: list[int]) -> tuple[list[int], float, float]:
    """Tokens, and the same times of our layers, to the greedy choice among tokens that do not end an answer."""
    cache = model.new_cache(1, len(prompt) + count)
    started = time.perf_counter()
    logits = model(torch.tensor(prompt), [len(prompt)], cache=cache, logits_at=torch.tensor([len(prompt) - 1]))
    logits[:, ends] = -torch.inf
    found = [int(logits[-1].argmax())]
    first = time.perf_counter()
    while len(found) < count:
        logits = model(torch.tensor(found[-1:]), [1], cache=cache)
        logits[:, ends] = -torch.inf
        found.append(int(np.argmax(logits[-1].numpy())))
    return found, first - started, (time.perf_counter() - first) / (count - 1)


if __name__ == "__main__":
    main()
