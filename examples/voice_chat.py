"""Voice chat: speak to the model, then ask on in writing. The session remembers what was said."""

import os

from qwen2_audio import load

assistant = load(os.environ.get("QWEN2_AUDIO_MODEL", "mini"))
chat = assistant.session(system="You are a helpful assistant.")

print("user:     ", "(speaks: examples/question.flac)")
print("assistant:", chat.send("examples/question.flac", temperature=0, max_new_tokens=40))

print("user:     ", "And which river runs through it?")
print("assistant:", chat.send("And which river runs through it?", temperature=0, max_new_tokens=40))

print(len(chat.conversation.messages), "messages so far")
