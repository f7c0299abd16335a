"""Times a transformers Trainer that a contender's script made, then counts a few of its steps."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import transformers

from benchmarks.contender import peak_mb
from benchmarks.lean.clock import StepClock, StepCounts, resident_mb

COUNTED = 2
"""Steps that are counted."""


def measured(make: Callable[..., transformers.Trainer], *, count_after: int | None, metric: str | None) -> None:
    """Trains, and prints one line of JSON.

    Args:
        make: Makes the trainer; a keyword `max_steps`, -1 for whole epochs.
        count_after: Steps that the second, counted run passes over; None: nothing is counted.
        metric: What of the evaluation is reported beside the time; None: nothing is evaluated.
    """
    imports_mb = resident_mb()
    trainer, clock = make(max_steps=-1), StepClock()
    trainer.add_callback(clock)
    started = time.perf_counter()
    trainer.train()
    train_s = time.perf_counter() - started
    scores = {f"dev_{metric}": trainer.evaluate()[f"eval_{metric}"]} if metric else {}
    result: dict[str, Any] = {"train_s": train_s, **clock.result(), "peak_mb": peak_mb(), "imports_mb": imports_mb}
    if count_after is not None:
        del trainer
        trainer, counts = make(max_steps=count_after + COUNTED), StepCounts(passed_over=count_after)
        trainer.add_callback(counts)
        trainer.train()
        result |= counts.result()
    print(json.dumps({**result, **scores}))
