"""The column mapping says what is wrong with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_ft.data.columns import map_columns
from lora_ft.errors import DataError
from tests.data.rows_of import COLUMNS


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


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=6, unique=True), st.data())
def test_any_two_columns_can_be_mapped(names: list[str], data: st.DataObject) -> None:
    text, label = data.draw(st.permutations(names))[:2]
    found = map_columns(COLUMNS, {"text": text, "label": label}, available=names, where="x")
    assert found == {"text": (text,), "label": (label,)}
