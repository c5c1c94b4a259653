"""Streaming: show the answer while it is written, and stop early when it gets too long."""

import os

from qwen2_audio import load

assistant = load(os.environ.get("QWEN2_AUDIO_MODEL", "mini"))

stream = assistant.stream("Tell me something about the sea.", temperature=0.7, seed=1, max_new_tokens=60)
shown = 0
for piece in stream:
    print(piece, end="", flush=True)
    shown += len(piece)
    if shown > 120:
        stream.cancel()  # may also be called from another thread
print(f"\n[{stream.reply.finish_reason}]")
