"""What a training collator draws follows from seed, epoch and rows alone, whoever puts the batch together."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lora_ft.data.filled import GHOST, NUMBER
from lora_ft.train.chance import TrainingCollator, own_chance

ROWS = [{"row": 0, NUMBER: 4}, {"row": 1, NUMBER: 2}]


def draws(features: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """As a collator that draws from everything there is."""
    assert all(set(feature) == {"row"} for feature in features)
    return {"drawn": (float(torch.rand(())), float(np.random.random()), random.random())}


def stand() -> tuple[Any, ...]:
    return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


def test_a_batch_draws_the_same_wherever_the_generators_stand_and_leaves_them_there() -> None:
    collate = TrainingCollator(draws, seed=1)
    first = collate(ROWS)
    torch.rand(3), np.random.random(2), random.random()
    before = stand()
    assert collate(ROWS) == first
    assert stand() == before


def test_other_rows_epochs_and_seeds_draw_otherwise() -> None:
    collate = TrainingCollator(draws, seed=1)
    found = [collate(ROWS), collate(ROWS[::-1]), TrainingCollator(draws, seed=2)(ROWS)]
    collate.set_epoch(1)
    found.append(collate(ROWS))
    for at in range(3):
        assert len({one["drawn"][at] for one in found}) == len(found)


def test_the_generators_are_put_back_after_an_error_too() -> None:
    before = stand()
    try:
        with own_chance((1,)):
            torch.rand(1)
            raise KeyError
    except KeyError:
        pass
    assert stand() == before


def test_workers_that_live_on_are_told_the_epoch() -> None:
    collate = TrainingCollator(lambda _: {"drawn": torch.rand(())}, seed=1)
    loader: Any = torch.utils.data.DataLoader(
        [ROWS[0]], batch_size=1, collate_fn=collate, num_workers=1, persistent_workers=True
    )
    found = []
    for epoch in (0, 1, 0):
        collate.set_epoch(epoch)
        found += [float(batch["drawn"]) for batch in loader]
    assert found[0] == found[2] != found[1]
    collate.set_epoch(1)
    assert float(collate(ROWS[:1])["drawn"]) == found[1]


def test_one_that_draws_nothing_is_called_as_it_is_and_ghosts_are_marked() -> None:
    collate = TrainingCollator(lambda features: {"rows": [one["row"] for one in features]}, seed=None)
    assert collate(ROWS) == {"rows": [0, 1]}
    ghost = collate([{"row": 3, NUMBER: 9, GHOST: True}])
    assert ghost["rows"] == [3]
    assert bool(ghost[GHOST])
