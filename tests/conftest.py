"""Fixtures shared by all tests; the functions behind them stand in `tiny.py`."""

from __future__ import annotations

import os
import signal
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from qwen2_audio.config import Qwen2AudioConfig
from qwen2_audio.model.qwen2_audio import Qwen2Audio
from qwen2_audio.processing.processor import Processor, load_processor
from tests.tiny import tiny_config, tiny_folder, tiny_model

if not torch.cuda.is_available():  # read when a kernel is defined
    os.environ["TRITON_INTERPRET"] = "1"

# Numba keeps what it compiles until the file that asks for it changes, also where that includes code of another file
_kernels = sorted(Path(__file__).parents[1].glob("src/qwen2_audio/kernels/*.py"))
_state = sha256(b"".join(path.read_bytes() for path in _kernels)).hexdigest()[:16]
os.environ.setdefault("NUMBA_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / f"numba-{_state}"))

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a script: nothing could be interrupted
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("qwen2-audio", deadline=None, max_examples=50)
settings.load_profile("qwen2-audio")


@pytest.fixture(scope="session")
def config() -> Qwen2AudioConfig:
    """The shape of `model`."""
    return tiny_config()


@pytest.fixture(scope="session")
def model(config: Qwen2AudioConfig) -> Qwen2Audio:
    """A tiny random model, shared: do not change its weights."""
    return tiny_model(config)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Qwen2Audio) -> Path:
    """The checkpoint folder of `model`, shared: do not write to it."""
    return tiny_folder(tmp_path_factory.mktemp("checkpoint") / "tiny", model)


@pytest.fixture(scope="session")
def processor(folder: Path, config: Qwen2AudioConfig) -> Processor:
    """The processor of `folder`."""
    return load_processor(folder, config)
