"""Variants of training rows: whose rows are varied, from what they follow, and what is said of them."""

from __future__ import annotations

import csv
import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lora_ft.adapters.manifest import Manifest
from lora_ft.assemble.prepare import Prepared, prepare
from lora_ft.assemble.recorded import recorded_recipe
from lora_ft.errors import RecipeError
from lora_ft.tasks.base import load_task, task_names
from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe

WAYS = {"random_deletion": 0.2, "random_swap": 0.2, "character_noise": 0.05}


def prepared(folder: Path, base: Path, *overrides: str, **section: Any) -> Prepared:
    """What a small recipe with this augmentation makes of its rows."""
    sections = {"augmentation": section} if section else {}
    return prepare(read(write_recipe(folder, base, **sections), *overrides))


def rows_of(found: Prepared, split: str = "train") -> list[Mapping[str, Any]]:
    return list(found.rows[split])


def test_each_training_row_gets_its_variants_after_all_rows(tmp_path: Path, tiny_bert: Path) -> None:
    plain = prepared(tmp_path, tiny_bert)
    varied = prepared(tmp_path, tiny_bert, variants=2, **WAYS)
    assert rows_of(varied)[:128] == rows_of(plain) == list(varied.own_rows["train"])
    variants = varied.variants
    assert len(varied.rows["train"]) == len(varied.features["train"]) == 128 + len(variants.sources)
    assert len(variants.sources) + variants.missing == 256
    assert list(variants.sources) == sorted(variants.sources)
    seen = [rows_of(varied)[:128][source] for source in variants.sources]
    for made, source in zip(rows_of(varied)[128:], seen, strict=True):
        assert made["label"] == source["label"]
        assert made["text"] != source["text"]
        assert made["text"].strip()
    each = list(zip(variants.sources, [row["text"] for row in rows_of(varied)[128:]], strict=True))
    assert len(set(each)) == len(each)
    assert set(variants.ways) == set(WAYS)


def test_only_training_rows_are_varied_and_the_report_is_about_the_rows_of_the_data(
    tmp_path: Path, tiny_bert: Path
) -> None:
    plain = prepared(tmp_path, tiny_bert)
    varied = prepared(tmp_path, tiny_bert, variants=3, **WAYS)
    assert rows_of(varied, "validation") == rows_of(plain, "validation")
    assert varied.features["validation"][:] == plain.features["validation"][:]
    assert varied.report == plain.report


def test_a_variant_follows_from_seed_row_and_its_number_alone(tmp_path: Path, tiny_bert: Path) -> None:
    first = prepared(tmp_path, tiny_bert, variants=1, **WAYS)
    again = prepared(tmp_path, tiny_bert, variants=1, **WAYS)
    more = prepared(tmp_path, tiny_bert, variants=3, **WAYS)
    other = prepared(tmp_path, tiny_bert, "training_args.seed=1", variants=1, **WAYS)
    assert rows_of(first) == rows_of(again)
    texts = {row["text"] for row in rows_of(more)}
    assert all(row["text"] in texts for row in rows_of(first))
    assert rows_of(first)[128:] != rows_of(other)[128:]
    file = tmp_path / "data" / "train.csv"
    kept = file.read_text(encoding="utf-8").splitlines()
    recipe = read(write_recipe(tmp_path, tiny_bert, augmentation={"variants": 1, **WAYS}))
    file.write_text("\n".join(kept[:61]) + "\n", encoding="utf-8")  # 60 rows without those after them
    fewer = prepare(recipe)
    made = len(fewer.variants.sources)
    assert rows_of(fewer)[60:] == rows_of(first)[128 : 128 + made]


def test_a_variant_is_named_by_its_row(tmp_path: Path, tiny_bert: Path) -> None:
    varied = prepared(tmp_path, tiny_bert, variants=1, **WAYS)
    source = varied.variants.sources[5]
    assert varied.origins["train"].describe([128 + 5]) == varied.origins["train"].describe([source])
    assert varied.origins["train"].describe([source]).endswith(f"row {source + 2}")


