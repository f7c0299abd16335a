"""The rows of a split on their way through the frozen layers: computed once, looked at again now and then.

What a row leaves these layers as does not depend on the rows beside it, but for rounding: a batch of another width
multiplies matrices of another shape. So all rows go through them before the first step, in batches that follow from
their lengths alone: each is computed once, and a run that was stopped finds the very same numbers when it goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
import numpy as np
import torch

from lora_ft.assemble.answer import on_device
from lora_ft.assemble.known_prefix import KnownPrefix, passed_over
from lora_ft.models.hidden_rows import HiddenRows
from lora_ft.models.precision import Precision, autocast_context
from lora_ft.models.prefix import Prefix, Reached, last_output, reach, run_prefix
from lora_ft.tasks.base import Task
from lora_ft.tasks.parts.problem import Problem

TOKENS = 4_096
"""Of a batch in which rows are computed; a longer row is one by itself. Part of the key: others round otherwise."""
SAMPLED_ROWS = 4
CLOSE = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""How far a row may be from what it was, as a share of its norm; another base or other texts are 1 away."""


class Unknowable(Exception):
    """Rows cannot be passed over these layers.

    Args:
        reason: Why, in a few words.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class PrefixRun:
    """What it takes to run the rows of a split through a prefix.

    Attributes:
        model: The model, not wrapped.
        prefix: Its prefix.
        features: The features of the split.
        training: Whether batches of them are put together to be trained on.
        task: The task.
        problem: What it is about.
        precision: What the model computes in.
    """

    model: Any
    prefix: Prefix
    features: datasets.Dataset
    training: bool
    task: Task
    problem: Problem
    precision: Precision

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        return [int(length) for length in self.features["length"][:]]

    def batch(self, rows: Sequence[int]) -> Mapping[str, Any]:
        """A batch of rows, whose padding is known.

        Raises:
            Unknowable: There is no attention mask that tells it, or it is not on the right.
        """
        collate = self.task.collator(self.problem, training=self.training)
        found: Mapping[str, Any] = collate(self.features.__getitems__(list(rows)))
        mask = found.get("attention_mask")
        if mask is None or mask.ndim != 2 or len(mask) != len(rows):
            raise Unknowable("no attention mask says how long each row of a batch is")
        lengths = torch.tensor([self.lengths[row] for row in rows])
        if not torch.equal(mask.cpu().bool(), torch.arange(mask.shape[1]) < lengths[:, None]):
            raise Unknowable("rows are not padded on the right alone")
        return found

    def forward(self, batch: Mapping[str, Any]) -> Callable[[], object]:
        """A forward pass over a batch."""
        moved = on_device(batch, torch.device(self.precision.device))
        return lambda: self.task.forward(self.model, moved, self.problem)

    def hidden(self, rows: Sequence[int]) -> torch.Tensor:
        """What rows leave the prefix as, `(rows, tokens, width)`, on the CPU.

        Raises:
            Unknowable: The layers return something else.
        """
        batch = self.batch(rows)
        with self._answering(), torch.no_grad(), autocast_context(self.precision):
            return _checked(run_prefix(self.prefix, self.forward(batch)), batch).cpu()

    def try_out(self) -> Reached:
        """Runs a few rows as training does, and looks at all that would make a row another one the next time.

        Returns:
            What was called on the way, with the hidden states.

        Raises:
            Unknowable: Something below is trained or drawn by chance, or the layers are not called one by one.
        """
        rows = sampled(len(self.features), number=0)
        batch, mode = self.batch(rows), self.model.training
        self.model.train()
        drawn = _chance(self.precision)
        try:
            with autocast_context(self.precision):
                reached = reach(self.model, self.prefix, self.forward(batch))
        finally:
            self.model.train(mode)
        hidden = _checked(reached.hidden, batch)
        if reached.order != tuple(range(self.prefix.count)):
            raise Unknowable("the layers are not called one after the other")
        if hidden.requires_grad:
            raise Unknowable("something before the layers is trained")
        if not torch.equal(drawn, _chance(self.precision)) or not torch.equal(hidden.cpu(), self.hidden(rows)):
            raise Unknowable("these layers compute something else in training (dropout)")
        return reached

    def fill(self, put: Callable[[int, torch.Tensor], None], *, share: tuple[int, int] = (0, 1)) -> None:
        """Computes the rows.

        Args:
            put: Is given the number of a row and its hidden states, `(tokens, width)`.
            share: `(i, n)`: only the i-th of n processes' part of the batches.

        Raises:
            Unknowable: A batch is not as it must be.
        """
        lengths = self.lengths
        for rows in list(batches(lengths))[share[0] :: share[1]]:
            hidden = self.hidden(rows)
            for row, one in zip(rows, hidden, strict=True):
                put(row, one[: lengths[row]])

    def agrees(self, known: HiddenRows, *, number: int) -> bool:
        """Whether a few rows are computed again as they are known.

        Args:
            known: What is known.
            number: Which rows are taken.
        """
        rows = sampled(len(known), number=number)
        return all(
            _close(one[: len(known.row(row))], known.row(row)) for row, one in zip(rows, self.hidden(rows), strict=True)
        )

    def is_all(self, known: HiddenRows) -> bool:
        """Whether the layers above read nothing else of those below: the end of all layers stays the same."""
        if self.prefix.count == len(self.prefix.layers):
            return True
        rows = sampled(len(known), number=0)
        batch = self.batch(rows)
        with self._answering(), torch.no_grad(), autocast_context(self.precision):
            found = []
            for given in (None, self.known(known)):
                with last_output(self.prefix) as outputs, passed_over(given, rows, batch):
                    self.forward(batch)()
                found.append(_checked(outputs[0], batch).cpu())
        ends = [len(known.row(row)) for row in rows]
        return all(_close(one[:end], other[:end]) for one, other, end in zip(*found, ends, strict=True))

    def known(self, hidden: HiddenRows) -> KnownPrefix:
        """The split with what is known of its rows."""
        return KnownPrefix(self.prefix, hidden, self.precision.device)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Within, the model is as it is when it answers."""
        mode = self.model.training
        self.model.eval()
        try:
            yield
        finally:
            self.model.train(mode)


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of like length, as many as `TOKENS` hold; they follow from the lengths alone.

    Args:
        lengths: Tokens of each row.
    """
    rows: list[int] = []
    for row in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        if rows and lengths[rows[0]] * (len(rows) + 1) > TOKENS:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


def sampled(count: int, *, number: int) -> list[int]:
    """A few of so many rows, others for each number."""
    chosen = np.random.default_rng((count, number)).choice(count, size=min(SAMPLED_ROWS, count), replace=False)
    rows: list[int] = np.sort(chosen).tolist()
    return rows


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two hidden states differ by no more than rounding."""
    apart = torch.linalg.vector_norm(one.float() - other.float())
    return bool(apart <= CLOSE[other.dtype] * torch.linalg.vector_norm(other.float()))


def _checked(hidden: Any, batch: Mapping[str, Any]) -> torch.Tensor:
    """Hidden states of a batch, if a layer returned nothing else."""
    mask = batch["attention_mask"]
    if (
        not isinstance(hidden, torch.Tensor)
        or hidden.dtype not in CLOSE
        or hidden.shape != (*mask.shape, hidden.shape[-1])
    ):
        raise Unknowable("the layers return other things than the hidden states of each token of each row")
    return hidden


def _chance(precision: Precision) -> torch.Tensor:
    """Where the generator stands that dropout draws from."""
    if torch.device(precision.device).type == "cuda":
        return torch.cuda.get_rng_state(precision.device)
    return torch.get_rng_state()
