"""The progress bar of a run: one bar, one line an evaluation, the loss beside it."""

from __future__ import annotations

import sys
from typing import Any

from transformers.trainer_callback import ProgressCallback

SHOWN_METRICS = 4


class OneScreenProgress(ProgressCallback):  # type: ignore[misc]
    """transformers' progress bar without a line for every logged step."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Puts the loss beside the bar, and writes one line for each evaluation."""
        if not state.is_world_process_zero or self.training_bar is None or not logs:
            return
        if "loss" in logs:
            self.training_bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
        scores = {name.removeprefix("eval_"): value for name, value in logs.items() if name.startswith("eval_")}
        if scores:
            shown = [
                f"{name} {value:.4f}"
                for name, value in scores.items()
                if isinstance(value, float) and name not in ("runtime", "samples_per_second", "steps_per_second")
            ]
            self.training_bar.write(
                f"  epoch {state.epoch:4.1f}   " + "   ".join(shown[: SHOWN_METRICS + 1]), file=sys.stderr
            )
