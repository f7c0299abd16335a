"""The worst batch first: too little memory is told with settings that fit, and a run is the same run with and without.

An out of memory is made at the border of the process: the forward pass raises what torch raises, above so many tokens.
"""

from __future__ import annotations

import json
import logging
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lora_ft.errors import GateError
from lora_ft.tasks.text_classification import TextClassification
from lora_ft.train import batches
from lora_ft.train.first_batch import Heaviest, as_it_was, out_of_memory, same_chance
from lora_ft.train.run import RunOptions, train
from tests.toy import read, write_recipe

SHORT = {
    "num_train_epochs": 2,
    "warmup_steps": 0,
    "logging_steps": 1,
    "save_strategy": "epoch",
    "eval_strategy": "epoch",
}


def curve(run: Path) -> list[float]:
    (state,) = run.glob("checkpoint-32/trainer_state.json")
    history = json.loads(state.read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


@pytest.mark.parametrize("optimizer", ["adamw_torch", "adafactor", "loraplus", "lorafa"])
def test_a_run_is_the_same_to_the_last_bit_with_and_without_it(
    tmp_path: Path, tiny_bert: Path, optimizer: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="lora_ft")
    found = []
    for name, wanted in (("on", True), ("off", False)):
        own = {"optimizer": {"name": optimizer}} if optimizer.startswith("lora") else {}
        arguments = {**SHORT, "learning_rate": 4e-3} | ({} if own else {"optim": optimizer})
        recipe = write_recipe(
            tmp_path / name, tiny_bert, checks={"worst-batch-first": wanted}, training_args=arguments,
            peft_config={"lora_dropout": 0.1}, model={"dropout": "keep"}, **own,
        )  # fmt: skip
        result = train(read(recipe), RunOptions())
        found.append((curve(tmp_path / name / "run"), load_file(result.folder / "adapter_model.safetensors")))
    told = [record.message for record in caplog.records if "worst batch first" in record.message]
    assert len(told) == 1
    assert "8 rows x" in told[0]
    (curve_on, with_it), (curve_off, without) = found
    assert len(curve_on) == 32
    assert curve_on == curve_off
    for key, tensor in with_it.items():
        assert torch.equal(tensor, without[key]), key


def test_batch_norms_gradients_an_optimizer_in_the_middle_and_every_chance_are_put_back() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.zero_grad()
        model(torch.randn(8, 4) + float(np.random.rand()) + random.random()).square().sum().backward()
        optimizer.step()

    step()
    chance = (torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moments = [
        {name: torch.as_tensor(value).clone() for name, value in one.items()} for one in optimizer.state.values()
    ]
    with same_chance(torch.device("cpu")), as_it_was(model, optimizer):
        optimizer.param_groups[0]["lr"] = 7.0
        step()
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    for one, other in zip(optimizer.state.values(), moments, strict=True):
        assert all(torch.equal(torch.as_tensor(value), other[name]) for name, value in one.items())
    assert all(one.grad is None for one in model.parameters())
    assert torch.equal(torch.get_rng_state(), chance[0])
    assert np.array_equal(np.random.get_state()[1], chance[1])
    assert random.getstate() == chance[2]


def test_the_longest_rows_are_the_worst_batch() -> None:
    assert Heaviest.of([3, 9, 1, 7, 9], size=3) == Heaviest((1, 4, 3), 9)


def measured_shapes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes `(rows, tokens)` of the batches whose loss is measured without training."""
    whole, seen = TextClassification.loss, []

    def loss(task: Any, outputs: Any, batch: Any, problem: Any, **how: Any) -> Any:
        if not torch.is_grad_enabled():
            seen.append(tuple(batch["input_ids"].shape))
        return whole(task, outputs, batch, problem, **how)

    monkeypatch.setattr(TextClassification, "loss", loss)
    return seen


@pytest.mark.parametrize(
    ("lean", "at_least", "limit"), [({}, 64, 64), ({}, 100, 100), ({"max_tokens_per_eval_batch": 48}, 100, 48)]
)
def test_an_evaluation_has_no_more_tokens_at_once_than_training(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch, lean: dict[str, int], at_least: int, limit: int
) -> None:
    monkeypatch.setattr(batches, "EVALUATED_TOKENS", at_least)
    seen = measured_shapes(monkeypatch)
    recipe = write_recipe(
        tmp_path, tiny_bert, lean=lean, checks={"gap": False},
        training_args={**SHORT, "num_train_epochs": 1, "per_device_train_batch_size": 4},
    )  # fmt: skip
    train(read(recipe), RunOptions())
    assert 0.8 * limit < max(rows * tokens for rows, tokens in seen) <= limit


def too_small_for(
    monkeypatch: pytest.MonkeyPatch, rows: int, *, training: bool, error: Exception | None = None
) -> None:
    """Gives forward passes of more rows than `rows` no memory, in training or outside of it."""
    whole = TextClassification.forward

    def forward(task: Any, model: Any, batch: Any, problem: Any) -> Any:
        if model.training == training and len(batch["input_ids"]) > rows:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
        return whole(task, model, batch, problem)

    monkeypatch.setattr(TextClassification, "forward", forward)


def test_too_little_memory_is_one_error_with_a_batch_size_that_was_tried(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_small_for(monkeypatch, 5, training=True)
    arguments = {"per_device_train_batch_size": 12, "gradient_accumulation_steps": 2}
    recipe = read(write_recipe(tmp_path, tiny_bert, training_args=arguments, model={"dropout": "keep"}))
    with pytest.raises(GateError) as caught:
        train(recipe, RunOptions())
    told = str(caught.value)
    assert told.startswith(
        "memory: the longest batch of the run, 12 rows x 16 tokens, does not fit (CUDA out of memory): "
    )
    assert (
        "set training_args.per_device_train_batch_size: 3 and training_args.gradient_accumulation_steps: 8 (tried: it "
        "fits, and a step still learns of 24 rows)" in told
    )
    assert "processor.max_length below 32, training_args.gradient_checkpointing: true, quantization_config" in told
    assert told.endswith("checks: {worst-batch-first: false} turns it off)")
    assert not (tmp_path / "run" / "adapter").exists()
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_a_machine_on_which_not_one_row_fits_is_told_what_else_there_is(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."
    too_small_for(monkeypatch, 0, training=True, error=RuntimeError(told))
    with pytest.raises(GateError, match=r"not even a batch of one row fits\. It takes: processor\.max_length below 32"):
        train(read(write_recipe(tmp_path, tiny_bert)), RunOptions())


def test_an_evaluation_that_would_not_fit_is_told_before_training(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    too_small_for(monkeypatch, 4, training=False)
    with pytest.raises(GateError, match=r"batch of the evaluation, 32 rows.*per_device_eval_batch_size: 4 \(tried"):
        train(read(write_recipe(tmp_path, tiny_bert)), RunOptions())


def test_what_is_no_lack_of_memory_is_not_called_one(
    tmp_path: Path, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert out_of_memory(MemoryError())
    assert not out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    too_small_for(monkeypatch, 0, training=True, error=RuntimeError("mat1 and mat2"))
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        train(read(write_recipe(tmp_path, tiny_bert)), RunOptions())
