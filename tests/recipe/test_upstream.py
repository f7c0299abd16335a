"""Upstream's fields: read without importing, and the same as the imported classes have."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from lora_ft.recipe import imported, installed, upstream
from lora_ft.recipe.accepts import BOOL, FLOAT, INT, NULL, STR, Choice, ListOf, Struct, alternatives
from lora_ft.recipe.values import problems
from lora_ft.recipe.words import EARLY_STOPPING

SAMPLE = (
    None, True, 0, 3, 0.5, -1.0, "text", "none", "linear", "epoch", "steps", "adamw_torch", "1e-4", [], ["a"],
    [1], [[0, 4], [2, 5]], {}, {"a": 1}, {"a": [1]}, {"loftq_bits": 4}, {"rho": 2.0}, {"rho": "x"},
    "pissa_niter_4",
)  # fmt: skip


def assert_same(read: Struct | None, loaded: Struct) -> None:
    assert read is not None
    assert (read.name, read.package) == (loaded.name, loaded.package)
    assert list(read.fields) == list(loaded.fields)
    for name, field in read.fields.items():
        other = loaded.fields[name].accepts
        assert field.accepts == other, name
        for value in SAMPLE:
            assert bool(problems(value, field.accepts)) == bool(problems(value, other)), (name, value)


def test_all_peft_types_are_found() -> None:
    assert upstream.peft_types() == imported.imported_peft_types()


@pytest.mark.parametrize("peft_type", upstream.peft_types())
def test_reading_and_importing_agree_on_every_peft_config(peft_type: str) -> None:
    assert_same(upstream.peft_config(peft_type), imported.imported_peft_class(peft_type))


def test_reading_and_importing_agree_on_the_transformers_classes() -> None:
    assert_same(
        upstream.training_arguments(),
        imported.imported_dataclass("transformers.training_args", "TrainingArguments"),
    )
    assert_same(
        upstream.quantization_config(),
        imported.imported_arguments("transformers.utils.quantization_config", "BitsAndBytesConfig"),
    )
    assert_same(
        upstream.early_stopping(),
        imported.imported_arguments("transformers.trainer_callback", "EarlyStoppingCallback"),
    )


def test_our_early_stopping_has_the_callbacks_arguments() -> None:
    assert set(EARLY_STOPPING.fields) == set(upstream.early_stopping().fields)


def test_reading_imports_no_upstream_package() -> None:
    code = (
        "import sys; from lora_ft.recipe import upstream as u; u.training_arguments(); "
        "u.quantization_config(); [u.peft_config(t) for t in u.peft_types()]; "
        "print(sorted({'torch', 'transformers', 'peft', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.fixture
def no_source(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    cached = (
        upstream.training_arguments, upstream.quantization_config, upstream.peft_types, upstream.peft_config,
        upstream._registered, installed.module_tree, installed.definition,
    )  # fmt: skip
    for one in cached:
        one.cache_clear()
    monkeypatch.setattr(installed, "module_file", lambda module: installed.Path("bytecode-only.py"))
    yield
    for one in cached:
        one.cache_clear()


def test_without_source_the_class_is_imported_and_the_answer_is_the_same(no_source: None) -> None:
    assert "learning_rate" in upstream.training_arguments().fields
    assert upstream.quantization_config().fields["load_in_4bit"].accepts == BOOL
    assert "LORA" in upstream.peft_types()
    lora = upstream.peft_config("LORA")
    assert lora is not None and lora.fields["r"].accepts == INT
    assert upstream.peft_config("NONE") is None


def test_types_are_what_the_annotations_say() -> None:
    arguments, lora = upstream.training_arguments().fields, upstream.peft_config("LORA").fields
    assert arguments["learning_rate"].accepts == FLOAT
    assert set(alternatives(lora["target_modules"].accepts)) == {STR, ListOf(STR), NULL}
    strategy = arguments["save_strategy"].accepts
    assert isinstance(strategy, Choice)
    assert strategy.values == ("no", "steps", "epoch", "best")
    assert "loftq_bits" in lora["loftq_config"].accepts.fields
    assert set(alternatives(arguments["fsdp"].accepts)) == {BOOL, STR, NULL}
    prompt = upstream.peft_config("PROMPT_TUNING").fields
    assert set(alternatives(prompt["num_virtual_tokens"].accepts)) == {INT, NULL}
    assert arguments["learning_rate"].default == 5e-5
    assert arguments["learning_rate"].help == "The initial learning rate for the optimizer."
    assert upstream.quantization_config().fields["llm_int8_threshold"].help.startswith("This corresponds to the")


def test_an_unknown_method_is_none() -> None:
    assert upstream.peft_config("lora") is None
    assert upstream.peft_config("") is None
    assert upstream.peft_config("../lora") is None


def test_a_missing_package_is_no_source() -> None:
    with pytest.raises(installed.SourceError):
        installed.package_folder("no_such_package_at_all")
