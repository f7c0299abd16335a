"""Transcripts: how they are written for training, and how they are compared.

One value: "It's five o'clock -- well-known, no?"  ->  "it's five o'clock well known no"
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lora_ft.recipe.schema import FieldTypes

TRANSCRIPT_FIELDS: Mapping[str, FieldTypes] = {
    "text_case": ("keep", "lower", "upper"),
    "text_punctuation": ("keep", "remove"),
    "scored_text": ("words", "as_written"),
}
"""The keys of the `processor` section that say how transcripts are written for training, and how they are scored."""


def written(text: str, settings: Mapping[str, Any]) -> str:
    """A transcript as the base is taught to write it: composed Unicode (NFC), one blank between words.

    Args:
        text: As the data has it.
        settings: `text_case`, and `text_punctuation`: whether punctuation stays (apostrophes within words always do).
    """
    from lora_ft.metrics.transcripts import normalise

    case = settings["text_case"]
    text = normalise(text, lower=case == "lower", punctuation=settings["text_punctuation"] == "keep")
    return text.upper() if case == "upper" else text


def transcript_fault(row: Mapping[str, Any]) -> str | None:
    """Why a transcript teaches nothing: it has no letter, digit or symbol. None if it is good, or not there."""
    text = row.get("text")
    if text is None or any(unicodedata.category(char)[0] in "LNS" for char in text):
        return None
    return "text: it is empty" if not text.strip() else f"text: {text[:60]!r} has no letter, digit or symbol"


def transcript_scorer(
    predictions: Sequence[Mapping[str, Any]], references: Sequence[str], settings: Mapping[str, Any]
) -> Callable[[Any], dict[str, float]]:
    """Word and character error rates of any of the rows.

    Args:
        predictions: Each with `text`.
        references: Transcripts as they are written.
        settings: `scored_text`: `words` compares lower case without punctuation on both sides, `as_written` does not.
    """
    from lora_ft.metrics.transcripts import normalise, transcript_counts, transcript_scores

    plain = settings["scored_text"] == "words"
    ours, theirs = (
        [normalise(text, lower=plain, punctuation=not plain) for text in texts]
        for texts in ((str(one["text"]) for one in predictions), references)
    )
    counts = transcript_counts(ours, theirs)
    return lambda rows: transcript_scores(counts, rows)
