"""Predictions come one a row, in order, as the rows come."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column
from lora_ft.serve.predict import json_rows, predict, text_rows
from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> SavedAdapter:
    recipe = write_recipe(tmp_path_factory.mktemp("serve"), tiny_bert, training_args={"num_train_epochs": 1})
    return open_adapter(train(read(recipe), RunOptions()).folder, OpenOptions(offline=True))


def test_answers_do_not_depend_on_batch_size_or_window(opened: SavedAdapter) -> None:
    texts = [f"{'good ' * (index % 7)}book number {index}" for index in range(23)]
    small = list(predict(opened, text_rows(texts), batch_size=2, window=1))
    large = list(predict(opened, text_rows(texts), batch_size=16, window=4))
    assert [row["text"] for row in small] == texts == [row["text"] for row in large]
    assert [row["scores"]["positive"] for row in small] == pytest.approx(
        [row["scores"]["positive"] for row in large], abs=1e-5
    )


def test_a_stream_is_read_no_further_than_one_window_ahead(opened: SavedAdapter) -> None:
    taken = 0

    def endless() -> Iterator[dict[str, str]]:
        nonlocal taken
        while True:
            taken += 1
            yield {"text": "good book"}

    answers = predict(opened, endless(), batch_size=2, window=2)
    next(answers)
    assert taken == 4


def test_json_rows_say_which_line_lacks_a_column() -> None:
    lines = ['{"text": "a", "text_pair": "b", "id": 1}', "", '{"text": "a"}']
    columns = [Column(name, "text", True, "a text") for name in ("text", "text_pair")]
    rows = json_rows(lines, columns=columns, needed=["text", "text_pair"])
    assert next(rows) == {"text": "a", "text_pair": "b", "id": 1}
    with pytest.raises(DataError, match="line 3: nothing under 'text_pair'"):
        next(rows)
    with pytest.raises(DataError, match="line 1: not JSON"):
        next(json_rows(["text"], columns=columns, needed=["text"]))


def test_rows_before_a_bad_one_are_answered_before_it_is_told(opened: SavedAdapter) -> None:
    lines = ['{"text": "good"}', '{"text": "bad"}', '{"words": "none"}', '{"text": "never read"}']
    rows = json_rows(lines, columns=[Column("text", "text", True, "a text")], needed=["text"])
    answers = predict(opened, rows, batch_size=4)
    assert [next(answers)["text"], next(answers)["text"]] == ["good", "bad"]
    with pytest.raises(DataError, match="line 3: nothing under 'text'"):
        next(answers)


def test_rows_before_one_with_other_columns_are_answered(opened: SavedAdapter) -> None:
    answers = predict(opened, [{"text": "good"}, {"words": "bad"}], batch_size=4)
    assert next(answers)["text"] == "good"
    with pytest.raises(DataError, match="row 2: has none of the columns"):
        next(answers)


def test_an_empty_input_gives_no_answer_and_an_empty_line_one(opened: SavedAdapter) -> None:
    assert list(predict(opened, [])) == []
    assert len(list(predict(opened, text_rows(["", "good\n"])))) == 2
