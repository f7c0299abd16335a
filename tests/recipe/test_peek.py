"""Column names of every kind of file that can be read, without reading the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.data import files
from lora_ft.data.files import read_rows
from lora_ft.data.folders import folder_rows
from lora_ft.recipe import peek
from lora_ft.recipe.outline import outline
from lora_ft.recipe.peek import SUFFIXES, Header, PeekError, header_of, saved_columns, suffix_of

TEXTS = {
    "a.csv": 'review,"the, label"\nx,y\n',
    "b.tsv": "review\tthe, label\nx\ty\n",
    "c.jsonl": '{"review": "x"}\n\n{"review": "y", "the, label": 1}\n',
    "d.ndjson": '{"review": "x", "the, label": 1}\n',
    "list.json": '[\n {"review": "x"}, {"the, label": [1]}]',
    "data.json": '{"version": 1, "data": [{"review": "x"}, {"the, label": [1]}]}',
}
QUESTION = {"id": "1", "question": "q", "answers": [{"text": "c", "answer_start": 0}]}
SQUAD = {"version": "v2.0", "data": [{"title": "a", "paragraphs": [{"context": "c", "qas": [QUESTION]}]}]}
COCO = {
    "info": {"a": [{"file_name": 1}]},
    "images": [{"id": 0, "file_name": "a.jpg"}],
    "annotations": [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 1, 1]}],
    "categories": [{"id": 1, "name": "cell"}],
}
FORMATS = {
    "a.txt": ("To be.\n\nOr not.\n", ("text",)),
    "a.conll": ("-DOCSTART- -X- O\n\nEU\tB-ORG\nrejects O\n\n", ("tokens", "tags")),
    "a.bio": ("EU B-ORG\n", ("tokens", "tags")),
    "a.iob2": ("EU NNP B-ORG\n", ("tokens", "tags")),
    "squad.json": (json.dumps(SQUAD), ("id", "context", "question", "answers")),
    "coco.json": (json.dumps(COCO), ("image", "objects")),
    "sorted.json": (json.dumps({key: COCO[key] for key in sorted(COCO)}), ("image", "objects")),
    "images.json": (json.dumps({key: COCO[key] for key in ("images", "categories")}), ("image",)),
}


def column_names(file: Path) -> tuple[str, ...]:
    return header_of(file).names


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_each_kind_of_text_file_shows_its_columns(tmp_path: Path, name: str, compressed: bool, mark: str) -> None:
    data = (mark + TEXTS[name]).encode()
    file = tmp_path / (f"{name}.gz" if compressed else name)
    file.write_bytes(gzip.compress(data, mtime=0) if compressed else data)
    assert suffix_of(file) in SUFFIXES
    assert column_names(file) == ("review", "the, label")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_format_with_fixed_columns_shows_them(tmp_path: Path, name: str, compressed: bool) -> None:
    text, expected = FORMATS[name]
    file = tmp_path / (f"{name}.gz" if compressed else name)
    file.write_bytes(gzip.compress(text.encode()) if compressed else text.encode())
    assert header_of(file) == Header(expected, ours=True)


def test_voc_shows_its_columns(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text('<?xml version="1.0"?>\n<annotation>\n  <filename>a.jpg</filename>\n</annotation>')
    assert header_of(tmp_path / "a.xml") == Header(("image", "objects"), ours=True)


@pytest.mark.parametrize("name", [*TEXTS, *FORMATS])
def test_what_is_seen_of_a_file_is_what_the_data_room_reads(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(TEXTS[name] if name in TEXTS else FORMATS[name][0])
    rows = read_rows(tmp_path / name)
    assert header_of(tmp_path / name) == Header(tuple(rows.columns), ours=rows.ours)


def test_the_data_room_reads_the_same_kinds_of_files() -> None:
    assert peek.TEXT_SUFFIXES == files.TEXT_FORMATS


@pytest.mark.parametrize("key", ["images", "annotations", "categories", "data"])
def test_of_a_large_file_only_the_beginning_is_read(tmp_path: Path, key: str) -> None:
    items = {
        "images": {"id": 0, "file_name": "a.jpg"},
        "annotations": {"segmentation": [[1.5] * 9], "image_id": 0},
        "categories": {"supercategory": "cells", "id": 0},
        "data": {"title": 'a "b" \\ {', "paragraphs": [{"context": "c" * 5000}]},
    }
    file = tmp_path / "a.json"
    file.write_bytes((json.dumps({"info": {"year": 1}, key: [items[key]] * 9000})[:90_000]).encode() + b"\xff" * 9000)
    assert column_names(file) == (("image", "objects") if key != "data" else ("id", "context", "question", "answers"))


@pytest.mark.parametrize("rows", ["[{rows}]", '{{"version": 1, "data": [{rows}]}}'])
def test_a_long_row_is_read_to_its_end_if_that_is_not_far(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: str
) -> None:
    file = tmp_path / "a.json"
    file.write_text(rows.format(rows=json.dumps({"image": "x" * 100_000, "label": 1})))
    assert column_names(file) == ("image", "label")
    monkeypatch.setattr(peek, "MOST_CHARACTERS", 1000)
    assert column_names(file) == ()


def test_a_large_object_whose_layout_lies_further_on_is_left_to_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"licence": "x" * 100_000, **COCO}))
    assert column_names(tmp_path / "a.json") == ()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat/a.JPG", "readme.md"], ("image", "label")),
        (["a.jpg", "more/notes.md"], ("image",)),
        (["yes/a.flac", "no/b.ogg", ".cache/a.jpg"], ("audio", "label")),
    ],
)
def test_a_folder_of_images_or_sounds_shows_what_it_holds(
    tmp_path: Path, names: list[str], expected: tuple[str, ...]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    assert header_of(tmp_path) == Header(expected, ours=True)
    assert tuple(folder_rows(tmp_path).columns) == expected


def test_a_folder_without_either_says_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "a.xml").write_text("")
    with pytest.raises(PeekError) as caught:
        column_names(tmp_path)
    assert str(caught.value).endswith(
        f"a subfolder for each class, with files in it, or files: write {tmp_path.name}/*.xml"
    )


def test_a_folder_with_too_much_in_it_is_left_to_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    for name in "bcd":
        (tmp_path / "a" / name).write_text("")
    monkeypatch.setattr(peek, "ENTRIES_SEEN", 3)
    assert column_names(tmp_path) == ()


def test_parquet_shows_its_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"review": ["x"], "label": [1]}), tmp_path / "a.parquet")
    assert column_names(tmp_path / "a.parquet") == ("review", "label")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "it is empty. Expected a header line with the column names"),
        ("a.jsonl", b"\n", "it is empty. Expected at least one row"),
        ("a.json", b"[]", "it is empty. Expected at least one row"),
        ("a.json", b"", "it is empty. Expected at least one row"),
        ("a.jsonl", b"[1]\n", "expected each row to be an object with the columns as keys"),
        ("a.jsonl", b"{\n", "it is not jsonl: Expecting property name"),
        ("a.json.gz", gzip.compress(b"{x}", mtime=0), "it is not json: Expecting property name"),
        ("a.csv", b"caf\xe9,b\n", "it is not UTF-8 (byte 0xe9). Save it in UTF-8"),
        ("a.csv.gz", b"no gzip", "it cannot be read: Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"a,b", mtime=0)[:-6], "it cannot be read: Compressed file ended before"),
        ("a.parquet", b"no parquet", "it is not parquet: "),
        ("a.txt", b" \n", "it is empty. Expected text"),
        ("a.conll", b"\n\n", "it is empty. Expected a word and its tag on each line"),
        ("a.conll", b"EU\nrejects\n", "expected a word and its tag on each line, with a tab or a space between them"),
        ("a.json", b'{"a": 1}', 'expected a list of rows, {"data": [rows]}, COCO or nested SQuAD; one object a line'),
        ("a.json", b'{"a": 1}\n{"a": 2}', 'expected a list of rows, {"data": [rows]}, COCO or nested SQuAD'),
        ("a.json", b'{"data": []}', "expected a list of rows"),
        ("a.json", b"[1]", "expected each row to be an object with the columns as keys"),
        ("a.xml", b"<html>", "it is no Pascal VOC annotation. Expected <annotation> around everything else"),
    ],
)
def test_a_file_that_is_not_what_its_name_says_has_a_message(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(PeekError) as caught:
        column_names(tmp_path / name)
    assert str(caught.value).startswith(message)


def test_the_suffix_decides_whatever_stands_before_it() -> None:
    assert suffix_of(Path("shop.v1.CSV")) == ".csv"
    assert suffix_of(Path("shop.csv.gz")) == ".csv.gz"
    assert suffix_of(Path("shop")) == ""


def test_a_saved_dataset_shows_its_columns(tmp_path: Path) -> None:
    assert saved_columns(tmp_path) == ()
    (tmp_path / "train").mkdir()
    info = tmp_path / "train" / "dataset_info.json"
    info.write_text(json.dumps({"features": {"text": {}, "label": {}}}))
    assert saved_columns(tmp_path) == ("text", "label")
    info.write_text("{")
    assert saved_columns(tmp_path) == ()


ROWS = st.lists(
    st.dictionaries(st.text(max_size=4), st.text(max_size=4) | st.lists(st.integers()), max_size=3), max_size=4
)


def outline_of(value: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """The slow twin: of an object that was read whole."""
    lists = {key: one if isinstance(one, list) else [] for key, one in value.items()}
    return {
        key: tuple(dict.fromkeys(name for row in rows if isinstance(row, dict) for name in row))
        for key, rows in lists.items()
    }


NESTED = st.dictionaries(
    st.text(max_size=4), st.dictionaries(st.text(max_size=4), st.integers(), max_size=2), max_size=2
)


@given(
    st.dictionaries(
        st.text(max_size=6), ROWS | NESTED | st.integers() | st.text() | st.lists(st.lists(st.text())), max_size=4
    )
)
def test_the_outline_of_a_text_is_that_of_its_value(value: dict[str, object]) -> None:
    assert outline(json.dumps(value)) == outline_of(value)


@given(st.text(alphabet='{}[]:,"\\ ab1\n'))
def test_the_outline_of_any_text_ends_without_surprise(text: str) -> None:
    try:
        outline(text)
    except ValueError as error:
        assert str(error)


def test_the_outline_of_a_long_open_text_takes_no_time() -> None:
    assert outline('{"a": "' + '\\"' * 100_000) == {"a": ()}


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([suffix for suffix in SUFFIXES if suffix != ".parquet"]), st.binary(max_size=40))
def test_no_bytes_raise_anything_but_a_peek_error(tmp_path: Path, suffix: str, data: bytes) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(gzip.compress(data, mtime=0) if suffix.endswith(".gz") else data)
    try:
        assert column_names(file)
    except PeekError as error:
        assert str(error)
