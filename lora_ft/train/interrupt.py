"""Ctrl-C: a checkpoint at the next step, then the end; a second Ctrl-C ends at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

import transformers


class InterruptCallback(transformers.TrainerCallback):  # type: ignore[misc]
    """Turns SIGINT into a checkpoint and an orderly end.

    Only in a run of one process: several would have to agree on the step first.

    Attributes:
        received: Whether a signal came.
    """

    def __init__(self) -> None:
        self.received = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Takes the signal over."""
        if args.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._receive)

    def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Asks for a checkpoint and the end."""
        if self.received:
            args.save_total_limit = None  # at 1 transformers 5.23 deletes what is not the best one when training ends
            control.should_save = True
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        """Gives the signal back."""
        self.give_back()

    def give_back(self) -> None:
        """Restores the handler that was there before; also for a run that ended by an error."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self.give_back()
