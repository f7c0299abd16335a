"""Metrics of generated texts: ROUGE by rouge-score, BLEU and chrF by sacrebleu, exact match."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt

from lora_ft.metrics.intervals import Indices
from lora_ft.metrics.libraries import library
from lora_ft.metrics.totals import Table, ratio, totals

DESCRIPTION = """`rouge1`, `rouge2`, `rouge_l` and `rouge_lsum` (which splits at line ends): means over rows of
rouge-score's F measures, from 0 to 1. Its words are runs of a-z and 0-9: other scripts score 0, look at chrf there.
`bleu`: sacrebleu's corpus BLEU, and `chrf`: its corpus chrF2, from 0 to 100 as papers print them. `exact_match`:
the share of rows that are equal but for white space at their ends."""

INPUTS = """
Args:
    predictions: A text for each row.
    references: A text for each row.
    use_stemmer: Whether ROUGE strips English word endings; False unless given.
    tokenize: sacrebleu's tokenizer for BLEU; 13a unless given, zh for Chinese, char for scripts without blanks.
"""

CITATION = """@inproceedings{rouge, title={{ROUGE}: A Package for Automatic Evaluation of Summaries},
author={Lin, Chin-Yew}, booktitle={Text Summarization Branches Out}, year={2004}}
@inproceedings{sacrebleu, title={A Call for Clarity in Reporting {BLEU} Scores}, author={Post, Matt},
booktitle={WMT}, year={2018}}"""

ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rouge_l": "rougeL", "rouge_lsum": "rougeLsum"}
CHRF_ORDER, CHRF_BETA = 6, 2


@dataclass(frozen=True)
class GeneratedTextCounts:
    """What the metrics of any rows are summed from.

    Attributes:
        means: The four ROUGE measures, exact match and 1, `(rows, 6)`.
        bleu: Lengths of prediction and reference, n-grams that are right, all n-grams, n = 1 to 4, `(rows, 10)`.
        chrf: For n = 1 to 6 the n-grams of prediction, of reference, and of both, `(rows, 18)`.
    """

    means: Table
    bleu: Table
    chrf: Table


def generated_text_counts(
    predictions: Sequence[str], references: Sequence[str], *, use_stemmer: bool = False, tokenize: str = "13a"
) -> GeneratedTextCounts:
    """Compares the rows, once for all draws of a bootstrap.

    Args:
        predictions: A text for each row.
        references: A text for each row.
        use_stemmer: Whether ROUGE strips English word endings.
        tokenize: sacrebleu's tokenizer for BLEU.

    Returns:
        The counts.

    Raises:
        InputError: rouge-score or sacrebleu is not installed.
    """
    rouge_scorer = library("rouge_score.rouge_scorer", metrics="rouge")
    tokenizers = library("rouge_score.tokenizers", metrics="rouge")
    sacrebleu = library("sacrebleu.metrics", metrics="bleu and chrf")
    # a tokenizer that is given is not announced in the log
    rouge = rouge_scorer.RougeScorer(list(ROUGE.values()), tokenizer=tokenizers.DefaultTokenizer(use_stemmer))
    bleu = sacrebleu.BLEU(tokenize=tokenize)
    means, bleus, chrfs = [], [], []
    for prediction, reference in zip(predictions, references, strict=True):
        measures = rouge.score(reference, prediction)
        exact = float(prediction.strip() == reference.strip())
        means.append([*(measures[name].fmeasure for name in ROUGE.values()), exact, 1.0])
        one = bleu.corpus_score([prediction], [[reference]])
        bleus.append([one.sys_len, one.ref_len, *one.counts, *one.totals])
        chrfs.append(_chrf_row(prediction, reference))
    return GeneratedTextCounts(
        np.asarray(means, dtype=np.float64).reshape(-1, 6),
        np.asarray(bleus, dtype=np.float64).reshape(-1, 10),
        np.asarray(chrfs, dtype=np.float64).reshape(-1, 3 * CHRF_ORDER),
    )


def generated_text_scores(counts: GeneratedTextCounts, rows: Indices | None = None) -> dict[str, float]:
    """The metrics of drawn rows.

    Args:
        counts: As `generated_text_counts` made them.
        rows: Row numbers, with repetition; None: all rows.

    Returns:
        Metric -> value.
    """
    *sums, drawn = totals(counts.means, rows)
    names = (*ROUGE, "exact_match")
    scores = {name: float(ratio(value, drawn)) for name, value in zip(names, sums, strict=True)}
    scores["bleu"] = _bleu([int(value) for value in totals(counts.bleu, rows)])
    scores["chrf"] = _chrf(totals(counts.chrf, rows).reshape(CHRF_ORDER, 3))
    return scores


def _bleu(sums: list[int]) -> float:
    """Corpus BLEU from summed counts, with the smoothing that sacrebleu's corpus BLEU has unless told otherwise."""
    bleu = library("sacrebleu.metrics", metrics="bleu").BLEU
    score = bleu.compute_bleu(
        correct=sums[2:6], total=sums[6:10], sys_len=sums[0], ref_len=sums[1], smooth_method="exp"
    )
    return float(score.score)


def _chrf_row(prediction: str, reference: str) -> list[int]:
    helpers = library("sacrebleu.metrics.helpers", metrics="chrf")
    row: list[int] = []
    sides = (helpers.extract_all_char_ngrams(text, CHRF_ORDER) for text in (prediction, reference))
    for ours, theirs in zip(*sides, strict=True):
        # n-grams that have nothing to be compared with are not held against the prediction
        row += [ours.total() if theirs else 0, theirs.total(), (ours & theirs).total()]
    return row


def _chrf(sums: npt.NDArray[np.float64]) -> float:
    """chrF2 from summed counts `(n, 3)`, from 0 to 100.

    Source: Popovic, M., chrF: character n-gram F-score for automatic MT evaluation, WMT 2015, equation 1; averaged
    over the n for which there are n-grams on both sides, as sacrebleu does.
    """
    ours, theirs, both = sums[(sums[:, 0] > 0) & (sums[:, 1] > 0)].T
    if not both.any():
        return 0.0
    precision, recall = (both / ours).mean(), (both / theirs).mean()
    weight = CHRF_BETA**2
    return float(100 * (1 + weight) * precision * recall / (weight * precision + recall))


class GeneratedText(evaluate.Metric):  # type: ignore[misc]
    """Metrics of texts against texts."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=[
                "https://github.com/mjpost/sacrebleu",
                "https://github.com/google-research/google-research/tree/master/rouge",
            ],
        )

    def _compute(
        self, predictions: Any, references: Any, *, use_stemmer: bool = False, tokenize: str = "13a"
    ) -> dict[str, float]:
        return generated_text_scores(
            generated_text_counts(predictions, references, use_stemmer=use_stemmer, tokenize=tokenize)
        )
