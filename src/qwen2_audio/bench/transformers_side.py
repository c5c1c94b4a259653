"""The same folder in `transformers`' own classes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from qwen2_audio.bench.figures import Times
from qwen2_audio.bench.random_model import has_weights
from qwen2_audio.bench.scenarios import Scenario
from qwen2_audio.bench.sides import Wave, joined, noise, question, times
from qwen2_audio.config import SAMPLE_RATE
from qwen2_audio.errors import UsageError


class Transformers:
    """`generate` of `transformers`.

    Args:
        compiled: with a static cache and a compiled forward pass, its quickest way where it works; else as it comes.
    """

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, *, compiled: bool) -> None:
        try:
            import transformers
        except ImportError:
            raise UsageError(
                "bench compares with transformers: pip install transformers librosa, or use --alone"
            ) from None
        transformers.logging.set_verbosity_error()
        self.name = "transformers-compiled" if compiled else "transformers"
        self._processor = transformers.AutoProcessor.from_pretrained(folder)
        self._processor.tokenizer.padding_side = "left"
        name = "Qwen2AudioForConditionalGeneration"
        kind = getattr(transformers, name)
        if has_weights(folder):
            self._model: Any = kind.from_pretrained(folder, dtype=dtype).eval().to(device)
        else:  # random weights, which nobody wrote
            with device:
                self._model = kind._from_config(transformers.AutoConfig.from_pretrained(folder), dtype=dtype).eval()
        self._settings: dict[str, Any] = {"cache_implementation": "static"} if compiled else {}
        if compiled:
            self._model.forward = torch.compile(self._model.forward)

    def run(self, scenario: Scenario, fresh: int = 0) -> Times:
        """See `Side`; it has no sessions and shares nothing, so later turns and questions come with all before them."""
        if scenario.kind in ("batch", "crowd"):
            content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": question(0)}]
            waves = [noise(seconds, i, fresh) for i, seconds in enumerate(scenario.seconds)]
            return self._generate([[{"role": "user", "content": content}]] * len(waves), waves, scenario.tokens)[0]
        messages: list[dict[str, Any]] = []
        runs = []
        for turn in range(len(scenario.seconds)):
            heard = [{"type": "audio", "audio_url": ""}] if turn == 0 or scenario.kind == "shared" else []
            message = {"role": "user", "content": [*heard, {"type": "text", "text": question(turn)}]}
            messages = [*messages, message] if scenario.kind == "turns" else [message]
            measured, text = self._generate([messages], [noise(scenario.seconds[0], fresh=fresh)], scenario.tokens)
            runs.append(measured)
            messages = [*messages, {"role": "assistant", "content": [{"type": "text", "text": text}]}]
        return joined(runs)

    @torch.inference_mode()
    def predict(self, wave: Wave, answer: str) -> torch.Tensor:
        """See `Predicts`."""
        content = [{"type": "audio", "audio_url": ""}, {"type": "text", "text": question(0)}]
        inputs = self._inputs([[{"role": "user", "content": content}]], [wave], answer)
        said = len(self._processor.tokenizer(answer)["input_ids"])
        logits: torch.Tensor = self._model(**inputs).logits[0, -said:]
        return logits.float().log_softmax(-1).cpu()

    def _inputs(self, chats: list[list[dict[str, Any]]], waves: list[Wave], answer: str = "") -> Any:
        texts = [
            self._processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) + answer
            for chat in chats
        ]
        inputs = self._processor(
            text=texts, audio=waves, sampling_rate=SAMPLE_RATE, return_tensors="pt", padding=True
        ).to(self._model.device)
        inputs["input_features"] = inputs["input_features"].to(self._model.dtype)
        return inputs

    def _generate(self, chats: list[list[dict[str, Any]]], waves: list[Wave], tokens: int) -> tuple[Times, str]:
        """Answer the chats together; times, and the text of the first answer."""
        started = time.perf_counter()
        steps: list[float] = []

        def note_the_time(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            if ids.is_cuda:
                torch.cuda.synchronize(ids.device)  # nothing has been read back yet
            steps.append(time.perf_counter())
            return torch.zeros(ids.shape[0], dtype=torch.bool, device=ids.device)

        inputs = self._inputs(chats, waves)
        length = {"min_new_tokens": tokens, "max_new_tokens": tokens}
        with torch.inference_mode():
            ids = self._model.generate(
                **inputs, **length, **self._settings, do_sample=False, stopping_criteria=[note_the_time]
            )
        measured = times(started, steps[0], (tokens - 1) * len(chats), len(chats))
        said = self._processor.batch_decode(ids[:1, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return measured, said[0]
