"""What a run is doing at this moment, where another process can read it: a few bytes of shared memory."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable
from typing import Any

NAMES = ("preparing", "step", "evaluation", "writing", "renaming", "pruning", "measuring", "adapter")
PAUSE_S = 0.02
"""So long a run stands still at the point where it is to be struck, or the shortest phases would never be met."""


class Phases:
    """Counts how often each phase was entered, and keeps the one that a run is in.

    Args:
        target: The phase in which the run is to be struck, or None.
        count: Once it has been entered so often.
    """

    def __init__(self, target: str | None = None, count: int = 0) -> None:
        self.target, self.count = target, count
        self.memory = mmap.mmap(-1, 2)  # the phase, and whether the point was reached; shared with whoever watches
        self.entered = dict.fromkeys(NAMES, 0)

    @property
    def now(self) -> str:
        """The phase that the run is in."""
        return NAMES[self.memory[0]]

    @property
    def reached(self) -> bool:
        """Whether the run has come to where it is to be struck."""
        return self.target == NAMES[0] or bool(self.memory[1])

    def within(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function that says that its phase has begun, and that the one before goes on."""
        index = NAMES.index(name)

        def watched(*arguments: Any, **others: Any) -> Any:
            before, self.memory[0] = self.memory[0], index
            self.entered[name] += 1
            if name == self.target and self.entered[name] == self.count:
                self.memory[1] = 1
                time.sleep(PAUSE_S)
            try:
                return function(*arguments, **others)
            finally:
                self.memory[0] = before

        return watched

    def watch(self) -> None:
        """Has the functions of a run say where it is; in the process of the run alone."""
        from lora_ft.adapters import folder
        from lora_ft.train import resumable, run

        for place, names in {
            resumable.ResumableTrainer: {"training_step": "step", "evaluation_loop": "evaluation", "_write": "writing"},
            resumable: {
                "write_checkpoint": "writing", "write_weights": "writing", "write_state": "writing", "prune": "pruning",
            },
            folder: {"_put_in_place": "renaming"},
            run: {"finish": "measuring", "save_adapter": "adapter"},
        }.items():  # fmt: skip
            for function, name in names.items():
                setattr(place, function, self.within(name, getattr(place, function)))
