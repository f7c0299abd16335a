"""Rows as they were read become rows as they are learned, in one order, and nothing is on two sides."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import pytest

from lora_ft.assemble.encode import references_of
from lora_ft.assemble.examined import examine
from lora_ft.assemble.prepare import prepare, sets_of
from lora_ft.assemble.prepared_splits import PreparedSplits, prepare_splits
from lora_ft.data.sources import load_splits
from lora_ft.errors import DataError, RecipeError
from lora_ft.models.precision import Precision
from lora_ft.recipe.schema import Recipe
from lora_ft.serve.predict import streamed
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.problem import Problem
from tests.toy import read, write_recipe

WORDS = ["pan", "book", "phone", "shirt", "cable", "story", "handle", "size", "week", "money", "day", "price", "box"]


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def reviews(count: int) -> list[dict[str, Any]]:
    """Texts that differ, of four customers, day by day."""
    return [
        {
            "text": f"THE  {WORDS[row % 13]} of {WORDS[row // 13]}",
            "label": ("bad", "good")[row % 2],
            "customer": row % 4,
            "day": f"2024-01-{row % 28 + 1:02d}",
        }
        for row in range(count)
    ]


def recipe_of(folder: Path, base: Path, rows: list[dict[str, Any]], *overrides: str, **dataset: Any) -> Recipe:
    write(folder / "rows.jsonl", rows)
    given = {"data_files": {"train": "rows.jsonl"}, "validation": 0.25, **dataset}
    return read(write_recipe(folder, base, dataset=given), *overrides)


def ready(recipe: Recipe, **options: Any) -> PreparedSplits:
    task = load_task(recipe.task)
    raw = load_splits(
        recipe.dataset, columns=task.columns, column_sets=sets_of(task, None), offline=True, hold=True
    )  # fmt: skip
    return prepare_splits(recipe, task, raw, **options)


def test_rows_of_a_group_are_on_one_side_and_its_column_is_gone(tmp_path: Path, tiny_bert: Path) -> None:
    found = ready(recipe_of(tmp_path, tiny_bert, reviews(60), group="customer", test=0.25)).splits
    assert list(found) == ["train", "validation", "test"]
    assert all(table.column_names == ["text", "label"] for table in found.values())
    sides = [{int(number - 1) % 4 for number in found.origins[split].number} for split in found]
    assert sorted(map(len, sides)) == [1, 1, 2]
    assert set().union(*sides) == {0, 1, 2, 3}


def test_the_newest_rows_are_measured_on(tmp_path: Path, tiny_bert: Path) -> None:
    rows = reviews(28)
    found = ready(recipe_of(tmp_path, tiny_bert, rows[14:] + rows[:14], time="day")).splits
    assert set(found["validation"]["text"]) == {row["text"] for row in rows[21:]}
    assert found["train"].column_names == ["text", "label"]


def test_a_moment_that_cannot_be_read_is_told_with_its_row(tmp_path: Path, tiny_bert: Path) -> None:
    rows = reviews(20)
    rows[6]["day"] = "07.01.2024"
    with pytest.raises(
        DataError, match=r"rows.jsonl, row 7: dataset.time = day: '07.01.2024' is no date. Expected num"
    ):
        ready(recipe_of(tmp_path, tiny_bert, rows, time="day"))
    rows[6]["day"] = None
    with pytest.raises(DataError, match=r"row 7: time is empty or null, expected a text, a number or a date"):
        prepare(recipe_of(tmp_path, tiny_bert, rows, time="day"))


def test_a_passage_that_is_read_too_can_be_the_group(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [
        {
            "context": f"the {WORDS[row // 4]} is good", "question": f"what of {WORDS[row % 4]} is good",
            "answers": {"text": [WORDS[row // 4]], "answer_start": [4]},
        }
        for row in range(40)
    ]  # fmt: skip
    write(tmp_path / "asked.jsonl", rows)
    given = {"data_files": {"train": "asked.jsonl"}, "validation": 0.3, "group": "context"}
    recipe = read(write_recipe(tmp_path, tiny_bert, task="question-answering", dataset=given))
    found = ready(recipe).splits
    assert len(found["validation"]) == 12
    assert not set(found["train"]["context"]) & set(found["validation"]["context"])


def test_duplicates_go_before_the_shares_and_filters_leave_what_is_measured_alone(
    tmp_path: Path, tiny_bert: Path
) -> None:
    rows = [*reviews(40), *reviews(40)]
    short = [{"text": f"x{row}", "label": "good", "customer": 0, "day": "2024"} for row in range(40)]
    recipe = recipe_of(tmp_path, tiny_bert, rows + short, "preparation={deduplicate: exact, min_words: 2}")
    found = ready(recipe)
    texts = {split: list(table["text"]) for split, table in found.splits.items()}
    assert not set(texts["train"]) & set(texts["validation"])
    assert not any(text.startswith("x") for text in texts["train"])
    assert any(text.startswith("x") for text in texts["validation"])
    assert [(one.step, one.rows["train"]) for one in found.counts] == [
        ("deduplicate", 40),
        ("min_words", 40 - sum(text.startswith("x") for text in texts["validation"])),
    ]
    assert len(texts["validation"]) == 20


def test_the_same_rows_are_handed_out_as_they_were_given(tmp_path: Path, tiny_bert: Path) -> None:
    steps = "preparation={lowercase: true, collapse_whitespace: true, deduplicate: exact, min_words: 3}"
    recipe = recipe_of(tmp_path, tiny_bert, reviews(40), steps)
    prepared, given = ready(recipe), ready(recipe, until="splits", as_given=True)
    assert given.splits["validation"]["text"][0].startswith("THE  ")
    assert [" ".join(text.lower().split()) for text in given.splits["validation"]["text"]] == list(
        prepared.splits["validation"]["text"]
    )


def test_a_look_at_the_rows_neither_mixes_nor_samples(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = recipe_of(tmp_path, tiny_bert, reviews(40), "preparation={lowercase: true, sample: 8}")
    assert len(ready(recipe).splits["train"]) == 8
    seen = ready(recipe, until="filters").splits["train"]
    assert len(seen) == 30
    assert seen["text"][0].startswith("the  ")


def test_bad_rows_are_told_before_anything_is_split_off(tmp_path: Path, tiny_bert: Path) -> None:
    rows = reviews(20)
    rows[3]["text"] = None
    recipe = recipe_of(tmp_path, tiny_bert, rows, "preparation={deduplicate: exact}", group="customer")
    found = ready(recipe).splits
    assert list(found) == ["train"] and len(found.bad) == 1
    assert found["train"].column_names == ["text", "label"]
    with pytest.raises(DataError, match=r"row 4: text is null"):
        prepare(recipe)


def test_a_step_that_leaves_no_training_row_is_told(tmp_path: Path, tiny_bert: Path) -> None:
    with pytest.raises(DataError, match=r"preparation.min_words: it leaves none of 30 training rows. Expected rows"):
        ready(recipe_of(tmp_path, tiny_bert, reviews(40), "preparation.min_words=9"))


def test_lengths_in_tokens_are_those_of_the_base(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [*reviews(38), *({"text": "pan book phone shirt cable story", "label": "good"} for _ in range(2))]
    rows = [{"text": row["text"], "label": row["label"]} for row in rows]
    found = ready(recipe_of(tmp_path, tiny_bert, rows, "preparation.max_tokens=6", validation=None))
    assert [(one.step, one.rows) for one in found.counts] == [("max_tokens", {"train": 2})]


def test_chats_have_no_texts_to_rewrite(tmp_path: Path, tiny_bert: Path) -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    write(tmp_path / "chat.jsonl", [{"messages": turns}] * 4)
    given = {"data_files": {"train": "chat.jsonl"}}
    recipe = read(
        write_recipe(tmp_path, tiny_bert, task="text-generation", dataset=given), "preparation.lowercase=true"
    )
    with pytest.raises(
        RecipeError, match=r"preparation.lowercase: the rows have no texts that may be rewritten: turns"
    ):
        ready(recipe)


def test_targets_that_are_texts_are_compared_as_they_were_learned() -> None:
    rows = datasets.Dataset.from_dict({"text": ["A"], "target": ["The  END"]})
    steps = {"lowercase": True, "collapse_whitespace": True}
    problem = Problem("text2text", (), None, {}, preparation=steps)
    assert references_of(rows, task=load_task("text2text-generation"), problem=problem) == ["the end"]


def test_a_text_that_is_streamed_is_prepared_too() -> None:
    task = SimpleNamespace(
        inputs=load_task("text2text-generation").inputs, fault=lambda row, labels: None,
        free_texts=("text",), stream=lambda model, row, problem: iter([row["text"]]),
    )  # fmt: skip
    adapter: Any = SimpleNamespace(
        task=task, manifest=SimpleNamespace(labels=()), model=None, precision=Precision("cpu", None, autocast=False),
        problem=Problem("text2text", (), None, {}, preparation={"lowercase": True}),
    )  # fmt: skip
    assert list(streamed(adapter, [{"text": "LOUD"}])) == ["loud", "\n"]


def test_the_doctor_looks_at_what_training_sees_and_says_what_was_taken_out(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [*reviews(40), *reviews(40)]
    steps = "preparation={collapse_whitespace: true, deduplicate: exact, sample: 8}"
    seen = examine(recipe_of(tmp_path, tiny_bert, rows, steps))
    assert seen.splits["train"].rows == 30
    assert not [one for one in seen.findings if one.name in ("exact-duplicates", "exact-leakage")]
    assert [(one["step"], one["rows"]) for one in seen.as_json()["preparation"]] == [
        ("collapse_whitespace", {"train": 80}),
        ("deduplicate", {"train": 40}),
    ]
    plain = examine(recipe_of(tmp_path, tiny_bert, rows))
    assert [one for one in plain.findings if one.name in ("exact-duplicates", "exact-leakage")]
    assert plain.as_json()["preparation"] == []


def test_the_doctor_splits_shares_off_what_a_run_goes_on_with(tmp_path: Path, tiny_bert: Path) -> None:
    rows = [*reviews(40), *reviews(40), {**reviews(1)[0], "label": None}]
    recipe = recipe_of(tmp_path, tiny_bert, rows, on_bad_row="skip")
    seen, run = examine(recipe), prepare(recipe, encode=False)
    assert {split: one.rows for split, one in seen.splits.items()} == {
        split: len(run.rows[split]) for split in run.rows
    }
    assert {split: one.bad for split, one in seen.splits.items()} == {"train": 1, "validation": 0}
    named = {(one.name, one.severity): one.rows.tolist() for one in seen.findings}
    assert named["bad-rows", "warning"] == [80]
    assert any(name == "exact-leakage" for name, _ in named)
