"""Where a process of a run stands: a few words set as it goes, for whoever asks why nothing moves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import transformers


class Standing:
    """Where a process stands: a few words that its main thread sets, without a lock and without asking a device.

    Attributes:
        marks: How often it was set.
        step: Optimizer steps done.
        doing: What the process does now.
        batch: The size of the last training batch, `8 rows x 32 tokens`; empty before the first.
    """

    def __init__(self) -> None:
        self.marks = 0
        self.step = 0
        self.doing = "preparing"
        self.batch = ""

    def at(self, doing: str, *, step: int | None = None) -> None:
        """Says what is done from now on."""
        self.doing, self.marks = doing, self.marks + 1
        self.step = self.step if step is None else step

    def takes(self, batch: Mapping[str, Any]) -> None:
        """Remembers how large a batch is; only shapes are looked at."""
        sized = batch.get("input_ids", batch.get("labels"))
        if isinstance(sized, torch.Tensor) and sized.ndim:
            tokens = f" x {sized.shape[1]} tokens" if sized.ndim > 1 else ""
            self.batch = f"{sized.shape[0]} {'row' if sized.shape[0] == 1 else 'rows'}{tokens}"

    @property
    def where(self) -> str:
        """In words."""
        return f"step {self.step + 1}, {self.doing}" if self.step or self.batch else self.doing


class Marks(transformers.TrainerCallback):  # type: ignore[misc]
    """Keeps what the loop does; see `Standing`.

    Args:
        standing: Where it is kept.
    """

    def __init__(self, standing: Standing) -> None:
        self.standing = standing
        self._batches = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Before the first step."""
        self.standing.at("reading rows", step=state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Rows were read and sums agreed upon."""
        self.standing.at("forward and backward", step=state.global_step)

    def on_substep_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """One of several batches of a step."""
        self.standing.at("forward and backward", step=state.global_step)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The gradients are there."""
        self.standing.at("optimizer", step=state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The step is done."""
        self._batches = 0
        self.standing.at("reading rows", step=state.global_step)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """A batch of an evaluation."""
        self._batches += 1
        self.standing.at(f"evaluation, after batch {self._batches}", step=state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """An evaluation is done."""
        self._batches = 0
        self.standing.at("after an evaluation", step=state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """The adapter is measured and written."""
        self.standing.at("measuring and writing the adapter", step=state.global_step)
