"""Recipes whose preparation is wrong: text and overrides, each breaking one rule of `rules_preparation`."""

from __future__ import annotations

from tests.recipe.stub import GOOD, IMAGE_CLASSIFICATION, TOKEN_CLASSIFICATION, of_task

TAGS = of_task(TOKEN_CLASSIFICATION, "words.conll")
PHOTOS = of_task(IMAGE_CLASSIFICATION, "photos")
ALONE = GOOD.replace("{train: train.csv, validation: dev.csv}", "train.csv")

PREPARED_WRONG: list[tuple[str, list[str]]] = [
    (TAGS, ["preparation.lowercase=true"]),
    (PHOTOS, ["preparation.min_words=3"]),
    (GOOD, ["preparation.replace=[['(', x]]"]),
    (GOOD, ["preparation={min_words: 5, max_words: 4}"]),
    (GOOD, ["preparation.languages=[english]"]),
    (ALONE, ["preparation.decontaminate=exact"]),
    (GOOD, ["preparation.sample=2.5"]),
    (GOOD, ["preparation.mixing_weights={train.csv: 1}"]),
    (GOOD, ["dataset.group=review"]),
]
