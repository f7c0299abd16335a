"""`lora-ft data check` from outside, and the few lines of it before every training."""

from __future__ import annotations

import json
import logging
import time
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import pytest

from lora_ft.assemble.examined_short import examined_in_short
from lora_ft.assemble.prepare import prepare
from lora_ft.train.run import RunOptions, train
from tests.cli.calls import Run
from tests.data.doctor.seeded import clean_rows, seeded_rows
from tests.toy import read, write_recipe, write_reviews


@pytest.fixture
def run(run: Run) -> Run:
    return partial(run, "data", "check")


@pytest.fixture
def seeded(tmp_path: Path, tiny_bert: Path) -> Path:
    files = {split: str(file) for split, file in seeded_rows().write(tmp_path).items()}
    return write_recipe(tmp_path, tiny_bert, dataset={"data_files": files})


def test_the_table_names_every_finding_with_its_rows_and_what_to_do(run: Run, seeded: Path) -> None:
    code, out, _ = run(seeded)
    assert code == 0
    assert "conflicting-labels" in out
    assert "train.csv:42, 43, 44" in out
    assert "`dataset.columns`" in out
    assert "max_length is 32" in out


def test_json_has_every_row_of_every_finding_and_the_row_it_is_like(run: Run, seeded: Path) -> None:
    code, out, _ = run(seeded, "--json")
    told = json.loads(out)
    assert code == 0
    assert told["splits"]["train"]["rows"] == len(seeded_rows().rows["train"])
    assert all(len(one["rows"]) in (0, one["count"]) for one in told["findings"])
    (leaked,) = [one for one in told["findings"] if one["name"] == "exact-leakage"]
    assert leaked["split"] == "validation"
    assert leaked["rows"][0]["at"].endswith("validation.csv:152")
    assert leaked["rows"][0]["like"].endswith("train.csv:52")


class Links(HTMLParser):
    """What a page would load, and which elements are open."""

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data")]


def test_the_page_is_one_file_that_loads_nothing_and_escapes_the_texts(run: Run, seeded: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    code, _, _ = run(seeded, "--html", page)
    text = page.read_text(encoding="utf-8")
    reader = Links()
    reader.feed(text)
    assert code == 0
    assert reader.loads == []
    assert reader.tags.count("svg") == 6  # labels, tokens and characters of two splits
    assert "script" not in reader.tags
    assert "&lt;p&gt;" in text  # the text of left-over-html


def test_label_errors_are_told_with_the_label_that_is_suggested(run: Run, tmp_path: Path, tiny_bert: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert)
    file = tmp_path / "data" / "train.csv"
    lines = file.read_text(encoding="utf-8").splitlines()
    flipped = [11, 30, 51, 70, 91, 110]
    for line in flipped:
        old, new = ("negative", "positive") if lines[line - 1].endswith("negative") else ("positive", "negative")
        lines[line - 1] = lines[line - 1].replace(old, new)
    file.write_text("\n".join(lines), encoding="utf-8")
    code, out, _ = run(recipe, "--json", "--label-errors")
    found = [one for one in json.loads(out)["findings"] if one["name"] == "probable-label-errors"]
    rows = {row["at"].rpartition(":")[2]: row for one in found if one["split"] == "train" for row in one["rows"]}
    assert code == 0
    assert len({str(line) for line in flipped} & rows.keys()) >= 3  # of six, by a base with random weights
    assert all(row["suggested"] != row["label"] and 0 < row["score"] <= 1 for row in rows.values())


def test_label_errors_are_refused_where_there_are_no_labels(run: Run, tmp_path: Path, tiny_gpt2: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_gpt2, task="text-generation")
    code, _, err = run(recipe, "--label-errors")
    assert code == 2
    assert "no column of labels" in err


def test_a_page_that_cannot_be_written_is_refused_first(run: Run, seeded: Path, tmp_path: Path) -> None:
    code, _, err = run(seeded, "--html", tmp_path / "absent" / "page.html")
    assert code == 2
    assert "there is no folder" in err


def test_a_training_run_logs_what_is_wrong_and_goes_on(
    tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 1})
    with (tmp_path / "data" / "train.csv").open("a", encoding="utf-8") as stream:
        stream.write("this book is <b>great</b> and perfect,positive\n")
        stream.writelines("my phone broke and it was a bad day,negative\n" for _ in range(3))
        stream.write("12345 67.8,positive\n")  # a note, which is not logged
    caplog.set_level(logging.INFO, logger="lora_ft")
    assert train(read(recipe), RunOptions()).folder.is_dir()
    lines = [one for one in caplog.messages if one.startswith(("train: left", "train: exact", "train: texts", "data:"))]
    assert [line.partition(" rows")[0] for line in lines] == [
        "train: left-over-html: 1 of 133", "train: exact-duplicates: 2 of 133",
        "data: lora-ft data check recipe.yaml says more",
    ]  # fmt: skip
    assert "train.csv, row 130" in lines[0]


def test_clean_rows_add_no_line_to_a_training_run(tmp_path: Path, tiny_bert: Path) -> None:
    files = {split: str(file) for split, file in clean_rows().write(tmp_path).items()}
    prepared = prepare(read(write_recipe(tmp_path, tiny_bert, dataset={"data_files": files})))
    assert examined_in_short(prepared) == []


def test_the_short_look_takes_seconds_whatever_the_number_of_rows(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = write_recipe(tmp_path, tiny_bert)
    write_reviews(tmp_path / "data" / "train.csv", 60_000, seed=1)
    prepared = prepare(read(recipe))
    began = time.process_time()
    lines = examined_in_short(prepared)
    assert time.process_time() - began < 4
    assert "of 20000 rows" in lines[0]
