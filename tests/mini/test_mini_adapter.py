"""What fine-tuning `mini` gives is no private affair: peft and transformers load it, and say the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from qwen2_audio import Assistant, Conversation, DownloadError, load

ROOT = Path(__file__).parents[2]
QUESTION = ROOT / "examples" / "question.flac"
ANSWER = "It asks for the capital of a country in Europe."
GREEDY: dict[str, Any] = {"temperature": 0, "max_new_tokens": 24}


@pytest.fixture(scope="module")
def base() -> Assistant:
    try:
        return load("mini", device="cpu")
    except DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def run(base: Assistant, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of `finetune/run.sh --lora` on one row, and the merged model beside the adapter."""
    out = tmp_path_factory.mktemp("finetuned")
    rows = out / "rows.jsonl"
    messages = [{"role": "user", "content": "<audio>"}, {"role": "assistant", "content": ANSWER}]
    rows.write_text(json.dumps({"messages": messages, "audios": [str(QUESTION)]}) + "\n")
    learning = ["steps=8", "batch_tokens=1", "language_model.learning_rate=0.002", "evaluation.every=8", "save_every=8"]
    files = ["--train_file", str(rows), "--eval_file", str(rows), "--output_dir", str(out / "run")]
    command = ["bash", "finetune/run.sh", "--lora", "--model", str(base.folder), *files, *learning]
    environment = {**os.environ, "PYTHON": sys.executable}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600)
    merge = ["merge", "--model", str(base.folder), str(out / "run" / "adapter"), str(out / "merged")]
    subprocess.run([sys.executable, "-m", "qwen2_audio.cli.main", *merge], check=True)
    return out


def test_it_learns_and_the_measure_improves(run: Path, base: Assistant) -> None:
    rows = [json.loads(line) for line in (run / "run" / "log.jsonl").read_text().splitlines()]
    measured = [row["eval_loss"] for row in rows if "eval_loss" in row]
    assert measured[-1] < 0.5 * measured[0]
    assert base.chat(str(QUESTION), **GREEDY).text != ANSWER


def test_peft_and_transformers_say_what_we_say(run: Path, base: Assistant) -> None:
    ours = load(base.folder, adapter=run / "run" / "adapter", device="cpu").chat(str(QUESTION), **GREEDY)
    assert ours.text != base.chat(str(QUESTION), **GREEDY).text
    assert load(run / "merged", device="cpu").chat(str(QUESTION), **GREEDY).tokens == ours.tokens
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import PeftModel
        from transformers import AutoProcessor, Qwen2AudioForConditionalGeneration

        their_base = Qwen2AudioForConditionalGeneration.from_pretrained(base.folder, dtype=torch.float32)
        adapted = PeftModel.from_pretrained(their_base, str(run / "run" / "adapter")).eval()
        merged = Qwen2AudioForConditionalGeneration.from_pretrained(run / "merged", dtype=torch.float32)
        processor: Any = AutoProcessor.from_pretrained(run / "merged")
        wave = soundfile.read(QUESTION, dtype="float32")[0]
        prompt = base.processor.prepare(Conversation().user(str(QUESTION)))
        inputs = processor(text=prompt.text, audio=[wave], sampling_rate=16_000, return_tensors="pt")
        for model in (adapted, merged):
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=24, do_sample=False)
            assert tuple(ids[0, inputs["input_ids"].shape[1] :].tolist()) == ours.tokens
