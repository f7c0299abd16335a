"""Batches of like length give back logits in the order of the rows."""

from __future__ import annotations

import numpy as np
import torch

from lora_ft.assemble.answer import logits_of
from lora_ft.models.precision import plan_precision


class Lengths(torch.nn.Module):
    """Answers with the number of real tokens of each row."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"logits": (input_ids > 0).sum(dim=1, keepdim=True) * self.weight}


def collate(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    width = max(len(row["input_ids"]) for row in rows)
    return {"input_ids": torch.tensor([row["input_ids"] + [0] * (width - len(row["input_ids"])) for row in rows])}


def test_logits_come_in_the_order_of_the_rows_and_every_row_is_counted() -> None:
    lengths = [3, 9, 1, 7, 7, 2, 5]
    features = [{"input_ids": [1] * length, "length": length} for length in lengths]
    done: list[int] = []
    precision = plan_precision(device="cpu", dtype="float32")
    logits = logits_of(Lengths(), features, collate=collate, precision=precision, batch_size=3, advance=done.append)
    assert np.array_equal(logits[:, 0], lengths)
    assert done == [3, 3, 1]
