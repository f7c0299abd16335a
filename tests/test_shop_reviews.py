"""The embedded reviews: balanced, different from each other, and too hard for a bag of words."""

from __future__ import annotations

import csv
import itertools
import re
from collections import Counter
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

FOLDER = Path(__file__).parents[1] / "recipes" / "data" / "shop_reviews"
BAG_OF_WORDS_LIMIT = 0.72
"""Accuracy of the bag of words on the test split stays below this; the adapter reaches 0.8 (see the recipe)."""


def rows(split: str) -> list[dict[str, str]]:
    with (FOLDER / f"{split}.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z']+", text.lower()))


ALL = {split: rows(split) for split in ("train", "validation", "test")}


def test_every_split_is_balanced_over_domains_and_labels() -> None:
    assert sum(len(table) for table in ALL.values()) >= 480
    for split, table in ALL.items():
        counts = Counter((row["domain"], row["label"]) for row in table)
        assert len(counts) == 8, split
        assert len(set(counts.values())) == 1, counts


def test_no_two_reviews_are_near_duplicates() -> None:
    texts = [row["text"] for table in ALL.values() for row in table]
    bags = [words(text) for text in texts]
    for first, second in itertools.combinations(range(len(texts)), 2):
        one, other = bags[first], bags[second]
        shared = len(one & other)
        assert shared < 0.5 * len(one | other), (texts[first], texts[second])


def test_no_two_reviews_share_a_phrase_of_six_words() -> None:
    seen: dict[tuple[str, ...], str] = {}
    for text in (row["text"] for table in ALL.values() for row in table):
        tokens = re.findall(r"[a-z']+", text.lower())
        for start in range(len(tokens) - 5):
            phrase = tuple(tokens[start : start + 6])
            assert seen.setdefault(phrase, text) == text, (phrase, seen[phrase], text)


def test_reviews_are_short_and_long() -> None:
    lengths = sorted(len(row["text"].split()) for row in ALL["train"])
    assert lengths[len(lengths) // 10] <= 10
    assert lengths[-len(lengths) // 10] >= 40


def test_a_bag_of_words_stays_below_what_the_adapter_reaches() -> None:
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), LogisticRegression(C=10, max_iter=1000)
    )
    model.fit([row["text"] for row in ALL["train"]], [row["label"] for row in ALL["train"]])
    accuracy = model.score([row["text"] for row in ALL["test"]], [row["label"] for row in ALL["test"]])
    assert 0.5 < accuracy < BAG_OF_WORDS_LIMIT
