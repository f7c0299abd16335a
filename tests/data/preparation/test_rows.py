"""Rows that repeat others, that are too short or too long, in another language; mixtures and samples."""

from __future__ import annotations

from collections import Counter

import datasets
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lora_ft.data.preparation import row_filters
from lora_ft.data.preparation.mixing import mixed_rows
from lora_ft.data.preparation.repeats import repeats_of_measured, repeats_within
from lora_ft.data.preparation.row_filters import characters_of, lengths_of, other_languages, words_of
from lora_ft.data.rows import Origin
from lora_ft.errors import DataError

LONG = "the handle of this pan broke after one week and nobody answered my letters about it"
NEARLY = LONG.replace("one week", "a week")


def table(texts: list[str], labels: list[str] | None = None) -> datasets.Dataset:
    columns = {"text": texts} if labels is None else {"text": texts, "label": labels}
    return datasets.Dataset.from_dict(columns)


def test_the_first_of_equal_rows_stays_and_conflicts_are_counted() -> None:
    rows = table(["a", "b", "A ", "b", NEARLY, LONG], list("xyyyzz"))
    found = repeats_within(rows, texts=["text"], target="label", near=False)
    assert (found.rows, found.conflicts) == ({2, 3}, 1)
    near = repeats_within(rows, texts=["text"], target="label", near=True)
    assert (near.rows, near.conflicts) == ({2, 3, 5}, 1)


def test_rows_of_which_one_text_differs_are_no_repeats() -> None:
    rows = datasets.Dataset.from_dict({"prompt": ["say hello"] * 3, "completion": ["hi", "hello", "hi"]})
    assert repeats_within(rows, texts=["prompt", "completion"], target=None, near=False).rows == {2}


def test_training_rows_that_are_measured_on_are_found_and_so_are_their_repeats() -> None:
    train = table(["fine", "a", NEARLY, "b", LONG, LONG])
    measured = {"validation": table(["A", LONG]), "test": table(["b", "c"])}
    assert repeats_of_measured(train, measured, texts=["text"], near=False).rows == {1, 3, 4, 5}
    assert repeats_of_measured(train, measured, texts=["text"], near=True).rows == {1, 2, 3, 4, 5}


def test_what_is_like_a_training_row_that_leaks_leaks_too() -> None:
    like = LONG.replace("pan", "pot")
    likest_of_that = like.replace("handle", "grip")
    train = table(["fine", like, likest_of_that])
    assert repeats_of_measured(train, {"test": table([LONG])}, texts=["text"], near=True).rows == {1, 2}


def test_a_training_row_that_repeats_only_another_training_row_is_not_taken_for_a_leak() -> None:
    found = repeats_of_measured(table(["a", "a", "b"]), {"test": table(["b"])}, texts=["text"], near=True)
    assert found.rows == {2}


def test_lengths_add_up_over_the_texts_of_a_row() -> None:
    rows = datasets.Dataset.from_dict({"text": ["a bc", "你好 x"], "tokens": [["d", "e"], ["f"]]})
    assert lengths_of(rows, ["text", "tokens"], count=characters_of).tolist() == [7, 5]
    assert lengths_of(rows, ["text", "tokens"], count=words_of).tolist() == [4, 4]


def test_rows_in_another_language_for_sure_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = {"one": ("en", 0.99), "zwei": ("de", 0.95), "drei": ("de", 0.5), "12": ("und", 0.0)}
    monkeypatch.setattr(row_filters, "languages_of", lambda texts: [answers[text] for text in texts])
    rows = table(["one", "zwei", "drei", "12"])
    assert other_languages(rows, ["text"], languages=("en",), threshold=0.9).tolist() == [False, True, False, False]
    assert other_languages(rows, ["text"], languages=("en",), threshold=0.5).tolist() == [False, True, True, False]
    assert not other_languages(rows, ["text"], languages=("en", "de"), threshold=0.5).any()


def test_long_texts_of_two_languages_are_told_apart() -> None:
    german = "Der Griff dieser Pfanne ist nach einer Woche abgebrochen, und niemand hat geantwortet."
    assert other_languages(table([LONG, german]), ["text"], languages=("en",), threshold=0.9).tolist() == [False, True]


FILES = ("/d/a.csv", "/d/b.csv", "/d/c.csv")


def drawn(sizes: list[int], weights: list[float], strategy: str, *, seed: int = 0) -> tuple[list[int], dict[str, int]]:
    origin = Origin.concat([Origin.of(file, range(size)) for file, size in zip(FILES, sizes, strict=False)])
    rows, count = mixed_rows(
        range(sum(sizes)), origin, weights=dict(zip(FILES, weights, strict=False)),
        stopping_strategy=strategy, seed=seed,  # type: ignore[arg-type]
    )  # fmt: skip
    assert sum(count.rows.values()) == len(rows)
    return rows, dict(count.rows)


@given(
    st.lists(st.integers(50, 400), min_size=3, max_size=3),
    st.lists(st.floats(0.5, 5), min_size=3, max_size=3),
    st.integers(0, 5),
)
@settings(max_examples=25, deadline=None)
def test_files_are_drawn_as_often_as_they_weigh(sizes: list[int], weights: list[float], seed: int) -> None:
    rows, counts = drawn(sizes, weights, "all_exhausted", seed=seed)
    for weight, count in zip(weights, counts.values(), strict=True):
        probability = weight / sum(weights)
        assert abs(count / len(rows) - probability) < 6 * np.sqrt(probability * (1 - probability) / len(rows))
    assert set(rows) == set(range(sum(sizes)))
    assert rows == drawn(sizes, weights, "all_exhausted", seed=seed)[0]


def test_the_first_exhausted_file_ends_the_drawing_and_no_row_comes_twice() -> None:
    rows, counts = drawn([300, 40], [1, 1], "first_exhausted")
    assert counts["b.csv"] == 40 or counts["a.csv"] == 300
    assert max(Counter(rows).values()) == 1
    assert rows != drawn([300, 40], [1, 1], "first_exhausted", seed=1)[0]
    assert max(row for row in rows if row < 300) > 150  # not the first ones of the file


def test_a_file_of_which_nothing_is_left_is_told() -> None:
    origin = Origin.concat([Origin.of(file, range(2)) for file in FILES[:2]])
    with pytest.raises(DataError, match=r"no row of /d/b.csv is left after the steps before"):
        mixed_rows([0, 1], origin, weights=dict.fromkeys(FILES[:2], 1.0), stopping_strategy="all_exhausted", seed=0)
