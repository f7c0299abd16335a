"""Column names of every kind of file that can be read, without reading the file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.recipe.peek import SUFFIXES, PeekError, column_names, saved_columns, suffix_of

TEXTS = {
    "a.csv": 'review,"the, label"\nx,y\n',
    "b.tsv": "review\tthe, label\nx\ty\n",
    "c.jsonl": '{"review": "x"}\n\n{"review": "y", "the, label": 1}\n',
    "d.ndjson": '{"review": "x", "the, label": 1}\n',
    "list.json": '[\n {"review": "x", "the, label": [1]}, {"more": 1}]',
    "columns.json": '{"review": ["x"], "the, label": [1]}',
    "lines.json": '{"review": "x"}\n{"the, label": 1}\n',
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_each_kind_of_text_file_shows_its_columns(tmp_path: Path, name: str, compressed: bool, mark: str) -> None:
    data = (mark + TEXTS[name]).encode()
    file = tmp_path / (f"{name}.gz" if compressed else name)
    file.write_bytes(gzip.compress(data) if compressed else data)
    assert suffix_of(file) in SUFFIXES
    assert column_names(file) == ("review", "the, label")


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
        ("a.json.gz", gzip.compress(b"{x}"), "it is not json: Expecting property name"),
        ("a.csv", b"caf\xe9,b\n", "it is not UTF-8 (byte 0xe9). Save it in UTF-8"),
        ("a.csv.gz", b"no gzip", "it cannot be read: Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"a,b")[:-6], "it cannot be read: Compressed file ended before"),
        ("a.parquet", b"no parquet", "it is not parquet: "),
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


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([suffix for suffix in SUFFIXES if suffix != ".parquet"]), st.binary(max_size=40))
def test_no_bytes_raise_anything_but_a_peek_error(tmp_path: Path, suffix: str, data: bytes) -> None:
    file = tmp_path / f"a{suffix}"
    file.write_bytes(gzip.compress(data) if suffix.endswith(".gz") else data)
    try:
        assert column_names(file)
    except PeekError as error:
        assert str(error)
