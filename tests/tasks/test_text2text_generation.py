"""Text to text beyond the contract: shifts, cuts, prefixes, answers, and whole runs of T5 and BART."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_ft.assemble.saved import OpenOptions, SavedAdapter, open_adapter
from lora_ft.errors import InputError
from lora_ft.evaluate.compare import compare, rows_of_recipe
from lora_ft.serve.predict import predict
from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.language import IGNORED
from lora_ft.tasks.parts.problem import Problem
from lora_ft.train.run import RunOptions, train
from tests.bases import make_base
from tests.tasks.written_recipe import write_recipe
from tests.toy import read

TASK = load_task("text2text-generation")
KIND = "text2text_generation"
ROWS = TASK.example_rows(KIND)


def loaded(folder: Path, kind: str) -> tuple[Any, Problem]:
    import transformers

    make_base(folder, kind)
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    processor = transformers.AutoTokenizer.from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    settings = TASK.settings({}, base_config=config, processor=processor, problem_type=KIND)
    return model, Problem(KIND, (), processor, settings)


def features_of(rows: dict[str, list[Any]], one: Problem) -> list[dict[str, Any]]:
    encoded = TASK.encode(rows, one)
    return [dict(zip(encoded, values, strict=True)) for values in zip(*encoded.values(), strict=True)]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_decoder_reads_what_the_model_itself_would_shift(tmp_path: Path, kind: str) -> None:
    model, one = loaded(tmp_path, kind)
    batch = TASK.collator(one)(features_of(ROWS, one))
    shifted = model.prepare_decoder_input_ids_from_labels(labels=batch["labels"])
    assert torch.equal(batch["decoder_input_ids"], shifted)
    ours = TASK.loss(TASK.forward(model, batch, one), batch, one, items=TASK.items(batch))
    theirs = model(**{name: batch[name] for name in ("input_ids", "attention_mask", "labels")}).loss
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_targets_end_with_the_end_token_and_padding_is_not_learned(tmp_path: Path, kind: str) -> None:
    _, one = loaded(tmp_path, kind)
    batch = TASK.collator(one)(features_of(ROWS, one))
    for labels in batch["labels"].tolist():
        real = [label for label in labels if label != IGNORED]
        assert real[-1] == one.processor.eos_token_id
        assert one.processor.pad_token_id not in real


def test_text_and_target_are_cut_at_their_own_lengths(tmp_path: Path) -> None:
    _, one = loaded(tmp_path, "t5")
    short = replace(one, settings={**one.settings, "max_length": 6, "max_target_length": 4})
    rows = {"text": ["good " * 3, "good " * 9, "good"], "target": ["nice", "nice", "nice " * 9]}
    features = features_of(rows, short)
    assert [feature["truncated"] for feature in features] == [False, True, True]
    assert max(len(feature["input_ids"]) for feature in features) == 6
    assert max(len(feature["labels"]) for feature in features) == 4
    assert features[2]["labels"][-1] == one.processor.eos_token_id


def test_the_prefix_goes_before_every_text(tmp_path: Path) -> None:
    _, one = loaded(tmp_path, "t5")
    asked = replace(one, settings={**one.settings, "prefix": "read "})
    (feature,) = features_of({"text": ["the pan"]}, asked)
    assert one.processor.decode(feature["input_ids"], skip_special_tokens=True) == "read the pan"


def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path) -> None:
    _, one = loaded(tmp_path, "bart")
    config = {"max_position_embeddings": 80, "decoder_start_token_id": 2}

    def fill(given: dict[str, Any], **base: Any) -> dict[str, Any]:
        return TASK.settings(given, base_config={**config, **base}, processor=one.processor, problem_type=KIND)

    assert fill({})["max_target_length"] == 80
    with pytest.raises(InputError, match=r"processor\.max_target_length = 100: expected 2 to 80 tokens"):
        fill({"max_target_length": 100})
    with pytest.raises(InputError, match=r"processor\.decoder_start_token_id: the base's config\.json does not say"):
        fill({}, decoder_start_token_id=None)
    assert fill({"decoder_start_token_id": 5}, decoder_start_token_id=None)["decoder_start_token_id"] == 5
    assert TASK.fault({"text": "a", "target": " "}, labels=()) == "target: it is empty: expected a text to learn"
    assert TASK.fault({"text": "a"}, labels=()) is None


def trained(folder: Path, kind: str, **sections: Any) -> SavedAdapter:
    rows = [dict(zip(ROWS, values, strict=True)) for values in zip(*ROWS.values(), strict=True)]
    for name in ("train", "dev"):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    recipe = write_recipe(
        folder, make_base(folder / "base", kind), task="text2text-generation",
        peft_config={"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": "all-linear"},
        dataset={"data_files": {"train": "train.jsonl", "validation": "dev.jsonl"}},
        arguments={
            "num_train_epochs": 60, "per_device_train_batch_size": 4,
            "eval_strategy": "no", "save_strategy": "no",
        },
        **sections,
    )  # fmt: skip
    result = train(read(recipe), RunOptions())
    assert result.learned
    return open_adapter(result.folder, OpenOptions(device="cpu", offline=True))


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_adapter_writes_what_it_learned_and_evaluation_says_so(tmp_path: Path, kind: str) -> None:
    adapter = trained(tmp_path, kind, generation_config={"max_new_tokens": 12, "num_beams": 2})
    answers = [row["generated_text"] for row in predict(adapter, [{"text": text} for text in ROWS["text"]])]
    assert answers == ROWS["target"]
    assert adapter.manifest.metrics["validation"]["rouge_l"] == pytest.approx(1.0)
    assert adapter.manifest.metrics["validation"]["exact_match"] == 1.0
    recipe = read(tmp_path / "recipe.yaml")
    split, rows = rows_of_recipe(adapter, recipe, None)
    compared = compare(adapter, rows, split=split, resamples=20)
    assert compared.adapter["rouge_l"] == pytest.approx(1.0)
    assert compared.base["rouge_l"] < 0.5
    greedy = replace(adapter.problem, generation={"max_new_tokens": 12})
    pieces = list(TASK.stream(adapter.model, {"text": ROWS["text"][0]}, greedy))
    assert "".join(pieces) == ROWS["target"][0]
    assert len(pieces) > 2
