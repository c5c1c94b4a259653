"""The drop-in for the original's snippets: the four of them run as printed, and give what transformers gives."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch

from qwen2_audio import hf
from qwen2_audio.errors import AudioError, AudioWarning, ConversationError, UsageError
from qwen2_audio.hf import AutoProcessor, Qwen2AudioForConditionalGeneration
from tests.tiny import sound, tiny_folder

CONVERSATION_1 = [
    {"role": "user", "content": [{"type": "audio", "audio_url": "glass.wav"}, {"type": "text", "text": "What's that sound?"}]},
    {"role": "assistant", "content": "It is the sound of glass shattering."},
    {"role": "user", "content": [{"type": "audio", "audio_url": "cough.wav"}, {"type": "text", "text": "What is this?"}]},
]  # fmt: skip
CONVERSATION_2 = [{"role": "user", "content": [{"type": "audio", "audio_url": "speech.wav"}]}]
GREEDY: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("hf") / "model")


@pytest.fixture(scope="module")
def processor(folder: Path) -> AutoProcessor:
    return AutoProcessor.from_pretrained(str(folder), trust_remote_code=True)


@pytest.fixture(scope="module")
def model(folder: Path) -> Qwen2AudioForConditionalGeneration:
    return Qwen2AudioForConditionalGeneration.from_pretrained(str(folder), device_map="cpu", trust_remote_code=True)


@pytest.fixture(scope="module")
def theirs(folder: Path) -> tuple[Any, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import transformers

        processor: Any = transformers.AutoProcessor.from_pretrained(folder)
        model: Any = transformers.Qwen2AudioForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return processor, model


def test_batch_inference_snippet(processor: AutoProcessor, model: Qwen2AudioForConditionalGeneration) -> None:
    text = [
        processor.apply_chat_template(c, add_generation_prompt=True, tokenize=False)
        for c in (CONVERSATION_1, CONVERSATION_2)
    ]
    audios = [sound(1.0), sound(2.1), sound(12.0)]
    inputs = processor(text=text, audios=audios, return_tensors="pt", padding=True)
    inputs["input_ids"] = inputs["input_ids"].to("cpu")
    inputs.input_ids = inputs.input_ids.to("cpu")
    assert inputs["input_ids"] is inputs.input_ids
    generate_ids = model.generate(**inputs, max_length=100)
    generate_ids = generate_ids[:, inputs.input_ids.size(1) :]
    response = processor.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert len(response) == 2


def test_same_tensors_logits_loss_and_ids_as_transformers(
    processor: AutoProcessor, model: Qwen2AudioForConditionalGeneration, theirs: tuple[Any, Any]
) -> None:
    text = processor.apply_chat_template([CONVERSATION_1, CONVERSATION_2], add_generation_prompt=True)
    assert text == theirs[0].apply_chat_template([CONVERSATION_1, CONVERSATION_2], add_generation_prompt=True)
    audios = [sound(1.0), sound(2.13), sound(5.0)]
    ours = processor(text=text, audio=audios)
    reference = theirs[0](text=text, audio=audios, sampling_rate=16_000, return_tensors="pt", padding=True)
    assert set(ours) == set(reference)
    for name, tensor in reference.items():
        torch.testing.assert_close(ours[name], tensor.to(ours[name].dtype), atol=1e-5, rtol=0)
    labels = ours.input_ids.masked_fill(ours.attention_mask == 0, -100)
    labels[0, int((ours.attention_mask[0] == 0).sum())] = -100  # transformers would predict it from padding
    labels[1, int((ours.attention_mask[1] == 0).sum())] = -100
    with torch.no_grad():
        a, b = model(**ours, labels=labels), theirs[1](**reference, labels=labels)
    real = ours.attention_mask.bool()
    torch.testing.assert_close(a.logits[real], b.logits[real], atol=1e-4, rtol=0)
    assert a.loss is not None
    assert float(a.loss) == pytest.approx(float(b.loss), abs=1e-5)
    ids = model.generate(**ours, max_new_tokens=24, **GREEDY)
    reference_ids = theirs[1].generate(**reference, max_new_tokens=24, **GREEDY)
    assert ids.tolist() == reference_ids.tolist()
    ends = {"min_new_tokens": 20, "max_new_tokens": 24}
    assert (
        model.generate(**ours, **ends, **GREEDY).tolist() == theirs[1].generate(**reference, **ends, **GREEDY).tolist()
    )


def test_padding_on_the_right_is_not_learnt(model: Qwen2AudioForConditionalGeneration, theirs: tuple[Any, Any]) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9], [10, 11, 12, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    with torch.no_grad():
        ours, reference = (m(input_ids=ids, attention_mask=mask, labels=ids).loss for m in (model, theirs[1]))
    assert float(ours) == pytest.approx(float(reference), abs=1e-5)


def test_base_model_snippet(processor: AutoProcessor, model: Qwen2AudioForConditionalGeneration) -> None:
    prompt = "<|audio_bos|><|AUDIO|><|audio_eos|>Generate the caption in English:"
    inputs = processor(text=prompt, audios=sound(3.0), return_tensors="pt")
    ids = model.generate(**inputs, max_length=64)[:, inputs.input_ids.size(1) :]
    assert ids.shape[0] == 1 and ids.shape[1] >= 1


def test_max_length_counts_a_clip_as_one_token(
    processor: AutoProcessor, model: Qwen2AudioForConditionalGeneration
) -> None:
    prompt = "<|audio_bos|><|AUDIO|><|audio_eos|>hello"
    lengths = []
    for seconds in (1.0, 29.0):
        inputs = processor(text=prompt, audios=[sound(seconds)])
        written = inputs.input_ids.size(1) - (inputs.input_ids == model.config.audio_token_id).sum() + 1
        ids = model.generate(**inputs, max_length=int(written) + 10, **GREEDY)
        lengths.append(ids.size(1) - inputs.input_ids.size(1))
    assert max(lengths) <= 10 and min(lengths) >= 1
    with pytest.raises(UsageError, match="max_length is 3"):
        model.generate(**inputs, max_length=3)


def test_long_clip_becomes_numbered_windows(processor: AutoProcessor) -> None:
    text = processor.apply_chat_template(CONVERSATION_1, add_generation_prompt=True)
    with pytest.warns(AudioWarning, match="2 consecutive parts"):
        inputs = processor(text=text, audios=[sound(31.0), sound(1.0)])
    assert inputs.input_features.shape == (3, 128, 3000)
    shown = processor.decode(inputs.input_ids[0])
    assert [f"Audio {n}:" in shown for n in (1, 2, 3, 4)] == [True, True, True, False]


def test_nothing_is_ignored(processor: AutoProcessor, model: Qwen2AudioForConditionalGeneration) -> None:
    prompt = "<|audio_bos|><|AUDIO|><|audio_eos|>hello"
    wave = sound(1.0)
    with pytest.raises(TypeError, match="audioz"):
        processor(text=prompt, audioz=[wave])  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="twice"):
        processor(prompt, audio=[wave], audios=[wave])
    with pytest.raises(ConversationError, match=r"1 <\|AUDIO\|> placeholders for 0 recordings"):
        processor(text=prompt)
    with pytest.raises(ConversationError, match="2 recordings"):
        processor(text=prompt, audios=[wave, wave])
    with pytest.raises(UsageError, match="16000"):
        processor(text=prompt, audios=[wave], sampling_rate=8000)
    with pytest.raises(TypeError, match="num_beams"):
        model.generate(**processor(text=prompt, audios=[wave]), num_beams=4)
    for ignored in ({"temperature": 0.7}, {"top_k": 5}, {"seed": 1}):
        with pytest.raises(UsageError, match="do_sample=False would ignore"):
            model.generate(**processor(text=prompt, audios=[wave]), do_sample=False, **ignored)
    for nested in ([[wave, wave[:9000]], [wave]], [["a.wav"]]):
        with pytest.raises(AudioError, match="recordings are one flat list"):
            processor(text=prompt, audios=nested)
    with pytest.raises(UsageError, match="clean_up"):
        processor.batch_decode([[1]], clean_up_tokenization_spaces=True)
    with pytest.raises(ConversationError, match="do not fit"):
        inputs = processor(text=prompt, audios=[wave])
        model(inputs.input_ids, inputs.attention_mask)


@pytest.mark.parametrize("padding", ["max_length", "left", 7, None])
def test_padding_of_one_prompt_is_not_ignored(processor: AutoProcessor, padding: Any) -> None:
    with pytest.raises(UsageError, match="padding must be True, False"):
        processor(text="hello", padding=padding)
    for known in (True, False, "longest", "do_not_pad"):
        assert processor(text="hello", padding=known).input_ids.shape[0] == 1


@pytest.mark.parametrize(
    ("given", "device"), [(None, "cpu"), (0, "cuda:0"), (1, "cuda:1"), ("auto", "auto"), (torch.device("cpu"), "cpu")]
)
def test_device_map(monkeypatch: pytest.MonkeyPatch, given: Any, device: str) -> None:
    asked: list[str] = []

    def load(_name: str, **options: Any) -> None:
        asked.append(options["device"])
        raise UsageError("far enough")

    monkeypatch.setattr(hf, "load", load)
    with pytest.raises(UsageError, match="far enough"):
        Qwen2AudioForConditionalGeneration.from_pretrained("mini", device_map=given)
    assert asked == [device]


def test_a_processor_needs_no_weights(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []

    def find(_name: str, **options: Any) -> Path:
        asked.append(options)
        return folder

    monkeypatch.setattr(hf, "find_checkpoint", find)
    AutoProcessor.from_pretrained("Qwen/Qwen2-Audio-7B-Instruct")
    assert asked == [{"revision": None, "offline": False, "weights": False}]


def test_a_greedy_checkpoint_ignores_nothing(tmp_path: Path, processor: AutoProcessor) -> None:
    folder = tiny_folder(tmp_path / "greedy")
    (folder / "generation_config.json").write_text('{"do_sample": false}')
    model = Qwen2AudioForConditionalGeneration.from_pretrained(str(folder))
    inputs = processor(text="hello")
    for ignored in ({"temperature": 0.7}, {"top_p": 0.9}, {"seed": 1}):
        with pytest.raises(UsageError, match="greedy without do_sample=True, would ignore"):
            model.generate(**inputs, max_new_tokens=4, **ignored)
        model.generate(**inputs, max_new_tokens=4, do_sample=True, **ignored)


def test_tensors_of_any_kind_are_heard(processor: AutoProcessor) -> None:
    prompt, wave = "<|audio_bos|><|AUDIO|><|audio_eos|>hello", torch.from_numpy(sound(1.0))
    expected = processor(text=prompt, audios=[wave]).input_features
    learnt = processor(text=prompt, audios=[wave.double().requires_grad_()]).input_features
    torch.testing.assert_close(learnt, expected)
    whole = (wave * 32767).round().to(torch.int16)  # as torchaudio.load(..., normalize=False) gives it
    scaled = processor(text=prompt, audios=[whole.float() / 32768]).input_features
    for audios in ([whole], whole, whole[None]):
        assert torch.equal(processor(text=prompt, audios=audios).input_features, scaled)


def test_inputs_move_and_are_cast_as_in_transformers(
    processor: AutoProcessor, model: Qwen2AudioForConditionalGeneration
) -> None:
    prompt = "<|audio_bos|><|AUDIO|><|audio_eos|>hello"
    for arguments, options in ((("cpu", torch.bfloat16), {}), ((torch.bfloat16,), {}), ((), {"dtype": torch.bfloat16})):
        inputs = processor(text=prompt, audios=[sound(1.0)])
        inputs["input_ids"] = torch.full_like(inputs.input_ids, 151_646)
        inputs["note"] = "kept"
        assert inputs.to(*arguments, **options) is inputs
        assert inputs.input_features.dtype == torch.bfloat16 and inputs.note == "kept"
        assert inputs.input_ids.dtype == inputs.attention_mask.dtype == torch.int64
        assert bool((inputs.input_ids == 151_646).all())
    asked = processor(text=prompt, audios=[sound(1.0)]).to("cpu", torch.bfloat16)
    assert model.generate(**asked, max_new_tokens=2, **GREEDY).shape[0] == 1
    moved = processor(text=prompt, audios=[sound(1.0)]).to(device="meta")
    assert {tensor.device.type for tensor in moved.values()} == {"meta"}
    assert moved.input_features.dtype == torch.float32


def test_gradients_flow(folder: Path, processor: AutoProcessor) -> None:
    model = Qwen2AudioForConditionalGeneration.from_pretrained(str(folder))
    model.requires_grad_(True)
    inputs = processor(text="<|audio_bos|><|AUDIO|><|audio_eos|>hello", audios=[sound(1.0)])
    out = model(**inputs, labels=inputs.input_ids)
    assert out.loss is not None
    out.loss.backward()
    grad = model.model.multi_modal_projector.linear.weight.grad
    assert grad is not None and bool(torch.isfinite(grad).all()) and float(grad.abs().sum()) > 0


def test_a_single_recording_of_any_kind(processor: AutoProcessor, tmp_path: Path) -> None:
    file = tmp_path / "speech.wav"
    soundfile.write(file, sound(0.5), 16_000, subtype="FLOAT")
    prompt = "<|audio_bos|><|AUDIO|><|audio_eos|>"
    wanted = processor(text=prompt, audio=sound(0.5)).input_features
    with file.open("rb") as opened:
        for audio in (str(file), file, file.read_bytes(), opened, [file]):
            assert torch.equal(processor(text=prompt, audio=audio).input_features, wanted)
