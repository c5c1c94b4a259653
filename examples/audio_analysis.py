"""Audio analysis: recordings and a written instruction, in one message or over several turns."""

import os

from qwen2_audio import AudioPart, Conversation, TextPart, load

assistant = load(os.environ.get("QWEN2_AUDIO_MODEL", "mini"))

reply = assistant.chat(["examples/sentence.flac", "What does the person say?"], temperature=0, max_new_tokens=40)
print(reply.text)
print(f"({len(reply.tokens)} tokens, finished because of: {reply.finish_reason})")

# The same with every part spelled out, and with an earlier turn in front.
conversation = (
    Conversation()
    .system("You are a helpful assistant.")
    .user(AudioPart("examples/question.flac"), TextPart("Transcribe the speech."))
    .assistant("What is the capital of France?")
    .user(AudioPart("examples/sentence.flac"), TextPart("Transcribe the speech."))
)
print(assistant.chat(conversation, temperature=0, max_new_tokens=40))
