"""The one prompt renderer: a conversation to the exact text that the published models were trained on."""

from __future__ import annotations

import re

from qwen2_audio.errors import ConversationError
from qwen2_audio.processing.conversation import AudioPart, Conversation, Message, TextPart
from qwen2_audio.processing.tokenizer import AUDIO, AUDIO_BOS, AUDIO_EOS, CONTROL_TOKENS, IM_END, IM_START

DEFAULT_SYSTEM = "You are a helpful assistant."
PLACEHOLDER = f"{AUDIO_BOS}{AUDIO}{AUDIO_EOS}"
GENERATION_PROMPT = f"{IM_START}assistant\n"
_HALVES = re.compile("[\ud800-\udfff]")


def render(conversation: Conversation, *, generation_prompt: bool = True) -> str:
    """ChatML with one `<|AUDIO|>` a recording, as `Audio n: <|audio_bos|><|AUDIO|><|audio_eos|>`, n counted over the whole
    conversation. A default system message is put in front when the conversation does not start with one.

    Raises:
        ConversationError: no messages, a system message that is not the first, or a text that `check_text` refuses.
    """
    check(conversation)
    turns, audios = [], 0
    for message in with_system(conversation).messages:
        turn, audios = render_turn(message, audios)
        turns.append(turn)
    return "".join(turns) + (GENERATION_PROMPT if generation_prompt else "")


def render_turn(message: Message, audios: int) -> tuple[str, int]:
    """One message, given the number of recordings before it; returns also the number after it."""
    body = []
    for part in message.parts:
        if isinstance(part, AudioPart):
            audios += 1
            body.append(f"Audio {audios}: {PLACEHOLDER}\n")
        else:
            body.append(part.text)
    return f"{IM_START}{message.role}\n{''.join(body)}{IM_END}\n", audios


def render_base(audios: int, instruction: str) -> str:
    """The base model's bare prompt: the recordings directly followed by the instruction; no chat, no newline.

    Raises:
        ConversationError: nothing at all, or an instruction that `check_text` refuses.
    """
    if not audios and not instruction:
        raise ConversationError("the prompt is empty; give recordings, an instruction or both")
    check_text(instruction, "the instruction")
    return PLACEHOLDER * audios + instruction


def with_system(conversation: Conversation) -> Conversation:
    """The conversation, with the default system message in front if it has none."""
    if conversation.messages[0].role == "system":
        return conversation
    return Conversation((Message("system", (TextPart(DEFAULT_SYSTEM),)), *conversation.messages))


def begin(system: str | None) -> Conversation:
    """A conversation in which nothing was said yet, with its system message if there is one.

    Raises:
        ConversationError: that message cannot be rendered faithfully.
    """
    if system is None:
        return Conversation()
    conversation = Conversation().system(system)
    check(conversation)
    return conversation


def check(conversation: Conversation) -> None:
    """Raise `ConversationError` for what cannot be rendered faithfully."""
    if not conversation.messages:
        raise ConversationError("the conversation is empty; add a user message")
    for index, message in enumerate(conversation.messages):
        if message.role == "system" and index:
            raise ConversationError(f"message {index} is a system message; only the first message can be one")
        if not message.parts:
            raise ConversationError(f"message {index} ({message.role}) is empty; give it text or a recording")
        if message.role == "user" and not any(isinstance(part, AudioPart) or part.text for part in message.parts):
            raise ConversationError(f"message {index} (user) is an empty text; say something or give a recording")
        texts = [
            part.text if isinstance(part, TextPart) else "\n" for part in message.parts
        ]  # beside each other as rendered
        check_text("".join(texts), f"message {index} ({message.role})")


def check_text(text: str, where: str) -> None:
    """Raise `ConversationError` for a text that holds control tokens, or that cannot be encoded.

    Args:
        where: it stands, to begin the message with.
    """
    found = next((token for token in CONTROL_TOKENS if token in text), None)
    if found:
        raise ConversationError(
            f"{where} holds the control token {found!r} in its text; remove it"
            " (recordings are given as audio parts, not as placeholders)"
        )
    if is_broken(text):
        raise ConversationError(f"{where} holds half a character (a lone surrogate); give it as text in UTF-8")


def is_broken(text: str) -> bool:
    """Whether a text cannot be encoded: JSON can write half a character, and arguments that are no UTF-8 become such halves."""
    return not text.isascii() and _HALVES.search(text) is not None
