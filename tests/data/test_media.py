"""Images and sounds of Parquet files and saved folders stay undecoded, and tags get the names of their classes."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from PIL import Image

from lora_ft.data.media import MEDIA, all_have_bytes
from lora_ft.data.rows import Splits
from lora_ft.data.sources import load_splits
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column, DatasetSection
from tests.data.rows_of import DETECTED, HEARD, PICTURED, TAGGED, TAGGED_SETS, section

CLASSES = datasets.ClassLabel(names=["O", "B-ORG", "I-ORG"])


def load(dataset: DatasetSection, wanted: tuple[Column, ...], **changes: Any) -> Splits:
    sets = TAGGED_SETS if wanted is TAGGED else None
    return load_splits(dataclasses.replace(dataset, **changes), columns=wanted, column_sets=sets, offline=True)


def png(shade: int = 0) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(stream, "png")
    return stream.getvalue()


def saved(rows: datasets.Dataset, folder: Path, *, parquet: bool) -> DatasetSection:
    if parquet:
        rows.to_parquet(str(folder / "a.parquet"))
        return section(train=folder / "a.parquet")
    rows.save_to_disk(str(folder / "saved"))
    return DatasetSection(path=str(folder / "saved"))


def pictures(values: list[Any], feature: Any) -> datasets.Dataset:
    """Rows as the hub has them: what an Image or Audio feature stores, under its name."""
    labels = [["pear", "apple"][at % 2] for at in range(len(values))]
    schema = datasets.Features({"image": feature, "label": datasets.Value("string")}).arrow_schema
    storage = pa.array([None if value is None else {"bytes": None, "path": None, **value} for value in values])
    storage = storage.cast(schema.field("image").type)
    return datasets.Dataset(pa.table([storage, pa.array(labels)], schema=schema))


@pytest.mark.parametrize("parquet", [True, False])
@pytest.mark.parametrize("feature", [datasets.Image(), datasets.Image(decode=False), MEDIA])
def test_bytes_of_images_are_taken_as_they_lie(tmp_path: Path, feature: Any, parquet: bool) -> None:
    rows = pictures([{"bytes": png(1), "path": "a.png"}, {"bytes": png(2)}], feature)
    splits = load(saved(rows, tmp_path, parquet=parquet), PICTURED)
    assert splits["train"][:] == {
        "image": [{"bytes": png(1), "path": "a.png"}, {"bytes": png(2), "path": None}],
        "label": ["pear", "apple"],
    }
    assert splits["train"].features["image"] == MEDIA


def test_images_in_a_saved_folder_stay_on_disk(tmp_path: Path) -> None:
    dataset = saved(pictures([{"bytes": bytes(1 << 20)}] * 3, datasets.Image()), tmp_path, parquet=False)
    before = pa.total_allocated_bytes()
    splits = load(dataset, PICTURED)
    assert pa.total_allocated_bytes() - before < 1 << 20
    assert splits["train"][2]["image"]["bytes"] == bytes(1 << 20)


def test_sounds_are_taken_as_they_lie_without_a_decoder(tmp_path: Path) -> None:
    storage = pa.array([{"bytes": b"RIFF1", "path": "a.wav"}, {"bytes": b"RIFF2", "path": None}])
    schema = datasets.Features({"audio": datasets.Audio(), "text": datasets.Value("string")}).arrow_schema
    table = pa.table([storage.cast(schema.field("audio").type), pa.array(["yes", "no"])], schema=schema)
    splits = load(saved(datasets.Dataset(table), tmp_path, parquet=True), HEARD)
    assert list(splits["train"]["audio"]) == [
        {"bytes": b"RIFF1", "path": "a.wav"},
        {"bytes": b"RIFF2", "path": None},
    ]


@pytest.mark.parametrize("parquet", [True, False])
def test_paths_in_a_table_start_at_its_folder_or_media_dir(tmp_path: Path, parquet: bool) -> None:
    rows = pictures([{"path": "a.png"}, {"bytes": png()}], MEDIA)
    dataset = saved(rows, tmp_path, parquet=parquet)
    with pytest.raises(DataError, match=r"row 1: image = 'a.png': there is no such file in"):
        load(dataset, PICTURED)
    home = tmp_path if parquet else tmp_path / "saved"
    (home / "a.png").write_bytes(png())
    paths = [{"bytes": None, "path": str(home / "a.png")}, {"bytes": png(), "path": None}]
    assert list(load(dataset, PICTURED)["train"]["image"]) == paths
    (home / "a.png").rename(tmp_path / "moved.png")
    rows = datasets.Dataset.from_dict({"image": ["moved.png"], "label": ["pear"]})
    (tmp_path / "x").mkdir()
    splits = load(saved(rows, tmp_path / "x", parquet=parquet), PICTURED, media_dir=str(tmp_path))
    assert splits["train"][0]["image"]["path"] == str(tmp_path / "moved.png")


def test_a_row_without_its_image_is_a_fault_of_the_row(tmp_path: Path) -> None:
    values = [{"bytes": png()}, None, {"bytes": b"", "path": None}, {"bytes": png(3)}]
    dataset = saved(pictures(values, datasets.Image()), tmp_path, parquet=True)
    with pytest.raises(DataError) as caught:
        load(dataset, PICTURED)
    assert "row 2: image is null" in str(caught.value)
    assert "row 3: image has neither bytes nor a path" in str(caught.value)
    splits = load(dataset, PICTURED, on_bad_row="skip")
    assert [image["bytes"] for image in splits["train"]["image"]] == [png(), png(3)]
    assert splits["train"].features["image"] == MEDIA


def test_files_and_tables_of_images_go_into_one_split(tmp_path: Path) -> None:
    rows = pictures([{"bytes": png(1), "path": "a.png"}] * 2, datasets.Image())
    (tmp_path / "pear").mkdir()
    (tmp_path / "pear" / "b.png").write_bytes(png(2))
    parquet = saved(rows, tmp_path, parquet=True).data_files["train"][0]
    splits = load(section(train=[parquet, tmp_path]), PICTURED)
    assert [image["path"] for image in splits["train"]["image"]] == ["a.png", "a.png", str(tmp_path / "pear" / "b.png")]
    assert list(splits["train"]["label"]) == ["pear", "apple", "pear"]
    assert splits.label_names is None


@pytest.mark.parametrize("parquet", [True, False])
def test_tags_of_a_classes_feature_become_names_in_its_order(tmp_path: Path, parquet: bool) -> None:
    features = datasets.Features({"tokens": datasets.List(datasets.Value("string")), "tags": datasets.List(CLASSES)})
    content = {"tokens": [["EU", "it"], [], ["a"]], "tags": [[1, 0], [], [2]]}
    splits = load(saved(datasets.Dataset.from_dict(content, features=features), tmp_path, parquet=parquet), TAGGED)
    assert list(splits["train"]["tags"]) == [["B-ORG", "O"], [], ["I-ORG"]]
    assert splits.label_names == ("O", "B-ORG", "I-ORG")
    rows = datasets.Dataset.from_dict({"tokens": [["a"], ["b"]], "tags": [[-1], [0]]}, features=features)
    with pytest.raises(DataError, match=r"row 1: tags\[0\] is empty or null"):
        load(saved(rows, tmp_path, parquet=True), TAGGED)


@pytest.mark.parametrize("legacy", [True, False])
def test_boxes_of_a_hub_table_become_names_and_pixels(tmp_path: Path, legacy: bool) -> None:
    inner = {
        "id": datasets.Value("int64"),
        "bbox": datasets.List(datasets.Value("float32"), length=4),
        "category": datasets.ClassLabel(names=["mask", "glove"]),
    }
    objects = datasets.Sequence(inner) if legacy else datasets.List(inner)
    features = datasets.Features({"image": datasets.Image(), "objects": objects})
    boxes = [{"id": 1, "bbox": [1.0, 2.0, 3.0, 4.5], "category": 1}]
    columns = {key: [box[key] for box in boxes] for key in inner}
    content = {"image": [{"bytes": png()}] * 2, "objects": [columns if legacy else boxes, columns if legacy else boxes]}
    rows = datasets.Dataset.from_dict(content, features=features)
    splits = load(saved(rows, tmp_path, parquet=True), DETECTED)
    assert list(splits["train"]["objects"]) == [{"bbox": [[1.0, 2.0, 3.0, 4.5]], "category": ["glove"]}] * 2
    assert splits.label_names == ("mask", "glove")


def test_all_have_bytes_only_if_all_have() -> None:
    def column(*values: Any) -> pa.ChunkedArray:
        return pa.chunked_array([pa.array(values, pa.struct({"bytes": pa.binary(), "path": pa.string()}))])

    assert all_have_bytes(column({"bytes": b"x"}, {"bytes": b"y", "path": "z"}))
    assert not all_have_bytes(column({"bytes": b"x"}, {"bytes": b""}))
    assert not all_have_bytes(column({"bytes": b"x"}, {"path": "z"}))
    assert not all_have_bytes(column({"bytes": b"x"}, None))
    assert not all_have_bytes(pa.chunked_array([pa.array(["a.png"])]))
