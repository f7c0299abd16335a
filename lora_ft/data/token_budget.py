"""Batches that hold at most so many padded tokens: many short rows or few long ones, the same on any processes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from lora_ft.data.balancing import ClassDraw
from lora_ft.data.batching import MEGABATCH_BATCHES

Order = Literal["group_by_length", "random", "sequential"]
Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TokenBudget:
    """What a batch of one process may hold, and how many batches make a step.

    Attributes:
        tokens: The most padded tokens of a batch: its rows times the longest of them.
        rows: The most rows of a batch.
        pieces: Batches of one optimizer step: processes times accumulated batches.
    """

    tokens: int
    rows: int
    pieces: int

    def ends(self, lengths: Rows) -> list[int]:
        """Cuts rows, in their order, into as few batches as hold them.

        A row that alone has more tokens than a batch may hold is a batch of its own.

        Args:
            lengths: Tokens of each row, `(rows,)`.

        Returns:
            The end of each batch, the last of them the number of rows.
        """
        found, at = [], 0
        while at < len(lengths):
            window = lengths[at : at + min(self.rows, max(self.tokens // int(lengths[at]), 1))]
            padded = np.maximum.accumulate(window) * np.arange(1, len(window) + 1)
            at += max(int(np.searchsorted(padded, self.tokens, side="right")), 1)
            found.append(at)
        return found

    def batches(self, rows: Rows, lengths: Rows) -> list[Rows]:
        """The batches of one step: as many as there are pieces, or rows where those are fewer.

        Args:
            rows: Numbers of the rows of the step.
            lengths: Tokens of every row there is.
        """
        found = np.split(rows, self.ends(lengths[rows])[:-1])
        while len(found) < min(self.pieces, len(rows)):
            largest = max(range(len(found)), key=lambda one: len(found[one]))
            found[largest : largest + 1] = halves(found[largest])
        return found


class BudgetedSteps:
    """The optimizer steps of each epoch under a budget of tokens, all processes together.

    Grouped by length, rows are shuffled, cut into megabatches of about 50 steps, and sorted by length within each;
    then steps are cut by the budget, and shuffled. The step with the longest row comes first, what is left over comes
    last. Otherwise steps are cut from the rows in the order in which they come. All of it depends on seed and epoch
    alone, and on how many batches make a step, not on how these are shared out.

    How many steps the budget makes differs a little from one epoch to the next, but a run must know how long an epoch
    is. All have as many as the one that needs most: in the others the steps with the most rows are cut in halves.

    Args:
        lengths: Tokens of each row, as it is padded if it is the longest; each at least 1.
        budget: What a batch may hold.
        seed: Seed of the order.
        order: How rows are ordered.
        draw: Which rows an epoch draws, where classes are balanced; None: every row once.
    """

    def __init__(
        self, lengths: Rows, *, budget: TokenBudget, seed: int, order: Order, draw: ClassDraw | None = None
    ) -> None:
        self.lengths = lengths
        self.budget = budget
        self.seed = seed
        self.order = order
        self.draw = draw

    def an_epoch(self, *, epochs: float, max_steps: int) -> int:
        """Steps of every epoch of a run.

        Args:
            epochs: How many epochs are asked for.
            max_steps: Steps of the whole run, which go before; 0 or less: as many as the epochs have.
        """
        most, seen = 1, 0
        while most * seen < max_steps if max_steps > 0 else seen < math.ceil(epochs):
            most, seen = max(most, len(self._cut(seen))), seen + 1
        return most

    def of_epoch(self, epoch: int, *, count: int) -> list[Rows]:
        """The rows of each step of an epoch.

        Args:
            epoch: Its number.
            count: How many steps it has; at least as many as the budget makes.
        """
        steps = self._cut(epoch)
        while len(steps) < count:
            largest = max(range(len(steps)), key=lambda one: len(steps[one]))
            steps[largest : largest + 1] = halves(steps[largest])
        return steps

    def _cut(self, epoch: int) -> list[Rows]:
        generator = np.random.default_rng((self.seed, epoch))
        every = np.arange(len(self.lengths)) if self.draw is None else self.draw.rows(epoch)
        if self.order == "group_by_length":
            return self._grouped(generator.permutation(every), generator)
        steps, left = self._whole_steps(generator.permutation(every) if self.order == "random" else every)
        return [*steps, left] if len(left) else steps

    def _whole_steps(self, rows: Rows) -> tuple[list[Rows], Rows]:
        """Steps of as many batches as there are pieces, and the rows that are left over."""
        ends = self.budget.ends(self.lengths[rows])[self.budget.pieces - 1 :: self.budget.pieces]
        *steps, left = np.split(rows, ends)
        return steps, left

    def _grouped(self, rows: Rows, generator: np.random.Generator) -> list[Rows]:
        mean = max(float(self.lengths[rows].mean()), 1.0) if len(rows) else 1.0
        a_batch = min(self.budget.rows, max(int(self.budget.tokens / mean), 1))
        mega = MEGABATCH_BATCHES * a_batch * self.budget.pieces
        steps: list[Rows] = []
        left = rows[:0]
        for start in range(0, len(rows), mega):
            part = np.concatenate([left, rows[start : start + mega]])
            cut, left = self._whole_steps(part[np.argsort(-self.lengths[part], kind="stable")])
            steps += cut
        if steps:
            longest = max(range(len(steps)), key=lambda one: int(self.lengths[steps[one][0]]))
            first = steps.pop(longest)
            steps = [first, *(steps[one] for one in generator.permutation(len(steps)))]
        return [*steps, left] if len(left) else steps


class BudgetedBatches(torch.utils.data.Sampler[list[int]]):
    """The batches of one process, an epoch after the other; where a step has none for it, a ghost, see `FilledRows`.

    Args:
        steps: The steps of all processes.
        an_epoch: How many of them each epoch has.
        share: `(i, n)`: this is the i-th of n processes.
    """

    def __init__(self, steps: BudgetedSteps, *, an_epoch: int, share: tuple[int, int] = (0, 1)) -> None:
        self.steps = steps
        self.an_epoch = an_epoch
        self.share = share
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the batches of the next epoch; accelerate and the Trainer call it."""
        self.epoch = epoch

    def made_of(self) -> dict[str, int]:
        """What decides the steps, for checkpoints to remember."""
        budget = self.steps.budget
        return {"max_tokens": budget.tokens, "most_rows": budget.rows, "batches_a_step": budget.pieces}

    def every(self, epoch: int) -> list[Rows]:
        """The batches of an epoch on all processes."""
        budget, lengths = self.steps.budget, self.steps.lengths
        steps = self.steps.of_epoch(epoch, count=self.an_epoch)
        return [batch for rows in steps for batch in budget.batches(rows, lengths)]

    def __len__(self) -> int:
        return self.an_epoch * self.steps.budget.pieces // self.share[1]

    def __iter__(self) -> Iterator[list[int]]:
        budget, lengths = self.steps.budget, self.steps.lengths
        for rows in self.steps.of_epoch(self.epoch, count=self.an_epoch):
            batches = budget.batches(rows, lengths)
            for piece in range(self.share[0], budget.pieces, self.share[1]):
                yield batches[piece].tolist() if piece < len(batches) else [len(lengths) + piece]


def halves(rows: Rows) -> list[Rows]:
    """Rows in two parts, the first of them the larger."""
    middle = (len(rows) + 1) // 2
    return [rows[:middle], rows[middle:]]
