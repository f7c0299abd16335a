"""The settings against overfitting each act: two runs that differ in one of them alone end with other weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe, write_reviews

QUICK = {"num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no", "max_steps": 8, "warmup_steps": 0}


def trained(folder: Path, base: Path, **sections: Any) -> dict[str, torch.Tensor]:
    arguments = {**QUICK, **sections.pop("training_args", {})}
    checks = {"gap": False, "worst-batch-first": False}
    file = write_recipe(folder, base, training_args=arguments, checks=checks, **sections)
    write_reviews(folder / "data" / "train.csv", 64, seed=1)
    return load_file(train(read(file), RunOptions()).folder / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> dict[str, torch.Tensor]:
    """The adapter without any of them."""
    return trained(tmp_path_factory.mktemp("plain"), tiny_bert, training_args={"weight_decay": 0.0})


def norm(weights: dict[str, torch.Tensor]) -> float:
    """Of all LoRA matrices."""
    return sum(float(tensor.norm()) for name, tensor in weights.items() if "lora" in name)


def test_weight_decay_keeps_the_weights_small(tmp_path: Path, tiny_bert: Path, plain: dict[str, torch.Tensor]) -> None:
    decayed = trained(tmp_path, tiny_bert, training_args={"weight_decay": 5.0})
    assert norm(decayed) < 0.9 * norm(plain)


@pytest.mark.parametrize(
    "sections",
    [
        {"peft_config": {"lora_dropout": 0.5}},
        {"training_args": {"weight_decay": 0.0, "label_smoothing_factor": 0.3}},
    ],
    ids=["lora_dropout", "label_smoothing"],
)
def test_dropout_and_smoothing_change_what_is_learned(
    tmp_path: Path, tiny_bert: Path, plain: dict[str, torch.Tensor], sections: dict[str, Any]
) -> None:
    arguments = {"weight_decay": 0.0, **sections.pop("training_args", {})}
    other = trained(tmp_path, tiny_bert, training_args=arguments, **sections)
    assert any(not torch.allclose(other[name], tensor, atol=1e-3) for name, tensor in plain.items())
    saved = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert saved.get("lora_dropout", 0.0) == sections.get("peft_config", {}).get("lora_dropout", 0.0)
