"""Entities are counted as seqeval counts them, on all rows and on any drawn ones."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score

from lora_ft.metrics.entities import bio_spans, entity_counts, entity_scores
from lora_ft.metrics.load import load_metric

BIO = ["O", "O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
BIOES = [*BIO, "E-PER", "S-LOC"]


def tags(names: list[str]) -> st.SearchStrategy[list[tuple[list[str], list[str]]]]:
    row = st.lists(st.tuples(st.sampled_from(names), st.sampled_from(names)), min_size=1, max_size=12)
    return st.lists(row.map(lambda pairs: tuple(map(list, zip(*pairs, strict=True)))), min_size=1, max_size=8)


def seqeval_scores(true: list[list[str]], predicted: list[list[str]]) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scores = {
            "f1": f1_score(true, predicted),
            "precision": precision_score(true, predicted),
            "recall": recall_score(true, predicted),
            "f1_macro": f1_score(true, predicted, average="macro"),
            "accuracy": accuracy_score(true, predicted),
        }
        each = f1_score(true, predicted, average=None)
    types = sorted({span["label"] for row in (*true, *predicted) for span in bio_spans(row)})
    scores |= {f"f1/{name}": value for name, value in zip(types, np.atleast_1d(each), strict=True)} if types else {}
    return {name: float(np.nan_to_num(value)) for name, value in scores.items()}  # macro of no type is nan there


@pytest.mark.parametrize("names", [BIO, BIOES], ids=["BIO", "BIOES"])
def test_scores_of_all_and_of_drawn_rows_are_seqevals(names: list[str]) -> None:
    @given(tags(names), st.integers(0, 100))
    @settings(deadline=None, max_examples=60)
    def holds(rows: list[tuple[list[str], list[str]]], seed: int) -> None:
        true, predicted = [pair[0] for pair in rows], [pair[1] for pair in rows]
        counts = entity_counts(
            [bio_spans(row) for row in predicted],
            [bio_spans(row) for row in true],
            predicted_tags=predicted,
            reference_tags=true,
        )
        everything = seqeval_scores(true, predicted)
        with np.errstate(all="raise"):
            assert entity_scores(counts) == pytest.approx(everything)
            drawn = np.random.default_rng(seed).integers(0, len(rows), size=len(rows))
            ours = entity_scores(counts, drawn)
        theirs = seqeval_scores([true[i] for i in drawn], [predicted[i] for i in drawn])
        assert ours == pytest.approx(dict.fromkeys(everything, 0.0) | theirs)

    holds()


def test_macro_leaves_out_types_that_do_not_occur_but_names_them() -> None:
    counts = entity_counts([[(0, 1, "PER")]], [[(0, 1, "PER")]], types=["LOC", "PER"])
    scores = entity_scores(counts)
    assert scores["f1_macro"] == scores["f1"] == 1.0
    assert (scores["f1/LOC"], scores["f1/PER"]) == (0.0, 1.0)
    assert "accuracy" not in scores


def test_only_the_exact_span_with_the_exact_label_counts_and_only_once() -> None:
    true = [[{"start": 0, "end": 4, "label": "PER"}]]
    for wrong in [(0, 3, "PER"), (1, 4, "PER"), (0, 4, "LOC")]:
        assert entity_scores(entity_counts([[wrong]], true))["f1"] == 0.0
    found = {"start": 0, "end": 4, "label": "PER", "score": 0.9, "text": "Anna"}
    assert entity_scores(entity_counts([[found, found]], true))["precision"] == 1.0


@pytest.mark.parametrize(
    ("row", "spans"),
    [
        (["B-PER", "I-PER", "O", "B-LOC"], [(0, 2, "PER"), (3, 4, "LOC")]),
        (["I-PER", "I-PER", "B-PER", "I-LOC"], [(0, 2, "PER"), (2, 3, "PER"), (3, 4, "LOC")]),
        (["S-PER", "B-LOC", "I-LOC", "E-LOC"], [(0, 1, "PER"), (1, 4, "LOC")]),
        (["U-PER", "U-PER", "B-LOC", "L-LOC", "I-LOC"], [(0, 1, "PER"), (1, 2, "PER"), (2, 4, "LOC"), (4, 5, "LOC")]),
        (["B-date-of-birth", "I-date-of-birth"], [(0, 2, "date-of-birth")]),
        (["O", "O"], []),
        ([], []),
    ],
    ids=["BIO", "IOB1", "BIOES", "BILOU", "dashes in a type", "nothing", "no tokens"],
)
def test_tags_of_each_scheme_become_spans(row: list[str], spans: list[tuple[int, int, str]]) -> None:
    assert [(span["start"], span["end"], span["label"]) for span in bio_spans(row)] == spans


def test_reading_odd_tags_says_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bio_spans(["NOUN", "VERB"])


def test_the_evaluate_module_gives_the_same_numbers() -> None:
    true = [[{"start": 0, "end": 2, "label": "PER"}], [], [{"start": 1, "end": 2, "label": "LOC"}]]
    predicted = [[{"start": 0, "end": 2, "label": "PER"}], [{"start": 0, "end": 1, "label": "LOC"}], []]
    metric = load_metric("entities")
    once = metric.compute(predictions=predicted, references=true, types=["ORG"])
    assert once == entity_scores(entity_counts(predicted, true, types=["ORG"]))
    marks = {"predicted_tags": [["O", "O"]] * 3, "reference_tags": [["O", "B-X"]] * 3}
    assert metric.compute(predictions=predicted, references=true, **marks)["accuracy"] == 0.5
