"""Text files are read without a change, and a broken one says where."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.data.files import read_rows
from lora_ft.errors import DataError


def write(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def fault(file: Path) -> str:
    with pytest.raises(DataError) as caught:
        read_rows(file)
    return str(caught.value)


def test_words_that_pandas_takes_for_nulls_stay_texts(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.csv", "text,label\nNA,None\nnull,nan\n,007\n"))
    assert rows.columns == {"text": ["NA", "null", ""], "label": ["None", "nan", "007"]}
    assert list(rows.numbers) == [2, 3, 4]


def test_row_numbers_count_records_and_blank_rows_as_a_spreadsheet_does(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.csv", 'text,label\n"two\nlines",a\n\nlast,b\n'))
    assert rows.columns["text"] == ["two\nlines", "last"]
    assert list(rows.numbers) == [2, 4]


def test_line_ends_inside_a_field_are_kept(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path, "a.csv", 'text\r\n"a\r\nb"\r\n')).columns["text"] == ["a\r\nb"]


def test_byte_order_mark_is_not_part_of_the_first_column(tmp_path: Path) -> None:
    assert list(read_rows(write(tmp_path, "a.csv", b"\xef\xbb\xbftext,label\nx,y\n")).columns) == [
        "text",
        "label",
    ]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_of_all_systems_are_read_alike(tmp_path: Path, end: str) -> None:
    rows = read_rows(write(tmp_path, "a.csv", end.join(["text,label", "x,y", "z,w", ""])))
    assert rows.columns == {"text": ["x", "z"], "label": ["y", "w"]}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nx,1\n"),
        ("a.tsv", "text\tlabel\nx\t1\n"),
        ("a.jsonl", '{"text": "x", "label": "1"}\n'),
        ("a.ndjson", '{"text": "x", "label": "1"}\n\n'),
        ("a.json", '[{"text": "x", "label": "1"}]'),
        ("b.json", '{"data": [{"text": "x", "label": "1"}], "version": 2}'),
    ],
)
def test_all_text_formats_give_the_same_rows_plain_and_gzipped(tmp_path: Path, name: str, content: str) -> None:
    plain = read_rows(write(tmp_path, name, content))
    packed = read_rows(write(tmp_path, name + ".gz", gzip.compress(content.encode())))
    assert plain.columns == packed.columns == {"text": ["x"], "label": ["1"]}


def test_ragged_row_names_its_line_even_behind_a_multi_line_field(tmp_path: Path) -> None:
    message = fault(write(tmp_path, "a.csv", 'text,label\n"two\nlines",a\nshort\n'))
    assert "a.csv:4: the row has 1 fields, the header has 2 (text, label)" in message


def test_long_row_is_refused_and_not_shifted(tmp_path: Path) -> None:
    assert "a.csv:2: the row has 3 fields" in fault(write(tmp_path, "a.csv", "text,label\na,b,c\nd,e,f\n"))


def test_bytes_that_are_not_utf8_name_line_position_and_remedy(tmp_path: Path) -> None:
    message = fault(write(tmp_path, "a.csv", b"text,label\nok,1\n" + "schön,1\n".encode("latin-1")))
    assert "a.csv:3: byte 0xf6 at position 19 is not UTF-8" in message
    assert "iconv" in message


def test_utf16_is_named(tmp_path: Path) -> None:
    assert "UTF-16" in fault(write(tmp_path, "a.csv", "text,label\nx,1\n".encode("utf-16")))


@pytest.mark.parametrize("content", ["", "  \n\n", "\ufeff"])
def test_empty_file_is_refused(tmp_path: Path, content: str) -> None:
    assert "a.csv: the file is empty" in fault(write(tmp_path, "a.csv", content))


def test_header_without_rows_is_refused(tmp_path: Path) -> None:
    assert "no rows below its header" in fault(write(tmp_path, "a.csv", "text,label\n"))


def test_missing_file_says_so(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in fault(tmp_path / "none.csv")


def test_unknown_ending_lists_the_formats(tmp_path: Path) -> None:
    assert ".parquet" in fault(write(tmp_path, "a.xlsx", "x"))


def test_damaged_gzip_is_named(tmp_path: Path) -> None:
    assert "gzip" in fault(write(tmp_path, "a.csv.gz", gzip.compress(b"text,label\nx,1\n" * 50)[:30]))


def test_semicolon_header_is_explained(tmp_path: Path) -> None:
    assert "separated by semicolons" in fault(write(tmp_path, "a.csv", "text;label\nx;1\n"))


def test_column_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    assert "'text' occurs more than once" in fault(write(tmp_path, "a.csv", "text,text\nx,1\n"))


def test_open_quote_names_the_row_where_it_opens(tmp_path: Path) -> None:
    assert "a.csv:3: the row that begins here is broken" in fault(
        write(tmp_path, "a.csv", 'text,label\nx,1\n"open,1\ny,2\n')
    )


def test_tsv_quotes_are_undone_where_the_file_uses_them(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.tsv", 'text\tlabel\n"say ""hi"""\t1\n'))
    assert rows.columns["text"] == ['say "hi"']


