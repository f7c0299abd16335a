"""Metrics of transcripts, by jiwer: word and character error rate; and the stated normalisation of texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from lora_ft.metrics.intervals import Indices
from lora_ft.metrics.libraries import library
from lora_ft.metrics.totals import Table, totals

DESCRIPTION = """`wer`: substituted, deleted and inserted words over the words of all references together (not the
mean of the rows' rates); `cer` the same of characters, blanks among them. Texts are compared as they are given:
normalise both sides first. Words are split at blanks. An empty reference adds its inserted words and no reference
words; where all references are empty a rate is the number of insertions, as in jiwer. Lower is better; may pass 1."""

INPUTS = """
Args:
    predictions: A text for each row.
    references: A text for each row.
"""

CITATION = """@misc{jiwer, title={{JiWER}: Similarity measures for automatic speech recognition evaluation},
url={https://github.com/jitsi/jiwer}, author={Vaessen, Nik}, year={2018}}"""

APOSTROPHES = str.maketrans({"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{MODIFIER LETTER APOSTROPHE}": "'"})
LOOSE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")


def normalise(text: str, *, lower: bool = True, punctuation: bool = False) -> str:
    """A text as it is compared: lower case, words and one blank between them.

    Composed Unicode (NFC); lower case; punctuation (Unicode category P) becomes a blank, but an apostrophe between
    letters stays and is written '; any white space becomes one blank, none at the ends. Digits, symbols such as $
    and +, and marks are kept: "It's 5 o'clock -- well-known, 'no'?" -> "it's 5 o'clock well known no".

    Args:
        text: Any text.
        lower: Whether to make it lower case.
        punctuation: Whether to keep punctuation.

    Returns:
        The normalised text.
    """
    text = unicodedata.normalize("NFC", text)
    if lower:
        text = text.lower()
    if not punctuation:
        text = text.translate(APOSTROPHES)
        text = "".join(" " if char != "'" and unicodedata.category(char).startswith("P") else char for char in text)
        text = LOOSE_APOSTROPHE.sub(" ", text)
    return " ".join(text.split())


def transcript_counts(predictions: Sequence[str], references: Sequence[str]) -> Table:
    """Aligns the rows, once for all draws of a bootstrap.

    Args:
        predictions: A text for each row.
        references: A text for each row.

    Returns:
        Substitutions, deletions, insertions and hits of words, then of characters, `(rows, 8)`.

    Raises:
        InputError: jiwer is not installed.
    """
    jiwer = library("jiwer", metrics="wer and cer", extra="audio")
    rows = []
    for prediction, reference in zip(predictions, references, strict=True):
        outputs = (jiwer.process_words(reference, prediction), jiwer.process_characters(reference, prediction))
        rows.append(
            [count for out in outputs for count in (out.substitutions, out.deletions, out.insertions, out.hits)]
        )
    return np.asarray(rows, dtype=np.float64).reshape(-1, 8)


def transcript_scores(counts: Table, rows: Indices | None = None) -> dict[str, float]:
    """The metrics of drawn rows.

    Args:
        counts: As `transcript_counts` made them.
        rows: Row numbers, with repetition; None: all rows.

    Returns:
        Metric -> value.
    """
    sums = totals(counts, rows).reshape(2, 4)
    substitutions, deletions, insertions, hits = sums.T  # (words, characters) each
    errors, units = substitutions + deletions + insertions, substitutions + deletions + hits
    wer, cer = errors / np.maximum(units, 1)
    return {"wer": float(wer), "cer": float(cer)}


class Transcripts(evaluate.Metric):  # type: ignore[misc]
    """Metrics of texts against texts."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": text, "references": text}),
            reference_urls=["https://github.com/jitsi/jiwer"],
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        return transcript_scores(transcript_counts(predictions, references))
