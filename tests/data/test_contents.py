"""Tasks without a label column are looked through too: entities, boxes, repeats, what was left out."""

from __future__ import annotations

from typing import Any

import datasets
import pytest

from lora_ft.data.checks import RowReport, check_rows
from lora_ft.data.contents import names_in
from lora_ft.data.kinds import FEATURES
from lora_ft.data.rows import Origin, Splits
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column
from tests.data.rows_of import ASKED, COLUMNS, DETECTED, HEARD, PICTURED, TAGGED, WRITTEN


def rows(columns: tuple[Column, ...], **values: list[Any]) -> datasets.Dataset:
    kinds = {column.name: column.kind for column in columns}
    return datasets.Dataset.from_dict(
        values, features=datasets.Features({name: FEATURES[kinds[name]] for name in values})
    )


def tagged(*tags: str) -> datasets.Dataset:
    return rows(TAGGED, tokens=[[f"{tag} {at}"] for at, tag in enumerate(tags)], tags=[tag.split() for tag in tags])


def check(splits: dict[str, datasets.Dataset], columns: tuple[Column, ...], *labels: str) -> RowReport:
    return check_rows(splits, columns=columns, problem_type="of another kind", labels=labels)


def fault(splits: dict[str, datasets.Dataset], columns: tuple[Column, ...], *labels: str) -> str:
    with pytest.raises(DataError) as caught:
        check(splits, columns, *labels)
    return str(caught.value)


@pytest.mark.parametrize(
    ("tags", "names"),
    [
        ("B-LOC I-LOC O B-LOC B-LOC", ["LOC", "LOC", "LOC"]),
        ("I-LOC I-LOC I-ORG O I-ORG", ["LOC", "ORG", "ORG"]),
        ("B-LOC I-LOC E-LOC S-LOC U-ORG", ["LOC", "LOC", "ORG"]),
        ("NOUN NOUN VERB", ["NOUN", "NOUN", "VERB"]),
        ("O O", []),
        ("", []),
    ],
)
def test_an_entity_is_counted_once_in_every_scheme_and_a_plain_tag_each_time(tags: str, names: list[str]) -> None:
    assert names_in(tags.split(), "labels") == names


def test_entities_are_counted_and_absent_types_noted() -> None:
    splits = {"train": tagged("B-LOC I-LOC", "O B-ORG", "B-ORG O"), "validation": tagged("B-LOC B-LOC O")}
    report = check(splits, TAGGED, "O", "B-LOC", "I-LOC", "B-ORG", "I-ORG")
    assert report.labels == {"train": {"LOC": 1, "ORG": 2}, "validation": {"LOC": 2, "ORG": 0}}
    assert report.lines() == [
        "train: 3 rows (ORG 2, LOC 1)",
        "validation: 1 rows (LOC 2, ORG 0)",
        "validation: no row of label 'ORG'",
    ]
    assert check(splits, TAGGED).labels["train"] == {"LOC": 1, "ORG": 2}


def test_an_entity_type_outside_of_the_labels_is_refused_by_row() -> None:
    tables = {"train": tagged("B-LOC"), "test": tagged("B-LOC", "O B-LOK", "I-LOK")}
    splits = Splits(tables, origins={"train": Origin.of("t", [1]), "test": Origin.of("x.conll", [1, 4, 9])})
    message = fault(splits, TAGGED, "O", "B-LOC", "I-LOC")
    assert "x.conll, rows 4, 9: tags names 'LOK': in 2 test rows, but not among the labels." in message
    assert "Did you mean 'LOC'?" in message


def test_training_rows_that_name_nothing_are_refused() -> None:
    assert "train: tags names nothing in any row" in fault({"train": tagged("O", "O O")}, TAGGED, "O", "B-LOC")


def test_spans_and_boxes_are_counted() -> None:
    spans = [[{"start": 0, "end": 1, "label": "LOC"}] * 2, []]
    assert check({"train": rows(TAGGED, text=["x", "y"], spans=spans)}, TAGGED).labels == {"train": {"LOC": 2}}
    media = {"bytes": b"x", "path": None}
    objects = [{"bbox": [[0.0, 0.0, 1.0, 1.0]] * 2, "category": ["B-cell", "RBC"]}]
    report = check({"train": rows(DETECTED, image=[media], objects=objects)}, DETECTED, "RBC", "B-cell", "cup")
    assert report.labels == {"train": {"RBC": 1, "B-cell": 1, "cup": 0}}
    assert report.empty_texts == report.repeated == {}


def test_a_column_called_label_means_nothing_to_another_problem() -> None:
    table = datasets.Dataset.from_dict({"text": ["x", "y"], "label": ["a", "a"]})
    assert check({"train": table}, COLUMNS).labels == {}


def test_classes_of_images_are_counted_without_a_text() -> None:
    media = {"bytes": b"x", "path": None}
    table = rows(PICTURED[:1], image=[media, media]).add_column("label", ["a", "b"])
    report = check_rows(
        {"train": table}, columns=PICTURED, problem_type="single_label_classification", labels=("a", "b")
    )
    assert report.lines() == ["train: 2 rows (a 1, b 1)"]


def test_empty_main_inputs_are_counted_and_targets_are_not_inputs() -> None:
    report = check({"train": rows(TAGGED, tokens=[[], [" "], ["x"], ["y"]], tags=[[], ["O"], ["B-A"], ["O"]])}, TAGGED)
    assert report.empty_texts == {"train": 2}
    assert check({"train": rows(WRITTEN, prompt=["x"], completion=[""])}, WRITTEN).empty_texts == {"train": 0}
    unclear = rows(ASKED, question=["", "x", "y"], context=["", "", "c"])
    assert check({"train": unclear}, ASKED).empty_texts == {"train": 1}
    sounds = rows(HEARD, audio=[{"bytes": b"x", "path": None}], text=[""])
    assert check({"train": sounds}, HEARD).empty_texts == {}


def test_inputs_of_the_training_rows_in_another_split_are_counted_for_every_kind_of_text() -> None:
    none = {"text": [], "answer_start": []}

    def asked(*questions: str) -> datasets.Dataset:
        count = len(questions)
        return rows(ASKED, question=list(questions), context=["c"] * count, answers=[none] * count)

    assert check({"train": asked("a", "b"), "test": asked("b", "d")}, ASKED).repeated == {"test": 1}
    chats = (Column("messages", "messages", True, "a chat"),)
    hello, bye = [{"role": "user", "content": "Hi"}], [{"role": "user", "content": "Bye"}]
    splits = {"train": rows(chats, messages=[hello]), "test": rows(chats, messages=[bye, hello, hello])}
    assert check(splits, chats).repeated == {"test": 2}
    words = {"train": tagged("B-A"), "test": tagged("B-A", "O")}
    assert check(words, TAGGED).repeated == {"test": 1}
    prompts = {
        "train": rows(WRITTEN, prompt=["x"], completion=["one"]),
        "test": rows(WRITTEN, prompt=["x"], completion=["two"]),
    }
    assert check(prompts, WRITTEN).repeated == {"test": 1}


def test_what_was_left_out_is_shown() -> None:
    splits = Splits(
        {"train": tagged("B-A")},
        origins={"train": Origin.of("t", [1])},
        skipped={"train": 3},
        notes=("a.json: 2 boxes around crowds (iscrowd) are left out",),
    )
    assert check(splits, TAGGED).lines() == [
        "train: 1 rows, 3 bad rows left out (A 1)",
        "a.json: 2 boxes around crowds (iscrowd) are left out",
    ]
