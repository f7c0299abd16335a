"""The loss of every step looked at: where it begins, that it stays finite, and that it does not run away."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from statistics import median

import torch

from lora_ft.errors import GateError
from lora_ft.train.gates import check_finite

logger = logging.getLogger(__name__)

START_STEPS = 20
"""Losses of a batch of one row differ threefold; the median of twenty is within a third of what it should be."""
WINDOW_STEPS = 10
LASTING_WINDOWS = 5
SUDDEN = 3.0
"""So many times its start, over one window, and the loss has run away."""
LASTING = 2.0
"""So many times its start, over each of five windows in a row, and it will not come back."""
LEAST = 0.3
"""A start below this counts as this: a model that knew nearly everything has far to go before it knows nothing."""
FALLS = 0.95
"""Below so many times its start a loss has fallen."""
GRADIENTS = 100.0
"""So many times the first gradients over one window, with a loss that is not below its start."""

NEW_HEAD = (0.25, 4.0)
"""Between these times the loss of equal probabilities a new head begins; measured: 0.9 to 2.4, see docs/gates.md."""
OWN_HEAD = (1.25, 2.0)
"""So many times the loss of equal probabilities, and a base with a head of its own is doubtful, or a wrong one.

Measured: random tiny bases 1.04 to 1.17; pretrained ones are below 1.
"""


class LossWatch:
    """Looks at the losses and gradients of a run; on an accelerator without waiting for them at each step.

    Args:
        device: Where losses are.
        off: Names of the gates that are turned off.
        uniform: The loss of equal probabilities; None where there is no such number.
        new_head: Whether the head was initialised for this run.
    """

    def __init__(self, device: torch.device, *, off: Collection[str], uniform: float | None, new_head: bool) -> None:
        self.off, self.uniform, self.new_head = off, uniform, new_head
        self.start: list[float] = []
        self.recent: deque[float] = deque(maxlen=WINDOW_STEPS * LASTING_WINDOWS)
        self.start_norms: list[float] = []
        self.recent_norms: deque[float] = deque(maxlen=WINDOW_STEPS)
        self._zero = torch.zeros((), device=device)
        self._sum, self._counted = self._zero, False
        self._weight: torch.Tensor | float = 1.0
        self._losses: list[torch.Tensor] = []
        self._norms: list[torch.Tensor] = []

    def weigh(self, own: torch.Tensor, totals: torch.Tensor, *, processes: int) -> None:
        """Takes what the losses of the next step are averaged over on this process, and on all.

        A loss is a process's share of that of all, times the processes: where one has fewer rows than others, at the
        end of an epoch, its own mean is looked at.

        Args:
            own: What `Task.totals` counted here.
            totals: The same on all processes.
            processes: How many there are.
        """
        here, everywhere = own.flatten()[0], totals.flatten()[0]
        self._weight = torch.where(here > 0, everywhere / (here.clamp(min=1e-6) * processes), 1.0)

    def add(self, loss: torch.Tensor | None, *, last_of_step: bool) -> None:
        """Takes the loss of one of the batches of a step; they add up. None: of no row, a step of which has no loss."""
        if loss is not None:
            self._sum, self._counted = self._sum + loss.detach().sum() * self._weight, True
        if last_of_step:
            if self._counted:
                self._losses.append(self._sum)
            self._sum, self._counted = self._zero, False

    def add_norm(self, norm: torch.Tensor | float | None) -> None:
        """Takes the norm of a step's gradients, before they were clipped."""
        if norm is not None:
            self._norms.append(torch.as_tensor(norm, dtype=torch.float32, device=self._zero.device))

    @property
    def due(self) -> bool:
        """Whether it is time to look: at the first step, at each on a CPU, every ten steps elsewhere."""
        return self._zero.device.type == "cpu" or len(self._losses) >= WINDOW_STEPS or not self.start

    def look(self, *, step: int, learning_rate: float, asked_rate: float) -> None:
        """Looks at all that was taken since.

        Args:
            step: The optimizer step, from 0.
            learning_rate: At this step.
            asked_rate: `training_args.learning_rate`.

        Raises:
            GateError: A loss is not finite, begins where it cannot begin, or ran away.
        """
        losses = torch.stack(self._losses).tolist() if self._losses else []
        norms = torch.stack(self._norms).tolist() if self._norms else []
        self._losses, self._norms = [], []
        if "finite-loss" not in self.off:
            finite = bool(torch.tensor([*losses, float(self._sum)]).isfinite().all())
            check_finite(finite, step=step, learning_rate=learning_rate)
        if losses and step == 0 and not self.start and "loss-at-start" not in self.off:
            check_start(losses[0], uniform=self.uniform, new_head=self.new_head)
        self._keep(losses, norms)
        if losses and "divergence" not in self.off:
            self._check_divergence(step=step, asked_rate=asked_rate)

    def state(self) -> dict[str, list[float]]:
        """All that was seen, for a checkpoint between two steps."""
        return {
            "start": list(self.start),
            "recent": list(self.recent),
            "start_norms": list(self.start_norms),
            "recent_norms": list(self.recent_norms),
            "losses": [float(one) for one in self._losses],
            "norms": [float(one) for one in self._norms],
        }

    def restore(self, state: Mapping[str, Sequence[float]]) -> None:
        """Goes on from what `state` said."""
        self.start, self.start_norms = list(state["start"]), list(state["start_norms"])
        self.recent = deque(state["recent"], maxlen=self.recent.maxlen)
        self.recent_norms = deque(state["recent_norms"], maxlen=self.recent_norms.maxlen)
        self._losses = [self._zero + one for one in state["losses"]]
        self._norms = [self._zero + one for one in state["norms"]]

    @property
    def falls(self) -> bool | None:
        """Whether the loss is below where it began; None before that can be told."""
        seen = [*self.start, *self.recent]
        half = min(START_STEPS, len(seen) // 2)
        return median(seen[-half:]) < FALLS * median(seen[:half]) if half else None

    def _keep(self, losses: Sequence[float], norms: Sequence[float]) -> None:
        """Takes the first twenty of each for its start, the others for what is recent."""
        for values, start, recent in (
            (losses, self.start, self.recent),
            (norms, self.start_norms, self.recent_norms),
        ):
            for value in values:
                if len(start) < START_STEPS:
                    start.append(value)
                else:
                    recent.append(value)

    def _check_divergence(self, *, step: int, asked_rate: float) -> None:
        if len(self.recent) < WINDOW_STEPS:
            return
        begun = median(self.start)
        if self.uniform is not None:  # a run that diverged within its first steps did not begin there
            begun = min(begun, 2 * max(self.uniform, self.start[0]))
        recent = list(self.recent)
        now, floor = median(recent[-WINDOW_STEPS:]), max(begun, LEAST)
        windows = [median(recent[at : at + WINDOW_STEPS]) for at in range(0, len(recent), WINDOW_STEPS)]
        lasts = len(recent) == self.recent.maxlen and min(windows) > LASTING * floor
        if now > SUDDEN * floor or lasts:
            raise _diverged(f"the loss rose from {begun:.3g} to {now:.3g}", step=step, asked_rate=asked_rate)
        if len(self.recent_norms) == WINDOW_STEPS and now > floor:
            first, norm = median(self.start_norms), median(self.recent_norms)
            if norm > GRADIENTS * max(first, 1e-6):
                told = f"the norm of the gradients rose from {first:.3g} to {norm:.3g}, the loss from {begun:.3g}"
                raise _diverged(f"{told} to {now:.3g}", step=step, asked_rate=asked_rate)


def check_start(loss: float, *, uniform: float | None, new_head: bool) -> None:
    """Compares the loss before the first update with that of equal probabilities.

    A new head knows nothing, so it begins there, give or take what random weights do. A base with a head of its own
    was trained on what it is asked and begins below; above, its tokenizer or its weights are not what they should be.

    Args:
        loss: Of the first batch.
        uniform: The loss of equal probabilities; None where there is no such number.
        new_head: Whether the head was initialised for this run.

    Raises:
        GateError: A base with a head of its own is far worse than equal probabilities.
    """
    if uniform is None or uniform <= 0:
        return
    ratio, off = loss / uniform, "checks: {loss-at-start: false} turns this warning off"
    begun = f"loss at start: {loss:.3g}, and equal probabilities have {uniform:.3g}"
    if new_head and not NEW_HEAD[0] <= ratio <= NEW_HEAD[1]:
        why = (
            "a new head cannot know that much: do the rows hold their labels?"
            if ratio < 1
            else "a new head begins near it: look at the labels, and at model.dtype"
        )
        logger.warning("%s; %s (%s)", begun, why, off)
    elif not new_head and ratio > OWN_HEAD[1]:
        raise GateError(
            f"{begun}: this base does not know its own vocabulary. Is it the right base, with the tokenizer that it "
            "was trained with (model.pretrained_model_name_or_path, model.revision), in a precision that holds it "
            "(model.dtype)?",
            gate="loss-at-start",
        )
    elif not new_head and ratio > OWN_HEAD[0]:
        logger.warning("%s: worse than guessing. Is it the tokenizer that this base was trained with? (%s)", begun, off)


def _diverged(told: str, *, step: int, asked_rate: float) -> GateError:
    return GateError(
        f"divergence: {told} by step {step + 1}: this run has unlearned what it knew, and no adapter was written. Set "
        f"training_args.learning_rate: {asked_rate / 3:.2g} (a third of {asked_rate:.2g}), or a longer "
        "training_args.warmup_steps",
        gate="divergence",
    )
