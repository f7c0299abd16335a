"""A run with everything prepared: counted in the manifest, and done again once wherever texts are answered."""

from __future__ import annotations

import csv
import logging
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pytest

from lora_ft.adapters.pool_folder import PoolFolder
from lora_ft.assemble.examined_short import examined_in_short
from lora_ft.assemble.pooled import open_pool
from lora_ft.assemble.prepare import prepare
from lora_ft.assemble.recorded import recorded_recipe
from lora_ft.assemble.router import make_router
from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.evaluate.compare import compare, rows_of_recipe
from lora_ft.serve.predict import predict
from lora_ft.tasks.base import load_task, task_names
from lora_ft.train.run import RunOptions, TrainResult, train
from tests.toy import read, sentence, write_recipe

GERMAN = "Der Griff dieser Pfanne ist nach einer Woche abgebrochen, und niemand hat geantwortet."
PREPARATION: dict[str, Any] = {
    "fix_encoding": True,
    "strip_html": True,
    "normalization": "NFKC",
    "replace_urls": "http",
    "replace_emails": "",
    "replace_mentions": "@user",
    "replace": [[r"[!?]+", "."]],
    "lowercase": True,
    "stop_words": ["a"],
    "collapse_whitespace": True,
    "deduplicate": "near",
    "min_characters": 3,
    "min_words": 2,
    "max_words": 40,
    "max_tokens": 60,
    "languages": ["en"],
    "decontaminate": "exact",
    "mixing_weights": {"data/a.csv": 2, "data/b.csv": 1},
    "stopping_strategy": "all_exhausted",
    "sample": 90,
}
RAW = "<p>This  BOOK is good!!</p> see http://x.example/1"
CLEAN = "this book is good. see http"


