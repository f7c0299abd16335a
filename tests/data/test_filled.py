"""A step learns of the same rows on any number of processes; what is filled in teaches nothing and is not read."""

from __future__ import annotations

from typing import Any

import datasets
import hypothesis
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard, SeedableRandomSampler
from hypothesis import strategies as st

from lora_ft.data.balancing import ClassDraw, DrawnSampler, class_groups
from lora_ft.data.batching import LengthGroupedSampler
from lora_ft.data.encode import LazySplit
from lora_ft.data.filled import GHOST, NUMBER, FilledRows, FilledSampler

FEATURES = {"length": [3, 1, 2], "labels": [0, 1, 0], "row": [0, 1, 2]}


def orders(rows: int, *, global_batch: int) -> dict[str, Any]:
    lengths = [1 + (7 * row) % 5 for row in range(rows)]
    groups = class_groups([row % 2 for row in range(rows)], several=False)
    draw = ClassDraw(groups, strategy="oversample", ratio=1.0, seed=3)
    return {
        "sequential": torch.utils.data.SequentialSampler(range(rows)),
        "random": SeedableRandomSampler(range(rows), data_seed=3),
        "grouped": LengthGroupedSampler(lengths, global_batch_size=global_batch, seed=3),
        "drawn": DrawnSampler(draw),
        "drawn and grouped": LengthGroupedSampler(lengths, global_batch_size=global_batch, seed=3, draw=draw),
    }


def steps(order: Any, *, rows: int, world: int, size: int, accumulated: int) -> list[list[int]]:
    """The rows of each optimizer step over all processes, as accelerate and the Trainer deal them out."""
    filled = FilledSampler(order, rows=rows, multiple=world * size)
    whole = torch.utils.data.BatchSampler(filled, size, drop_last=False)
    dealt = []
    for rank in range(world):
        filled.set_epoch(1)
        dealt.append(list(BatchSamplerShard(whole, num_processes=world, process_index=rank)))
    assert {len(one) for one in dealt} == {len(filled) // (world * size)}
    found = []
    for start in range(0, len(dealt[0]), accumulated):
        numbers = [number for one in dealt for batch in one[start : start + accumulated] for number in batch]
        found.append(sorted(number for number in numbers if number < rows))
    return found


@hypothesis.given(
    rows=st.integers(1, 60),
    world=st.sampled_from([1, 2, 3, 4, 8]),
    size=st.integers(1, 5),
    accumulated=st.integers(1, 3),
)
@hypothesis.settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("name", ["sequential", "random", "grouped", "drawn", "drawn and grouped"])
def test_a_step_has_the_same_rows_on_any_number_of_processes(
    name: str, rows: int, world: int, size: int, accumulated: int
) -> None:
    hypothesis.assume(rows > 1 or "drawn" not in name)
    global_batch = world * size * accumulated
    several = orders(rows, global_batch=global_batch)[name]
    alone = orders(rows, global_batch=global_batch)[name]
    found = steps(several, rows=rows, world=world, size=size, accumulated=accumulated)
    if name != "sequential":
        alone.set_epoch(1)
    order = list(alone)
    assert found == [sorted(order[at : at + global_batch]) for at in range(0, len(order), global_batch)]


def lazy(rows: int) -> LazySplit:
    read = datasets.Dataset.from_dict({"text": [str(row) for row in range(rows)]})
    return LazySplit(read, lambda batch, *, index, epoch: {"pixels": batch["text"]}, lengths=[1] * rows)


@pytest.mark.parametrize("features", [datasets.Dataset.from_dict(FEATURES), lazy(3)], ids=["kept", "lazy"])
def test_ghosts_are_left_out_of_a_batch_that_has_rows(features: Any) -> None:
    rows = FilledRows(features)
    batch = rows.__getitems__([2, 3, 0, 4])
    assert [one[NUMBER] for one in batch] == [2, 0]
    assert [{name: value for name, value in one.items() if name != NUMBER} for one in batch] == [
        features[2],
        features[0],
    ]
    assert not any(GHOST in one for one in batch)


def test_whoever_goes_through_the_rows_meets_no_ghost() -> None:
    assert [row[NUMBER] for row in FilledRows(datasets.Dataset.from_dict(FEATURES))] == [0, 1, 2]


def test_a_batch_of_ghosts_alone_is_the_shortest_row_marked() -> None:
    rows = FilledRows(datasets.Dataset.from_dict(FEATURES))
    (ghost,) = rows.__getitems__([3, 4])
    assert ghost == {"length": 1, "labels": 1, "row": 1, NUMBER: 3, GHOST: True}
    assert rows[7][GHOST]
    assert rows["length"][:] == [3, 1, 2]
    assert rows[0] == {"length": 3, "labels": 0, "row": 0, NUMBER: 0}
