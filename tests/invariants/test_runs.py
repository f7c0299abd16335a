"""Equivalences of whole runs: settings that must not change what is learned do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe


def weights(folder: Path, base: Path, **arguments: Any) -> dict[str, torch.Tensor]:
    recipe = read(write_recipe(folder, base, training_args={"num_train_epochs": 1, **arguments}))
    return load_file(train(recipe, RunOptions()).folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("size", "accumulation"), [(4, 2), (1, 8)])
def test_accumulated_batches_train_the_adapter_of_whole_ones(
    tmp_path: Path, tiny_bert: Path, size: int, accumulation: int
) -> None:
    whole = weights(tmp_path / "whole", tiny_bert, per_device_train_batch_size=8)
    parts = weights(
        tmp_path / "parts", tiny_bert, per_device_train_batch_size=size, gradient_accumulation_steps=accumulation
    )
    for name, tensor in whole.items():
        assert torch.allclose(parts[name], tensor, atol=2e-3), name


def test_evaluating_more_often_does_not_change_what_is_learned(tmp_path: Path, tiny_bert: Path) -> None:
    never = weights(tmp_path / "never", tiny_bert, eval_strategy="no", load_best_model_at_end=False)
    often = weights(tmp_path / "often", tiny_bert, eval_strategy="steps", eval_steps=3, load_best_model_at_end=False)
    for name, tensor in never.items():
        assert torch.equal(often[name], tensor), name


def test_another_seed_trains_another_adapter(tmp_path: Path, tiny_bert: Path) -> None:
    first, second = (weights(tmp_path / str(seed), tiny_bert, seed=seed) for seed in (0, 1))
    assert any(not torch.equal(first[name], second[name]) for name in first)
