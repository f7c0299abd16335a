"""Overrides: the same names, the same checks, the same kind of fault as the file."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lora_ft.errors import RecipeError
from lora_ft.recipe.overrides import lay_over
from lora_ft.recipe.read import read_recipe
from lora_ft.recipe.reader import parse_document
from tests.recipe.stub import GOOD, TASKS, fault, faults, read, write


def test_an_override_replaces_a_value_and_keeps_the_rest(tmp_path: Path) -> None:
    recipe = read(tmp_path, "training_args.learning_rate=3e-4", "peft_config.r=4")
    assert recipe.training_args["learning_rate"] == 3e-4
    assert recipe.peft_config["r"] == 4
    assert recipe.model.pretrained_model_name_or_path == "bert-base-chinese"


def test_nested_and_top_level_keys_can_be_overridden(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, "dataset.columns.text=review", "offline=true", "dataset.data_files.test=dev.csv",
        "dataset.data_files.validation=null", "processor.max_length=64",
    )  # fmt: skip
    assert recipe.dataset.columns == {"text": "review"}
    assert recipe.offline is True
    assert set(recipe.dataset.data_files) == {"train", "test"}
    assert recipe.processor == {"max_length": 64}


def test_the_later_override_wins(tmp_path: Path) -> None:
    assert read(tmp_path, "training_args.seed=1", "training_args.seed=2").training_args["seed"] == 2


def test_values_are_yaml_1_2(tmp_path: Path) -> None:
    recipe = read(tmp_path, "dataset.label_names=[pos, neg]", "training_args.run_name=no")
    assert recipe.dataset.label_names == ("pos", "neg")
    assert recipe.training_args["run_name"] == "no"


def test_null_takes_an_optional_section_out(tmp_path: Path) -> None:
    text = GOOD + "quantization_config: {load_in_4bit: true}\n"
    assert read(tmp_path, text=text).quantization_config == {"load_in_4bit": True}
    assert read(tmp_path, "quantization_config=null", text=text).quantization_config is None


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "training_args.learning_rat=3",
            "override training_args.learning_rat=3: TrainingArguments (transformers ",
        ),
        (
            "training_args.seed=x",
            "override training_args.seed=x: expected a whole number. YAML read this as text",
        ),
        ("peft_config.r=0", "override peft_config.r=0: expected a number at least 1"),
        ("seed", "override seed: expected section.key=value, such as training_args.learning_rate=3e-4"),
        ("=3", "override =3: expected section.key=value"),
        ("a..b=3", "override a..b=3: expected section.key=value"),
        ("training_args.seed=[1", "override training_args.seed=[1: this is not YAML: expected ',' or ']'"),
        (
            "dataset.data_files.train=*.csv",
            "override dataset.data_files.train=*.csv: '*.csv' refers to an anchor that is not defined above.",
        ),
        (
            "task.name=x",
            "override task.name=x: task is 'text-classification', which has no keys. Override task as a",
        ),
        (
            "peft_config={lora_alfa: 3}",
            "override peft_config={lora_alfa: 3}: peft_config.lora_alfa = 3: LoraConfig (peft ",
        ),
        (
            "seed=3",
            "override seed=3: a recipe has no section 'seed'. It belongs in training_args: move it there",
        ),
    ],
)
def test_a_wrong_override_is_a_fault_at_the_override(tmp_path: Path, override: str, message: str) -> None:
    assert fault(tmp_path, override).startswith(message)


def test_faults_of_overrides_come_after_those_of_the_file(tmp_path: Path) -> None:
    found = faults(tmp_path, "peft_config.r=0", "training_args.seed=x", text=GOOD + "  bf17: true\n")
    assert [one.partition(": ")[0] for one in found] == [
        "x.yaml:10",
        "override peft_config.r=0",
        "override training_args.seed=x",
    ]


def test_an_override_mends_the_file(tmp_path: Path) -> None:
    text = GOOD.replace("peft_type: LORA", "r: 0")
    assert read(tmp_path, "peft_config.r=8", text=text).peft_config["r"] == 8


def test_the_document_itself_is_not_changed() -> None:
    document = parse_document("a: {b: [1]}", name="x.yaml")
    lay_over(document, ["a.b=2", "c.d=3"])
    assert document.value == {"a": {"b": [1]}}


SECTION = st.sampled_from(
    ["training_args", "peft_config", "dataset", "model", "task", "loss", "processor", "optimizer", "offline",
     "quantization_config", "early_stopping", "nonsense"]
)  # fmt: skip
KEY = st.sampled_from(
    ["seed", "r", "columns", "data_files", "path", "label_names", "class_weight", "validation", "output_dir",
     "pretrained_model_name_or_path", "target_modules", "metric_for_best_model", "eval_steps", "save_steps",
     "eval_strategy", "columns.label", "data_files.train", "max_length", "load_in_4bit", "peft_type", "name",
     "split.train", "label_delimiter", "problem_type", "test", "greater_is_better", "class_weight.a"]
)  # fmt: skip
VALUE = st.sampled_from(
    ["null", "1", "-1", "0", "0.5", "true", "x", "''", "[]", "{}", "[a, b]", "[1, [2]]", "{a: 1}",
     "{a: {b: []}}", ".nan",
     "1e400", "steps", "loss", "'*'", "~x", "/", "..", "999999999999999999999", "\"\\0\"", "lorafa"]
)  # fmt: skip


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.builds(lambda s, k, v: f"{s}.{k}={v}", SECTION, KEY, VALUE) | st.text(max_size=20), max_size=6))
def test_no_overrides_raise_anything_but_a_recipe_error(tmp_path: Path, overrides: list[str]) -> None:
    file = tmp_path / "x.yaml"
    if not file.exists():
        write(tmp_path)
    try:
        read_recipe(file, overrides=overrides, tasks=TASKS)
    except RecipeError as error:
        assert all(fault.isprintable() for fault in error.faults)
