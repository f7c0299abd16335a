"""What a loss over classes weighs, beside slow twins that say the same row by row."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lora_ft.tasks.base import load_task
from lora_ft.tasks.parts.class_loss import binary_focal_loss, focal_loss, logit_offsets, row_losses
from lora_ft.tasks.parts.problem import Problem

SINGLE, MULTI = "single_label_classification", "multi_label_classification"


def slow_focal(logits: list[float], label: int, *, gamma: float, weight: list[float], smoothing: float) -> float:
    """One row, class by class."""
    total = sum(math.exp(value) for value in logits)
    loss = 0.0
    for index, value in enumerate(logits):
        p = math.exp(value) / total
        share = (1 - smoothing) * (index == label) + smoothing / len(logits)
        loss -= share * weight[index] * (1 - p) ** gamma * math.log(p)
    return loss


def slow_binary_focal(logit: float, label: float, *, gamma: float, weight: float) -> float:
    """One label of one row."""
    p = 1 / (1 + math.exp(-logit))
    return -weight * label * (1 - p) ** gamma * math.log(p) - (1 - label) * p**gamma * math.log(1 - p)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_focal_loss_is_its_slow_twin(gamma: float, smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels, weight = torch.randn(6, 4) * 3, torch.tensor([0, 1, 2, 3, 0, 1]), [0.5, 1.0, 2.0, 3.0]
    found = focal_loss(logits, labels, gamma=gamma, weight=torch.tensor(weight), label_smoothing=smoothing)
    for row, label, loss in zip(logits.tolist(), labels.tolist(), found.tolist(), strict=True):
        assert loss == pytest.approx(
            slow_focal(row, label, gamma=gamma, weight=weight, smoothing=smoothing), rel=1e-4, abs=1e-6
        )


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_binary_focal_loss_is_its_slow_twin(gamma: float) -> None:
    torch.manual_seed(0)
    logits, labels, weight = torch.randn(5, 3) * 3, torch.randint(0, 2, (5, 3)).float(), [1.0, 2.0, 4.0]
    found = binary_focal_loss(logits, labels, gamma=gamma, weight=torch.tensor(weight))
    for row in range(5):
        for label in range(3):
            twin = slow_binary_focal(
                float(logits[row, label]), float(labels[row, label]), gamma=gamma, weight=weight[label]
            )
            assert float(found[row, label]) == pytest.approx(twin, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_gamma_the_losses_are_torchs_own(smoothing: float) -> None:
    torch.manual_seed(0)
    logits, labels, weight = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 0]), torch.tensor([1.0, 2.0, 3.0])
    plain = F.cross_entropy(logits, labels, weight=weight, label_smoothing=smoothing, reduction="none")
    almost = focal_loss(logits, labels, gamma=1e-9, weight=weight, label_smoothing=smoothing)
    assert torch.allclose(almost, plain, atol=1e-5)
    hot = F.one_hot(labels, 3).float()
    binary = F.binary_cross_entropy_with_logits(logits, hot, pos_weight=weight, reduction="none")
    assert torch.allclose(binary_focal_loss(logits, hot, gamma=1e-9, weight=weight), binary, atol=1e-5)


def test_the_loss_against_mixed_labels_is_the_mix_of_the_losses() -> None:
    torch.manual_seed(0)
    logits, one, other = torch.randn(4, 3), torch.tensor([0, 1, 2, 0]), torch.tensor([1, 1, 0, 2])
    mixed = 0.7 * F.one_hot(one, 3) + 0.3 * F.one_hot(other, 3)
    apart = 0.7 * focal_loss(logits, one, gamma=2.0) + 0.3 * focal_loss(logits, other, gamma=2.0)
    assert torch.allclose(focal_loss(logits, mixed, gamma=2.0), apart, atol=1e-6)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_a_row_that_the_model_is_certain_of_has_a_finite_gradient(gamma: float) -> None:
    for several in (False, True):
        logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
        labels: Any = torch.tensor([[1.0, 0.0], [1.0, 0.0]]) if several else torch.tensor([0, 0])
        row_losses(logits, labels, several=several, settings={"focal_gamma": gamma}).sum().backward()
        assert logits.grad is not None
        assert bool(torch.isfinite(logits.grad).all())


def test_logit_offsets_are_the_logs_of_the_shares() -> None:
    found = logit_offsets([0, 0, 0, 1], labels=3, several=False, tau=2.0)
    counts = [3, 1, 1]  # a class without rows counts as one
    assert found == pytest.approx([2.0 * math.log(count / 5) for count in counts])
    found = logit_offsets([[1, 0], [0, 0], [0, 0], [0, 0]], labels=2, several=True, tau=1.0)
    assert found == pytest.approx([math.log(1 / 3), math.log(1 / 3)])


def test_logits_are_adjusted_before_the_loss_and_by_the_offsets_alone() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    found = row_losses(logits, labels, several=False, settings={"logit_offsets": [-1.0, 0.5, -2.0]})
    assert torch.allclose(
        found, F.cross_entropy(logits + torch.tensor([-1.0, 0.5, -2.0]), labels, reduction="none"), atol=1e-6
    )


ALL = {"focal_gamma": 2.0, "logit_offsets": [-2.5, -0.2]}


@pytest.mark.parametrize("name", ["text-classification", "image-classification", "audio-classification"])
@pytest.mark.parametrize("problem_type", [SINGLE, MULTI])
def test_every_classification_task_weighs_and_two_small_batches_are_one_large(name: str, problem_type: str) -> None:
    task = load_task(name)
    if problem_type not in task.metrics:
        pytest.skip("it has one label a row")
    torch.manual_seed(0)
    plain = Problem(problem_type, ("a", "b"), None, {})
    weighed = replace(plain, loss=ALL)
    logits = torch.randn(6, 2)
    labels = torch.tensor([0, 1, 1, 0, 1, 1]) if problem_type == SINGLE else torch.randint(0, 2, (6, 2)).float()

    def loss(problem: Problem, rows: slice) -> float:
        batch = {"labels": labels[rows]}
        items = task.items({"labels": labels})
        smoothing = 0.1 if problem_type == SINGLE else 0.0
        return float(
            task.loss(
                {"logits": logits[rows]},
                batch,
                problem,
                items=items,
                class_weight=[2.0, 0.5],
                label_smoothing=smoothing,
            )
        )

    whole = loss(weighed, slice(None))
    assert whole != pytest.approx(loss(plain, slice(None)), rel=1e-3)
    assert loss(weighed, slice(0, 2)) + loss(weighed, slice(2, 6)) == pytest.approx(whole, rel=1e-5)
