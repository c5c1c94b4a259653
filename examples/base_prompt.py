"""The bare prompt of the base model (no chat): recordings directly followed by an instruction in its own wording."""

import os

from qwen2_audio import load

assistant = load(os.environ.get("QWEN2_AUDIO_MODEL", "mini"))  # the published one: Qwen/Qwen2-Audio-7B

prompt = "Detect the language and recognize the speech: <|en|>"
print(assistant.complete(["examples/sentence.flac"], prompt, temperature=0, max_new_tokens=40))
