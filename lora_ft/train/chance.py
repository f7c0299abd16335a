"""Batches put together by chance, such that nothing but seed, epoch and rows decides what is drawn."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from lora_ft.data.filled import GHOST, NUMBER


class TrainingCollator:
    """A task's training collator, as a data loader calls it.

    One that draws by chance gets generators of its own for each batch. accelerate (1.15) fetches one batch ahead, a
    worker several: in a run that was resumed the generators of the process would stand elsewhere than they stood.

    Args:
        collate: The task's: a list of features -> a batch.
        seed: The run's seed, where it draws by chance; None where it does not.

    Attributes:
        tells_rows: Whether a batch has the key `number`, with the numbers of its features.
    """

    def __init__(self, collate: Callable[[Sequence[Mapping[str, Any]]], Any], *, seed: int | None) -> None:
        self.collate = collate
        self.seed = seed
        self.tells_rows = False
        self.epoch = torch.zeros((), dtype=torch.int64)
        if seed is not None:  # workers that live on from one epoch to the next read it there
            self.epoch.share_memory_()  # type: ignore[no-untyped-call]  # as torch 2.13 has it

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch batches are put together for from now on."""
        self.epoch.fill_(epoch)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch; with the key `ghost` where it is one of a ghost alone, else with its numbers if they are wanted.

        Args:
            rows: As `FilledRows` hands them out.
        """
        features = [{name: value for name, value in row.items() if name not in (NUMBER, GHOST)} for row in rows]
        if self.seed is None:
            batch = self.collate(features)
        else:
            with own_chance((self.seed, int(self.epoch), *(int(row[NUMBER]) for row in rows))):
                batch = self.collate(features)
        if GHOST in rows[0]:
            return {**batch, GHOST: torch.tensor(True)}
        # no tensor: an accelerator would have to be waited for to read it
        return {**batch, NUMBER: tuple(int(row[NUMBER]) for row in rows)} if self.tells_rows else batch


@contextmanager
def own_chance(entropy: Sequence[int]) -> Iterator[None]:
    """Seeds Python's, NumPy's and torch's generator on the CPU, and puts them back afterwards.

    Args:
        entropy: Numbers from 0; the same ones draw the same.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    for_python, for_numpy, for_torch = np.random.SeedSequence(entropy).generate_state(3).tolist()
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.default_generator.manual_seed(for_torch)  # `torch.manual_seed` would seed the accelerators too
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])
