"""The original's snippets, word for word: change `from transformers import ...` to `from qwen2_audio.hf import ...`.

What differs from `transformers`, on purpose:

- `audios=` and `audio=` both work; an argument that is unknown or would be ignored is an error;
- `max_length` counts each recording's placeholder as one token, so a long recording leaves room for its answer (in
  `transformers` it counts every one of its up to 750 tokens);
- recordings over 30 s become consecutive windows, each its own "Audio n" part, with a warning;
- batches are always padded on the left;
- padding does not count in the loss (`transformers` also predicts the first token of a row from the padding before it).
"""

from __future__ import annotations

import os
from collections import UserDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qwen2_audio.api import Assistant, load
from qwen2_audio.checkpoints.hub import find_checkpoint
from qwen2_audio.checkpoints.load import load_config
from qwen2_audio.config import MAX_MEL_FRAMES, SAMPLE_RATE
from qwen2_audio.errors import AudioError, ConversationError, UsageError
from qwen2_audio.generation.engine import Request
from qwen2_audio.generation.options import GenerationOptions
from qwen2_audio.processing.audio import load_audio
from qwen2_audio.processing.chat_template import render
from qwen2_audio.processing.conversation import Conversation, is_wave
from qwen2_audio.processing.mel import TAIL_FRAMES, Clip
from qwen2_audio.processing.placeholders import spread_windows
from qwen2_audio.processing.processor import Processor, load_processor
from qwen2_audio.processing.tokenizer import END_OF_TEXT

IGNORE_INDEX = -100


