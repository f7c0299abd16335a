"""Two transformers callbacks that measure any Trainer alike, ours or not: a clock, and the counts of a step."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import psutil
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.flops import flop_counter
from benchmarks.saved import SavedStorages


def resident_mb() -> float:
    """Resident memory of this process now, in MB."""
    return float(psutil.Process().memory_info().rss) / 2**20


def real_and_computed(lengths: Sequence[int], batches: Iterable[Sequence[int]]) -> tuple[int, int]:
    """Real tokens of an epoch, and the tokens computed for them when each batch is padded to its longest row."""
    real = computed = 0
    for batch in batches:
        own = [lengths[row] for row in batch]
        real += sum(own)
        computed += len(own) * max(own)
    return real, computed


class StepClock(transformers.TrainerCallback):  # type: ignore[misc]
    """Times steps from the end of one to the end of the next; putting batches together is part of it.

    Evaluations and saves are no part of a step; `train_s` is the whole of `trainer.train()` with all that is in it.
    """

    def __init__(self) -> None:
        self.step_s: list[float] = []
        self.losses: list[float] = []
        self.before_mb = self.epochs = 0.0
        self.real = self.computed = 0
        self._since = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        self.before_mb = resident_mb()
        self._since = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        now = time.perf_counter()
        self.step_s.append(now - self._since)
        self._since = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        self._since = time.perf_counter()

    def on_save(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        self._since = time.perf_counter()

    def on_log(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        if "loss" in context["logs"]:
            self.losses.append(float(context["logs"]["loss"]))

    def on_train_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        loader = context["train_dataloader"]
        lengths = [len(row["input_ids"]) for row in loader.dataset]
        self.real, self.computed = real_and_computed(lengths, loader.batch_sampler)
        self.epochs = float(state.epoch)

    def result(self) -> dict[str, Any]:
        """What was measured; a run is of whole epochs, and tokens a second are real ones over all its steps."""
        return {
            "steps": len(self.step_s),
            "step_s": statistics.median(self.step_s),
            "tokens": self.real * self.epochs,
            "tokens_per_s": self.real * self.epochs / sum(self.step_s),
            "padded_ratio": self.computed / self.real,
            "before_mb": self.before_mb,
            "losses": self.losses,
        }


class StepCounts(transformers.TrainerCallback):  # type: ignore[misc]
    """FLOPs of steps, and the bytes kept from forward to backward, in distinct storages that no parameter has.

    FLOPs are those of matrix products and attention, forward and backward; attention counts where torch knows the
    kernel. Counting is slow: no step that is counted is timed.

    Args:
        passed_over: Steps at the start that are not counted.
    """

    def __init__(self, *, passed_over: int) -> None:
        self.passed_over = passed_over
        self.flops: list[int] = []
        self.saved_bytes: list[int] = []
        self.computed_tokens = 0
        self._within = ExitStack()
        self._flops: FlopCounterMode | None = None
        self._saved = SavedStorages()

    def on_step_begin(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        if state.global_step < self.passed_over:
            return
        model = context["model"]
        self._saved = SavedStorages()
        self._flops = flop_counter()
        self._within.enter_context(self._flops)
        self._within.enter_context(self._saved.counting(leave_out=model))
        embedded = model.get_input_embeddings().register_forward_hook(self._count_tokens)
        self._within.callback(embedded.remove)

    def on_step_end(self, args: Any, state: Any, control: Any, **context: Any) -> None:
        if self._flops is None:
            return
        self._within.close()
        self.flops.append(self._flops.get_total_flops())
        self.saved_bytes.append(self._saved.bytes)
        self._flops = None

    def _count_tokens(self, module: Any, inputs: tuple[torch.Tensor, ...], output: Any) -> None:
        self.computed_tokens += inputs[0].numel()

    def result(self) -> dict[str, Any]:
        """Means over the counted steps."""
        steps = len(self.flops)
        return {
            "step_flops": sum(self.flops) / steps,
            "saved_mb": sum(self.saved_bytes) / steps / 2**20,
            "counted_tokens": self.computed_tokens / steps,
        }
