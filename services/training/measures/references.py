"""BLEU and ROUGE against reference answers, by sacrebleu and rouge-score; the ML environment's."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU


def reference_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`bleu` of the corpus (Papineni et al. 2002), `rouge_1` and `rouge_l` (Lin 2004), in [0, 1].

    ROUGE is the mean F-measure with Porter's stemmer. Empty without answers.

    Args:
        answers: What a model wrote, one a prompt.
        references: What people preferred, in the same order.

    """
    if not answers:
        return {}
    bleu = BLEU(effective_order=True).corpus_score(list(answers), [list(references)]).score / 100
    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    found = [scorer.score(one, other) for one, other in zip(references, answers, strict=True)]
    return {
        "bleu": min(1.0, bleu),
        "rouge_1": fmean(one["rouge1"].fmeasure for one in found),
        "rouge_l": fmean(one["rougeL"].fmeasure for one in found),
    }
