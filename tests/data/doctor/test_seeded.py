"""The doctor on seeded defects: it finds every kind, and is silent about clean rows."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lora_ft.assemble.examined import Examination, examine
from tests.data.doctor.seeded import Seeded, clean_rows, seeded_rows
from tests.toy import read, write_recipe

NOT_OF_TEXTS = {"longer-than-max-length", "unknown-tokens"}
"""The toy tokenizer knows a hundred words, and the toy base reads 64 tokens."""


def examined(folder: Path, base: Path, rows: Seeded, **sections: object) -> Examination:
    files = {split: str(file) for split, file in rows.write(folder).items()}
    return examine(read(write_recipe(folder, base, dataset={"data_files": files}, **sections)))


@pytest.fixture(scope="module")
def seeded() -> Seeded:
    return seeded_rows()


@pytest.fixture(scope="module")
def examination(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, seeded: Seeded) -> Examination:
    return examined(tmp_path_factory.mktemp("seeded"), tiny_bert, seeded)


KINDS = sorted(seeded_rows().where)


def test_there_are_at_least_twenty_kinds() -> None:
    assert len({name for name, _ in KINDS}) >= 20


@pytest.mark.parametrize(("name", "split"), KINDS, ids=lambda one: one)
def test_every_row_of_a_kind_is_found(examination: Examination, seeded: Seeded, name: str, split: str) -> None:
    found = {row for one in examination.findings if (one.name, one.split) == (name, split) for row in one.rows.tolist()}
    assert seeded.where[name, split] <= found, f"missed: {sorted(seeded.where[name, split] - found)}"


@pytest.mark.parametrize(("name", "split"), KINDS, ids=lambda one: one)
def test_no_clean_row_is_accused(examination: Examination, seeded: Seeded, name: str, split: str) -> None:
    clean = {"train": 600, "validation": 150}[split]
    found = {row for one in examination.findings if (one.name, one.split) == (name, split) for row in one.rows.tolist()}
    assert not {row for row in found - seeded.where[name, split] if row < clean}


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clean_rows_give_no_finding(tmp_path: Path, tiny_bert: Path, seed: int) -> None:
    found = examined(tmp_path, tiny_bert, clean_rows(seed)).findings
    assert [(one.name, one.split, one.told) for one in found if one.name not in NOT_OF_TEXTS] == []


def test_a_column_that_never_changes_is_an_error(tmp_path: Path, tiny_bert: Path) -> None:
    rows = Seeded(
        {split: [("always the same text", label) for label in "ab" * 10] for split in ("train", "validation")}
    )
    names = {(one.name, one.severity) for one in examined(tmp_path, tiny_bert, rows).findings}
    assert ("constant-texts", "error") in names


def test_unbalanced_labels_name_the_key_that_weighs_them(tmp_path: Path, tiny_bert: Path) -> None:
    rows = clean_rows()
    rows.rows["train"] = [
        (text, "positive" if row % 20 else "negative") for row, (text, _) in enumerate(rows.rows["train"])
    ]
    (one,) = [one for one in examined(tmp_path, tiny_bert, rows).findings if one.name == "unbalanced-labels"]
    assert one.severity == "warning"
    assert "19.0 times" in one.told
    assert "loss.class_weight: balanced" in one.remedy


def test_a_text_that_ends_with_its_label_is_told_of(tmp_path: Path, tiny_bert: Path) -> None:
    rows = clean_rows()
    rows.rows["train"] = [(f"{text} [{label}]", label) for text, label in rows.rows["train"]]
    found = [one for one in examined(tmp_path, tiny_bert, rows).findings if one.name == "label-in-text"]
    assert {one.count for one in found} == {300}


def test_bad_rows_are_findings_and_do_not_stop_the_doctor(tmp_path: Path, tiny_bert: Path) -> None:
    rows = clean_rows()
    rows.rows["train"][5] = (rows.rows["train"][5][0], "")
    found = examined(tmp_path, tiny_bert, rows)
    (one,) = [one for one in found.findings if one.name == "bad-rows"]
    assert one.severity == "error"
    assert found.places(one).endswith("train.csv:7")
    assert found.splits["train"].bad == 1


def test_max_length_is_suggested_from_the_tokens_of_the_training_rows(tmp_path: Path, tiny_bert: Path) -> None:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(["good", "bad", "book"], k=count)) for count in [20] * 190 + [30] * 9 + [60]]
    rows = Seeded({"train": [(text, "ab"[row % 2]) for row, text in enumerate(texts)]})
    rows.rows["validation"] = rows.rows["train"][:50]
    found = examined(tmp_path, tiny_bert, rows, processor={"max_length": 16})
    assert found.suggested == 32  # 30 words and two special tokens
    assert found.splits["train"].longer == 200
    (one,) = [f for f in found.findings if (f.name, f.split) == ("longer-than-max-length", "train")]
    assert "`processor.max_length: 32`" in one.remedy
    assert "leave 1 of them" in one.remedy


def test_many_questions_about_one_text_are_no_duplicates(tmp_path: Path, tiny_bert: Path) -> None:
    rng = random.Random(0)
    context = " ".join(clean_rows().rows["train"][row][0] for row in range(20, 24))
    words = [f"word{number}" for number in range(14)]
    pairs = [(" ".join(rng.sample(words, 7)), context) for _ in range(40)]
    pairs.append((pairs[0][0], f"{context} Also."))
    lines = ["text,text_pair,label", *(f'{one},"{two}",{"ab"[row % 2]}' for row, (one, two) in enumerate(pairs))]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.csv").write_text("\n".join(lines), encoding="utf-8")
    files = {split: str(tmp_path / f"{split}.csv") for split in ("train", "validation")}
    columns = {"text": "text", "text_pair": "text_pair", "label": "label"}
    dataset = {"data_files": files, "columns": columns}
    found = examine(read(write_recipe(tmp_path, tiny_bert, dataset=dataset))).findings
    near = [one for one in found if one.name == "near-duplicates" and one.split == "train"]
    assert [(one.rows.tolist(), list(one.others)) for one in near] == [([40], [("train", 0)])]
