"""Whether one of the processes got a signal, known to all after the same step, without waiting for an accelerator."""

from __future__ import annotations

from collections import deque

import torch


class Agreement:
    """What the processes told each other with the sums of each step.

    On an accelerator the answer of the step before counts, which has long arrived when it is read; each process reads
    the same one, so all of them end after the same step.
    """

    def __init__(self) -> None:
        self._answers: deque[tuple[torch.Tensor, torch.cuda.Event | None]] = deque(maxlen=2)

    def add(self, answer: torch.Tensor) -> None:
        """Takes the sum of what the processes said in a step.

        Args:
            answer: A number, above zero where one of them got a signal.
        """
        if answer.device.type == "cuda":
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # as torch 2.13 has it
            arriving = answer.to("cpu", non_blocking=True)
            event.record()
            self._answers.append((arriving, event))
        else:
            self._answers.append((answer, None))

    @property
    def said(self) -> bool:
        """Whether the run ends after this step."""
        if not self._answers:
            return False
        answer, event = self._answers[-1 if self._answers[-1][1] is None else 0]
        if event is not None:
            event.synchronize()
        return bool(answer > 0)