def test_rows_that_cannot_be_varied_are_counted_and_left_out(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = read(write_recipe(tmp_path, tiny_bert, augmentation={"variants": 2, "random_deletion": 0.1}))
    no, yes = "negative", "positive"
    with (tmp_path / "data" / "train.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), ("bad", no), ("good", yes), ("a good day", yes), ("", no)])
    found = prepare(recipe)
    assert found.variants.sources == (2, 2)
    assert found.variants.missing == 6
    assert found.variants.lines(4) == [
        "train: 2 varied rows beside the 4 of the data (random_deletion 2); 6 came out unchanged or twice and are left "
        "out"
    ]


def test_without_the_section_there_are_no_variants_and_nothing_is_said(tmp_path: Path, tiny_bert: Path) -> None:
    variants = prepared(tmp_path, tiny_bert).variants
    assert (variants.sources, variants.lines(128), variants.as_json()) == ((), [], {})


def write_module(folder: Path, name: str, body: str) -> None:
    (folder / f"{name}.py").write_text(body, encoding="utf-8")


def test_back_translations_come_from_a_function_beside_the_recipe(tmp_path: Path, tiny_bert: Path) -> None:
    body = "def turn(texts):\n    assert isinstance(texts, list)\n    return ['so ' + text for text in texts]\n"
    write_module(tmp_path, "lora_ft_test_turned", body)
    found = prepared(tmp_path, tiny_bert, variants=2, back_translation="lora_ft_test_turned:turn")
    assert [row["text"] for row in rows_of(found)[128:]] == ["so " + row["text"] for row in rows_of(found)[:128]]
    assert found.variants.as_json() == {"back_translation": 128, "missing": 128}  # the second would be as the first
    mixed = prepared(tmp_path, tiny_bert, variants=2, back_translation="lora_ft_test_turned:turn", random_swap=0.2)
    assert set(mixed.variants.ways) == {"back_translation", "random_swap"}


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("few", "def turn(texts):\n    return texts[:1]\n", "it was given 128 texts and returned 1 values"),
        ("one", "def turn(texts):\n    return 'text'\n", "it was given 128 texts and returned 4 values"),
        ("none", "def turn(texts):\n    pass\n", "returned a NoneType. Expected a list of as many texts"),
        ("numbers", "def turn(texts):\n    return [1] * len(texts)\n", "it returned 1 among its texts"),
        ("other", "def there(texts):\n    return texts\n", "has no turn. Expected a function from texts to texts"),
        ("value", "turn = 3\n", "turn is no function"),
        ("broken", "import no_such_module_at_all\n", "cannot be imported: No module named 'no_such_module_at_all'"),
    ],
)
def test_a_function_that_does_not_translate_is_an_error_with_its_name(
    tmp_path: Path, tiny_bert: Path, name: str, body: str, message: str
) -> None:
    write_module(tmp_path, f"lora_ft_test_{name}", body)
    with pytest.raises(RecipeError, match=r"augmentation\.back_translation = lora_ft_test_") as caught:
        prepared(tmp_path, tiny_bert, variants=1, back_translation=f"lora_ft_test_{name}:turn")
    assert message in str(caught.value)


def test_synonyms_that_cannot_be_read_are_an_error_of_the_recipe(tmp_path: Path, tiny_bert: Path) -> None:
    (tmp_path / "words.tsv").write_text("alone\n", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"recipe\.yaml: augmentation\.synonyms = .*words\.tsv: line 1"):
        prepared(tmp_path, tiny_bert, synonym_replacement=0.1, synonyms="words.tsv")


def test_an_adapter_is_measured_without_the_files_that_its_rows_were_varied_by(tmp_path: Path, tiny_bert: Path) -> None:
    (tmp_path / "words.tsv").write_text("good\tfine\n", encoding="utf-8")
    file = write_recipe(tmp_path, tiny_bert, augmentation={"synonym_replacement": 0.2, "synonyms": "words.tsv"})
    tasks = {name: load_task(name).facts() for name in task_names()}
    assert read(file).augmentation
    (tmp_path / "words.tsv").unlink()
    assert not recorded_recipe(tmp_path, tasks=tasks).augmentation


def test_plain_text_that_is_learned_word_by_word_is_refused(tmp_path: Path, tiny_gpt2: Path) -> None:
    recipe = read(write_recipe(tmp_path, tiny_gpt2, task="text-generation"))
    with pytest.raises(RecipeError, match="of rows with text every word is learned"):
        prepare(replace(recipe, augmentation={"random_swap": 0.1}))


def test_a_run_logs_and_records_its_variants(tmp_path: Path, tiny_bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = write_recipe(
        tmp_path, tiny_bert, augmentation={"variants": 1, **WAYS}, training_args={"num_train_epochs": 1}
    )
    caplog.set_level(logging.INFO, logger="lora_ft")
    manifest = train(read(recipe), RunOptions()).manifest
    assert isinstance(manifest, Manifest)
    told = manifest.run["variants"]
    made = sum(count for way, count in told.items() if way != "missing")
    assert manifest.run["rows"]["train"] == 128 + made
    assert f"train: {made} varied rows beside the 128 of the data" in "\n".join(caplog.messages)
    assert not [line for line in caplog.messages if "duplicates" in line]  # the doctor looks at the rows of the data
