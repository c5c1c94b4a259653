"""BLEU of translations, through sacrebleu."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from qwen2_audio.errors import UsageError
from qwen2_audio.evaluation.bootstrap import BLEU_COUNTS
from qwen2_audio.evaluation.normalizers.transcript import primary_language
from qwen2_audio.evaluation.samples import Answer
from qwen2_audio.evaluation.scores import Part, Score

_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab"}
_DEFAULT = "13a"


def bleu(answers: Sequence[Answer], profile: str, language: str | None) -> Score:
    """Corpus BLEU (0 to 100) of the answers of one source.

    `official` compares the strings as they are, `clean` without spaces around them. A part carries the counts that corpus BLEU
    is made of, and in its numerator the sentence's own BLEU; the corpus' value is not their mean.

    Args:
        language: ISO code of the translations; None: what stands last but one in the source's name ("covost2_en_zh_test").

    Raises:
        UsageError: sacrebleu, or what it needs for Japanese, is missing.
    """
    source = answers[0].sample.source
    tokenizer = bleu_tokenizer(source, profile, language)
    metric, single = _metric(tokenizer), _metric(tokenizer, effective_order=True)
    pairs = [(answer.sample.gt, answer.response) for answer in answers]
    if profile == "clean":
        pairs = [(reference.strip(), response.strip()) for reference, response in pairs]
    corpus = metric.corpus_score([response for _, response in pairs], [[reference for reference, _ in pairs]])
    parts = tuple(
        _part(answer.sample.id, reference, response, single)
        for answer, (reference, response) in zip(answers, pairs, strict=True)
    )
    details = {
        "signature": str(metric.get_signature()),
        "tokenizer": tokenizer,
        "precisions": [round(precision, 4) for precision in corpus.precisions],
        "brevity_penalty": corpus.bp,
        "hypothesis_length": corpus.sys_len,
        "reference_length": corpus.ref_len,
        "empty_references": sum(not reference.strip() for reference, _ in pairs),
    }
    return Score(source, "bleu", profile, corpus.score, len(parts), parts=parts, details=details)


def bleu_tokenizer(source: str, profile: str, language: str | None) -> str:
    """sacrebleu's name of the tokenizer for a target language: "zh", "ja-mecab", or "13a" for all others.

    Args:
        language: ISO code; None: what stands last but one in the source's name, if it has as many parts.
    """
    names = source.split("_")
    target = language or (names[-2] if len(names) > 1 else "")
    if language:
        target = primary_language(language)
    elif profile == "clean":
        target = re.split("[-_]", target.lower())[0]
    return _TOKENIZERS.get(target, _DEFAULT)


def _metric(tokenizer: str, *, effective_order: bool = False) -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
    except ImportError:
        raise UsageError('BLEU needs sacrebleu: pip install "qwen2-audio[eval]"') from None
    try:
        return BLEU(tokenize=tokenizer, effective_order=effective_order, force=True)  # force: no word on tokenized text
    except (ImportError, RuntimeError):  # sacrebleu raises the latter
        raise UsageError('BLEU of Japanese needs MeCab: pip install "sacrebleu[ja]"') from None


def _part(id: str, reference: str, response: str, metric: Any) -> Part:
    sentence = metric.sentence_score(response, [reference])
    counts = [sentence.sys_len, sentence.ref_len, *sentence.counts, *sentence.totals]
    return Part(id, sentence.score, 1.0, reference, response, dict(zip(BLEU_COUNTS, map(int, counts), strict=True)))
