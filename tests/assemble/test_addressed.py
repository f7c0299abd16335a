"""The column that names an adapter, and each row as its own adapter reads it."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import datasets
import pytest

from lora_ft.adapters.manifest import Manifest
from lora_ft.adapters.pool_folder import read_pool
from lora_ft.adapters.verify import hash_file, read_manifest
from lora_ft.assemble.addressed import (
    addressed_rows,
    check_addresses,
    check_one_way,
    load_each_way,
    named,
    read_addresses,
    ways_to_read,
)
from lora_ft.errors import DataError, InputError
from lora_ft.tasks.base import load_task
from tests.pools import TinyPool

TASK = load_task("text-classification")


def test_names_come_from_csv_json_lines_and_parquet(tmp_path: Path) -> None:
    rows = [{"text": "a", "domain": "books"}, {"text": "b", "domain": None}, {"text": "c", "domain": " phones "}]
    (tmp_path / "a.csv").write_text("text,domain\na,books\nb,\nc, phones \n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "a.parquet")
    for ending in ("csv", "jsonl", "parquet"):
        assert list(read_addresses(tmp_path / f"a.{ending}", "domain").names) == ["books", None, "phones"]
    assert named(7) == "7"


def test_faults_name_row_and_nearest_name(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text("text,domain\n" + "a,books\n" * 15 + "b,boks\nc,\n", encoding="utf-8")
    addresses = read_addresses(file, "domain")
    with pytest.raises(DataError, match=r"a.csv, row 17: there is no adapter 'boks'. Did you mean 'books'\?"):
        check_addresses(addresses, ["books", "phones"], default=True, what_to_do="")
    with pytest.raises(DataError, match=r"a.csv, row 18: names no adapter. Write one"):
        check_addresses(addresses, ["books", "boks"], default=False, what_to_do="Write one")
    with pytest.raises(DataError, match=r"there is no column 'doman'. Did you mean 'domain'\?"):
        read_addresses(file, "doman")
    with pytest.raises(DataError, match="no table"):
        read_addresses(tmp_path / "a.xml", "domain")


def other_columns(adapter: Path) -> None:
    """Makes an adapter one whose recipe calls the text `body`."""
    recipe = adapter / "recipe.yaml"
    text = recipe.read_text(encoding="utf-8")
    assert "dataset:\n" in text
    recipe.write_text(text.replace("dataset:\n", "dataset:\n  columns: {text: body}\n"), encoding="utf-8")
    file = adapter / "manifest.json"
    manifest = Manifest.from_json(file.read_text(encoding="utf-8"))
    files = {**manifest.files, "recipe.yaml": hash_file(recipe)}
    file.write_text(replace(manifest, files=files).to_json(), encoding="utf-8")


def test_each_row_is_read_as_its_own_adapter_reads_it(tiny_pool: TinyPool, tmp_path: Path) -> None:
    root = tmp_path / "pool"
    shutil.copytree(tiny_pool.root, root)
    other_columns(root / "phones" / "run" / "adapter")
    folder = read_pool(root)
    manifests = {name: read_manifest(place) for name, place in folder.folders.items()}
    ways = ways_to_read(folder.folders, folder.folders, manifests, task=TASK, targets=False)
    assert ways["phones"].columns == {"text": "body"}
    assert ways["books"] == ways["pans"]
    with pytest.raises(InputError, match="'books' reads other columns"):
        check_one_way(ways)

    file = tmp_path / "rows.csv"
    file.write_text("text,body,domain\na,b,books\nc,d,phones\ne,f,pans\n", encoding="utf-8")
    addresses = read_addresses(file, "domain")
    tables = load_each_way(file, ways, manifests, task=TASK, targets=False)
    assert tables["books"] is tables["pans"]
    rows = list(addressed_rows(tables, addresses.names, undecided=None))
    assert [row.row["text"] for row in rows] == ["a", "d", "e"]
    assert rows[1].where == f"{file}, row 3"
    (tmp_path / "other.csv").write_text("text,domain\na,phones\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"adapter 'phones': .*no column 'body'"):
        load_each_way(tmp_path / "other.csv", {"phones": ways["phones"]}, manifests, task=TASK, targets=False)
