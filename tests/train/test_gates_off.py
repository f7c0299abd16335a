"""Every gate stops what it is there to stop, and is turned off by its name in the recipe; no name goes without."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from lora_ft.assemble.prepare import Prepared, prepare
from lora_ft.cli.main import main
from lora_ft.errors import GateError, LoraFtError, RecipeError
from lora_ft.recipe.check_names import GATES
from lora_ft.recipe.schema import Recipe
from lora_ft.tasks.parts import packing
from lora_ft.tasks.text_classification import TextClassification
from lora_ft.tasks.text_generation import TextGeneration
from lora_ft.train.run import RunOptions, train
from lora_ft.train.supervision import check_supervision
from tests.toy import read, write_recipe
from tests.train.completions import completions

Patch = pytest.MonkeyPatch
Scene = Callable[[Path, Path, Patch, bool], str]
"""A folder, a base that fits, a patch, whether the gate is on -> what the run said."""


def run_of(recipe: Recipe, **options: Any) -> str:
    """What a run is stopped with; empty if nothing stops it."""
    try:
        train(recipe, RunOptions(overwrite=True, **options))
    except LoraFtError as error:
        return str(error)
    return ""


def warnings_of(patch: Patch) -> list[str]:
    """What the package warns of from now on."""
    told: list[str] = []
    handler = logging.Handler(logging.WARNING)
    patch.setattr(handler, "emit", lambda record: told.append(record.getMessage()))
    ours = logging.getLogger("lora_ft")
    patch.setattr(ours, "handlers", [*ours.handlers, handler])
    return told


def toy(folder: Path, base: Path, gate: str, on: bool, **sections: Mapping[str, Any]) -> Recipe:
    short = {"num_train_epochs": 1, "logging_steps": 1, **sections.pop("training_args", {})}
    return read(write_recipe(folder, base, training_args=short, checks={gate: on}, **sections))


def looked_at(prepared: Prepared, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
    """What is said of training features that were changed."""
    features = prepared.features["train"]
    assert isinstance(features, datasets.Dataset)
    changed = replace(prepared, features={**prepared.features, "train": features.map(change)})
    try:
        return "\n".join(check_supervision(changed))
    except GateError as error:
        return str(error)


def world_size(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    return run_of(toy(folder, bert, "world-size", on), asked_world_size=2)


def masked_labels(folder: Path, gpt2: Path, patch: Patch, on: bool) -> str:
    prepared = prepare(completions(folder, gpt2, checks={"masked-labels": on}))
    prepared = replace(prepared, recipe=replace(prepared.recipe, checks={**prepared.recipe.checks, "end-token": False}))
    return looked_at(prepared, lambda row: {"labels": [-100] * len(row["labels"])})


def few_labels(folder: Path, gpt2: Path, patch: Patch, on: bool) -> str:
    prepared = prepare(completions(folder, gpt2, checks={"few-labels": on}))
    return looked_at(
        prepared, lambda row: {"input_ids": [5] * 900 + row["input_ids"], "labels": [-100] * 900 + row["labels"]}
    )


def end_token(folder: Path, gpt2: Path, patch: Patch, on: bool) -> str:
    prepared = prepare(completions(folder, gpt2, checks={"end-token": on}))
    return looked_at(prepared, lambda row: {"labels": [*row["labels"][:-1], -100]})


def one_label(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    prepared = prepare(toy(folder, bert, "one-label", on))
    alike = prepared.rows["train"].map(lambda row: {"label": "negative"})
    try:
        check_supervision(replace(prepared, rows={**prepared.rows, "train": alike}))
    except GateError as error:
        return str(error)
    return ""


def worst_batch_first(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    whole = TextClassification.forward

    def forward(task: Any, model: Any, batch: Any, problem: Any) -> Any:
        if model.training and len(batch["input_ids"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return whole(task, model, batch, problem)

    patch.setattr(TextClassification, "forward", forward)
    try:
        return run_of(toy(folder, bert, "worst-batch-first", on))
    except torch.OutOfMemoryError as error:  # as it comes at the first step
        return str(error)


def packed_isolation(folder: Path, gpt2: Path, patch: Patch, on: bool) -> str:
    patch.setattr(packing, "_near", lambda *_: False)
    return run_of(completions(folder, gpt2, checks={"packed-isolation": on}, processor={"packing": True}))


def loss_at_start(folder: Path, gpt2: Path, patch: Patch, on: bool) -> str:
    whole = TextGeneration.loss
    patch.setattr(TextGeneration, "loss", lambda *given, **named: 5.0 * whole(*given, **named))
    return run_of(completions(folder, gpt2, checks={"loss-at-start": on}))


def finite_loss(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    wild = {"learning_rate": 1e30, "max_grad_norm": 0.0, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    return run_of(toy(folder, bert, "finite-loss", on, training_args=wild))


def gradients(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    def forward(task: Any, model: Any, batch: Any, problem: Any) -> Any:
        inner = model.get_base_model()
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with torch.no_grad():  # what a checkpointed layer does whose input asks for no gradient
            pooled = inner.bert(**inputs).pooler_output
        return {"logits": inner.classifier(pooled)}

    patch.setattr(TextClassification, "forward", forward)
    return run_of(toy(folder, bert, "gradients", on))


def gap(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    told = warnings_of(patch)
    run_of(toy(folder, bert, "gap", on, training_args={"num_train_epochs": 1}))
    return "\n".join(told)


def divergence(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    wild = {"learning_rate": 3.0, "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0}
    return run_of(toy(folder, bert, "divergence", on, training_args={**wild, "num_train_epochs": 4}))


def stuck_at_chance(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    told = warnings_of(patch)
    run_of(toy(folder, bert, "stuck-at-chance", on, training_args={"learning_rate": 1e-7, "num_train_epochs": 2}))
    return "\n".join(told)


def moved(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    only_warmup = {"max_steps": 1, "warmup_steps": 1}  # the learning rate of the one step is 0
    return run_of(toy(folder, bert, "moved", on, training_args=only_warmup))


def learned(folder: Path, bert: Path, patch: Patch, on: bool) -> str:
    toy(folder, bert, "learned", on, training_args={"learning_rate": 1e-7})
    told: list[str] = []
    patch.setattr("lora_ft.cli.recipes.print_panel", lambda panel: told.append(f"{panel.title}"))
    patch.setattr("lora_ft.cli.recipes.log_to_stderr", lambda level: None)
    patch.setattr(sys, "argv", ["lora-ft", "train", str(folder / "recipe.yaml")])
    main()
    return "\n".join(told)


SCENES: dict[str, tuple[Scene, str, str]] = {
    "world-size": (world_size, "bert", "2 processes were asked for, 1 started"),
    "masked-labels": (masked_labels, "gpt2", "labels of the training rows are masked (-100)"),
    "few-labels": (few_labels, "gpt2", "few labels: 0."),
    "end-token": (end_token, "gpt2", "end token: 24 of 24 answers (first: feature 1) do not end with '<|endoftext|>'"),
    "one-label": (one_label, "bert", "all 128 training rows have the same label (negative)"),
    "worst-batch-first": (worst_batch_first, "bert", "(tried: it fits, and a step still learns of"),
    "packed-isolation": (packed_isolation, "gpt2", "the sequences of a packed row see each other"),
    "loss-at-start": (loss_at_start, "gpt2", "this base does not know its own vocabulary"),
    "finite-loss": (finite_loss, "bert", "loss: not finite"),
    "gradients": (gradients, "bert", "trainable tensors get none"),
    "divergence": (divergence, "bert", "divergence: the loss rose from"),
    "stuck-at-chance": (stuck_at_chance, "bert", "stuck at chance: after step 16 of 32"),
    "gap": (gap, "bert", "gap: overfitted"),
    "moved": (moved, "bert", "are still all zero after training"),
    "learned": (learned, "bert", "nothing learned"),
}


def test_no_gate_goes_without_a_scene_in_which_it_is_seen() -> None:
    assert set(SCENES) == set(GATES)


@pytest.mark.parametrize("gate", SCENES)
def test_a_gate_stops_what_it_is_there_to_stop_and_is_turned_off_by_its_name(
    gate: str, tmp_path: Path, tiny_bert: Path, tiny_gpt2_head: Path
) -> None:
    scene, kind, told = SCENES[gate]
    base = tiny_bert if kind == "bert" else tiny_gpt2_head
    said = {}
    for on in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            said[on] = scene(tmp_path / str(on), base, patch, on)
    assert told in said[True]
    assert told not in said[False]


def test_an_unknown_name_is_refused_with_the_nearest_one_before_anything_is_loaded(
    tmp_path: Path, tiny_bert: Path
) -> None:
    with pytest.raises(RecipeError, match=r"checks\.worst-batch-frist.*Did you mean 'worst-batch-first'\?"):
        read(write_recipe(tmp_path, tiny_bert, checks={"worst-batch-frist": False}))


def test_the_manifest_says_which_were_turned_off(tmp_path: Path, tiny_bert: Path) -> None:
    recipe = read(write_recipe(tmp_path, tiny_bert, training_args={"num_train_epochs": 1}, checks={"moved": False}))
    manifest = train(recipe, RunOptions()).manifest
    assert manifest is not None
    assert manifest.checks_off == ["moved"]