def test_tsv_with_literal_quotes_loses_no_row(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.tsv", 'label\ttext\n1\t"hello\n0\tfoo\n1\tworld"\n'))
    assert rows.columns["text"] == ['"hello', "foo", 'world"']
    rows = read_rows(write(tmp_path, "b.tsv", 'label\ttext\n1\t"Good" it is\n'))
    assert rows.columns["text"] == ['"Good" it is']


def test_field_longer_than_the_csv_limit_is_read_and_the_limit_left_alone(tmp_path: Path) -> None:
    limit = csv.field_size_limit()
    rows = read_rows(write(tmp_path, "a.csv", "text,label\n" + "x" * (limit + 1) + ",1\n"))
    assert len(rows.columns["text"][0]) == limit + 1
    assert csv.field_size_limit() == limit


def test_broken_json_line_names_its_line(tmp_path: Path) -> None:
    assert "a.jsonl:3: is not JSON" in fault(write(tmp_path, "a.jsonl", '{"text": "x"}\n \n{"text": \n'))


def test_json_lines_named_json_are_recognised(tmp_path: Path) -> None:
    assert "name it .jsonl" in fault(write(tmp_path, "a.json", '{"text": "x"}\n{"text": "y"}\n'))


def test_json_that_is_no_list_of_objects_is_refused(tmp_path: Path) -> None:
    assert "the JSON is an object" in fault(write(tmp_path, "a.json", '{"text": "x"}'))
    assert "a.json, row 2: is a number" in fault(write(tmp_path, "a.json", '[{"text": "x"}, 3]'))


def test_a_key_that_some_objects_lack_is_null_there(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path, "a.jsonl", '{"text": "x"}\n{"label": 1}\n'))
    assert rows.columns == {"text": ["x", None], "label": [None, 1]}


def test_txt_is_one_text_a_line_blank_lines_too(tmp_path: Path) -> None:
    assert read_rows(write(tmp_path, "a.txt", "one, two\r\n\n three\n")).columns == {"text": ["one, two", "", " three"]}


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\r\0"), max_size=12)
ROWS = st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=8)


@given(rows=ROWS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_csv_that_python_wrote_comes_back_cell_by_cell(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    out = io.StringIO(newline="")
    csv.writer(out).writerows([("text", "label"), *rows])
    read = read_rows(write(tmp_path, "a.csv", out.getvalue()))
    assert list(zip(read.columns["text"], read.columns["label"], strict=True)) == rows


@given(rows=ROWS)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_json_lines_come_back_value_by_value(tmp_path: Path, rows: list[tuple[str, str]]) -> None:
    lines = [json.dumps({"text": text, "label": label}, ensure_ascii=False) for text, label in rows]
    read = read_rows(write(tmp_path, "a.jsonl", "\n".join(lines)))
    assert list(zip(read.columns["text"], read.columns["label"], strict=True)) == rows
