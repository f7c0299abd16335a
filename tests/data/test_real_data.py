"""Real data of every kind goes through the loaders whole; skipped where the folder with it is absent."""

from __future__ import annotations

import csv
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lora_ft.data.checks import check_rows
from lora_ft.data.rows import Splits
from lora_ft.data.sources import load_splits
from lora_ft.recipe.schema import Column, DatasetSection
from tests.data.rows_of import (
    ASKED,
    DETECTED,
    HEARD,
    PICTURED,
    TAGGED,
    TAGGED_SETS,
    WRITTEN,
    WRITTEN_SETS,
    section,
    with_shares,
)

REAL = Path(os.environ.get("LORA_FT_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))
PAIRED = (
    Column("prompt", "text", True, "a prompt"),
    Column("chosen", "text", True, "the better answer", target=True),
    Column("rejected", "text", True, "the worse answer", target=True),
)


def real(*names: str) -> Path:
    file = REAL.joinpath(*names)
    if not file.exists():
        pytest.skip(f"no {file}: real data is looked for in LORA_FT_REAL_DATA, or in ../shared/data")
    return file


def load(dataset: DatasetSection, columns: tuple[Column, ...], *, mapped: dict[str, Any], **changes: Any) -> Splits:
    fields = {**vars(dataset), "columns": mapped, **changes}
    sets = {id(TAGGED): TAGGED_SETS, id(WRITTEN): WRITTEN_SETS}.get(id(columns))
    section = DatasetSection(**fields)
    return with_shares(load_splits(section, columns=columns, column_sets=sets, offline=True), section)


def unpack(archive: Path, folder: Path, *, pick: int) -> list[str]:
    """Every `pick`-th file of an archive, in its order: to go back in a packed archive is to unpack it again."""
    with tarfile.open(archive) as tar:
        members = [member for member in tar if member.isfile()][::pick]
        tar.extractall(folder, members=members, filter="data")
    return [member.name for member in members]


def part_of(table: Path, file: Path, *, paths: set[str]) -> Path:
    """The rows of a CSV whose files are there."""
    with table.open(encoding="utf-8", newline="") as stream, file.open("w", encoding="utf-8", newline="") as out:
        reader = csv.DictReader(stream)
        writer = csv.DictWriter(out, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows(row for row in reader if row["path"] in paths)
    return file


def test_bccd_boxes() -> None:
    files = section(train=real("bccd", "train.json"), validation=real("bccd", "val.json"))
    splits = load(files, DETECTED, mapped={}, media_dir=str(REAL / "bccd" / "images"))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 205, "validation": 87}
    assert splits.label_names == ("Platelets", "RBC", "WBC")
    assert splits["train"][0]["objects"]["bbox"][0] == [68.0, 315.0, 218.0, 165.0]
    report = check_rows(splits, columns=DETECTED, problem_type="boxes", labels=splits.label_names or ())
    assert all(report.labels["validation"].values())


def test_wnut_entities() -> None:
    files = section(train=real("wnut17", "train.jsonl"), validation=real("wnut17", "dev.jsonl"))
    splits = load(files, TAGGED, mapped={"tags": "ner_tags"})
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 3394, "validation": 1009}
    report = check_rows(splits, columns=TAGGED, problem_type="tokens", labels=())
    assert len(report.labels["train"]) == 6
    assert sum(report.labels["train"].values()) == 1975


def test_xquad_questions() -> None:
    splits = load(section(train=real("xquad", "en.jsonl")), ASKED, mapped={"id": "id"}, validation=0.1)
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 1071, "validation": 119}
    for row in splits["train"]:
        for text, start in zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True):
            assert row["context"][start:].startswith(text)


def test_pandalm_pairs() -> None:
    splits = load(section(train=real("pandalm", "train.jsonl")), PAIRED, mapped={}, validation=0.1)
    assert sum(map(len, splits.values())) == 726
    report = check_rows(splits, columns=PAIRED, problem_type="pairs", labels=())
    assert report.repeated["validation"] > 0


def test_gsm8k_and_tinyshakespeare_texts() -> None:
    written = section(train=real("gsm8k", "train.jsonl.gz"))
    answers = load(written, WRITTEN, mapped={"prompt": "question", "completion": "answer"})
    assert len(answers["train"]) == 7473
    paragraphs = load(section(train=real("tinyshakespeare", "input.txt")), WRITTEN, mapped={}, sample_by="paragraph")
    assert paragraphs["train"][0]["text"] == "First Citizen:\nBefore we proceed any further, hear me speak."
    assert len(paragraphs["train"]) > 7000


def test_grocery_photos_from_a_table_and_from_folders(tmp_path: Path) -> None:
    names = unpack(real("grocery_store", "images.tar"), tmp_path, pick=60)
    table = part_of(real("grocery_store", "labels.csv"), tmp_path / "labels.csv", paths=set(names))
    one = load(section(train=table), PICTURED, mapped={"image": "path", "label": "fine"})
    assert len(one["train"]) == len(names)
    two = load(section(train=tmp_path / "train", validation=tmp_path / "val"), PICTURED, mapped={})

    def pairs(splits: Splits) -> set[tuple[str, str]]:
        return {(row["image"]["path"], row["label"]) for rows in splits.values() for row in rows}

    assert pairs(one) == pairs(two)


def test_yesno_speech() -> None:
    table = section(train=real("yesno", "labels.csv"))
    splits = load(table, HEARD, mapped={"audio": "path", "text": "transcript"})
    assert len(splits["train"]) == 60
    assert {word for text in splits["train"]["text"] for word in text.split()} == {"YES", "NO"}


def test_fsdd_digits(tmp_path: Path) -> None:
    names = unpack(real("fsdd", "wav.tar.gz"), tmp_path, pick=1)
    table = part_of(real("fsdd", "labels.csv"), tmp_path / "labels.csv", paths=set(names))
    heard = (HEARD[0], PICTURED[1])
    splits = load(section(train=table), heard, mapped={"audio": "path", "label": "digit"})
    assert len(splits["train"]) == len(names) == 2000
    assert set(splits["train"]["label"]) == set(range(10))