def write_noisy(file: Path, rows: int, *, seed: int) -> None:
    """Reviews of ten customers each, with tags and capitals, and rows that do not belong into training."""
    rng = random.Random(seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label", "customer"])
        for index in range(rows):
            text = sentence(rng, positive=index % 2 == 1)
            wrapped = f"<b>{text.upper()}</b>  &amp;" if index % 3 == 0 else text
            writer.writerow([wrapped, ("negative", "positive")[index % 2], f"{seed}-{index % 10}"])
        writer.writerow([GERMAN, "negative", f"{seed}-0"])
        writer.writerow(["good", "positive", f"{seed}-0"])


def write_prepared(folder: Path, base: Path, preparation: Mapping[str, Any], **training: Any) -> Path:
    for name, seed in (("a", 1), ("b", 2)):
        write_noisy(folder / "data" / f"{name}.csv", 80, seed=seed)
    files = {"train": ["data/a.csv", "data/b.csv"]}
    file = write_recipe(
        folder, base, preparation=preparation, training_args={"num_train_epochs": 2, **training},
        dataset={"data_files": files, "validation": 0.2, "group": "customer"},
    )  # fmt: skip
    return file


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> TrainResult:
    return train(read(write_prepared(tmp_path_factory.mktemp("prepared"), tiny_bert, PREPARATION)), RunOptions())


@pytest.fixture(scope="module")
def opened(trained: TrainResult) -> SavedAdapter:
    return open_adapter(trained.folder, OpenOptions(offline=True))


def counts_of(result: TrainResult) -> dict[str, dict[str, Any]]:
    assert result.manifest is not None
    return {one["step"]: one for one in result.manifest.run["preparation"]}


def test_the_manifest_counts_each_step_in_its_order(trained: TrainResult) -> None:
    counts = counts_of(trained)
    texts = [name for name, value in PREPARATION.items() if name in counts and counts[name]["did"] == "changed"]
    assert texts == list(PREPARATION)[:10]
    assert counts["strip_html"]["rows"] == {"train": 54}
    assert counts["strip_html"]["of"] == {"train": 164}
    assert counts["deduplicate"]["did"] == "left out"
    assert counts["deduplicate"]["rows"]["train"] >= 1  # the same German row in both files
    assert counts["min_words"]["rows"] == {"train": 1}
    assert counts["mixing_weights"]["rows"].keys() == {"a.csv", "b.csv"}
    assert counts["sample"]["rows"] == {"train": 90}
    assert [one for one in counts if one not in texts][-2:] == ["mixing_weights", "sample"]
    assert trained.manifest is not None
    assert trained.manifest.run["rows"]["train"] == 90


def test_what_was_done_to_texts_is_recorded_as_it_is_done_again(trained: TrainResult) -> None:
    assert trained.manifest is not None
    assert list(trained.manifest.preparation) == list(PREPARATION)[:10]
    assert trained.manifest.preparation["replace"] == [["[!?]+", "."]]


def test_a_text_gets_the_scores_of_its_prepared_form_and_is_shown_as_given(opened: SavedAdapter) -> None:
    raw, clean = (next(iter(predict(opened, [{"text": text}]))) for text in (RAW, CLEAN))
    assert raw["text"] == RAW
    assert {**raw, "text": CLEAN} == clean


def test_the_folder_evaluates_to_the_metrics_of_the_run(trained: TrainResult, opened: SavedAdapter) -> None:
    recipe = recorded_recipe(trained.folder, tasks={name: load_task(name).facts() for name in task_names()})
    split, rows = rows_of_recipe(opened, recipe, None)
    assert split == "validation"
    assert any("<b>" in text for text in rows["text"])  # as given: they are prepared when they are answered
    found = compare(opened, rows, split=split, resamples=10)
    for name, value in found.adapter.items():
        assert value == pytest.approx(trained.metrics["validation"][name], abs=1e-6), name


def test_rows_are_prepared_once_and_only_once_on_both_ways(tmp_path: Path, tiny_bert: Path) -> None:
    rule = {"replace": [["x", "xx"]]}  # twice would show
    file = write_recipe(tmp_path, tiny_bert, preparation=rule, training_args={"num_train_epochs": 1})
    with (tmp_path / "data" / "dev.csv").open("a", encoding="utf-8") as stream:
        stream.write("x is good,positive\n")
    recipe = read(file)
    prepared = prepare(recipe)
    assert prepared.rows["validation"]["text"][-1] == "xx is good"
    assert prepared.problem.preparation == {}
    opened = open_adapter(train(recipe, RunOptions()).folder, OpenOptions(offline=True))
    again = opened.encode(datasets.Dataset.from_dict({"text": ["x is good"]}))
    assert again["input_ids"][0] == prepared.features["validation"]["input_ids"][-1]


def test_an_adapter_without_text_steps_is_as_before(tmp_path: Path, tiny_bert: Path, opened: SavedAdapter) -> None:
    plain = read(write_recipe(tmp_path, tiny_bert))
    prepared = prepare(plain)
    assert prepared.texts == {} and prepared.counts == ()
    assert prepared.rows["train"]["text"][:] == list(csv_texts(tmp_path / "data" / "train.csv"))


def csv_texts(file: Path) -> list[str]:
    with file.open(encoding="utf-8", newline="") as stream:
        return [row["text"] for row in csv.DictReader(stream)]


def test_a_pool_prepares_each_row_as_its_own_adapter_does(
    tmp_path: Path, tiny_bert: Path, trained: TrainResult, opened: SavedAdapter
) -> None:
    other = train(
        read(write_recipe(tmp_path / "plain", tiny_bert, training_args={"num_train_epochs": 1})), RunOptions()
    )
    plain = open_adapter(other.folder, OpenOptions(offline=True))
    folder = PoolFolder(tmp_path, {"prepared": trained.folder, "plain": other.folder}, plain.manifest)
    pooled = open_pool(folder, OpenOptions(offline=True))
    rows = [{"text": text} for text in (RAW, CLEAN, RAW)]
    found = pooled.predict(rows, ["prepared", "prepared", "plain"], batch_size=4)
    assert found[0]["score"] == pytest.approx(found[1]["score"], abs=1e-6)
    alone = [next(iter(predict(one, [{"text": RAW}]))) for one in (opened, plain)]
    for one, expected in ((found[0], alone[0]), (found[2], alone[1])):
        assert one["score"] == pytest.approx(expected["score"], abs=1e-5)
    router = make_router(pooled)
    assert len(router.spaces) == 2  # rows of the two are encoded in two ways
    assert router.choose([{"text": RAW}])[0] is not None


def test_rows_that_are_drawn_several_times_are_not_taken_for_duplicates(tmp_path: Path, tiny_bert: Path) -> None:
    steps = {"deduplicate": "exact", "mixing_weights": {"data/a.csv": 9, "data/b.csv": 1}}
    prepared = prepare(read(write_prepared(tmp_path, tiny_bert, {**steps, "stopping_strategy": "all_exhausted"})))
    texts = prepared.rows["train"]["text"][:]
    assert len(texts) > len(set(texts))
    assert not [line for line in examined_in_short(prepared) if "exact-duplicates" in line]


def test_each_step_says_one_line(tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = read(write_prepared(tmp_path, tiny_bert, {"lowercase": True, "min_words": 2, "stop_words": "english"}))
    with caplog.at_level(logging.INFO):
        prepare(recipe)
    said = [record.getMessage() for record in caplog.records if record.name.startswith("lora_ft.assemble.prepared")]
    assert said[0].startswith("preparation: stop_words: bases such as BERT read whole sentences")
    assert said[1] == "preparation: lowercase changed 56 of 164 train rows"
    assert said[2].startswith("preparation: stop_words changed ")
    assert said[3].startswith("preparation: min_words left out ")
