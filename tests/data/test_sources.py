"""Rows come under our names, of one type over all splits, and every fault names file and row."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest

from lora_ft.data.labels import canonical_labels
from lora_ft.data.rows import Splits
from lora_ft.data.sources import load_file, load_splits
from lora_ft.errors import DataError
from lora_ft.recipe.schema import DatasetSection
from tests.data.rows_of import COLUMNS, section, with_shares


def load(dataset: DatasetSection, **changes: Any) -> Splits:
    dataset = dataclasses.replace(dataset, **changes)
    return with_shares(load_splits(dataset, columns=COLUMNS, offline=True), dataset)


def fault(dataset: DatasetSection, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(dataset, **changes)
    return str(caught.value)


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


def labels_of(tmp_path: Path, content: str, name: str = "a.csv", **changes: Any) -> list[Any]:
    return list(load(section(train=write(tmp_path / name, content)), **changes)["train"]["label"])


def test_only_our_columns_remain_under_our_names(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "id,review,sentiment\n1,Good.,pos\n2,Bad.,neg\n")
    splits = load(section(train=file, test=file), columns={"text": "review", "label": "sentiment"})
    assert list(splits) == ["train", "test"]
    assert splits["train"][:] == {"text": ["Good.", "Bad."], "label": ["pos", "neg"]}


def test_files_of_a_split_follow_each_other_in_the_given_order(tmp_path: Path) -> None:
    one = write(tmp_path / "b.csv", "text,label\nx,1\n")
    two = write(tmp_path / "a.jsonl", '{"label": 2, "text": "y"}\n')
    splits = load(section(train=[one, two]))
    assert splits["train"][:] == {"text": ["x", "y"], "label": [1, 2]}
    assert splits.origins["train"].describe([0, 1]) == f"{one}, row 2; {two}, row 1"


def test_a_file_with_other_columns_is_named(tmp_path: Path) -> None:
    one = write(tmp_path / "a.csv", "text,label\nx,1\n")
    two = write(tmp_path / "b.csv", "text,lable\ny,2\n")
    message = fault(section(train=[one, two]))
    assert "b.csv: dataset.columns.label" in message
    assert "Did you mean 'lable'?" in message


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        (["0", "1", "10"], [0, 1, 10]),
        (["1.0", "2.0"], [1, 2]),
        (["1", "2.5"], [1.0, 2.5]),
        (["True", "false"], [True, False]),
        (["01", "1"], ["01", "1"]),
        (["1_0", "2"], ["1_0", "2"]),
        ([" pos ", "neg"], ["pos", "neg"]),
        (["NA", "None"], ["NA", "None"]),
        (["1", "x"], ["1", "x"]),
        (["nan", "1.5"], ["nan", "1.5"]),
        (["1e999", "1.5"], ["1e999", "1.5"]),
    ],
)
def test_label_cells_get_the_one_type_that_fits_all(tmp_path: Path, cells: list[str], expected: list[Any]) -> None:
    found = labels_of(tmp_path, "text,label\n" + "".join(f"x,{cell}\n" for cell in cells))
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", "2"], ["1", "2"]),
        ([1.0, 2.0], [1, 2]),
        ([1, 2.5], [1.0, 2.5]),
        ([True, False], [True, False]),
        ([1, "1", "a"], ["1", "1", "a"]),
        ([["a", " b"], []], [["a", "b"], []]),
        ([["a"], "b"], [["a"], ["b"]]),
        ([[1, 2], [3]], [["1", "2"], ["3"]]),
    ],
)
def test_json_labels_keep_their_type_and_mixed_ones_become_texts(
    tmp_path: Path, values: list[Any], expected: list[Any]
) -> None:
    content = json.dumps([{"text": "x", "label": value} for value in values])
    found = labels_of(tmp_path, content, "a.json")
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_a_label_type_is_decided_over_all_splits(tmp_path: Path) -> None:
    train = write(tmp_path / "a.csv", "text,label\nx,1\ny,2\n")
    other = write(tmp_path / "b.csv", "text,label\nx,2.5\n")
    splits = load(section(train=train, validation=other))
    assert splits["train"].features["label"] == splits["validation"].features["label"] == datasets.Value("float64")
    names = write(tmp_path / "c.csv", "text,label\nx,unknown\n")
    assert list(load(section(train=train, validation=names))["train"]["label"]) == ["1", "2"]


def test_numbers_and_booleans_as_texts_are_spelt_out(tmp_path: Path) -> None:
    rows = [{"text": value, "label": "a"} for value in (3, 2.5, True, "NA")]
    file = write(tmp_path / "a.json", json.dumps(rows))
    assert list(load(section(train=file))["train"]["text"]) == ["3", "2.5", "true", "NA"]


def test_null_texts_and_labels_are_refused_with_the_first_rows_and_the_count(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\n" + "x,a\n" + "x, \n" * 7)
    message = fault(section(train=file))
    assert f"{file}, rows 3, 4, 5, 6, 7 ... (7 rows in all): label is empty or null in 7 of 8 rows" in message
    file = write(tmp_path / "a.jsonl", '{"text": "x", "label": "a"}\n\n{"text": null, "label": "a"}\n')
    assert f"{file}, row 3: text is null in 1 of 2 rows" in fault(section(train=file))
    file = write(tmp_path / "a.json", '[{"text": "x", "label": 1.5}, {"text": "x", "label": NaN}]')
    assert f"{file}, row 2: label is empty or null" in fault(section(train=file))
    file = write(tmp_path / "a.json", '[{"text": ["x"], "label": "a"}]')
    assert "text is a list or an object" in fault(section(train=file))


def test_a_delimiter_splits_a_cell_into_labels(tmp_path: Path) -> None:
    content = "text,label\nx,a| |b \ny,\nz,c\n"
    assert labels_of(tmp_path, content, label_delimiter="|") == [["a", "b"], [], ["c"]]


def test_several_columns_of_0_and_1_give_the_names_that_are_on(tmp_path: Path) -> None:
    content = "text,praise,refund\nx,1,0\ny,True,1.0\nz,0,0\n"
    columns = {"text": "text", "label": ("praise", "refund")}
    splits = load(section(train=write(tmp_path / "a.csv", content)), columns=columns)
    assert list(splits["train"]["label"]) == [["praise"], ["praise", "refund"], []]
    assert splits.label_names == ("praise", "refund")
    bad = write(tmp_path / "b.csv", "text,praise,refund\nx,1,2\n")
    assert "b.csv, row 2: column 'refund' = '2'" in fault(section(train=bad), columns=columns)


def class_table() -> datasets.Dataset:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["zero", "a", "one"])}
    )
    return datasets.Dataset.from_dict({"text": ["x", "y", "z"], "label": [0, 2, 1]}, features=features)


def test_parquet_keeps_class_names_and_their_order(tmp_path: Path) -> None:
    class_table().to_parquet(str(tmp_path / "a.parquet"))
    splits = load(section(train=tmp_path / "a.parquet"))
    assert list(splits["train"]["label"]) == ["zero", "one", "a"]
    assert splits.label_names == ("zero", "a", "one")


def test_parquet_of_pandas_is_read_and_its_nulls_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pd.DataFrame({"text": ["x", "NA"], "label": [1.0, 2.0], "more": [1, 2]}).to_parquet(file)
    assert load(section(train=file))["train"][:] == {"text": ["x", "NA"], "label": [1, 2]}
    pd.DataFrame({"text": ["x", None], "label": [1.0, 2.0]}).to_parquet(file)
    assert f"{file}, row 2: text is null in 1 of 2 rows" in fault(section(train=file))
    pd.DataFrame({"text": ["x", "y"], "label": [1.0, float("nan")]}).to_parquet(file)
    assert f"{file}, row 2: label is empty or null" in fault(section(train=file))
    datasets.Dataset.from_dict({"text": ["x", "y", None], "label": [1, 2, 3]}).to_parquet(str(file))
    assert f"{file}, row 3: text is null in 1 of 3 rows" in fault(section(train=file))
    file.write_bytes(b"no parquet")
    assert "cannot be read as Parquet" in fault(section(train=file))


def test_a_split_off_share_is_disjoint_stratified_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    content = "text,label\n" + "".join(f"t{i},{'a' if i % 4 else 'b'}\n" for i in range(80))
    dataset = section(train=write(tmp_path / "a.csv", content))
    first = load(dataset, validation=0.25, test=0.1)
    again = load(dataset, validation=0.25, test=0.1)
    assert list(first) == ["train", "validation", "test"]
    assert {split: list(rows["text"]) for split, rows in first.items()} == {
        split: list(rows["text"]) for split, rows in again.items()
    }
    assert sorted(text for rows in first.values() for text in rows["text"]) == sorted(f"t{i}" for i in range(80))
    assert list(first["validation"]["label"]).count("b") == 5
    index = 3
    text = first["validation"]["text"][index]
    assert first.origins["validation"].describe([index]).endswith(f"a.csv, row {int(text[1:]) + 2}")


def test_rows_of_a_share_are_written_to_no_cache(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.csv", "text,label\n" + "x,a\ny,b\n" * 9)
    for rows in load(section(train=file), validation=0.3).values():
        named = canonical_labels(rows, problem_type="single_label_classification", labels=("a", "b"))
        assert named.cache_files == []
        assert sorted(set(named["label"])) == ["a", "b"]
    assert capfd.readouterr().err == ""


def test_a_share_beside_files_of_that_split_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "text,label\nx,1\ny,2\n")
    message = fault(section(train=file, validation=file), validation=0.2)
    assert "dataset.validation = 0.2: there is a validation split already" in message


def test_training_files_are_required(tmp_path: Path) -> None:
    assert "has no train files" in fault(section(test=write(tmp_path / "a.csv", "text,label\nx,1\n")))
    assert "has no labels" in fault(section(train=write(tmp_path / "a.txt", "x\n")))


def test_a_saved_folder_is_read_with_split_expressions(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": class_table(), "dev": class_table()}).save_to_disk(str(tmp_path / "saved"))
    saved = DatasetSection(path=str(tmp_path / "saved"))
    usual = load(saved)
    assert list(usual) == ["train", "validation"]
    assert usual.label_names == ("zero", "a", "one")
    chosen = load(saved, split={"train": "train[1:]+dev[:1]", "test": "dev"})
    assert list(chosen["train"]["text"]) == ["y", "z", "x"]
    assert list(chosen["test"]["label"]) == ["zero", "one", "a"]
    message = fault(saved, split={"train": "trian"})
    assert "dataset.split.train = trian" in message
    assert "Did you mean 'train'?" in message
    assert "has no train split" in fault(saved, split={"test": "dev"})
    class_table().save_to_disk(str(tmp_path / "one"))
    assert list(load(DatasetSection(path=str(tmp_path / "one")))) == ["train"]


def test_a_folder_that_is_no_saved_dataset_is_refused(tmp_path: Path) -> None:
    assert "is not a folder written by save_to_disk" in fault(DatasetSection(path=str(tmp_path)))
    assert "no such folder" in fault(DatasetSection(path=str(tmp_path / "none")))


def test_unlabelled_rows_of_a_hub_test_split_are_refused_by_row(tmp_path: Path) -> None:
    table = class_table().map(lambda row: {"label": -1}, features=class_table().features)
    table.save_to_disk(str(tmp_path / "one"))
    assert "label is empty or null in 3 of 3 rows" in fault(DatasetSection(path=str(tmp_path / "one")))


def test_a_lists_of_classes_feature_gives_names(tmp_path: Path) -> None:
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.List(datasets.ClassLabel(names=["b", "a"]))}
    )
    rows = datasets.Dataset.from_dict({"text": ["x", "y"], "label": [[1, 0], []]}, features=features)
    rows.save_to_disk(str(tmp_path / "one"))
    splits = load(DatasetSection(path=str(tmp_path / "one")))
    assert list(splits["train"]["label"]) == [["a", "b"], []]
    assert splits.label_names == ("b", "a")


def test_a_hub_id_that_is_not_cached_is_refused_offline_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    message = fault(DatasetSection(path="someone/reviews"))
    assert "dataset.path = someone/reviews: offline, and it is not in the cache" in message
    assert "save_to_disk" in message


def test_a_cached_hub_id_is_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    commit = "a" * 40
    source = tmp_path / "source.parquet"
    class_table().to_parquet(str(source))
    builder = datasets.load_dataset_builder(
        "parquet", data_files={"train": str(source)}, cache_dir=str(tmp_path / "built")
    )
    builder.download_and_prepare()
    built = Path(builder.cache_dir)
    folder = tmp_path / "cache" / "someone___reviews" / "default" / "0.0.0" / commit
    folder.mkdir(parents=True)
    info = json.loads((built / "dataset_info.json").read_text(encoding="utf-8"))
    info.update(config_name="default", dataset_name="reviews", builder_name="parquet")
    (folder / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    (folder / "reviews-train.arrow").write_bytes((built / "parquet-train.arrow").read_bytes())
    splits = load(DatasetSection(path="someone/reviews"))
    assert list(splits["train"]["label"]) == ["zero", "one", "a"]
    assert splits.origins["train"].describe([1]) == "someone/reviews[train], row 2"
    assert load(DatasetSection(path="someone/reviews", revision=commit))
    assert "at revision bbbb" in fault(DatasetSection(path="someone/reviews", revision="b" * 40))


def test_bars_of_datasets_are_left_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    datasets.enable_progress_bars()
    fault(DatasetSection(path="someone/reviews"))
    assert not datasets.are_progress_bars_disabled()


def test_a_file_for_prediction_needs_no_label_and_keeps_null_words(tmp_path: Path) -> None:
    file = write(tmp_path / "a.csv", "review\nNA\n")
    rows = load_file(file, columns={"text": "review", "label": "stars"}, wanted=COLUMNS)
    assert rows[:] == {"text": ["NA"]}
    file = write(tmp_path / "b.csv", "review,stars\nx,5\n")
    assert load_file(file, columns={"text": "review", "label": "stars"}, wanted=COLUMNS)[:] == {
        "text": ["x"],
        "label": [5],
    }
    only_text = load_file(file, columns={"text": "review", "label": "stars"}, wanted=COLUMNS[:1])
    assert only_text[:] == {"text": ["x"]}


def test_a_txt_file_is_one_text_a_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.txt", "first\nsecond\n")
    assert load_file(file, columns={"text": "review"}, wanted=COLUMNS)[:] == {"text": ["first", "second"]}


def test_a_pair_the_adapter_was_trained_with_must_be_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'hypothesis'"):
        load_file(
            write(tmp_path / "a.csv", "text\nx\n"),
            columns={"text": "text", "text_pair": "hypothesis"},
            wanted=COLUMNS,
        )
