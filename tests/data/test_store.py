"""Rows read piece by piece are the rows of the file, whatever the size of the pieces and wherever they are kept."""

from __future__ import annotations

import csv
import gzip
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lora_ft.data import delimited, lines, rows, store, tables
from lora_ft.data.files import each_chunk, read_rows
from lora_ft.data.reading import Reading
from lora_ft.data.rows import take_rows
from lora_ft.data.store import RowStore
from lora_ft.data.tables import read_part
from lora_ft.errors import DataError
from lora_ft.recipe.schema import Column

COLUMNS = (
    Column("text", "text", True, "the text"),
    Column("label", "label", True, "the label", target=True),
)
MANY = 2_503


def write(folder: Path, name: str) -> Path:
    file, data = folder / name, [(f"text {row}, \u00e9", ("no", "yes")[row % 2]) for row in range(MANY)]
    if name.endswith(".parquet"):
        pq.write_table(pa.table({"text": [text for text, _ in data], "label": [label for _, label in data]}), file)
        return file
    opened = gzip.open if name.endswith(".gz") else open
    with opened(file, "wt", encoding="utf-8", newline="") as stream:
        if ".jsonl" in name:
            stream.writelines(json.dumps({"text": text, "label": label}) + "\n" for text, label in data)
        else:
            writer = csv.writer(stream, delimiter="\t" if ".tsv" in name else ",")
            writer.writerow(["text", "label"])
            writer.writerows(data)
    return file


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (delimited, lines, rows, tables):
        monkeypatch.setattr(module, "BATCH_ROWS", 100)
    monkeypatch.setattr(RowStore.__init__, "__kwdefaults__", {"held_bytes": 1_000})


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "a.jsonl", "a.csv.gz", "a.jsonl.gz", "a.parquet"])
def test_small_pieces_on_the_disk_give_the_rows_that_one_piece_in_memory_gives(
    tmp_path: Path, name: str, request: pytest.FixtureRequest
) -> None:
    file, reading = write(tmp_path, name), Reading(COLUMNS, {})
    whole = read_part([file], reading)
    assert whole.table.cache_files == []
    request.getfixturevalue("small_pieces")
    part = read_part([file], reading)
    assert part.table.cache_files != []
    assert part.table[:] == whole.table[:]
    assert part.table.features == whole.table.features
    assert part.labels == whole.labels
    assert part.origin.number.tolist() == whole.origin.number.tolist()
    assert part.origin.names == whole.origin.names


@pytest.mark.usefixtures("small_pieces")
def test_faults_of_later_pieces_keep_the_rows_of_the_file(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    texts = [json.dumps({"text": f"text {row}", "label": "a"}) for row in range(500)]
    texts[250], texts[431] = '{"text": null, "label": "a"}', '{"text": "x", "label": null}'
    file.write_text("\n".join(texts), encoding="utf-8")
    part = read_part([file], Reading(COLUMNS, {}))
    assert list(part.faults) == [(250, "text is null"), (431, "label is empty or null")]
    kept = part.without({250, 431})
    assert len(kept.table) == 498
    assert kept.table[250]["text"] == "text 251"


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "text,label\n" + "x,1\n" * 950 + "short\n" + "x,1\n" * 20, "a.csv:952: the row has 1 fields"),
        ("a.csv", "text,label\n" + "x,1\n" * 950 + '"open,1\n', "a.csv:952: the row that begins here is broken"),
        ("a.jsonl", '{"text": 1}\n' * 950 + "[1]\n", "a.jsonl, line 951: is a list"),
        ("a.jsonl", '{"text": 1}\n' * 950 + "{no}\n", "a.jsonl:951: is not JSON"),
    ],
)
def test_a_fault_far_down_says_its_line(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / name)
    assert told in str(caught.value)


def test_a_byte_that_is_no_utf8_far_down_says_its_line_and_position(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,label\n" + b"x,1\n" * 90_000 + b"sch\xf6n,1\n")
    with pytest.raises(DataError) as caught:
        read_rows(tmp_path / "a.csv")
    assert "a.csv:90002: byte 0xf6 at position 360014 is not UTF-8" in str(caught.value)


@pytest.mark.usefixtures("small_pieces")
def test_a_column_that_only_a_late_line_has_is_a_column(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"text": "x"}\n' * 350 + '{"text": "y", "label": "late"}\n', encoding="utf-8")
    assert {tuple(chunk.columns) for chunk in each_chunk(file)} == {("text", "label")}
    assert read_rows(file).columns["label"] == [None] * 350 + ["late"]


@pytest.mark.usefixtures("small_pieces")
def test_some_rows_of_a_table_on_the_disk_are_a_table_of_their_own() -> None:
    table = datasets.Dataset.from_dict({"text": [f"text {row}" for row in range(1_000)], "label": [[1.5]] * 1_000})
    taken = take_rows(table, range(0, 1_000, 2))
    assert taken.cache_files != []
    assert taken[:] == table[::2]
    assert taken.features == table.features
    assert take_rows(table, [])[:] == {"text": [], "label": []}


def test_what_is_in_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RowStore.__init__, "__kwdefaults__", {"held_bytes": 1 << 20})
    file = tmp_path / "a.csv"
    with file.open("w", encoding="utf-8") as stream:
        stream.write("text,label\n")
        stream.writelines(f"{'a text of many words ' * 20}{row},{row % 2}\n" for row in range(40_000))
    before = pa.total_allocated_bytes()
    part = read_part([file], Reading(COLUMNS, {}))
    assert pa.total_allocated_bytes() - before < 2_000_000  # of 17 MB; the rest is mapped from a file
    assert part.table[39_999]["text"].endswith(" 39999")
    assert [len(chunk.numbers) for chunk in each_chunk(file)] == [rows.BATCH_ROWS] * 4
    assert len(set(map(id, part.labels or ()))) == 2  # a text for each label, not for each row


def test_the_files_are_gone_when_the_process_ends(tmp_path: Path) -> None:
    code = (
        "import pyarrow as pa; from lora_ft.data.store import RowStore;"
        "s = RowStore(pa.schema([('a', pa.int64())]), held_bytes=1);"
        "s.append(pa.table({'a': [1, 2]})); d = s.dataset(); print(d.cache_files[0]['filename']); print(d['a'][:])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    file, values = done.stdout.splitlines()
    assert values == "[1, 2]"
    assert Path(file).parent.name.startswith("lora_ft_rows_")
    assert not Path(file).parent.exists()


def test_a_folder_that_a_killed_process_left_goes_a_day_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store.tempfile, "gettempdir", lambda: str(tmp_path))
    dead = 2**22 + 1  # above the highest number of a process
    old, fresh, own = (tmp_path / f"lora_ft_rows_{name}" for name in (f"{dead}_a", f"{dead}_b", f"{os.getpid()}_c"))
    for folder in (old, fresh, own):
        folder.mkdir()
        (folder / "rows.arrow").write_bytes(b"rows")
    for folder in (old, own):
        os.utime(folder, (0, 0))
    store._folder.cache_clear()
    made = store._folder()
    assert (old.exists(), fresh.exists(), own.exists(), Path(made.name).exists()) == (False, True, True, True)
    made.cleanup()
    store._folder.cache_clear()


def test_a_disk_without_room_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store.pa, "OSFile", full)
    rows_of = RowStore(pa.schema([("a", pa.int64())]), held_bytes=1)
    with pytest.raises(DataError) as caught:
        rows_of.append(pa.table({"a": [1, 2]}))
    assert "No space left on device" in str(caught.value)
    assert "TMPDIR" in str(caught.value)
    assert tempfile.gettempdir() in str(caught.value)