class Inputs(UserDict[str, Any]):
    """What the processor gives: a dict whose entries are attributes too; setting one sets the other."""

    def __getattr__(self, name: str) -> Any:
        if name == "data" or name not in self.data:
            raise AttributeError(name)
        return self.data[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "data":
            super().__setattr__(name, value)
        else:
            self.data[name] = value

    def to(self, device: Any = None, dtype: torch.dtype | None = None, *, non_blocking: bool = False) -> Inputs:
        """Move all tensors to `device` and cast those of floating point to `dtype`, in place; either may be left out."""
        if isinstance(device, torch.dtype):
            device, dtype = None, device
        for name, value in self.data.items():
            if isinstance(value, Tensor):
                kept = dtype if value.is_floating_point() else None
                self.data[name] = value.to(device=device, dtype=kept, non_blocking=non_blocking)
        return self


class Qwen2AudioProcessor:
    """Text with `<|AUDIO|>` placeholders and recordings to tensors, and ids back to text."""

    def __init__(self, processor: Processor) -> None:
        self._processor = processor
        self.tokenizer = processor.tokenizer
        self.feature_extractor = SimpleNamespace(sampling_rate=SAMPLE_RATE, feature_size=processor.mel_bins)
        self._pad_id = processor.tokenizer.id_of(END_OF_TEXT)

    @classmethod
    def from_pretrained(
        cls, name: str, *, revision: str | None = None, trust_remote_code: bool = False, local_files_only: bool = False
    ) -> Qwen2AudioProcessor:
        """Load from any name that `qwen2_audio.load` takes. No remote code is ever run, whatever `trust_remote_code`."""
        folder = find_checkpoint(str(name), revision=revision, offline=local_files_only, weights=False)
        return cls(load_processor(folder, load_config(folder)))

    def apply_chat_template(
        self, conversation: Sequence[Any], *, add_generation_prompt: bool = False, tokenize: bool = False
    ) -> Any:
        """The prompt's text of a conversation, a list of messages; a list of texts for a list of conversations."""
        if tokenize:
            raise UsageError("apply_chat_template gives text here; use tokenize=False and then call the processor")
        if conversation and not isinstance(conversation[0], Mapping):
            return [self.apply_chat_template(c, add_generation_prompt=add_generation_prompt) for c in conversation]
        return render(Conversation.parse(conversation), generation_prompt=add_generation_prompt)

    def __call__(
        self,
        text: str | Sequence[str],
        audio: Any = None,
        *,
        audios: Any = None,
        sampling_rate: int = SAMPLE_RATE,
        return_tensors: str = "pt",
        padding: bool | str = True,
    ) -> Inputs:
        """Tensors for `generate` and the model.

        Args:
            text: one prompt or several, with one `<|AUDIO|>` for each recording.
            audio, audios: the recordings of all prompts in order: float [samples] at 16 kHz each, or anything that
                `qwen2_audio.load(...).chat` takes as a recording.

        Returns:
            input_ids and attention_mask int64 [batch, tokens], padded on the left; with recordings also input_features
            float32 [clips, mel_bins, 3000] and feature_attention_mask int64 [clips, 3000].
        """
        if audio is not None and audios is not None:
            raise UsageError("the recordings are given twice: as audio= and as audios=; give one of them")
        if sampling_rate != SAMPLE_RATE:
            raise UsageError(
                f"recordings must be at {SAMPLE_RATE} Hz, got sampling_rate={sampling_rate}; resample them"
            )
        if return_tensors != "pt":
            raise UsageError(f"only return_tensors='pt' is supported, got {return_tensors!r}")
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or (padding not in (True, "longest") and len(texts) > 1):
            raise UsageError(f"several prompts need padding=True, got {len(texts)} prompts and padding={padding!r}")
        if padding not in (True, False, "longest", "do_not_pad"):
            raise UsageError(f"padding must be True, False, 'longest' or 'do_not_pad', got {padding!r}")
        waves = _as_waves(audio if audio is not None else audios)
        rows, clips = [], []
        used = 0
        for prompt in texts:
            count = prompt.count("<|AUDIO|>")
            prompt, parts = spread_windows(prompt, waves[used : used + count], used)
            used += count
            here = [self._processor.clip(wave) for wave in parts]
            rows.append(self._processor.encode(prompt, here))
            clips += here
        if used != len(waves):
            raise ConversationError(
                f"the prompts have {used} <|AUDIO|> placeholders for {len(waves)} recordings; give one each"
            )
        return self._tensors(rows, clips)

    def _tensors(self, rows: list[list[int]], clips: list[Clip]) -> Inputs:
        longest = max(len(row) for row in rows)
        ids = [[self._pad_id] * (longest - len(row)) + row for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        inputs = Inputs({"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)})
        if clips:
            inputs["input_features"] = torch.stack([_pad_to_30_s(clip) for clip in clips])
            frames = torch.tensor([clip.frames for clip in clips])
            inputs["feature_attention_mask"] = (torch.arange(MAX_MEL_FRAMES) < frames[:, None]).long()
        return inputs

    def batch_decode(
        self, ids: Any, *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False
    ) -> list[str]:
        """Texts of ids [batch, tokens]."""
        _refuse_clean_up(clean_up_tokenization_spaces)
        return [self.decode(row, skip_special_tokens=skip_special_tokens) for row in ids]

    def decode(self, ids: Any, *, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool = False) -> str:
        """Text of ids [tokens]."""
        _refuse_clean_up(clean_up_tokenization_spaces)
        return self.tokenizer.decode([int(token) for token in ids], skip_special=skip_special_tokens)


AutoProcessor = Qwen2AudioProcessor


@dataclass(frozen=True, slots=True)
class Output:
    """What calling the model gives.

    Attributes:
        logits: [batch, tokens, vocab_size], zero where the input is padding.
        loss: mean cross-entropy of the labels that are not -100, when labels were given.
    """

    logits: Tensor
    loss: Tensor | None = None


@dataclass(frozen=True, slots=True)
class _Row:
    """One sequence of a padded batch."""

    ids: list[int]
    at: Tensor = field(repr=False)
    clips: list[Clip] = field(repr=False)


class Qwen2AudioForConditionalGeneration(nn.Module):
    """The model behind the original's class name. Callable, and with `generate`."""

    def __init__(self, assistant: Assistant) -> None:
        super().__init__()
        self.model = assistant.engine.model
        self.config = assistant.engine.model.config
        self._assistant = assistant

    @classmethod
    def from_pretrained(
        cls,
        name: str,
        *,
        device_map: str | int | torch.device | None = None,
        torch_dtype: torch.dtype | str | None = None,
        dtype: torch.dtype | str | None = None,
        revision: str | None = None,
        trust_remote_code: bool = False,
        local_files_only: bool = False,
    ) -> Qwen2AudioForConditionalGeneration:
        """Load from any name that `qwen2_audio.load` takes.

        Args:
            device_map: "auto" (the best device), one device or the number of a CUDA device; None is the CPU.
            dtype, torch_dtype: "auto" or None picks what is fast on the device.
            trust_remote_code: accepted because the original's snippets pass it; no remote code is ever run.
        """
        if dtype is not None and torch_dtype is not None:
            raise UsageError("the dtype is given twice: as dtype= and as torch_dtype=; give one of them")
        wanted = str(dtype or torch_dtype or "auto").removeprefix("torch.")
        place = "cpu" if device_map is None else device_map
        device = f"cuda:{place}" if isinstance(place, int) else str(place)
        return cls(load(name, device=device, dtype=wanted, revision=revision, offline=local_files_only))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        return self.model.dtype

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> Output:
        """Logits of every position, and the loss when labels [batch, tokens] are given (-100: not counted)."""
        rows = self._rows(input_ids, attention_mask, input_features, feature_attention_mask)
        clips = [clip for row in rows for clip in row.clips]
        audio = self.model.encode_audio([c.mel for c in clips], [c.frames for c in clips]) if clips else None
        ids = torch.tensor([token for row in rows for token in row.ids], device=self.device)
        packed = self.model(ids, [len(row.ids) for row in rows], audio)
        logits = packed.new_zeros(*input_ids.shape, packed.shape[-1])
        places = torch.cat([row.at + i * input_ids.shape[1] for i, row in enumerate(rows)])
        logits = logits.flatten(0, 1).index_copy(0, places, packed).view_as(logits)
        if labels is None:
            return Output(logits)
        targets = labels[:, 1:].to(self.device)
        if attention_mask is not None:  # padding neither predicts nor is predicted
            real = attention_mask.to(self.device) != 0
            targets = targets.masked_fill(~(real[:, :-1] & real[:, 1:]), IGNORE_INDEX)
        loss = cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE_INDEX)
        return Output(logits, loss)

    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        feature_attention_mask: Tensor | None = None,
        *,
        max_length: int | None = None,
        max_new_tokens: int | None = None,
        min_new_tokens: int | None = None,
        do_sample: bool | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int | None = None,
    ) -> Tensor:
        """The prompt followed by the answer, int64 [batch, tokens], shorter answers padded on the right.

        Args:
            max_length: prompt and answer together, each recording's placeholder counted as one token.
            max_new_tokens: the answer alone; it wins over `max_length`.
            min_new_tokens: no end token is chosen before so many others were.
            do_sample: False is greedy, True draws; None: as the checkpoint's `generation_config.json` says.

        Raises:
            UsageError: the prompt alone is longer than `max_length`, or an option would be ignored."""
        options = self._assistant.defaults
        drawn = options.temperature > 0 if do_sample is None else do_sample
        if not drawn and any(given is not None for given in (temperature, top_k, top_p, min_p, seed)):
            greedy = (
                "do_sample=False" if do_sample is False else "this checkpoint, which is greedy without do_sample=True,"
            )
            raise UsageError(f"{greedy} would ignore temperature, top_k, top_p, min_p and seed; leave them out")
        if not drawn:
            options = replace(options, temperature=0.0)
        elif options.temperature == 0:
            options = replace(options, temperature=1.0, top_k=50)
        options = options.override(
            max_new_tokens=max_new_tokens, min_new_tokens=min_new_tokens, temperature=temperature, top_k=top_k,
            top_p=top_p, min_p=min_p, repetition_penalty=repetition_penalty, seed=seed,
        )  # fmt: skip
        rows = self._rows(input_ids, attention_mask, input_features, feature_attention_mask)
        requests = [Request(row.ids, row.clips, _limited(options, row, max_length, max_new_tokens)) for row in rows]
        answers: list[list[int]] = [[] for _ in rows]
        for step in self._assistant.engine.run(requests):
            answers[step.index].append(step.token)
        pad = self._assistant.processor.tokenizer.id_of(END_OF_TEXT)
        longest = max(len(answer) for answer in answers)
        new = torch.tensor([answer + [pad] * (longest - len(answer)) for answer in answers], device=input_ids.device)
        return torch.cat([input_ids, new], dim=1)

    def _rows(
        self, ids: Tensor, mask: Tensor | None, features: Tensor | None, feature_mask: Tensor | None
    ) -> list[_Row]:
        """The sequences of a padded batch, without their padding."""
        if (features is None) != (feature_mask is None):
            raise UsageError(
                "input_features and feature_attention_mask belong together; pass on all the processor gave"
            )
        clips = []
        if features is not None and feature_mask is not None:
            frames = [int(count) for count in feature_mask.sum(-1)]
            mels = features.to(self.device, torch.float32)
            clips = [Clip(mel[:, : count + TAIL_FRAMES], count) for mel, count in zip(mels, frames, strict=True)]
        rows, used = [], 0
        for i, row in enumerate(ids):
            at = (mask[i] if mask is not None else torch.ones_like(row)).nonzero()[:, 0].to(self.device)
            kept = [int(token) for token in row[at.to(row.device)]]
            tokens, here = kept.count(self.config.audio_token_id), []
            while tokens > 0 and used < len(clips):
                here.append(clips[used])
                tokens -= clips[used].tokens
                used += 1
            if tokens:
                raise ConversationError("the audio tokens in input_ids do not fit input_features; use the processor's")
            rows.append(_Row(kept, at, here))
        if used != len(clips):
            raise ConversationError(f"{len(clips)} clips in input_features, but input_ids only hear {used} of them")
        return rows


def _limited(options: GenerationOptions, row: _Row, max_length: int | None, max_new: int | None) -> GenerationOptions:
    if max_length is None or max_new is not None:
        return options
    prompt = len(row.ids) - sum(clip.tokens - 1 for clip in row.clips)
    if prompt >= max_length:
        raise UsageError(
            f"the prompt has {prompt} tokens (a recording counted as one), max_length is {max_length}; "
            "raise it, or give max_new_tokens instead"
        )
    return replace(options, max_new_tokens=max_length - prompt)


def _as_array(audio: Any) -> Any:
    """A tensor as an array; whole numbers keep their dtype, which tells their scale."""
    if isinstance(audio, Tensor):
        audio = (audio.float() if audio.is_floating_point() else audio).detach().cpu().numpy()
    return audio


def _as_waves(audio: Any) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    if audio is None:
        return []
    audio = _as_array(audio)
    single = is_wave(audio) or isinstance(audio, str | os.PathLike | bytes) or hasattr(audio, "read")
    single = single or (isinstance(audio, np.ndarray) and audio.ndim == 1)
    out = []
    for item in [audio] if single else audio:
        item = _as_array(item)
        if isinstance(item, list):
            try:
                item = np.asarray(item, dtype=np.float32)
            except (ValueError, TypeError) as error:
                raise AudioError(
                    f"recordings are one flat list, in the order of their places in the texts; got a list in it ({error})"
                ) from error
        if isinstance(item, np.ndarray) and item.ndim != 1:
            raise AudioError(f"a recording must have one channel, [samples], got shape {list(item.shape)}")
        out.append(load_audio((item, SAMPLE_RATE) if isinstance(item, np.ndarray) else item))
    return out


def _pad_to_30_s(clip: Clip) -> Tensor:
    """The mel [mel_bins, 3000] that `transformers` would give: silence behind the clip."""
    loudest = 4 * float(clip.mel.max()) - 4
    silence = (max(loudest - 8, -10.0) + 4) / 4
    return nn.functional.pad(clip.mel, (0, MAX_MEL_FRAMES - clip.mel.shape[1]), value=silence)


def _refuse_clean_up(clean_up: bool) -> None:
    if clean_up:
        raise UsageError("clean_up_tokenization_spaces=True would change the answer; leave it False")
