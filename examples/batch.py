"""Several unrelated conversations at once: faster than one by one, and each answer as if it were alone."""

import os

from qwen2_audio import load

assistant = load(os.environ.get("QWEN2_AUDIO_MODEL", "mini"))

messages = [
    ["examples/sentence.flac", "What is said?"],  # a recording and an instruction
    "examples/question.flac",  # voice chat
    "What is the capital of Italy?",  # text alone
]
for message, reply in zip(messages, assistant.batch(messages, temperature=0, max_new_tokens=30), strict=True):
    print(message, "->", reply)
