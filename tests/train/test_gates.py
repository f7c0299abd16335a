"""Each gate stops what it is there to stop, and lets right runs pass."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lora_ft.errors import GateError
from lora_ft.train.gates import (
    GradientGate,
    check_alike,
    check_finite,
    check_masked,
    check_moved,
    check_world_size,
    zero_tensors,
)

ARGS = SimpleNamespace(deepspeed_plugin=None)


class Pair(torch.nn.Module):
    """Two factors as in LoRA: B starts at zero, so A has no gradient before B has moved."""

    def __init__(self) -> None:
        super().__init__()
        self.lora_A = torch.nn.Parameter(torch.ones(3))
        self.lora_B = torch.nn.Parameter(torch.zeros(3))
        self.unused = torch.nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self) -> torch.Tensor:
        return (self.lora_A * self.lora_B).sum()


def step(gate: GradientGate, model: Any, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model().backward()
    gate.on_pre_optimizer_step(ARGS, None, None, model=model, optimizer=optimizer)
    optimizer.step()


def test_factors_that_start_at_zero_pass_with_and_without_warmup() -> None:
    for warmup in (0, 3):
        model, gate = Pair(), GradientGate()
        optimizer = torch.optim.SGD([model.lora_A, model.lora_B], lr=0.0)
        for index in range(6):
            optimizer.param_groups[0]["lr"] = 0.0 if index < warmup else 0.1
            step(gate, model, optimizer)


def test_a_missing_gradient_stops_the_run_at_the_first_step() -> None:
    model, gate = Pair(), GradientGate()
    model.unused.requires_grad_(True)
    optimizer = torch.optim.SGD([model.lora_A, model.lora_B], lr=0.1)
    with pytest.raises(GateError, match=r"1 of 3 trainable tensors get none \(first: unused\)"):
        step(gate, model, optimizer)


def test_a_gradient_that_stays_zero_stops_the_run() -> None:
    class Dead(Pair):
        def forward(self) -> torch.Tensor:
            return (self.lora_B * 2).sum() + (self.lora_A * 0).sum()

    model, gate = Dead(), GradientGate()
    optimizer = torch.optim.SGD([model.lora_A, model.lora_B], lr=0.1)
    with pytest.raises(GateError, match="lora_A"):
        for _ in range(4):
            step(gate, model, optimizer)


def test_steps_that_float16_skips_are_no_proof() -> None:
    class Overflowing(Pair):
        scale = float("inf")

        def forward(self) -> torch.Tensor:
            return (self.lora_A * self.lora_B).sum() + self.scale * self.lora_B.sum()

    model, gate = Overflowing(), GradientGate()
    optimizer = torch.optim.SGD([model.lora_A, model.lora_B], lr=0.1)
    for index in range(8):
        model.scale = float("inf") if index < 4 else 1.0
        optimizer.zero_grad()
        model().backward()
        gate.on_pre_optimizer_step(ARGS, None, None, model=model, optimizer=optimizer)
        if index >= 4:  # what a GradScaler does
            optimizer.step()


def test_steps_that_cannot_teach_every_tensor_are_no_proof() -> None:
    class Seldom(Pair):
        taught = False

        def forward(self) -> torch.Tensor:
            return (self.lora_A * self.lora_B).sum() if self.taught else self.lora_B.sum()

    model, gate = Seldom(), GradientGate()
    optimizer = torch.optim.SGD([model.lora_A, model.lora_B], lr=0.1)
    gate.passes_over_next = True
    for _ in range(5):
        step(gate, model, optimizer)
    gate.passes_over_next, model.taught = False, True
    step(gate, model, optimizer)
    model.taught, gate = False, GradientGate()
    with pytest.raises(GateError, match="lora_A"):
        step(gate, model, optimizer)


@pytest.mark.parametrize("labels", [[-100, -100], [[-100, -100], [-100, -100]]])
def test_all_labels_masked_stops_the_run(labels: list[Any]) -> None:
    with pytest.raises(GateError, match="masked"):
        check_masked(labels)


def test_one_class_only_stops_the_run_and_names_it() -> None:
    with pytest.raises(GateError, match=r"all 3 training rows have the same label \(spam\)"):
        check_alike([1, 1, 1], labels_named=("ham", "spam"))
    check_alike([1, 0, 1], labels_named=("ham", "spam"))


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    with pytest.raises(GateError, match="step 8"):
        check_finite(False, step=7, learning_rate=1.0)
    check_finite(True, step=7, learning_rate=1.0)


def test_a_zero_tensor_that_never_moved_is_named() -> None:
    model = Pair()
    zero = zero_tensors(model.named_parameters())
    assert zero == {"lora_B"}
    with pytest.raises(GateError, match="lora_B"):
        check_moved(model.named_parameters(), initially_zero=zero)
    model.lora_B.data.fill_(1.0)
    check_moved(model.named_parameters(), initially_zero=zero)


def test_fewer_processes_than_asked_for_stop_the_run() -> None:
    check_world_size(None, 1)
    check_world_size(2, 2)
    with pytest.raises(GateError, match=r"launch/accelerate/cpu\.yaml"):
        check_world_size(2, 1)
