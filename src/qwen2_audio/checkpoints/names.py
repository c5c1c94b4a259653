"""Parameter names: the three layouts in the wild, brought to the published one.

published            audio_tower.*        multi_modal_projector.*        language_model.model.*        language_model.lm_head.*
transformers 5       model.audio_tower.*  model.multi_modal_projector.*  model.language_model.*        lm_head.*
re-saved by some 5.x audio_tower.*        multi_modal_projector.*        language_model.model.model.*  language_model.model.lm_head.*
"""

from __future__ import annotations

import re

_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^model\.(audio_tower|multi_modal_projector|language_model)\."), r"\1."),
    (re.compile(r"^language_model\.model\.(model|lm_head)\."), r"language_model.\1."),
    (re.compile(r"^language_model\.(layers|embed_tokens|norm)\."), r"language_model.model.\1."),
    (re.compile(r"^lm_head\."), "language_model.lm_head."),
)
_MODERN: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"^(audio_tower|multi_modal_projector)\."), r"model.\1."),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
)
_DERIVED = re.compile(r"rotary_emb\.inv_freq$")


def canonical(name: str) -> str | None:
    """The published name of a tensor, whatever the layout; None for tensors that are recomputed, not loaded."""
    if _DERIVED.search(name):
        return None
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name


def modern(name: str) -> str:
    """The name that `transformers` 5 has in memory for a published one."""
    for pattern, replacement in _MODERN:
        name, found = pattern.subn(replacement, name)
        if found:
            return name
    return name
