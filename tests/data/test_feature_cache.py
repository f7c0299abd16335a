"""Features on disk: read again, shared by processes, never believed when damaged, private, and not without end."""

from __future__ import annotations

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import filelock
import pytest

from lora_ft.assemble import kept_features
from lora_ft.assemble.encode import encode_rows
from lora_ft.assemble.kept_features import KeptFeatures
from lora_ft.assemble.prepare import prepare
from lora_ft.data.feature_cache import FeatureCache, rows_digest
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe

TASK = load_task("text-classification")


def made(seed: int = 0) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": [[seed, 2], [3]], "length": [2, 1], "labels": [0.5, None]})


def never() -> datasets.Dataset:
    raise AssertionError("it was made again")


def test_what_was_made_once_is_read_with_the_same_types_and_values(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "features")
    first, second = cache.get("key", made), cache.get("key", never)
    assert second.features == first.features == made().features
    assert second[:] == made()[:]
    assert cache.get("other", lambda: made(7))[0]["input_ids"] == [7, 2]


def test_only_the_user_may_read_it(tmp_path: Path) -> None:
    FeatureCache(tmp_path / "features").get("key", made)
    for path in [tmp_path / "features", *(tmp_path / "features").rglob("*")]:
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize("file", ["features.arrow", "entry.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "gone"])
def test_a_damaged_entry_is_made_anew(tmp_path: Path, file: str, damage: str) -> None:
    cache = FeatureCache(tmp_path)
    cache.get("key", made)
    path = tmp_path / "key" / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        flipped = content[:40] + bytes([content[40] ^ 1]) + content[41:]
        path.write_bytes({"cut": content[:-8], "flipped": flipped, "empty": b""}[damage])
    assert cache.get("key", lambda: made(7))[0]["input_ids"] == [7, 2]
    assert cache.get("key", never)[0]["input_ids"] == [7, 2]


def test_the_least_recently_used_goes_first_and_what_is_too_large_is_not_kept(tmp_path: Path) -> None:
    import os

    size = 0
    cache = FeatureCache(tmp_path)
    for age, key in enumerate(("c", "b", "a")):
        cache.get(key, made)
        size = (tmp_path / key / "features.arrow").stat().st_size
        os.utime(tmp_path / key / "entry.json", (1_000 - age, 1_000 - age))  # `a` is the oldest
    cache.get("a", never)  # and is used now
    small = FeatureCache(tmp_path, most_bytes=3 * size)
    small.get("d", made)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"a", "c", "d"}
    assert FeatureCache(tmp_path / "none", most_bytes=size - 1).get("e", made)[:] == made()[:]
    assert not [path for path in (tmp_path / "none").iterdir() if path.is_dir()]


def test_a_folder_that_cannot_be_written_costs_nothing_but_the_cache(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert FeatureCache(tmp_path / "file").get("key", made)[:] == made()[:]


def test_another_process_waits_for_the_file_and_reads_it(tmp_path: Path) -> None:
    lock = filelock.FileLock(tmp_path / "key.lock")
    lock.acquire()
    program = (
        "import sys; from pathlib import Path; from lora_ft.data.feature_cache import FeatureCache\n"
        "print('ready', flush=True)\n"
        "print(FeatureCache(Path(sys.argv[1])).get('key', lambda: 1 / 0)[0]['input_ids'])\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        FeatureCache(tmp_path)._write("key", made())
        lock.release()
        assert other.stdout.readline() == "[0, 2]\n"
    assert other.returncode == 0


def problem(tokenizer: Any, **changes: Any) -> Problem:
    found = Problem("single_label_classification", ("bad", "good"), tokenizer, {"max_length": 16}, seed=1)
    return replace(found, **changes)


def test_the_key_is_of_content_and_settings_and_not_of_how_a_tokenizer_was_last_used(tiny_bert: Path) -> None:
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    rows = datasets.Dataset.from_dict({"text": ["good pan", "bad pan"], "label": ["good", "bad"]})

    def key(rows: datasets.Dataset = rows, *, training: bool = True, processor: Any = None, **changes: Any) -> str:
        kept = KeptFeatures(Path("nowhere"), processor or tokenizer)
        return kept.key(rows, task=TASK, problem=problem(tokenizer, **changes), training=training)

    first = key()
    tokenizer(["good pan"], truncation=True, max_length=3, padding="max_length")
    assert key() == first
    assert key(datasets.concatenate_datasets([rows.select([0]), rows.select([1])])) == first
    other = transformers.AutoTokenizer.from_pretrained(tiny_bert)
    other.add_tokens(["sturdier"])
    keys = [
        first, key(rows.select([1, 0])), key(training=False), key(settings={"max_length": 8}),
        key(labels=("good", "bad")), key(seed=2), key(preparation={"lower": True}), key(processor=other),
        key(augmentation={"swap": 0.1}),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(training=False, augmentation={"swap": 0.1}) == key(training=False)


def test_rows_with_the_same_text_in_other_columns_differ() -> None:
    one, two = (datasets.Dataset.from_dict({name: ["a"]}) for name in ("text", "text_pair"))
    assert rows_digest(one) != rows_digest(two)


def test_a_second_run_and_a_resumed_one_read_what_the_first_made_and_small_splits_are_left_alone(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lora_ft")
    recipe = read(write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 1}))
    prepare(recipe, features_dir=tmp_path / "features")
    assert not (tmp_path / "features").exists()
    monkeypatch.setattr(kept_features, "LEAST_ROWS", 100)
    cold = prepare(recipe, features_dir=tmp_path / "features")
    warm = prepare(recipe, features_dir=tmp_path / "features")
    assert "features: 128 read from the cache" in caplog.text
    assert warm.features["train"][:] == cold.features["train"][:]
    plain = encode_rows(warm.rows["train"], task=warm.task, problem=warm.problem, training=True)
    assert warm.features["train"][:] == plain[:]
    with_it = train(recipe, RunOptions(cache_dir=tmp_path))
    without = train(recipe, RunOptions(overwrite=True))
    assert with_it.metrics == without.metrics


def test_rows_are_encoded_before_anything_asks_for_other_processes(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_features, "LEAST_ROWS", 1)

    class Asked(Exception):
        pass

    def group(prepared: Any) -> Any:  # TrainingArguments start the process group
        raise Asked

    monkeypatch.setattr("lora_ft.train.run.training_arguments", group)
    with pytest.raises(Asked):
        train(read(write_recipe(tmp_path, tiny_bert)), RunOptions(cache_dir=tmp_path / "cache"))
    assert len(list((tmp_path / "cache" / "features").glob("*/features.arrow"))) == 2
    with pytest.raises(Asked):
        train(read(tmp_path / "recipe.yaml"), RunOptions(cache_dir=tmp_path / "other", keep_features=False))
    assert not (tmp_path / "other").exists()
