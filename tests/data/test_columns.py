"""The column mapping says what is wrong with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.columns import choose_set, map_columns
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column
from tests.data.rows_of import COLUMNS, TAGGED, TAGGED_SETS, WRITTEN, WRITTEN_SETS


def fault(mapping: dict[str, str | tuple[str, ...]], *available: str) -> str:
    with pytest.raises(DataError) as caught:
        map_columns(COLUMNS, mapping, available=available, where="shop.csv")
    return str(caught.value)


def test_a_missing_column_lists_those_that_exist_and_the_nearest() -> None:
    message = fault({"text": "revew", "label": "stars"}, "review", "stars")
    assert message == (
        "shop.csv: dataset.columns.text = revew: there is no column 'revew'. Did you mean 'review'? "
        "The columns are: 'review', 'stars'. Write `columns: {text: <one of these>}`"
    )


def test_two_names_on_one_column_are_refused() -> None:
    message = fault({"text": "review", "text_pair": "review", "label": "stars"}, "review", "stars")
    assert "dataset.columns.text_pair = review: this column is already used for 'text'" in message


def test_a_name_that_the_task_does_not_read_is_refused() -> None:
    assert "the task reads no column 'lable'. Did you mean 'label'?" in fault({"lable": "stars"}, "text", "stars")


def test_a_required_column_that_is_not_mapped_is_looked_for_under_our_name() -> None:
    assert map_columns(COLUMNS, {"text": "review"}, available=["review", "label", "text_pair"], where="x") == {
        "text": ("review",),
        "label": ("label",),
    }
    assert "dataset.columns.label: not given, and there is no column 'label'" in fault({}, "text", "stars")


def test_a_text_of_several_columns_is_refused() -> None:
    assert "a text column is one column" in fault({"text": ("a", "b")}, "a", "b", "label")


def tagged(mapping: dict[str, str], *available: str, **how: bool) -> dict[str, tuple[str, ...]]:
    return map_columns(TAGGED, mapping, available=available, where="x.csv", column_sets=TAGGED_SETS, **how)


def written(*available: str, columns: tuple[Column, ...] = WRITTEN, **mapping: str) -> dict[str, tuple[str, ...]]:
    return map_columns(
        columns, mapping, available=available, where="x.csv", column_sets=WRITTEN_SETS, targets_optional=True
    )


def test_the_first_complete_set_of_columns_is_read_and_no_column_of_another() -> None:
    assert tagged({}, "spans", "text", "id") == {"text": ("text",), "spans": ("spans",)}
    assert list(tagged({}, "spans", "text", "tags", "tokens")) == ["tokens", "tags"]
    assert list(tagged({"id": "id"}, "spans", "text", "tags", "tokens", "id")) == ["tokens", "tags", "id"]


def test_a_mapped_column_decides_which_sets_come_into_question() -> None:
    assert tagged({"spans": "ents"}, "text", "tags", "tokens", "ents") == {"text": ("text",), "spans": ("ents",)}
    with pytest.raises(DataError, match="no column 'text'"):
        tagged({"spans": "ents"}, "tags", "tokens", "ents")
    with pytest.raises(DataError) as caught:
        tagged({"tokens": "words", "spans": "ents"}, "words", "ents")
    assert str(caught.value) == (
        "dataset.columns: maps tokens and spans, which do not belong together. "
        "Expected: tokens and tags, or text and spans. Take out the others"
    )


def test_incomplete_sets_are_listed_with_what_they_lack() -> None:
    with pytest.raises(DataError) as caught:
        tagged({}, "tokens", "ner_tags")
    assert str(caught.value) == (
        "x.csv: dataset.columns: the columns of no kind of data are complete. Expected tokens and tags (there is no "
        "'tags'), or text and spans (there is no 'text', 'spans'). Did you mean 'ner_tags'? "
        "The columns are: 'tokens', 'ner_tags'. Write `columns: {tags: <one of these>}`"
    )


def test_for_prediction_targets_may_be_absent_but_a_set_that_has_them_is_preferred() -> None:
    assert tagged({"tags": "ner"}, "tokens", targets_optional=True) == {"tokens": ("tokens",)}
    assert list(tagged({}, "tokens", "text", "spans", targets_optional=True)) == ["text", "spans"]
    assert written("prompt") == {"prompt": ("prompt",)}
    assert written("prompt", "text") == {"text": ("text",)}
    assert written("prompt", columns=WRITTEN[1:2]) == {"prompt": ("prompt",)}
    with pytest.raises(DataError, match="there is no 'messages'"):
        written("question")
    with pytest.raises(DataError, match="has none of the columns that are read: text"):
        map_columns(
            WRITTEN[3:], {}, available=["x"], where="x.csv", column_sets={"text": ("text",)}, targets_optional=True
        )


@given(st.sets(st.sampled_from(["tokens", "tags", "text", "spans", "more"])))
def test_the_choice_is_the_first_set_that_is_there_and_nothing_else(there: set[str]) -> None:
    complete = [name for name, names in TAGGED_SETS.items() if set(names) <= there]
    try:
        chosen = choose_set(TAGGED, {}, available=sorted(there), where="x", column_sets=TAGGED_SETS)
    except DataError:
        chosen = None
    assert chosen == next(iter(complete), None)


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=6, unique=True), st.data())
def test_any_two_columns_can_be_mapped(names: list[str], data: st.DataObject) -> None:
    text, label = data.draw(st.permutations(names))[:2]
    found = map_columns(COLUMNS, {"text": text, "label": label}, available=names, where="x")
    assert found == {"text": (text,), "label": (label,)}
