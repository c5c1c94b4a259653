"""The original's snippet with one import changed: `transformers` has become `qwen2_audio.hf`."""

import os

import soundfile

from qwen2_audio.hf import AutoProcessor, Qwen2AudioForConditionalGeneration

name = os.environ.get("QWEN2_AUDIO_MODEL", "mini")
processor = AutoProcessor.from_pretrained(name)
model = Qwen2AudioForConditionalGeneration.from_pretrained(name, device_map="auto")

conversation = [
    {"role": "user", "content": [
        {"type": "audio", "audio_url": "examples/sentence.flac"},
        {"type": "text", "text": "What does the person say?"},
    ]},
]  # fmt: skip
text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
audios = []
for message in conversation:
    for part in message["content"]:
        if part["type"] == "audio":
            audios.append(soundfile.read(part["audio_url"], dtype="float32")[0])

inputs = processor(text=text, audios=audios, return_tensors="pt", padding=True)
generate_ids = model.generate(**inputs, max_length=256)
generate_ids = generate_ids[:, inputs.input_ids.size(1) :]
print(processor.batch_decode(generate_ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)[0])
