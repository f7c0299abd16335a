"""Answers are decoded batch by batch, and joined in the order of the rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from lora_ft.assemble.answer import Answers, answer, join_rows
from lora_ft.data.token_budget import TokenBudget
from lora_ft.models.precision import plan_precision

PRECISION = plan_precision(device="cpu", dtype="float32")


class Lengths(torch.nn.Module):
    """Answers with the number of real tokens of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": (input_ids > 0).sum(dim=1, keepdim=True) * self.weight}


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    return {"input_ids": torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])}


TASK: Any = SimpleNamespace(
    columns=(),
    collator=lambda problem: collate,
    forward=lambda model, batch, problem: model(**batch),
    loss=lambda outputs, batch, problem, items: outputs["logits"].sum() / items,
    items=lambda batch: len(batch["input_ids"]),
    answer=lambda model, batch, problem, outputs: outputs or model(**batch),
    decode=lambda found, features, problem: found["logits"][:, 0].tolist(),
    join=lambda parts, row, problem: {"total": sum(parts), "id": row["id"]},
)
LENGTHS = [3, 9, 1, 7, 7, 2, 5]
ROWS = [0, 0, 1, 2, 2, 2, 3]
FEATURES = datasets.Dataset.from_dict({"input_ids": [[1] * n for n in LENGTHS], "length": LENGTHS, "row": ROWS})


def run(batch_size: int | TokenBudget = 3, settings: dict[str, Any] | None = None, **options: Any) -> Answers:
    problem: Any = SimpleNamespace(settings=settings or {})
    return answer(
        Lengths(), FEATURES, task=TASK, problem=problem, precision=PRECISION, batch_size=batch_size, **options
    )


def test_each_feature_gets_its_own_answer_whatever_the_order_of_the_batches() -> None:
    done: list[int] = []
    assert run(advance=done.append).parts == dict(enumerate(LENGTHS))
    assert done == [3, 3, 1]


@pytest.mark.parametrize(
    ("settings", "sizes"),
    [
        ({}, [2, 3, 2]),
        ({"padding": "max_length", "max_length": 9}, [2, 2, 2, 1]),
        ({"pad_to_multiple_of": 6}, [1, 1, 1, 3, 1]),
    ],
)
def test_a_budget_of_tokens_cuts_batches_of_padded_rows(settings: dict[str, Any], sizes: list[int]) -> None:
    done: list[int] = []
    found = run(TokenBudget(21, rows=3, pieces=1), settings, advance=done.append)
    assert found.parts == dict(enumerate(LENGTHS))
    assert done == sizes


def test_the_features_of_a_row_are_joined_in_order() -> None:
    rows = datasets.Dataset.from_dict({"id": ["a", "b", "c", "d"]})
    joined = join_rows(run().parts, FEATURES, rows, task=TASK, problem=None)  # type: ignore[arg-type]
    assert joined == [
        {"total": 12, "id": "a"},
        {"total": 1, "id": "b"},
        {"total": 16, "id": "c"},
        {"total": 5, "id": "d"},
    ]


@pytest.mark.parametrize("count", [2, 3, 5])
def test_the_shares_of_several_processes_make_the_whole_exactly_once(count: int) -> None:
    shares = [run(share=(index, count), measure_loss=True) for index in range(count)]
    keys = [key for share in shares for key in share.parts]
    assert sorted(keys) == list(range(len(LENGTHS)))
    assert sum(share.items for share in shares) == len(LENGTHS)
    assert sum(share.loss_sum for share in shares) == pytest.approx(np.sum(LENGTHS))
