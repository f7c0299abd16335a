"""Tagged rows varied: tags stay valid, entities keep their type and their order, whatever is done."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.errors import InputError
from lora_ft.tasks.parts import tags as bio
from lora_ft.tasks.parts.problem import Problem
from lora_ft.tasks.parts.tag_augmentation import tag_variations
from lora_ft.tasks.parts.tagged import fault_of, read_row
from lora_ft.tasks.parts.words import split_words

KINDS = ("person", "place")
LABELS = bio.bio_vocabulary(KINDS)
WAYS = {"random_deletion": 0.4, "random_swap": 0.4, "character_noise": 0.2, "entity_swap": 1.0, "keep_words": []}
WORDS = st.sampled_from(
    ["Anna", "Per", "Lind", "Oslo", "x-ray", "don't", "it", "100", "ml", ",", ".", "买", "了", "café", "n̈a"]
)


def problem(kind: str, labels: tuple[str, ...] = LABELS, **ways: Any) -> Problem:
    return Problem(kind, labels, None, {}, augmentation=ways or WAYS)


@st.composite
def tagged_rows(draw: Any) -> dict[str, Any]:
    """Words with tags in BIO or IOB1."""
    words = draw(st.lists(WORDS, min_size=1, max_size=9))
    tags: list[str] = []
    for _ in words:
        before = tags[-1][2:] if tags and tags[-1] != "O" else ""
        tags.append(
            draw(st.sampled_from(["O", "O", *(f"B-{kind}" for kind in KINDS), *([f"I-{before}"] * bool(before))]))
        )
    return {"tokens": words, "tags": [draw(st.sampled_from([tag, tag.replace("B-", "I-")])) for tag in tags]}


@st.composite
def marked_rows(draw: Any) -> dict[str, Any]:
    """Texts with spans that lie on whole words; words with and without a blank between them."""
    text = "".join(
        word + draw(st.sampled_from(["", " ", "  "])) for word in draw(st.lists(WORDS, min_size=1, max_size=9))
    )
    spans, at = [], 0
    words = split_words(text, numbers_apart=True)
    while at < len(words):
        length = draw(st.integers(1, 3))
        if draw(st.booleans()):
            end = words[min(at + length, len(words)) - 1][1]
            spans.append({"start": words[at][0], "end": end, "label": draw(st.sampled_from(KINDS))})
        at += length
    return {"text": text, "spans": draw(st.permutations(spans))}


def kinds_of(row: dict[str, Any], kind: str) -> list[str]:
    tags = read_row(row, problem(kind)).tags
    assert tags is not None
    return [entity[0] for entity in bio.entities_of(tags)]


@settings(deadline=None)
@given(st.lists(tagged_rows(), min_size=1, max_size=4), st.integers(0, 99))
def test_tags_stay_valid_and_entities_keep_their_types_and_order(rows: list[dict[str, Any]], seed: int) -> None:
    for name, variation in tag_variations(rows, problem("tokens")).items():
        row = rows[0]
        done = variation(row, np.random.default_rng(seed))
        assert fault_of(done, labels=LABELS) is None
        assert kinds_of(done, "tokens") == kinds_of(row, "tokens"), name
        if done != row:
            assert done["tags"] == bio.to_bio(done["tags"])
        before, after = (
            [tuple(one["tokens"][a:b]) for _, a, b in bio.entities_of(bio.to_bio(one["tags"]))] for one in (row, done)
        )
        assert name == "entity_swap" or before == after, "an entity changed"
        outside = [[w for w, t in zip(one["tokens"], one["tags"], strict=True) if t == "O"] for one in (row, done)]
        assert name != "entity_swap" or outside[0] == outside[1], "a word outside of entities changed"


@settings(deadline=None)
@given(st.lists(marked_rows(), min_size=1, max_size=4), st.integers(0, 99))
def test_spans_stay_on_whole_words_and_entities_keep_their_types_and_order(
    rows: list[dict[str, Any]], seed: int
) -> None:
    for name, variation in tag_variations(rows, problem("spans")).items():
        row = rows[0]
        done = variation(row, np.random.default_rng(seed))
        assert fault_of(done, labels=LABELS) is None
        assert kinds_of(done, "spans") == kinds_of(row, "spans"), name
        before, after = (
            [one["text"][span["start"] : span["end"]] for span in sorted(one["spans"], key=lambda span: span["start"])]
            for one in (row, done)
        )
        assert name == "entity_swap" or before == after, "an entity changed"


def test_an_entity_is_replaced_by_another_of_its_type_of_the_training_rows() -> None:
    rows = [
        {"tokens": ["Ask", "Anna", "in", "Oslo"], "tags": ["O", "B-person", "O", "B-place"]},
        {"tokens": ["Per", "Lind"], "tags": ["B-person", "I-person"]},
    ]
    swap = tag_variations(rows, problem("tokens", entity_swap=1.0))["entity_swap"]
    assert swap(rows[0], np.random.default_rng(0)) == {
        "tokens": ["Ask", "Per", "Lind", "in", "Oslo"], "tags": ["O", "B-person", "I-person", "O", "B-place"],
    }  # fmt: skip
    marked = [
        {"text": "Ask Anna, in Oslo.", "spans": [{"start": 4, "end": 8, "label": "person"}]},
        {"text": "Per Lind", "spans": [{"start": 0, "end": 8, "label": "person"}]},
    ]
    swap = tag_variations(marked, problem("spans", entity_swap=0.5))["entity_swap"]
    assert swap(marked[0], np.random.default_rng(0)) == {
        "text": "Ask Per Lind, in Oslo.", "spans": [{"start": 4, "end": 12, "label": "person"}],
    }  # fmt: skip


def test_only_the_share_of_the_entities_is_replaced() -> None:
    row = {"tokens": [*"abcdefghij"], "tags": ["B-person"] * 10}
    swap = tag_variations([row], problem("tokens", entity_swap=0.3))["entity_swap"]
    for seed in range(9):
        done = swap(row, np.random.default_rng(seed))
        assert sum(one != other for one, other in zip(done["tokens"], row["tokens"], strict=True)) == 3


@pytest.mark.parametrize("name", ["entity_swap", "synonym_replacement"])
def test_tags_of_each_word_refuse_what_they_do_not_survive(name: str) -> None:
    with pytest.raises(InputError, match=f"augmentation.{name}: these tags mark no entities"):
        tag_variations([], problem("tokens", ("ADJ", "NOUN"), **{name: 0.5, "synonyms": "words.tsv"}))


def test_parts_of_speech_move_with_their_words() -> None:
    row = {"tokens": ["old", "dogs", "bark", "loudly"], "tags": ["ADJ", "NOUN", "VERB", "ADV"]}
    ways = {"random_deletion": 0.3, "random_swap": 0.3, "character_noise": 0.05}
    pairs = dict(zip(row["tokens"], row["tags"], strict=True))
    for name, variation in tag_variations([row], problem("tokens", tuple(sorted(row["tags"])), **ways)).items():
        done = variation(row, np.random.default_rng(1))
        assert done != row
        assert all(pairs.get(word, tag) == tag for word, tag in zip(done["tokens"], done["tags"], strict=True)), name
