"""A misspelt section is one fault, and hides none of those inside it."""

from __future__ import annotations

from pathlib import Path

from lora_ft.recipe.misspelt import with_nearest_sections
from lora_ft.recipe.overrides import lay_over
from lora_ft.recipe.reader import parse_document
from tests.recipe.stub import GOOD, fault, faults

MISSPELT = GOOD.replace("training_args:", "trainig_args:").replace("dataset:", "datset:")
NO_SECTION = "a recipe has no section 'trainig_args'. Did you mean 'training_args'?"


def test_what_is_wrong_in_a_misspelt_section_is_reported_with_it(tmp_path: Path) -> None:
    text = MISSPELT.replace("dev.csv", "dve.csv") + "  seed: x\n  sede: 1\n"
    found = faults(tmp_path, text=text)
    assert [one.partition(": ")[0] for one in found] == ["x.yaml:6", "x.yaml:7", "x.yaml:8", "x.yaml:10", "x.yaml:11"]
    assert "dataset.data_files.validation = 'dve.csv': there is no such file. Did you mean 'dev.csv'?" in found[1]
    assert found[3].startswith("x.yaml:10: training_args.seed = 'x': expected a whole number.")
    assert found[4].endswith("has no field 'sede'. Did you mean 'seed'?")


def test_rules_across_sections_see_a_misspelt_section(tmp_path: Path) -> None:
    text = GOOD.replace("training_args:", "trainig_args:") + "  metric_for_best_model: f1_makro\n"
    assert any(
        "x.yaml:10: training_args.metric_for_best_model = 'f1_makro'" in one for one in faults(tmp_path, text=text)
    )


def test_a_misspelt_section_of_an_override_is_blamed_on_the_override(tmp_path: Path) -> None:
    assert fault(tmp_path, "trainig_args.seed=1").startswith("override trainig_args.seed=1: trainig_args = {seed: 1}: ")
    both = faults(tmp_path, "trainig_args.seed=x")
    assert both[0] == f"override trainig_args.seed=x: trainig_args = {{seed: 'x'}}: {NO_SECTION}"
    assert both[1].startswith("override trainig_args.seed=x: training_args.seed = 'x': expected a whole number.")


def test_of_a_key_that_is_written_twice_the_later_one_is_checked() -> None:
    text = "model: {dropout: 0.1, dtype: float32}\nmodl: {dropout: 0.2}\ndatset: {columns: {text: a, label: b}}\n"
    document = lay_over(parse_document(text, name="x.yaml"), ["dataset.columns.text=c"])
    meant = with_nearest_sections(document)
    assert meant.value["model"] == {"dropout": 0.2, "dtype": "float32"}
    assert meant.place(("model", "dropout")).text == "x.yaml:2"
    assert meant.value["dataset"] == {"columns": {"text": "c", "label": "b"}}
    assert meant.place(("dataset", "columns", "text")).text == "override dataset.columns.text=c"
    assert meant.place(("dataset", "columns", "label")).text == "x.yaml:3"
    assert "dataset" in document.value and "label" not in document.value["dataset"]["columns"]


def test_a_misspelt_section_that_is_no_mapping_is_one_fault(tmp_path: Path) -> None:
    text = GOOD.replace("model:\n  pretrained_model_name_or_path: bert-base-chinese", "modle: bert-base-chinese")
    assert fault(tmp_path, text=text).endswith("a recipe has no section 'modle'. Did you mean 'model'?")


def test_a_section_that_only_an_override_makes_is_blamed_on_it(tmp_path: Path) -> None:
    text = GOOD.replace("dataset:\n  data_files: {train: train.csv, validation: dev.csv}\n", "")
    assert fault(tmp_path, "dataset.label_names=[a, b]", text=text).startswith(
        "override dataset.label_names=[a, b]: dataset = {label_names: ['a', 'b']}: there are no rows."
    )


def test_offline_yes_says_how_yaml_reads_it(tmp_path: Path) -> None:
    assert fault(tmp_path, text=GOOD + "offline: yes\n") == (
        "x.yaml:10: offline = 'yes': expected true or false. YAML 1.2 reads yes as text: write true"
    )


def test_a_fault_about_splits_is_grammatical(tmp_path: Path) -> None:
    assert fault(tmp_path, "dataset.data_files.dev=dev.csv").endswith(
        "the splits have no key 'dev'. Known: train, validation, test"
    )
